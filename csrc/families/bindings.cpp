#include <memory>

#include "families/problem.hpp"
#include "host/bind.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

void sample(int type, int threads, int64_t groups, int64_t samples, int64_t cols, int64_t classes, bool antithetic,
            uintptr_t logits, int64_t seed, uintptr_t seeds, int64_t seed_stride, uint64_t offset, uintptr_t z) {
  const Discrete problem{groups,
                         samples,
                         cols,
                         classes,
                         at(logits),
                         antithetic,
                         seeds != 0 ? at<const int64_t>(seeds) : &seed,
                         seeds != 0 ? seed_stride : 0,
                         offset};
  // Of the categorical family few columns and many samples: the tables serve every sample of a part.
  const int64_t columns = classes == 0 ? kTaskColumns : elements_of_block(classes);
  const Cut cut(groups, samples, 1, cols, true, columns);
  const FamilyKernels& kernels = active<FamilyKernels>();
  without_gil([&] {
    parallel_for(cut.parts(), worthwhile_threads(threads, cut.elements()), [&](int64_t i) {
      int64_t col_part;
      const Part part = cut.part(i, col_part);
      if (classes == 0) {
        kernels.bernoulli_sample[type](problem, at(z), part);
      } else {
        const std::unique_ptr<float[]> table(new float[static_cast<size_t>(elements_of_block(classes) * classes)]);
        kernels.categorical_sample[type](problem, at(z), part, table.get());
      }
    });
  });
}

}  // namespace

void bind_families(py::module_& m) { m.def("families_sample", &sample); }

}  // namespace lk
