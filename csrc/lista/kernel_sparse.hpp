// Products of rows that may be sparse with a dense matrix: over the non-zeros, or dense in registers. Every element is
// one sum over the inner index in ascending order, by fma. A zero adds nothing to it
// where values are finite, so both ways give the same bits, whatever the tile; the choice is one of speed alone.
#pragma once

#include "lista/problem.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

// The non-zeros of some rows: index and value of row i stand in [start[i], start[i + 1]), indices ascending.
template <class T>
struct Nonzeros {
  const int32_t* start;
  const int32_t* index;
  const T* value;
  int count(int64_t rows) const { return start[rows]; }
};

// A matrix by rows.
template <class T>
struct Matrix {
  T* at;
  int64_t stride;  // between rows; 0 repeats one row
  T* row(int64_t i) const { return at + i * stride; }
  Matrix columns(int64_t first) const { return {at + first, stride}; }
};

// --- the columns in registers -------------------------------------------------------------------------------------

// Calls f(N, column, last) so that blocks of N registers cover the columns, blocks alike in size. The last register of
// a block stands `last` after its first column: where the columns end within a register it overlaps the one before,
// which then computes the same values twice. So a block's results must not be its inputs, unless columns fill
// registers.
template <int most, class T, class Body>
LK_INLINE void each_block(int64_t columns, Body f) {
  const int64_t registers = (columns + lanes<T> - 1) / lanes<T>, blocks = (registers + most - 1) / most;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * registers / blocks, n = (b + 1) * registers / blocks - first;
    const int64_t column = smaller(first * lanes<T>, columns - lanes<T>);
    const int64_t last = smaller((first + n - 1) * lanes<T>, columns - lanes<T>) - column;
    f(static_cast<int>(n), column, last);
  }
}

template <class T, int N>
LK_INLINE void load_block(const T* p, int64_t last, Vec<T> (&v)[N]) {
#pragma GCC unroll 8
  for (int k = 0; k < N - 1; ++k) v[k] = load(p + k * lanes<T>);
  v[N - 1] = load(p + last);
}
template <class T, int N>
LK_INLINE void store_block(T* p, int64_t last, const Vec<T> (&v)[N]) {
#pragma GCC unroll 8
  for (int k = 0; k < N - 1; ++k) store(p + k * lanes<T>, v[k]);
  store(p + last, v[N - 1]);
}

// --- over the non-zeros -------------------------------------------------------------------------------------------

constexpr int kGatherRegisters = 8;

// Copies a block of columns of the matrix's first rows side by side. Where they lie they are often a power of two apart
// and share a few sets of the cache, and each is on a page of its own.
template <int N, class T>
inline void pack_columns(Matrix<const T> matrix, int64_t rows, int64_t last, T* to) {
  for (int64_t i = 0; i < rows; ++i) {
    Vec<T> v[N];
    load_block(matrix.row(i), last, v);
    store_block(to + i * N * lanes<T>, (N - 1) * lanes<T>, v);
  }
}

template <int N, class T>
LK_NOINLINE void gather_block(const Nonzeros<T>& a, int64_t rows, T factor, Matrix<const T> matrix, int64_t matrix_last,
                              Matrix<const T> from, Matrix<T> out, int64_t last) {
  for (int64_t i = 0; i < rows; ++i) {
    Vec<T> sum[N];
    load_block(from.row(i), last, sum);
    const int end = a.start[i + 1];
    for (int p = a.start[i]; p < end; ++p) {
      const T* row = matrix.row(a.index[p]);
      const Vec<T> v = splat<T>(factor * a.value[p]);
      for (int k = 0; k < N - 1; ++k) sum[k] = fma(v, load(row + k * lanes<T>), sum[k]);
      sum[N - 1] = fma(v, load(row + matrix_last), sum[N - 1]);
    }
    store_block(out.row(i), last, sum);
  }
}

// How often a row of the matrix is read, on average, for it to be copied first.
constexpr int64_t kPackUses = 4;

