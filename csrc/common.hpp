// Types that the problems of several ops share. The host and the kernels of every instruction set include this header
// and <op>/problem.hpp, so their functions are static: of an inline function the linker would keep one copy, perhaps
// one with AVX-512 instructions.
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

// One seed for all groups, or the address of a seed for each group.
struct Seeds {
  int64_t value;
  const int64_t* of_groups;  // or null
  int64_t stride;
};
static inline uint64_t seed_of(const Seeds& seeds, int64_t group) {
  return static_cast<uint64_t>(seeds.of_groups != nullptr ? seeds.of_groups[group * seeds.stride] : seeds.value);
}

// The number of elements of a tile, the piece of the problem that stays in the first-level cache, and of its whole rows
// of `cols` columns. The number of rows fills whole registers, unless that would exceed a tile.
constexpr int64_t kTile = 1024;
static inline int64_t rows_of_tile(int64_t cols) {
  if (cols >= kTile) return 1;
  int64_t even = 16;  // rows that together end on a register's edge: 16 / gcd(16, cols)
  while (even > 1 && cols * (even / 2) % 16 == 0) even /= 2;
  const int64_t rows = kTile / cols;
  return rows >= even ? rows / even * even : rows;
}

// The part of the problem that one call works on: rows [row0, row1), columns [col0, col1) and samples
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

// A part of rows longer than a tile has at most this many samples, whose sums are accumulated together.
constexpr int kLongRowSamples = 16;

// Rows of workspace are padded to whole registers.
static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace lk
