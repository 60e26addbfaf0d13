#include <cmath>
#include <limits>
#include <memory>

#include "bounds/problem.hpp"
#include "host/bind.hpp"

namespace lk {

template <>
struct FieldsOf<BoundProblem> {
  using P = BoundProblem;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"groups", &P::groups}, Field{"samples", &P::samples},
                      Field{"rows", &P::rows}, Field{"log_w", &P::log_w});
};

namespace {

constexpr int64_t kFewRows = 64, kWrappedWidth = 256, kMostChunks = 64;

BoundProblem wrapped(BoundProblem p) {
  p.wrap = p.rows < kFewRows ? std::max<int64_t>(std::min(kWrappedWidth / p.rows, p.samples), 1) : 1;
  return p;
}

// Cuts lines into chunks and columns; the cut depends on the shape alone.
struct LineCut {
  int64_t groups, lines, width, elements, line_step, col_step, chunks, col_parts;

  explicit LineCut(const BoundProblem& p)
      : groups(p.groups), lines(lines_of(p)), width(width_of(p)), elements(p.groups * p.samples * p.rows) {
    col_step = std::min(width, kBoundColumns);
    line_step = std::max(kTaskElements / col_step, (lines + kMostChunks - 1) / kMostChunks);
    line_step = (line_step + 7) / 8 * 8;  // a multiple of what the kernel works on at once
    chunks = (lines + line_step - 1) / line_step;
    col_parts = (width + col_step - 1) / col_step;
  }
  Part part(int64_t i) const {
    Part p{};
    p.col0 = i % col_parts * col_step;
    p.col1 = std::min(p.col0 + col_step, width);
    i /= col_parts;
    p.sample0 = i % chunks * line_step;
    p.sample1 = std::min(p.sample0 + line_step, lines);
    p.group = i / chunks;
    return p;
  }

  int64_t chunk(const Part& p) const { return p.sample0 / line_step; }

  // Calls f(part) for each part, on as many threads as are worth waking.
  template <class F>
  void each_part(int threads, F&& f) const {
    const int64_t parts = groups * chunks * col_parts;
    parallel_for(parts, worthwhile_threads(threads, elements), [&](int64_t i) { f(part(i)); });
  }
};

// Returns whether a row holds NaN, which the sums no longer show where the largest value is infinite.
template <class T>
bool has_nan(const BoundProblem& p, int64_t group, int64_t row, bool (*is_nan)(T)) {
  const T* x = static_cast<const T*>(p.log_w) + group * p.samples * p.rows + row;
  for (int64_t s = 0; s < p.samples; ++s)
    if (is_nan(x[s * p.rows])) return true;
  return false;
}
bool has_nan(const BoundProblem& p, int64_t group, int64_t row) {
  if (p.dtype == kFloat64) return has_nan<double>(p, group, row, [](double x) { return std::isnan(x); });
  if (p.dtype == kFloat32) return has_nan<float>(p, group, row, [](float x) { return std::isnan(x); });
  if (p.dtype == kBFloat16) return has_nan<uint16_t>(p, group, row, [](uint16_t x) { return (x & 0x7FFF) > 0x7F80; });
  return has_nan<uint16_t>(p, group, row, [](uint16_t x) { return (x & 0x7FFF) > 0x7C00; });
}

// The sums of every chunk, then of all chunks, then over wrapped samples; and the bound.
template <class C>
void sum(const BoundProblem& p, int threads, C* bound, C* sums) {
  const LineCut cut(p);
  const BoundKernels& kernels = active<BoundKernels>();
  const int64_t buffer = p.groups * cut.chunks * cut.width;
  const std::unique_ptr<C[]> tops(new C[static_cast<size_t>(buffer)]), totals(new C[static_cast<size_t>(buffer)]);
  cut.each_part(threads, [&](const Part& part) {
    const int64_t begin = (part.group * cut.chunks + cut.chunk(part)) * cut.width;
    kernels.sums[p.dtype](p, {tops.get() + begin, totals.get() + begin}, part);
  });
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t begin = g * cut.chunks * cut.width;
    C *of_place = tops.get() + begin, *sum_of_place = totals.get() + begin;
    if (cut.chunks > 1) kernels.merge[sizeof(C) == 8 ? 1 : 0](cut.chunks, cut.width, cut.width, of_place, sum_of_place);
    for (int64_t row = 0; row < p.rows; ++row) {
      double most = of_place[row], all = sum_of_place[row];
      if (p.wrap > 1) {
        for (int64_t i = p.rows + row; i < cut.width; i += p.rows) most = std::max<double>(most, of_place[i]);
        all = 0;
        for (int64_t i = row; i < cut.width; i += p.rows) all += sum_of_place[i] * std::exp(of_place[i] - most);
      }
      sums[2 * g * p.rows + row] = static_cast<C>(most);
      sums[(2 * g + 1) * p.rows + row] = static_cast<C>(all);
      const bool infinite = most == std::numeric_limits<double>::infinity() && !has_nan(p, g, row);
      bound[g * p.rows + row] =
          static_cast<C>(infinite ? most : most + (std::log(all) - std::log(static_cast<double>(p.samples))));
    }
  }
}

void forward(const BoundProblem& given, int threads, void* bound, void* sums) {
  if (given.groups * given.rows == 0) return;
  const BoundProblem p = wrapped(given);
  without_gil([&] {
    if (p.dtype == kFloat64)
      sum(p, threads, static_cast<double*>(bound), static_cast<double*>(sums));
    else
      sum(p, threads, static_cast<float*>(bound), static_cast<float*>(sums));
  });
}

void weights(const BoundProblem& given, int threads, const void* sums, const void* gradient, void* out) {
  if (given.groups * given.rows == 0) return;
  const BoundProblem p = wrapped(given);
  const BoundWeights weights{sums, gradient, out};
  const LineCut cut(p);
  const auto kernel = active<BoundKernels>().weights[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, weights, part); }); });
}

// Columns of one part for VIMCO; every part has all samples of its columns.
constexpr int64_t kSignalColumns = 64;

void signal(const BoundProblem& given, int threads, const void* gradient, void* out) {
  BoundProblem p = given;
  p.wrap = 1;
  const auto kernel = active<BoundKernels>().signal[p.dtype];
  const int64_t parts = (p.rows + kSignalColumns - 1) / kSignalColumns;
  without_gil([&] {
    parallel_for(p.groups * parts, worthwhile_threads(threads, p.groups * p.samples * p.rows), [&](int64_t i) {
      Part part{};
      part.group = i / parts;
      part.sample1 = p.samples;
      part.col0 = i % parts * kSignalColumns;
      part.col1 = std::min(part.col0 + kSignalColumns, p.rows);
      kernel(p, gradient, out, part);
    });
  });
}

}  // namespace

void bind_bounds(pybind11::module_& m) {
  define_struct<BoundProblem>(m, "BoundProblem");
  define<&forward>(m, "bound_forward", {"threads", "bound", "sums"});
  define<&weights>(m, "bound_weights", {"threads", "sums", "gradient", "out"});
  define<&signal>(m, "bound_signal", {"threads", "gradient", "out"});
}

}  // namespace lk
