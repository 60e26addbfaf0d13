// Operations on rows that all Lasso coders share: residual, correlations, products with the Gram matrix, duality gaps.
// Columns are padded to whole registers with zeros, so that no loop has a remainder. Sums of one row are never split by
// the number of rows, threads or lanes: its bits depend on it alone.
#pragma once

#include "lasso/problem.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

// Allocates pieces of a task's workspace, each aligned to a cache line; with a null workspace it only counts bytes.
struct Pieces {
  uintptr_t next;
  explicit Pieces(void* memory) : next((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64) {}
  template <class X>
  X* take(int64_t n) {
    X* piece = reinterpret_cast<X*>(next);
    next += (static_cast<uintptr_t>(n) * sizeof(X) + 63) / 64 * 64;
    return piece;
  }
};

inline double magnitude(double x) { return x < 0 ? -x : x; }

// A register of doubles from T. The compilers' own conversion takes float by halves.
LK_INLINE D load_wide(const float* p) {
#if defined(__AVX512F__)
  return (D)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (D)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return load_noise<double>(p, Whole{});
#endif
}
LK_INLINE D load_wide(const double* p) { return load(p); }

// The part that soft thresholding removes lies in [low, alpha]: soft(u) = u - clip(u), low = -infinity for codes >= 0.
// Written so that each line is one instruction.
template <class V>
LK_INLINE V soft(V u, V low, V alpha) {
  V cut = u < low ? low : u;
  cut = cut > alpha ? alpha : cut;
  return u - cut;
}

// Indices of the entries that are not zero, in their order.
template <class T>
inline int64_t nonzeros(const T* x, int64_t n, int32_t* index) {
  int64_t count = 0;
#if defined(__AVX512F__)
  const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t i = 0; i < n; i += 16) {
    unsigned mask;
    if constexpr (sizeof(T) == 4) {
      mask = _mm512_cmp_ps_mask((__m512)load(x + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
    } else {
      const unsigned upper = _mm512_cmp_pd_mask((__m512d)load(x + i + 8), _mm512_setzero_pd(), _CMP_NEQ_UQ);
      mask = upper << 8 | _mm512_cmp_pd_mask((__m512d)load(x + i), _mm512_setzero_pd(), _CMP_NEQ_UQ);
    }
    if (mask == 0) continue;
    const __m512i at = _mm512_add_epi32(first, _mm512_set1_epi32(static_cast<int>(i)));
    _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), at));
    count += __builtin_popcount(mask);
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    index[count] = static_cast<int32_t>(i);
    count += x[i] != 0;
  }
#endif
  return count;
}

// --- products -------------------------------------------------------------------------------------------------

// c_n = r_n D^T in double for N rows; see LassoProblem for `panels`.
template <class T, int N>
inline void correlate_rows(const T* panels, int64_t features, int64_t columns, const double* const* r,
                           double* const* c) {
  constexpr int L = lanes<double>;
  for (int64_t k = 0; k < columns; k += 16) {
    for (int part = 0; part < 16; part += 2 * L) {
      const T* d = panels + k * features + part;
      D sum[N][2] = {};
      for (int64_t f = 0; f < features; ++f, d += 16) {
        const D d0 = load_wide(d), d1 = load_wide(d + L);
        for (int n = 0; n < N; ++n) {
          sum[n][0] = fma(d0, r[n][f], sum[n][0]);
          sum[n][1] = fma(d1, r[n][f], sum[n][1]);
        }
      }
      for (int n = 0; n < N; ++n) {
        store(c[n] + k + part, sum[n][0]);
        store(c[n] + k + part + L, sum[n][1]);
      }
    }
  }
}

template <class T>
inline void correlate(const T* panels, int64_t features, int64_t columns, int count, const double* const* r,
                      double* const* c) {
  static_assert(kLassoRows == 4, "one case for each number of rows");
  if (count == 4) correlate_rows<T, 4>(panels, features, columns, r, c);
  if (count == 3) correlate_rows<T, 3>(panels, features, columns, r, c);
  if (count == 2) correlate_rows<T, 2>(panels, features, columns, r, c);
  if (count == 1) correlate_rows<T, 1>(panels, features, columns, r, c);
}

// r = x - z D in double; `columns` of r are padded.
template <class T>
inline void residual(const T* dictionary, int64_t columns, const T* z, const int32_t* index, int64_t count,
                     const double* x, double* r) {
  constexpr int L = lanes<double>, N = 16 / L;
  for (int64_t f = 0; f < columns; f += 16) {
    D sum[N];
    for (int j = 0; j < N; ++j) sum[j] = load(x + f + j * L);
    for (int64_t i = 0; i < count; ++i) {
      const T* d = dictionary + index[i] * columns + f;
      const double weight = static_cast<double>(z[index[i]]);
      for (int j = 0; j < N; ++j) sum[j] = fma(-weight, load_wide(d + j * L), sum[j]);
    }
    for (int j = 0; j < N; ++j) store(r + f + j * L, sum[j]);
  }
}

template <int N, class T>
LK_INLINE void add_rows_chunk(const T* gram, int64_t stride, const int32_t* index, const T* weight, int64_t count,
                              T* out) {
  Pack<Vec<T>, N> sum = load(out, Registers<N>{});
  for (int64_t i = 0; i < count; ++i) sum = fma(load(gram + index[i] * stride, Registers<N>{}), weight[i], sum);
  store(out, sum, Registers<N>{});
}

