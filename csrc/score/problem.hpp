// Score-function gradients: what the host hands to the kernels.
#pragma once

#include "common.hpp"
#include "families/problem.hpp"

namespace lk {

enum Family : int { kGaussian, kBernoulli, kAntithetic, kCategorical };
enum Control : int { kNone, kLeaveOneOut, kOptimal };

// Score-function gradients; every tensor is contiguous. See kernels/score/problem.py for shapes.
struct ScoreProblem {
  Family family;
  Control control;
  Dtype dtype;
  int64_t groups, samples, rows, cols, classes, folds;
  const void* parameters[2];
  const void* z;  // or null: drawn again from the seeds
  Seeds seed;
  uint64_t offset;
  bool per_element, double_values;  // values and baseline are float64, else of the compute type
  const void* values;
  const void* baseline;   // or null
  bool baseline_sampled;  // has samples, as values have
  const double* shift;    // [groups, rows], subtracted from values; or null
  const void* upstream;   // or null for 1
  void* gradients[2];     // of the parameters
  void* variances[2];     // each may be null
};

// Whether a discrete family's gradient is the sum over samples in each class alone. The weights of a row, f - mean f,
// sum to 0, and so does what is subtracted in every class, p times their sum.
static inline bool weights_cancel(const ScoreProblem& p) {
  return (p.family == kBernoulli || p.family == kCategorical) && p.control == kLeaveOneOut && !p.per_element;
}
// Whether a Categorical's sums lie element by element, as the gradient does; else class by class, as probabilities do.
static inline bool sums_by_element(const ScoreProblem& p) { return weights_cancel(p) && p.variances[0] == nullptr; }

// Room that one call of score_gradient or score_merge works in, in elements of the compute type: for each fold the sums
// of a tile, and some arrays of that size beside them. One register more each, as arithmetic runs over the end; a
// multiple of 16, so that each array begins where a word of 64 bits may.
constexpr int64_t kClassTile = 128;  // elements of a categorical tile with many arrays of [classes, elements]
static inline int64_t class_tile(const ScoreProblem& p) {
  const int64_t most = elements_of_block(p.classes);
  return sums_by_element(p) ? most : std::min(most, kClassTile);
}
constexpr int kMostSums = 11, kBesideSums = 5;
static inline int64_t cells_of_tile(const ScoreProblem& p) {
  const int64_t cells = p.family == kCategorical ? class_tile(p) * p.classes : kTile;
  return (cells + 31) / 16 * 16;
}
static inline int64_t score_workspace(const ScoreProblem& p) {
  return (p.folds * kMostSums + kBesideSums) * cells_of_tile(p);
}

struct ScoreKernels {
  static const ScoreKernels generic, avx2, avx512;
  // False where z has values outside the family's support. With `partial`, [chunk, fold, sum, groups * rows * cols *
  // max(classes, 1)], only the sums of the part's samples, which merge adds up over chunks.
  bool (*gradient[kDtypes])(const ScoreProblem&, const Part&, void* workspace, void* partial);
  void (*merge[kDtypes])(const ScoreProblem&, const Part&, void* workspace, const void* partial, int64_t chunks);
  void (*row_means[2])(const void* values, int64_t samples, int64_t rows, int64_t row0, int64_t row1, double* out);
};

}  // namespace lk
