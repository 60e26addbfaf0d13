#include <memory>

#include "host/bind.hpp"
#include "relaxed/problem.hpp"

namespace lk {

template <>
struct FieldsOf<RelaxedProblem> {
  using P = RelaxedProblem;
  static constexpr auto list = std::make_tuple(
      Field{"dtype", &P::dtype}, Field{"groups", &P::groups}, Field{"samples", &P::samples}, Field{"cells", &P::cells},
      Field{"classes", &P::classes}, Field{"inverse", &P::inverse}, Field{"hard", &P::hard},
      Field{"logits", &P::logits}, Field{"seed", &P::seed}, Field{"offset", &P::offset});
};

namespace {

// Cells of one task that has `samples` of them: whole blocks.
int64_t cells_of_task(int64_t block, int64_t samples) {
  return block * std::max<int64_t>(kTaskElements / block / std::max<int64_t>(samples, 1), 1);
}

// Calls f(part, workspace) for each part.
template <class F>
void each_part(const RelaxedProblem& p, const Cut& cut, int threads, F f) {
  without_gil([&] {
    cut.each_part(threads, [&](const Part& part) {
      const std::unique_ptr<double[]> workspace(new double[static_cast<size_t>(block_workspace(p.classes))]);
      f(part, workspace.get());
    });
  });
}

void bernoulli_forward(const RelaxedProblem& p, int threads, void* y) {
  const Cut cut(p.groups, p.samples, 1, p.cells, true, kTaskElements);
  const auto kernel = active<RelaxedKernels>().bernoulli_forward[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, y, part); }); });
}

void bernoulli_backward(const RelaxedProblem& p, int threads, const void* y, const void* of_y, void* of_logits) {
  const Cut cut(p.groups, p.samples, 1, p.cells, false, cells_of_task(kTile, p.samples));
  const auto kernel = active<RelaxedKernels>().bernoulli_backward[p.dtype];
  const RelaxedGradients gradients{y, of_y, of_logits};
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, gradients, part); }); });
}

void categorical_forward(const RelaxedProblem& p, int threads, void* y) {
  const Cut cut(p.groups, p.samples, 1, p.cells, true, cells_of_task(cells_of_block(p.classes), 1));
  const auto kernel = active<RelaxedKernels>().categorical_forward[p.dtype];
  each_part(p, cut, threads, [&](const Part& part, double* workspace) { kernel(p, y, part, workspace); });
}

void categorical_backward(const RelaxedProblem& p, int threads, const void* y, const void* of_y, void* of_logits) {
  const Cut cut(p.groups, p.samples, 1, p.cells, false, cells_of_task(cells_of_block(p.classes), p.samples));
  const auto kernel = active<RelaxedKernels>().categorical_backward[p.dtype];
  const RelaxedGradients gradients{y, of_y, of_logits};
  each_part(p, cut, threads, [&](const Part& part, double* workspace) { kernel(p, gradients, part, workspace); });
}

}  // namespace

void bind_relaxed(pybind11::module_& m) {
  define_struct<RelaxedProblem>(m, "RelaxedProblem");
  define<&bernoulli_forward>(m, "relaxed_bernoulli_forward", {"threads", "y"});
  define<&bernoulli_backward>(m, "relaxed_bernoulli_backward", {"threads", "y", "of_y", "of_logits"});
  define<&categorical_forward>(m, "relaxed_categorical_forward", {"threads", "y"});
  define<&categorical_backward>(m, "relaxed_categorical_backward", {"threads", "y", "of_y", "of_logits"});
}

}  // namespace lk
