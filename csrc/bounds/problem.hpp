// Importance-weighted bounds: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Importance-weighted bounds of log_w [groups, samples, rows]: sums over samples, for each row. Few rows are wrapped:
// consecutive samples lie side by side, `wrap` of them, as lines of `width` = wrap * rows values, the last line shorter
// where samples are not a multiple of wrap.
struct BoundProblem {
  Dtype dtype;
  int64_t groups, samples, rows;
  const void* log_w;
  int64_t wrap;
};
static inline int64_t width_of(const BoundProblem& p) { return p.wrap * p.rows; }
static inline int64_t lines_of(const BoundProblem& p) { return (p.samples + p.wrap - 1) / p.wrap; }
constexpr int64_t kBoundColumns = 512;  // the most columns of a line that one call works on

// For each place of a line the largest log-weight and the sum of e^(log_w - largest), [groups, width] in the compute
// type; -kLargest and 0 where there is none above.
struct BoundSums {
  void* top;
  void* total;
};

// out = gradient e^(log_w - top) / total.
struct BoundWeights {
  const void* sums;      // top and total, [groups, 2, rows] in the compute type
  const void* gradient;  // [groups, rows] in the compute type, or null for 1
  void* out;             // has log_w's type and shape
};

struct BoundKernels {
  static const BoundKernels generic, avx2, avx512;
  // Parts have lines for samples: [sample0, sample1) of columns [col0, col1), at most kBoundColumns.
  void (*sums[kDtypes])(const BoundProblem&, const BoundSums&, const Part&);
  void (*merge[2])(int64_t chunks, int64_t stride, int64_t n, void* tops, void* totals);
  void (*weights[kDtypes])(const BoundProblem&, const BoundWeights&, const Part&);
  // VIMCO's signal, times gradient [groups, rows] in the compute type, into out; wrap is 1, parts have all samples.
  void (*signal[kDtypes])(const BoundProblem&, const void* gradient, void* out, const Part&);
};

}  // namespace lk
