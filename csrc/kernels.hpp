// What each build of kernels.cpp offers to the bindings: plain functions over pointers and sizes.
#pragma once

#include <cstdint>

namespace lk {

enum Type : int { kFloat32, kFloat64, kBFloat16, kFloat16, kTypes };

// One input of shape [groups, samples, rows, cols]; cols are contiguous, a stride of 0 repeats. Strides are in
// elements. data == nullptr stands for an input that is not given.
struct Input {
  const void* data;
  int64_t group, sample, row;
};

// Elements of a tile, the piece of the problem that stays in the first-level cache; and how many whole rows of
// `cols` columns make one. Rows come in numbers that fill registers, where that leaves a tile at all.
constexpr int64_t kTile = 1024;
static inline int64_t rows_of_tile(int64_t cols) {
  if (cols >= kTile) return 1;
  int64_t even = 16;  // rows that together end on a register's edge: 16 / gcd(16, cols)
  while (even > 1 && cols * (even / 2) % 16 == 0) even /= 2;
  const int64_t rows = kTile / cols;
  return rows >= even ? rows / even * even : rows;
}

// Which part of the problem one call works on: rows [row0, row1), columns [col0, col1) and samples
// [sample0, sample1) of one group. Where a part has several rows it has all columns.
struct Part {
  int64_t group, sample0, sample1, row0, row1, col0, col1;
};

// Logical noise tensor [samples, rows, cols] at `offset` of the stream of each group's seed.
struct Gaussian {
  int64_t groups, samples, rows, cols;
  Input mean, spread, prior_mean, prior_logvar;
  bool spread_is_scale;  // spread holds sigma instead of log sigma^2; then there is no KL
  const int64_t* seeds;  // [groups], or one with seed_stride 0
  int64_t seed_stride;
  uint64_t offset;
};

// A sum over cols: written to `out` (compute type, one per row) where a part has all columns, and otherwise to
// `partial`, so that the caller adds the parts of a row in their order, whatever the number of threads.
struct RowSums {
  void* out;
  double* partial;
  int64_t partial_stride;  // partial[row * partial_stride]
};

struct GaussianOutputs {
  void* z;     // [groups, samples, rows, cols]
  RowSums kl;  // [groups, rows], or both null
};

struct GaussianGradients {
  const void* z;   // gradient of z, [groups, samples, rows, cols], or null
  const void* kl;  // gradient of kl, [groups, rows] in the compute type, or null
  void* mean;      // the four outputs, [groups, rows, cols], each may be null
  void* spread;
  void* prior_mean;
  void* prior_logvar;
};

// log N(z; mean, exp(logvar)), summed over cols.
struct LogProb {
  int64_t groups, samples, rows, cols;
  Input z, mean, logvar;
};

struct LogProbGradients {
  const void* log_prob;  // [groups, samples, rows] in the compute type
  void* z;               // each may be null; [groups, samples, rows, cols], or [groups, rows, cols] summed over
  void* mean;            // samples where the input's sample stride is 0
  void* logvar;
};

struct Kernels {
  const char* name;
  int lanes;  // float32 values in a register
  void (*normal[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*uniform[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*gaussian_forward[kTypes])(const Gaussian&, const GaussianOutputs&, const Part&);
  void (*gaussian_backward[kTypes])(const Gaussian&, const GaussianGradients&, const Part&);
  void (*log_prob_forward[kTypes])(const LogProb&, const RowSums&, const Part&);
  void (*log_prob_backward[kTypes])(const LogProb&, const LogProbGradients&, const Part&);
  // ln, sin(pi t), cos(pi t), exp, psi: for the tests of their errors
  void (*elementary[2])(int function, int64_t n, const void* x, void* out);
};

// Every build in this binary that this processor can run, narrowest first.
struct Builds {
  const Kernels* list[3];
  int count;
};
const Builds& builds();

// The build in use: the widest, until select_build names another.
const Kernels& active_build();
bool select_build(const char* name);

}  // namespace lk
