#include <cmath>
#include <limits>
#include <memory>

#include "bounds/problem.hpp"
#include "host/bind.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

constexpr int64_t kFewRows = 64, kFoldedWidth = 256, kMostChunks = 64;

Bounds folded(int64_t groups, int64_t samples, int64_t rows, uintptr_t log_w) {
  const int64_t fold = rows < kFewRows ? std::max<int64_t>(std::min(kFoldedWidth / rows, samples), 1) : 1;
  return {groups, samples, rows, fold, at(log_w)};
}

// Cuts lines into chunks and columns, by shape alone.
struct LineCut {
  int64_t groups, lines, width, line_step, col_step, chunks, col_parts;

  explicit LineCut(const Bounds& p) : groups(p.groups), lines(lines_of(p)), width(width_of(p)) {
    col_step = std::min(width, kBoundColumns);
    line_step = std::max(kTaskElements / col_step, (lines + kMostChunks - 1) / kMostChunks);
    line_step = (line_step + 7) / 8 * 8;  // as many as the kernel takes at once
    chunks = (lines + line_step - 1) / line_step;
    col_parts = (width + col_step - 1) / col_step;
  }
  int64_t parts() const { return groups * chunks * col_parts; }
  Part part(int64_t i, int64_t& chunk) const {
    Part p{};
    p.col0 = i % col_parts * col_step;
    p.col1 = std::min(p.col0 + col_step, width);
    i /= col_parts;
    chunk = i % chunks;
    p.sample0 = chunk * line_step;
    p.sample1 = std::min(p.sample0 + line_step, lines);
    p.group = i / chunks;
    return p;
  }
};

// Whether a row holds NaN, which no longer shows beside an infinite largest value.
template <class T>
bool has_nan(const Bounds& p, int64_t group, int64_t row, bool (*is_nan)(T)) {
  const T* x = static_cast<const T*>(p.log_w) + group * p.samples * p.rows + row;
  for (int64_t s = 0; s < p.samples; ++s)
    if (is_nan(x[s * p.rows])) return true;
  return false;
}
bool has_nan(const Bounds& p, int type, int64_t group, int64_t row) {
  if (type == kFloat64) return has_nan<double>(p, group, row, [](double x) { return std::isnan(x); });
  if (type == kFloat32) return has_nan<float>(p, group, row, [](float x) { return std::isnan(x); });
  if (type == kBFloat16) return has_nan<uint16_t>(p, group, row, [](uint16_t x) { return (x & 0x7FFF) > 0x7F80; });
  return has_nan<uint16_t>(p, group, row, [](uint16_t x) { return (x & 0x7FFF) > 0x7C00; });
}

// Sums of every chunk, then of all, then of what was folded; and the bound.
template <class C>
void sum(const Bounds& p, int type, int threads, C* bound, C* sums) {
  const LineCut cut(p);
  const BoundKernels& kernels = active<BoundKernels>();
  const int64_t room = p.groups * cut.chunks * cut.width;
  const std::unique_ptr<C[]> tops(new C[static_cast<size_t>(room)]), totals(new C[static_cast<size_t>(room)]);
  const int workers = worthwhile_threads(threads, p.groups * p.samples * p.rows);
  parallel_for(cut.parts(), workers, [&](int64_t i) {
    int64_t chunk;
    const Part part = cut.part(i, chunk);
    const int64_t begin = (part.group * cut.chunks + chunk) * cut.width;
    kernels.sums[type](p, {tops.get() + begin, totals.get() + begin}, part);
  });
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t begin = g * cut.chunks * cut.width;
    C *of_place = tops.get() + begin, *sum_of_place = totals.get() + begin;
    if (cut.chunks > 1) kernels.merge[sizeof(C) == 8 ? 1 : 0](cut.chunks, cut.width, cut.width, of_place, sum_of_place);
    for (int64_t row = 0; row < p.rows; ++row) {
      double most = of_place[row], all = sum_of_place[row];
      if (p.fold > 1) {
        for (int64_t i = p.rows + row; i < cut.width; i += p.rows) most = std::max<double>(most, of_place[i]);
        all = 0;
        for (int64_t i = row; i < cut.width; i += p.rows) all += sum_of_place[i] * std::exp(of_place[i] - most);
      }
      sums[2 * g * p.rows + row] = static_cast<C>(most);
      sums[(2 * g + 1) * p.rows + row] = static_cast<C>(all);
      const bool infinite = most == std::numeric_limits<double>::infinity() && !has_nan(p, type, g, row);
      bound[g * p.rows + row] =
          static_cast<C>(infinite ? most : most + (std::log(all) - std::log(static_cast<double>(p.samples))));
    }
  }
}

void forward(int type, int threads, int64_t groups, int64_t samples, int64_t rows, uintptr_t log_w, uintptr_t bound,
             uintptr_t sums) {
  if (groups * rows == 0) return;
  const Bounds problem = folded(groups, samples, rows, log_w);
  without_gil([&] {
    if (type == kFloat64)
      sum(problem, type, threads, at<double>(bound), at<double>(sums));
    else
      sum(problem, type, threads, at<float>(bound), at<float>(sums));
  });
}

void weights(int type, int threads, int64_t groups, int64_t samples, int64_t rows, uintptr_t log_w, uintptr_t sums,
             uintptr_t gradient, uintptr_t out) {
  if (groups * rows == 0) return;
  const Bounds problem = folded(groups, samples, rows, log_w);
  const BoundWeights given{at(sums), at(gradient), at(out)};
  const LineCut cut(problem);
  const auto kernel = active<BoundKernels>().weights[type];
  without_gil([&] {
    parallel_for(cut.parts(), worthwhile_threads(threads, groups * samples * rows), [&](int64_t i) {
      int64_t chunk;
      kernel(problem, given, cut.part(i, chunk));
    });
  });
}

// Columns of one part for VIMCO: each needs all of its samples.
constexpr int64_t kSignalColumns = 64;

void signal(int type, int threads, int64_t groups, int64_t samples, int64_t rows, uintptr_t log_w, uintptr_t gradient,
            uintptr_t out) {
  const Bounds problem{groups, samples, rows, 1, at(log_w)};
  const auto kernel = active<BoundKernels>().signal[type];
  const int64_t parts = (rows + kSignalColumns - 1) / kSignalColumns;
  without_gil([&] {
    parallel_for(groups * parts, worthwhile_threads(threads, groups * samples * rows), [&](int64_t i) {
      Part part{};
      part.group = i / parts;
      part.sample1 = samples;
      part.col0 = i % parts * kSignalColumns;
      part.col1 = std::min(part.col0 + kSignalColumns, rows);
      kernel(problem, at(gradient), at(out), part);
    });
  });
}

}  // namespace

void bind_bounds(py::module_& m) {
  m.def("bound_forward", &forward);
  m.def("bound_weights", &weights);
  m.def("bound_signal", &signal);
}

}  // namespace lk