// out = from + factor a matrix, over the non-zeros of a; columns fewer than a register one by one. `workspace`, of
// workspace_rows(rows) times `inner`, is for a copy of a block of the matrix.
template <class T>
inline void gather_product(const Nonzeros<T>& a, int64_t rows, int64_t inner, T factor, Matrix<const T> matrix,
                           int64_t columns, Matrix<const T> from, Matrix<T> out, T* workspace) {
  if (columns < lanes<T>) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        T sum = from.row(i)[j];
        for (int p = a.start[i]; p < a.start[i + 1]; ++p)
          sum = fma(factor * a.value[p], matrix.row(a.index[p])[j], sum);
        out.row(i)[j] = sum;
      }
    }
    return;
  }
  const bool often = rows >= kPackRows && a.count(rows) > kPackUses * inner;
  each_block<kGatherRegisters, T>(columns, [&](int registers, int64_t column, int64_t last) {
    const Matrix<const T> m = matrix.columns(column), f = from.columns(column);
    const Matrix<T> o = out.columns(column);
    const auto block = [&](auto n) {
      constexpr int N = decltype(n)::value;
      constexpr int64_t width = N * lanes<T>;
      static_assert(width <= kPackColumns, "what a workspace has space for");
      if (!often) return gather_block<N>(a, rows, factor, m, last, f, o, last);
      pack_columns<N>(m, inner, last, workspace);
      gather_block<N>(a, rows, factor, Matrix<const T>{workspace, width}, width - lanes<T>, f, o, last);
    };
    switch (registers) {
      case 1:
        return block(std::integral_constant<int, 1>{});
      case 2:
        return block(std::integral_constant<int, 2>{});
      case 3:
        return block(std::integral_constant<int, 3>{});
      case 4:
        return block(std::integral_constant<int, 4>{});
      case 5:
        return block(std::integral_constant<int, 5>{});
      case 6:
        return block(std::integral_constant<int, 6>{});
      case 7:
        return block(std::integral_constant<int, 7>{});
      default:
        return block(std::integral_constant<int, kGatherRegisters>{});
    }
  });
}

// --- dense --------------------------------------------------------------------------------------------------------

// Blocks of rows by registers: as many accumulators as leave registers for a row of the matrix and a factor.
constexpr int kDenseRegisters = W == 16 ? 3 : 2;
constexpr int kDenseRows = W == 16 ? 8 : 6;

// Calls f(integral_constant R, first row) so that blocks of R rows cover all of them.
template <class Body>
LK_INLINE void each_row_block(int64_t rows, Body f) {
  int64_t i = 0;
  const auto block = [&](auto many) LK_INLINE_LAMBDA {
    f(many, i);
    i += decltype(many)::value;
  };
  while (rows - i >= kDenseRows) block(std::integral_constant<int, kDenseRows>{});
  if (rows - i >= 4) block(std::integral_constant<int, 4>{});
  if (rows - i >= 2) block(std::integral_constant<int, 2>{});
  if (rows - i >= 1) block(std::integral_constant<int, 1>{});
}

// The left factor: element (i, k) at at[i * row + k * inner]; or, with row == 0, block after block of rows as
// each_row_block makes them, in each of which the elements of one k lie side by side.
template <class T>
struct Left {
  const T* at;
  int64_t row, inner;

  // The block of R rows from row i on.
  template <int R>
  Left block(int64_t i, int64_t inner_size) const {
    if (row == 0) return {at + i * inner_size, 1, R};
    return {at + i * row, row, inner};
  }
};

template <int R, int N, class T>
LK_NOINLINE void dense_block(Left<T> a, int64_t inner, const T* matrix, int64_t stride, int64_t matrix_last,
                             Matrix<const T> ahead, Matrix<const T> from, Matrix<T> out, int64_t last) {
  Vec<T> sum[R][N];  // the loops over it are unrolled early, or it would stand in memory
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) load_block(from.row(r), last, sum[r]);
  for (int64_t i = 0; i < inner; ++i, matrix += stride) {
    __builtin_prefetch(ahead.row(i));
    Vec<T> b[N];
    load_block(matrix, matrix_last, b);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> v = splat<T>(a.at[r * a.row + i * a.inner]);
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) sum[r][k] = fma(v, b[k], sum[r][k]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_block(out.row(r), last, sum[r]);
}

// A product of more rows than this reads the matrix from panels.
constexpr int64_t kUnpackedRows = 2 * kDenseRows;

