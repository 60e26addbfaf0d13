#include <atomic>
#include <memory>

#include "families/problem.hpp"
#include "host/bind.hpp"

namespace lk {

template <>
struct FieldsOf<FamilyProblem> {
  using P = FamilyProblem;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"groups", &P::groups}, Field{"samples", &P::samples},
                      Field{"cols", &P::cols}, Field{"classes", &P::classes}, Field{"antithetic", &P::antithetic},
                      Field{"logits", &P::logits}, Field{"seed", &P::seed}, Field{"offset", &P::offset});
};

namespace {

// Returns false where elements of a Categorical have no probabilities; class 0 is drawn for them.
bool sample(const FamilyProblem& p, int threads, void* z) {
  // Parts of the categorical family have few columns and many samples, since all samples of a part share its tables.
  const int64_t columns = p.classes == 0 ? kTaskColumns : elements_of_block(p.classes);
  const Cut cut(p.groups, p.samples, 1, p.cols, true, columns);
  const FamilyKernels& kernels = active<FamilyKernels>();
  std::atomic<bool> proper{true};
  without_gil([&] {
    cut.each_part(threads, [&](const Part& part) {
      if (p.classes == 0) {
        kernels.bernoulli_sample[p.dtype](p, z, part);
      } else {
        const int64_t cells = elements_of_block(p.classes) * p.classes;
        const std::unique_ptr<uint64_t[]> table(new uint64_t[static_cast<size_t>(table_words(cells))]);
        if (!kernels.categorical_sample[p.dtype](p, z, part, table.get())) proper = false;
      }
    });
  });
  return proper;
}

}  // namespace

void bind_families(pybind11::module_& m) {
  define_struct<FamilyProblem>(m, "FamilyProblem");
  define<&sample>(m, "families_sample", {"threads", "z"});
}

}  // namespace lk
