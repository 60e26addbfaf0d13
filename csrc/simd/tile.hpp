// Tiles: pieces of a problem that stay in the first-level cache. A kernel loads a tile of each input (converting
// half precision to float32), works on flat buffers, and stores. A tile is whole rows, or a piece of one row.
#pragma once

#include <type_traits>

#include "common.hpp"
#include "simd/registers.hpp"

namespace lk {
namespace LK_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// In a table of kernels, one function for each Dtype, in that order; or for float and double alone.
#define LK_DTYPES(function) {function<float>, function<double>, function<LK_ISA::BFloat16>, function<LK_ISA::Float16>}
#define LK_FLOATS(function) {function<float>, function<double>}

template <class T>
using Compute = std::conditional_t<std::is_same<T, double>::value, double, float>;

constexpr int kReduceLanes = 16;  // row sums run over this many lanes in every build, so that bits agree

// std::min and std::max are not used: functions of the standard library must not be instantiated in a build for one
// instruction set, from which the linker might take them for all builds.
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The workspace of one tile. It has one register more than kTile, since repeat_rows and lane_sum run past the end.
template <class C>
struct alignas(64) Scratch {
  C at[kTile + kReduceLanes];
  operator C*() { return at; }
};

struct Tile {
  int64_t row0, col0;
  int rows, cols;
  bool first, last;  // whether it begins, ends its rows' columns
  int size() const { return rows * cols; }
};

// Calls f for the part's tiles of `limit` elements at most.
template <class Body>
inline void each_tile(const Part& part, Body f, int64_t limit = kTile) {
  const int64_t cols = part.col1 - part.col0;
  if (cols <= limit) {
    const int64_t step = cols == 0 ? part.row1 - part.row0 : limit == kTile ? rows_of_tile(cols) : limit / cols;
    for (int64_t row = part.row0; row < part.row1; row += step) {
      const int64_t end = row + step < part.row1 ? row + step : part.row1;
      f(Tile{row, part.col0, static_cast<int>(end - row), static_cast<int>(cols), true, true});
    }
    return;
  }
  for (int64_t row = part.row0; row < part.row1; ++row) {
    for (int64_t col = part.col0; col < part.col1; col += limit) {
      const int64_t end = col + limit < part.col1 ? col + limit : part.col1;
      f(Tile{row, col, 1, static_cast<int>(end - col), col == part.col0, end == part.col1});
    }
  }
}

// The number of samples in one tile, where all rows and columns together are much smaller than a tile: consecutive
// samples lie one after another in z and in the stream.
inline int samples_at_once(int64_t rows, int64_t cols, const Tile& tile, int64_t samples) {
  if (tile.rows != rows || tile.cols != cols || tile.size() == 0) return 1;
  return static_cast<int>(larger(smaller(kTile / tile.size(), samples), 1));
}

// x[0..n) `copies` times over; in place where it already lies at `buffer`.
template <class C>
inline const C* repeat(const C* x, int n, int copies, C* buffer) {
  if (copies == 1) return x;
  if (x != buffer) std::memcpy(buffer, x, sizeof(C) * static_cast<size_t>(n));
  for (int c = 1; c < copies; ++c) std::memcpy(buffer + c * n, buffer, sizeof(C) * static_cast<size_t>(n));
  return buffer;
}

// --- half precision -------------------------------------------------------------------------------------------

inline float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | (magnitude << 13));  // infinity, NaN
  // Read as float32 the exponent is 112 too small; the product is exact, subnormals included.
  return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f) | sign);
}

