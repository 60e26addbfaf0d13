#include <atomic>
#include <memory>

#include "host/bind.hpp"
#include "score/problem.hpp"

namespace lk {

template <>
struct FieldsOf<ScoreProblem> {
  using P = ScoreProblem;
  static constexpr auto list = std::make_tuple(
      Field{"family", &P::family}, Field{"control", &P::control}, Field{"dtype", &P::dtype},
      Field{"groups", &P::groups}, Field{"samples", &P::samples}, Field{"rows", &P::rows}, Field{"cols", &P::cols},
      Field{"classes", &P::classes}, Field{"folds", &P::folds}, Field{"parameters", &P::parameters}, Field{"z", &P::z},
      Field{"seed", &P::seed}, Field{"offset", &P::offset}, Field{"per_element", &P::per_element},
      Field{"double_values", &P::double_values}, Field{"values", &P::values}, Field{"baseline", &P::baseline},
      Field{"baseline_sampled", &P::baseline_sampled}, Field{"upstream", &P::upstream});
};

namespace {

// Workspace that is not filled with zeros first.
struct Workspace {
  std::unique_ptr<char[]> bytes;
  Workspace(Dtype dtype, int64_t elements) : bytes(new char[static_cast<size_t>(elements * compute_bytes_of(dtype))]) {}
  void* get() const { return bytes.get(); }
};

// How many parts the samples of each tile are dealt to: more than one only where a few tiles have all the work, and
// then few enough that their partial sums stay small. By shape alone, so that bits do not depend on threads.
int64_t chunks_of(const ScoreProblem& p) {
  const int64_t plane = p.rows * p.cols, limit = p.family == kCategorical ? elements_of_block(p.classes) : kTile;
  const int64_t tiles = std::max<int64_t>(p.groups * ((plane + limit - 1) / limit), 1);
  const int64_t by_work = p.groups * p.samples * plane / kThreadElements;
  const int64_t by_memory = p.samples / (p.folds * kMostSums * std::max<int64_t>(p.classes, 1));
  return std::max<int64_t>(std::min({32 / tiles, by_work, by_memory}), 1);
}

// Float64 means of each row's values, or a given baseline of each row.
std::unique_ptr<double[]> row_shifts(const ScoreProblem& p, int threads) {
  const bool given = p.baseline != nullptr && !p.baseline_sampled, centred = p.control != kNone;
  if (p.per_element || (!given && !centred)) return nullptr;
  const int64_t count = p.groups * p.rows;
  std::unique_ptr<double[]> shift(new double[static_cast<size_t>(count)]);
  const bool wide = p.dtype == kFloat64 || p.double_values;
  if (given) {
    for (int64_t i = 0; i < count; ++i)
      shift[static_cast<size_t>(i)] =
          wide ? static_cast<const double*>(p.baseline)[i] : static_cast<const float*>(p.baseline)[i];
    return shift;
  }
  const auto means = active<ScoreKernels>().row_means[wide ? 1 : 0];
  constexpr int64_t block = 512;
  const int64_t blocks = (p.rows + block - 1) / block;
  parallel_for(p.groups * blocks, worthwhile_threads(threads, count * p.samples), [&](int64_t i) {
    const int64_t group = i / blocks, row = i % blocks * block;
    const char* values = static_cast<const char*>(p.values) + group * p.samples * p.rows * (wide ? 8 : 4);
    means(values, p.samples, p.rows, row, std::min(row + block, p.rows), shift.get() + group * p.rows);
  });
  return shift;
}

// False where z has values outside the family's support. `gradients`, `variances`: of the parameters; the latter may
// be null.
bool gradient(const ScoreProblem& given, int threads, void* const (&gradients)[2], void* const (&variances)[2]) {
  ScoreProblem p = given;
  std::copy_n(gradients, 2, p.gradients);
  std::copy_n(variances, 2, p.variances);
  if (p.groups * p.rows * p.cols == 0) return true;
  const int64_t tiles = kTaskElements / kTile / p.samples;
  const Cut cut(p.groups, p.samples, p.rows, p.cols, false, kTile * std::max<int64_t>(tiles, 1));
  const ScoreKernels& kernels = active<ScoreKernels>();
  std::atomic<bool> inside{true};
  without_gil([&] {
    const std::unique_ptr<double[]> shift = row_shifts(p, threads);
    p.shift = shift.get();
    const int64_t chunks = chunks_of(p), step = (p.samples + chunks - 1) / chunks;
    const int64_t sums = p.folds * kMostSums * p.groups * p.rows * p.cols * std::max<int64_t>(p.classes, 1);
    const Workspace partial(p.dtype, chunks > 1 ? chunks * sums : 0);
    const int workers = worthwhile_threads(threads, cut.elements());
    parallel_for(cut.parts() * chunks, workers, [&](int64_t i) {
      Part part = cut.part(i / chunks);
      const int64_t chunk = i % chunks;
      part.sample0 = std::min(chunk * step, p.samples);
      part.sample1 = std::min(part.sample0 + step, p.samples);
      const Workspace workspace(p.dtype, score_workspace(p));
      char* to = static_cast<char*>(partial.get()) + chunk * sums * compute_bytes_of(p.dtype);
      if (!kernels.gradient[p.dtype](p, part, workspace.get(), chunks > 1 ? to : nullptr)) inside = false;
    });
    if (chunks > 1) {
      cut.each_part(threads, [&](const Part& part) {
        const Workspace workspace(p.dtype, score_workspace(p));
        kernels.merge[p.dtype](p, part, workspace.get(), partial.get(), chunks);
      });
    }
  });
  return inside;
}

}  // namespace

void bind_score(pybind11::module_& m) {
  define_enum<Family>(m, "Family", {"gaussian", "bernoulli", "antithetic", "categorical"});
  define_enum<Control>(m, "Control", {"none", "leave_one_out", "optimal"});
  define_struct<ScoreProblem>(m, "ScoreProblem");
  define<&gradient>(m, "score_gradient", {"threads", "gradients", "variances"});
}

}  // namespace lk