// One block of columns, for all rows of the left factor and the whole of the inner index, so that sums stay in
// registers. `panel` is null or for a copy of the block; `filled` where it holds that copy.
template <int N, class T>
inline void dense_columns(Left<T> a, int64_t rows, int64_t inner, Matrix<const T> matrix, Matrix<const T> from,
                          Matrix<T> out, int64_t last, T* panel, bool filled) {
  constexpr int64_t width = N * lanes<T>, line = 64 / sizeof(T), lines = width / line;
  static_assert(width <= kPanelColumns, "what a panel has space for");
  if (panel != nullptr && !filled) pack_columns<N>(matrix, inner, last, panel);
  const T* const at = panel != nullptr ? panel : matrix.at;
  const int64_t stride = panel != nullptr ? width : matrix.stride, end = panel != nullptr ? width - lanes<T> : last;
  // What the next block reads: the panel behind this one, or the columns to be copied.
  const Matrix<const T> next = filled ? Matrix<const T>{panel + inner * width, line} : matrix.columns(width);
  const int64_t next_line = filled ? inner * line : line;
  int64_t fetched = 0;
  each_row_block(rows, [&](auto many, int64_t i) LK_INLINE_LAMBDA {
    constexpr int R = decltype(many)::value;
    const Matrix<const T> ahead = next.columns(fetched * next_line);
    if (++fetched == lines) fetched = 0;
    dense_block<R, N>(a.template block<R>(i, inner), inner, at, stride, end, ahead,
                      Matrix<const T>{from.row(i), from.stride}, Matrix<T>{out.row(i), out.stride}, last);
  });
}

// out = from + a matrix, every element of a.
template <class T>
inline void dense_product(Left<T> a, int64_t rows, int64_t inner, Matrix<const T> matrix, int64_t columns,
                          Matrix<const T> from, Matrix<T> out, Panels& panels) {
  if (columns < lanes<T>) {
    each_row_block(rows, [&](auto many, int64_t first) {
      constexpr int R = decltype(many)::value;
      const Left<T> left = a.template block<R>(first, inner);
      for (int i = 0; i < R; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          T sum = from.row(first + i)[j];
          for (int64_t k = 0; k < inner; ++k) sum = fma(left.at[i * left.row + k * left.inner], matrix.row(k)[j], sum);
          out.row(first + i)[j] = sum;
        }
      }
    });
    return;
  }
  T* panel = rows > kUnpackedRows ? static_cast<T*>(panels.at) : nullptr;
  const bool filled = panel != nullptr && panels.of == matrix.at;
  each_block<kDenseRegisters, T>(columns, [&](int n, int64_t column, int64_t last) {
    const Matrix<const T> m = matrix.columns(column), f = from.columns(column);
    const Matrix<T> o = out.columns(column);
    if (n == 1)
      dense_columns<1>(a, rows, inner, m, f, o, last, panel, filled);
    else if (n == 2)
      dense_columns<2>(a, rows, inner, m, f, o, last, panel, filled);
    else
      dense_columns<kDenseRegisters>(a, rows, inner, m, f, o, last, panel, filled);
    if (panel != nullptr && panels.whole) panel += n * lanes<T> * inner;
  });
  if (panel != nullptr && panels.whole) panels.of = matrix.at;
}

// --- from dense rows to lists and back ----------------------------------------------------------------------------

// One bit for each lane whose comparison holds.
LK_INLINE uint32_t lanes_set(I holds) {
#if defined(__AVX512F__)
  return static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)holds));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)holds));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= (holds[i] != 0 ? 1u : 0u) << i;
  return bits;
#endif
}
LK_INLINE uint32_t lanes_set(L holds) {
#if defined(__AVX512F__)
  return static_cast<uint32_t>(_mm512_movepi64_mask((__m512i)holds));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)holds));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W / 2; ++i) bits |= (holds[i] != 0 ? 1u : 0u) << i;
  return bits;
#endif
}

// Writes the lanes in `set` one after another. May write a whole register: lists are longer by one.
template <class T>
LK_INLINE void compress(T* to, uint32_t set, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    store(to, (F)_mm512_maskz_compress_ps(static_cast<__mmask16>(set), (__m512)v));
  else
    store(to, (D)_mm512_maskz_compress_pd(static_cast<__mmask8>(set), (__m512d)v));
#else
  T lane[lanes<T>];
  store(lane, v);
  for (int n = 0; set != 0; set &= set - 1) to[n++] = lane[__builtin_ctz(set)];
#endif
}
LK_INLINE void compress_indices(int32_t* to, uint32_t set, int32_t first) {
#if defined(__AVX512F__)
  const __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                         _mm512_set1_epi32(first));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(set), index));
#else
  for (int n = 0; set != 0; set &= set - 1) to[n++] = first + __builtin_ctz(set);
#endif
}