// out += sum_i weight_i G[index_i], eight registers of out at a time.
template <class T>
inline void add_rows(const T* gram, int64_t stride, int64_t columns, const int32_t* index, const T* weight,
                     int64_t count, T* out) {
  constexpr int L = lanes<T>;
  int64_t k = 0;
  for (; k + 8 * L <= columns; k += 8 * L) add_rows_chunk<8>(gram + k, stride, index, weight, count, out + k);
  if (k + 4 * L <= columns) {
    add_rows_chunk<4>(gram + k, stride, index, weight, count, out + k);
    k += 4 * L;
  }
  if (k + 2 * L <= columns) {
    add_rows_chunk<2>(gram + k, stride, index, weight, count, out + k);
    k += 2 * L;
  }
  if (k < columns) add_rows_chunk<1>(gram + k, stride, index, weight, count, out + k);
}

// --- duality gaps ---------------------------------------------------------------------------------------------

// The largest of x, or of |x|; at least 0.
template <class T>
inline T largest(const T* x, int64_t n, bool positive) {
  Vec<T> most = {};
  for (int64_t i = 0; i < n; i += lanes<T>) {
    const Vec<T> v = load(x + i);
    most = v > most ? v : most;
    if (!positive) most = -v > most ? -v : most;
  }
  T result = 0;
  for (int i = 0; i < lanes<T>; ++i) result = most[i] > result ? most[i] : result;
  return result;
}

// sum_i f(i), f giving a register, over kReduceLanes lanes and a fixed tree in every build; n is padded.
template <class T, class Function>
LK_INLINE T sum_of(int64_t n, Function f) {
  constexpr int parts = kReduceLanes / lanes<T>;
  Vec<T> sum[parts] = {};
  for (int64_t i = 0; i < n; i += kReduceLanes)
    for (int k = 0; k < parts; ++k) sum[k] += f(i + k * lanes<T>);
  for (int half = parts / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  return sum_by_halves(sum[0]);
}

// Codes z with correlations q = x D^T - z G, and those they began with: what an estimate of the gap needs.
template <class T>
struct Progress {
  const T *z, *q, *z0, *q0;
  double residual0;  // ||x - z0 D||^2

  // ||r||^2 = ||r0||^2 - (z - z0) . (q + q0), since (z - z0) G = q0 - q
  double residual(int64_t n) const {
    const T moved = sum_of<T>(
        n, [&](int64_t i) LK_INLINE_LAMBDA { return (load(z + i) - load(z0 + i)) * (load(q + i) + load(q0 + i)); });
    const double r = residual0 - static_cast<double>(moved);
    return r > 0 ? r : 0;
  }

  // The duality gap at the dual point s r, s = min(1, alpha / max |q|), computed in T: not a bound, but a
  // good indication of when to compute one. Its terms have one sign, so that nothing cancels beyond the terms' own
  // rounding.
  double gap(int64_t n, double alpha, bool positive) const {
    const double most = static_cast<double>(largest(q, n, positive));
    const double s = most > alpha ? alpha / most : 1, t = 1 - s;
    const T a = static_cast<T>(alpha), b = static_cast<T>(s);
    const T sum = sum_of<T>(n, [&](int64_t i) LK_INLINE_LAMBDA {
      const Vec<T> v = load(z + i);
      return (v < T(0) ? -v : v) * a - v * load(q + i) * b;
    });
    return 0.5 * t * t * residual(n) + static_cast<double>(sum);
  }
};

// An upper bound on the objective of z above its minimum, from r = x - z D and c = r D^T in double.
//
// With the dual point s r, feasible where s max |c| <= alpha:
//   gap = 1/2 (1 - s)^2 ||r||^2 + sum_k alpha |z_k| - s z_k c_k,
// no term of which is negative. An allowance for rounding is added. With `unit` the relative error of a
// sum, |e| <= unit (||x|| + ||z||_1 max ||d||) that of r, |e_c| <= unit ||r|| max ||d|| that of a correlation:
//   the computed r, whatever its error, spans dual points: the gap misses (s - 1) e . r + 1/2 |e|^2, and s z . e_c;
//   max |c| is taken larger by |e_c|, so that s r is feasible; the two sums are off by `unit` of their terms' sizes.
template <class T>
inline double duality_gap(const T* z, const int32_t* index, int64_t count, const double* r, const double* c,
                          int64_t features, int64_t columns, double x_norm2, double alpha, bool positive,
                          double largest_norm2) {
  const double r2 = sum_of<double>(padded(features), [&](int64_t i) LK_INLINE_LAMBDA {
    const D v = load(r + i);
    return v * v;
  });
  const double unit = 0x1p-52 * static_cast<double>(features + count + 16);
  const double norm = __builtin_sqrt(r2), atom = __builtin_sqrt(largest_norm2);
  const double most = largest(c, columns, positive) + unit * norm * atom;
  double length = 0, product = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double v = static_cast<double>(z[index[i]]);
    length += magnitude(v);
    product += v * c[index[i]];
  }
  double s = r2 > 0 ? 1 + product / r2 : 1;  // the best scale along r: x . r / ||r||^2
  if (s * most > alpha) s = alpha / most;
  if (s < 0) s = 0;
  double sum = 0, terms = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double v = static_cast<double>(z[index[i]]), penalty = alpha * magnitude(v), along = s * v * c[index[i]];
    sum += penalty - along;
    terms += penalty + magnitude(along);
  }
  const double square = 0.5 * (1 - s) * (1 - s) * r2, size = __builtin_sqrt(x_norm2) + 2 * length * atom;
  const double slack = unit * (size * ((s > 1 ? s : 1) * norm + unit * size) + square + terms);
  return square + (sum > 0 ? sum : 0) + slack;
}

}  // namespace LK_ISA
}  // namespace lk
