// What the problems of several ops are made of. This header and <op>/problem.hpp are read by the host and by the
// kernels of every instruction set, so what they define is static: the linker keeps one copy of an inline function, and
// it may be one with AVX-512 in it.
#pragma once

#include <cstdint>

namespace lk {

enum Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16, kDtypes };
static inline int64_t bytes_of(Dtype dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }
static inline int64_t compute_bytes_of(Dtype dtype) { return dtype == kFloat64 ? 8 : 4; }  // halves compute in float32

// One input of shape [groups, samples, rows, cols]; cols are contiguous, a stride of 0 repeats. Strides are in
// elements. data == nullptr stands for an input that is not given.
struct Input {
  const void* data;
  int64_t group, sample, row;
};

// The seed of every group, or where that of each group stands.
struct Seeds {
  int64_t value;
  const int64_t* of_groups;  // or null
  int64_t stride;
};
static inline uint64_t seed_of(const Seeds& seeds, int64_t group) {
  return static_cast<uint64_t>(seeds.of_groups != nullptr ? seeds.of_groups[group * seeds.stride] : seeds.value);
}

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

// A sum over cols: written to `out` (compute type, one per row) where a part has all columns, and otherwise to
// `partial`, so that the caller adds the parts of a row in their order, whatever the number of threads.
struct RowSums {
  void* out;
  double* partial;
  int64_t partial_stride;  // partial[row * partial_stride]
};

// Rows longer than a tile come in parts of at most as many samples, whose sums are in progress together.
constexpr int kLongRowSamples = 16;

// Rows of scratch are longer than those of the problem, so that they end with a register.
static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace lk