// The non-zeros (NaN among them) of one row, appended at `end`; returns the new end.
template <class T>
inline int list_row(const T* x, int64_t n, int end, int32_t* index, T* value) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) {
    const Vec<T> v = load(x + i);
    const uint32_t set = lanes_set(v != T(0));
    if (set == 0) continue;
    compress(value + end, set, v);
    compress_indices(index + end, set, static_cast<int32_t>(i));
    end += __builtin_popcount(set);
  }
  for (; i < n; ++i) {
    if (!(x[i] != T(0))) continue;
    index[end] = static_cast<int32_t>(i);
    value[end++] = x[i];
  }
  return end;
}

template <class T>
inline void zero(T* x, int64_t n) {
  std::memset(x, 0, static_cast<size_t>(n) * sizeof(T));
}

// Rows as they are without lists.
template <class T>
inline void to_dense(const Nonzeros<T>& a, int64_t rows, int64_t columns, Matrix<T> out) {
  for (int64_t i = 0; i < rows; ++i) {
    zero(out.row(i), columns);
    for (int p = a.start[i]; p < a.start[i + 1]; ++p) out.row(i)[a.index[p]] = a.value[p];
  }
}

// The share of non-zeros from which on a dense product is shorter: it reads a register of the matrix for several rows,
// and wider registers gain more from that. Measured at 64 x 1024 x 1024 on a Xeon (AVX-512, and its AVX2 build).
constexpr double kDenseShare = W == 16 ? 0.35 : 0.5;
inline bool is_dense(int64_t nonzeros, int64_t rows, int64_t columns) {
  return rows >= 4 && static_cast<double>(nonzeros) > kDenseShare * static_cast<double>(rows * columns);
}

// out = from + factor a matrix, by whichever way is shorter; `workspace` for all elements of a.
template <class T>
inline void product(const Nonzeros<T>& a, int64_t rows, int64_t inner, T factor, Matrix<const T> matrix,
                    int64_t columns, Matrix<const T> from, Matrix<T> out, T* workspace, Panels& panels) {
  if (!is_dense(a.count(rows), rows, inner))
    return gather_product(a, rows, inner, factor, matrix, columns, from, out, workspace);
  each_row_block(rows, [&](auto many, int64_t i) LK_INLINE_LAMBDA {
    constexpr int R = decltype(many)::value;
    T* const block = workspace + i * inner;
    zero(block, R * inner);
    for (int r = 0; r < R; ++r)
      for (int p = a.start[i + r]; p < a.start[i + r + 1]; ++p) block[a.index[p] * R + r] = factor * a.value[p];
  });
  dense_product(Left<T>{workspace, 0, 0}, rows, inner, matrix, columns, from, out, panels);
}

// --- the other way round ------------------------------------------------------------------------------------------

// y += v x.
template <class T>
LK_INLINE void add_multiple(T v, const T* x, int64_t n, T* y) {
  each<T>(n, [&](int64_t i, auto k) { store(y + i, fma(load(x + i, k), v, load(y + i, k)), k); });
}

// <x, y> over fixed lanes and a fixed tree; the same bits in every build.
template <class T>
inline T dot(const T* x, const T* y, int64_t n) {
  constexpr int parts = kReduceLanes / lanes<T>;
  Vec<T> sum[parts] = {};
  int64_t i = 0;
  for (; i + kReduceLanes <= n; i += kReduceLanes)
    for (int k = 0; k < parts; ++k) sum[k] = fma(load(x + i + k * lanes<T>), load(y + i + k * lanes<T>), sum[k]);
  for (int k = 0; k < parts && i < n; ++k, i += lanes<T>) {
    const First part{static_cast<int>(smaller(n - i, lanes<T>))};
    sum[k] = fma(load(x + i, part), load(y + i, part), sum[k]);
  }
  for (int half = parts / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  return sum_by_halves(sum[0]);
}

// The k-th largest of x[0..n), 1 <= k <= n, which come to stand in another order (Hoare's selection).
template <class T>
inline T kth_largest(T* x, int64_t n, int64_t k) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    const T pivot = x[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) ++i;
      while (x[j] < pivot) --j;
      if (i > j) break;
      const T held = x[i];
      x[i++] = x[j];
      x[j--] = held;
    }
    if (k - 1 <= j)
      high = j;
    else if (k - 1 >= i)
      low = i;
    else
      break;
  }
  return x[k - 1];
}

}  // namespace LK_ISA
}  // namespace lk
