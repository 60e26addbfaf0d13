// Log-densities summed over columns: what the host hands to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

enum Density : int { kGaussianDensity, kBernoulliDensity };
constexpr int kMostOperands = 4;

// log N(z; mean, exp(logvar)), or the log-probability of x under logits, summed over cols. A tile of the kernels has
// these operands: z or x; mean or logits; and one or two that elementary functions make of the last input.
struct DensityProblem {
  Density density;
  Dtype dtype;
  int64_t groups, samples, rows, cols;
  Input inputs[3];    // z, mean, logvar; or x, logits
  bool tile_by_tile;  // all samples of a tile before the next tile, else one sample after the other
  const void* precomputed[kMostOperands];  // operands of an input that is one row for all: [groups,
                                           // width_of_precomputed]; or null
};
static inline bool one_row(const DensityProblem& p, int j) { return p.inputs[j].row == 0 && p.rows != 1; }

// One row, repeated so often that it lies under a tile of whole rows; in elements of the compute type.
static inline int64_t width_of_precomputed(const DensityProblem& p) {
  if (p.cols == 0 || p.cols > kTile) return p.cols;
  const int64_t rows = rows_of_tile(p.cols);
  return (rows < p.rows ? rows : p.rows) * p.cols;
}

struct DensityGradients {
  const void* log_density;  // [groups, samples, rows] in the compute type
  void* inputs[3];          // each may be null: [groups, samples, rows, cols], or summed over samples where the input's
                            // sample stride is 0
  double* row_sums[3];      // instead, of an input that is one row for all: sums of the part's columns, to be added to
};

struct DensityKernels {
  static const DensityKernels generic, avx2, avx512;
  // What one row for all gives of input j in a group, as `precomputed`; a part; and the total of blocks of row_sums.
  void (*precompute[kDtypes])(const DensityProblem&, int j, int64_t group, bool backward, void* const* operands);
  void (*forward[kDtypes])(const DensityProblem&, const RowSums&, const Part&);
  void (*backward[kDtypes])(const DensityProblem&, const DensityGradients&, const Part&);
  void (*total[kDtypes])(const double* sums, int64_t blocks, int64_t stride, int64_t n, void* out);
};

}  // namespace lk
