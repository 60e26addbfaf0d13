#include <atomic>
#include <memory>

#include "host/bind.hpp"
#include "score/problem.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

// Room that is not filled with zeros first.
struct Room {
  std::unique_ptr<char[]> bytes;
  Room(int type, int64_t elements) : bytes(new char[static_cast<size_t>(elements * (type == kFloat64 ? 8 : 4))]) {}
  void* get() const { return bytes.get(); }
};

// How many parts the samples of each tile are dealt to: more than one only where a few tiles have all the work, and
// then few enough that their partial sums stay small. By shape alone, so that bits do not depend on threads.
int64_t chunks_of(const Score& p) {
  const int64_t plane = p.rows * p.cols, limit = p.family == kCategorical ? elements_of_block(p.classes) : kTile;
  const int64_t tiles = std::max<int64_t>(p.groups * ((plane + limit - 1) / limit), 1);
  const int64_t by_work = p.groups * p.samples * plane / kThreadElements;
  const int64_t by_memory = p.samples / (p.folds * kMostSums * std::max<int64_t>(p.classes, 1));
  return std::max<int64_t>(std::min({32 / tiles, by_work, by_memory}), 1);
}

// Float64 means of each row's values, or a given baseline of each row.
std::unique_ptr<double[]> row_shifts(const Score& p, int type, int threads) {
  const bool given = p.baseline != nullptr && !p.baseline_sampled, centred = p.control != kNone;
  if (p.per_element || (!given && !centred)) return nullptr;
  const int64_t count = p.groups * p.rows;
  std::unique_ptr<double[]> shift(new double[static_cast<size_t>(count)]);
  const bool wide = type == kFloat64 || p.double_values;
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

bool gradient(int type, int threads, int family, int control, int64_t groups, int64_t samples, int64_t rows,
              int64_t cols, int64_t classes, int64_t folds, bool per_element, bool double_values, uintptr_t first,
              uintptr_t second, uintptr_t z, int64_t seed, uintptr_t seeds, int64_t seed_stride, uint64_t offset,
              uintptr_t values, uintptr_t baseline, bool baseline_sampled, uintptr_t upstream, uintptr_t first_gradient,
              uintptr_t second_gradient, uintptr_t first_variance, uintptr_t second_variance) {
  Score problem{static_cast<Family>(family),
                static_cast<Control>(control),
                groups,
                samples,
                rows,
                cols,
                classes,
                folds,
                {at(first), at(second)},
                at(z),
                seeds != 0 ? at<const int64_t>(seeds) : &seed,
                seeds != 0 ? seed_stride : 0,
                offset,
                per_element,
                double_values,
                at(values),
                at(baseline),
                baseline_sampled,
                nullptr,
                at(upstream),
                {at(first_gradient), at(second_gradient)},
                {at(first_variance), at(second_variance)}};
  if (groups * rows * cols == 0) return true;
  const int64_t tiles = kTaskElements / (kTile * samples);
  const Cut cut(groups, samples, rows, cols, false, kTile * std::max<int64_t>(tiles, 1));
  const ScoreKernels& kernels = active<ScoreKernels>();
  std::atomic<bool> inside{true};
  without_gil([&] {
    const std::unique_ptr<double[]> shift = row_shifts(problem, type, threads);
    problem.shift = shift.get();
    const int64_t chunks = chunks_of(problem), step = (samples + chunks - 1) / chunks;
    const int64_t sums = folds * kMostSums * groups * rows * cols * std::max<int64_t>(classes, 1);
    const Room partial(type, chunks > 1 ? chunks * sums : 0);
    const int workers = worthwhile_threads(threads, cut.elements());
    parallel_for(cut.parts() * chunks, workers, [&](int64_t i) {
      int64_t col_part;
      Part part = cut.part(i / chunks, col_part);
      const int64_t chunk = i % chunks;
      part.sample0 = std::min(chunk * step, samples);
      part.sample1 = std::min(part.sample0 + step, samples);
      const Room room(type, room_of_score(problem));
      char* to = static_cast<char*>(partial.get()) + chunk * sums * (type == kFloat64 ? 8 : 4);
      if (!kernels.gradient[type](problem, part, room.get(), chunks > 1 ? to : nullptr)) inside = false;
    });
    if (chunks > 1) {
      parallel_for(cut.parts(), workers, [&](int64_t i) {
        int64_t col_part;
        const Room room(type, room_of_score(problem));
        kernels.merge[type](problem, cut.part(i, col_part), room.get(), partial.get(), chunks);
      });
    }
  });
  return inside;
}

}  // namespace

void bind_score(py::module_& m) { m.def("score_gradient", &gradient); }

}  // namespace lk
