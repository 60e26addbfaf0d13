// Samples of discrete families: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Samples of Bernoulli or Categorical variables over a plane of `cols` elements.
struct FamilyProblem {
  Dtype dtype;
  int64_t groups, samples, cols, classes;  // classes: 0 for Bernoulli
  bool antithetic;                         // out is [groups, 2, samples, cols]
  const void* logits;                      // [groups, cols], or [groups, cols, classes]
  Seeds seed;
  uint64_t offset;
};

// The number of elements of the categorical family whose classes fill a block of tables, which has the size of a tile.
constexpr int64_t kClassBlock = 4096;
static inline int64_t elements_of_block(int64_t classes) {
  const int64_t elements = kClassBlock / classes;
  return elements < 1 ? 1 : elements < kTile ? elements : kTile;
}

// Words of the table of `cells` classes: for each a cumulative weight, and a float of workspace.
static inline int64_t table_words(int64_t cells) { return cells + (cells + 1) / 2; }

struct FamilyKernels {
  static const FamilyKernels generic, avx2, avx512;
  void (*bernoulli_sample[kDtypes])(const FamilyProblem&, void* out, const Part&);
  bool (*categorical_sample[kDtypes])(const FamilyProblem&, void* out, const Part&, uint64_t* table);
};

}  // namespace lk