inline void narrow(float x, BFloat16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out.bits = nan ? 0x7FC0u : static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float x, Float16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // rounds to 65536 or more
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 1/2 rounds at 2^-24, ties to even
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

template <class T>
inline void widen_all(const T* from, int64_t n, Compute<T>* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (std::is_same<T, Float16>::value)
    for (; i + 16 <= n; i += 16)
      store(reinterpret_cast<float*>(to) + i, (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(from + i))));
#elif defined(__F16C__)
  if (std::is_same<T, Float16>::value)
    for (; i + 8 <= n; i += 8)
      store(reinterpret_cast<float*>(to) + i, (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
  for (; i < n; ++i) to[i] = widen(from[i]);
}

template <class T>
inline void narrow_all(const Compute<T>* from, int64_t n, T* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (std::is_same<T, Float16>::value)
    for (; i + 16 <= n; i += 16)
      _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtps_ph((__m512)load(reinterpret_cast<const float*>(from) + i),
                                                              _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  if (std::is_same<T, Float16>::value)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph((__m256)load(reinterpret_cast<const float*>(from) + i),
                                                           _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) narrow(from[i], to[i]);
}

// --- tiles in and out -----------------------------------------------------------------------------------------

// The tile of an input as a flat [rows * cols] array: in place where it is flat in memory, else copied to `buffer`.
template <class T>
inline const Compute<T>* load_tile(const Input& in, int64_t group, int64_t sample, const Tile& tile,
                                   Compute<T>* buffer) {
  if (in.data == nullptr) return nullptr;
  const T* from =
      static_cast<const T*>(in.data) + group * in.group + sample * in.sample + tile.row0 * in.row + tile.col0;
  const bool flat = tile.rows == 1 || in.row == tile.cols;
  if constexpr (std::is_same<T, Compute<T>>::value) {
    if (flat) return from;
    for (int r = 0; r < tile.rows; ++r) std::memcpy(buffer + r * tile.cols, from + r * in.row, sizeof(T) * tile.cols);
  } else if (flat) {
    widen_all(from, tile.size(), buffer);
  } else {
    for (int r = 0; r < tile.rows; ++r) widen_all(from + r * in.row, tile.cols, buffer + r * tile.cols);
  }
  return buffer;
}

// The memory to which a kernel writes a tile: `to` in the compute type, else `buffer`, which finish_tile converts.
template <class T>
inline Compute<T>* output_tile(T* to, Compute<T>* buffer) {
  if constexpr (std::is_same<T, Compute<T>>::value) return to;
  return buffer;
}
template <class T>
inline void finish_tile(const Compute<T>* buffer, int n, T* to) {
  if constexpr (!std::is_same<T, Compute<T>>::value) narrow_all(buffer, n, to);
}

// --- sums over columns ----------------------------------------------------------------------------------------

// Sum of x[0..n) over kReduceLanes lanes and a fixed tree; x may be read up to the next multiple of those.
template <class C>
inline C lane_sum(const C* x, int n) {
  constexpr int parts = kReduceLanes / lanes<C>;
  Vec<C> sum[parts] = {};
  int i = 0;
  for (; i + kReduceLanes <= n; i += kReduceLanes)
    for (int k = 0; k < parts; ++k) sum[k] += load(x + i + k * lanes<C>);
  if (i < n) {
    for (int k = 0; k < parts; ++k) {
      Bits<C> index = {};
      for (int lane = 0; lane < lanes<C>; ++lane) index[lane] = lane;
      sum[k] += index < n - i - k * lanes<C> ? load(x + i + k * lanes<C>) : Vec<C>{};
    }
  }
  for (int half = parts / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  return sum_by_halves(sum[0]);
}

// Collects the sums of a part's rows, tile after tile.
template <class C>
struct RowSumWriter {
  const RowSums& sums;
  double row = 0;  // the sum so far of the row in progress, where a row is longer than a tile

  // terms: [rows, cols], which may be read up to the next multiple of kReduceLanes
  void add(const C* terms, const Tile& tile, int64_t first_row, C factor) {
    for (int r = 0; r < tile.rows; ++r) {
      const C sum = tile.cols == 1 ? terms[r] : lane_sum(terms + r * tile.cols, tile.cols);
      if (tile.first && tile.last) {
        write(first_row + r, factor * sum);
        continue;
      }
      row = (tile.first ? 0 : row) + static_cast<double>(sum);
      if (tile.last) write(first_row + r, static_cast<double>(factor) * row);
    }
  }

 private:
  template <class X>
  void write(int64_t index, X value) {
    if (sums.partial != nullptr)
      sums.partial[index * sums.partial_stride] = static_cast<double>(value);
    else
      static_cast<C*>(sums.out)[index] = static_cast<C>(value);
  }
};

// Repeats values[r] over the columns of row r. `to` is one register longer than the tile.
template <class C>
inline void repeat_rows(const C* values, const Tile& tile, C* to) {
  for (int r = 0; r < tile.rows; ++r)
    for (int i = 0; i < tile.cols; i += lanes<C>) store(to + r * tile.cols + i, splat<C>(values[r]));
}

}  // namespace LK_ISA
}  // namespace lk
