// The vector types of one build of the kernels.
//
// Every <op>/kernel.cpp is compiled once for each instruction set, each time with another LK_ISA and other -m flags.
// All that the headers here and <op>/kernel*.hpp define lives in namespace lk::LK_ISA, so that no inline function of
// one build can be linked into another, or into the host's code. Arithmetic uses the compilers' vector extensions (+,
// -, *, <, ?: act lane by lane, IEEE, no contraction) and fma(); only what those lack is spelled with intrinsics. The
// generic forms are for other processors than x86.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef LK_ISA
#error "LK_ISA names the namespace of this build"
#endif

namespace lk {
namespace LK_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;  // float32 lanes in a register
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef double D __attribute__((vector_size(4 * W)));  // W / 2 lanes
typedef int64_t L __attribute__((vector_size(4 * W)));
typedef float F_half __attribute__((vector_size(2 * W)));  // W / 2 floats, which convert to one D

#define LK_INLINE inline __attribute__((always_inline))
#define LK_INLINE_LAMBDA __attribute__((always_inline))  // after the parameters of a long one
#define LK_NOINLINE inline __attribute__((noinline))     // one copy, for the callers of several types

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = F;
  using bits = I;
};
template <>
struct VecOf<double> {
  using type = D;
  using bits = L;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Bits = typename VecOf<T>::bits;
template <class T>
constexpr int lanes = static_cast<int>(sizeof(Vec<T>) / sizeof(T));

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// --- several registers in step --------------------------------------------------------------------------------

// Long chains of dependent operations leave most of the processor idle, and its reordering window is too short
// to reach the next chain. N chains written side by side fill it.
template <class V, int N>
struct Pack {
  V at[N];
};
#define LK_PACK_OPERATOR(op)                                            \
  template <class V, int N>                                             \
  LK_INLINE Pack<V, N> operator op(Pack<V, N> x, const Pack<V, N>& y) { \
    for (int j = 0; j < N; ++j) x.at[j] = x.at[j] op y.at[j];           \
    return x;                                                           \
  }                                                                     \
  template <class V, int N, class T>                                    \
  LK_INLINE Pack<V, N> operator op(Pack<V, N> x, T y) {                 \
    for (int j = 0; j < N; ++j) x.at[j] = x.at[j] op y;                 \
    return x;                                                           \
  }
LK_PACK_OPERATOR(+)
LK_PACK_OPERATOR(-)
LK_PACK_OPERATOR(*)
LK_PACK_OPERATOR(/)
#undef LK_PACK_OPERATOR
template <class V, int N>
LK_INLINE Pack<V, N> operator-(Pack<V, N> x) {
  for (int j = 0; j < N; ++j) x.at[j] = -x.at[j];
  return x;
}

// Applies f to every register.
template <class V, int N, class Function, class... Packs>
LK_INLINE Pack<V, N> map(Function f, const Pack<V, N>& first, const Packs&... others) {
  Pack<V, N> y;
  for (int j = 0; j < N; ++j) y.at[j] = f(first.at[j], others.at[j]...);
  return y;
}
template <class V, class Function, class... Registers>
LK_INLINE V map(Function f, V first, Registers... others) {
  return f(first, others...);
}

template <class V>
struct ScalarOf {
  using type = typename ScalarOf<decltype(V{}.at[0] + V{}.at[0])>::type;
};
template <>
struct ScalarOf<F> {
  using type = float;
};
template <>
struct ScalarOf<D> {
  using type = double;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

// a b + c, rounded once, of numbers, registers and Packs. Every product that is added to something is written so: the
// compilers fuse nothing by themselves, and every build, like a GPU, gives the same bits.
LK_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
LK_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if defined(__AVX512F__)
LK_INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
LK_INLINE D fma(D a, D b, D c) { return (D)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX2__)
LK_INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
LK_INLINE D fma(D a, D b, D c) { return (D)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
LK_INLINE F fma(F a, F b, F c) {
  for (int i = 0; i < W; ++i) a[i] = fma(a[i], b[i], c[i]);
  return a;
}
LK_INLINE D fma(D a, D b, D c) {
  for (int i = 0; i < W / 2; ++i) a[i] = fma(a[i], b[i], c[i]);
  return a;
}
#endif

// Element j of a Pack; of a register or a number, the value itself for every j.
template <class V, class X>
LK_INLINE V at_place(const X& x, int) {
  if constexpr (std::is_arithmetic<X>::value)
    return splat<Scalar<V>>(x);
  else
    return x;
}
template <class V, int N>
LK_INLINE V at_place(const Pack<V, N>& x, int j) {
  return x.at[j];
}
// True where the two have the same type, or one of them is a number.
template <class A, class B, class C>
LK_INLINE auto fma(const A& a, const B& b, const C& c) {
  using AB = std::conditional_t<std::is_arithmetic<A>::value, B, A>;
  using R = std::conditional_t<std::is_arithmetic<AB>::value, C, AB>;
  R y;
  if constexpr (std::is_same<R, F>::value || std::is_same<R, D>::value) {
    y = fma(at_place<R>(a, 0), at_place<R>(b, 0), at_place<R>(c, 0));
  } else {
    using V = std::remove_reference_t<decltype(R{}.at[0])>;
    for (int j = 0; j < static_cast<int>(sizeof(R) / sizeof(V)); ++j)
      y.at[j] = fma(at_place<V>(a, j), at_place<V>(b, j), at_place<V>(c, j));
  }
  return y;
}

template <class To, class From>
inline To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// --- loads and stores: whole registers, or the first k lanes of one ------------------------------------------

struct Whole {};
struct First {
  int k;
};
template <int N>
struct Registers {};  // N whole registers, as a Pack

template <class T>
LK_INLINE Vec<T> load(const T* p, Whole = {}) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
LK_INLINE void store(T* p, Vec<T> v, Whole = {}) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
inline Vec<T> load(const T* p, First part) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (F)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << part.k) - 1), p);
#endif
  T lane[lanes<T>] = {};
  for (int i = 0; i < part.k; ++i) lane[i] = p[i];
  return load(lane);
}
template <class T>
inline void store(T* p, Vec<T> v, First part) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << part.k) - 1), (__m512)v);
#endif
  for (int i = 0; i < part.k; ++i) p[i] = v[i];
}
template <class T, int N>
LK_INLINE Pack<Vec<T>, N> load(const T* p, Registers<N>) {
  Pack<Vec<T>, N> v;
  for (int j = 0; j < N; ++j) v.at[j] = load(p + j * lanes<T>);
  return v;
}
template <class T, int N>
LK_INLINE void store(T* p, const Pack<Vec<T>, N>& v, Registers<N>) {
  for (int j = 0; j < N; ++j) store(p + j * lanes<T>, v.at[j]);
}

// Prefetches the memory that a later load will read. Any address is allowed.
template <class T>
LK_INLINE void prefetch(const T* p, Whole) {
  __builtin_prefetch(p);
}
template <class T>
LK_INLINE void prefetch(const T* p, First) {
  __builtin_prefetch(p);
}
template <class T, int N>
LK_INLINE void prefetch(const T* p, Registers<N>) {
  for (int j = 0; j < N * lanes<T> * static_cast<int>(sizeof(T)); j += 64) __builtin_prefetch(p + j / sizeof(T));
}

// Noise is always float32; widen it where the arithmetic is float64.
template <class T>
LK_INLINE Vec<T> load_noise(const float* p, Whole) {
  if constexpr (sizeof(T) == 4) {
    return load(p);
  } else {
    F_half v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, D);
  }
}
template <class T>
inline Vec<T> load_noise(const float* p, First part) {
  float lane[W] = {};
  for (int i = 0; i < part.k; ++i) lane[i] = p[i];
  return load_noise<T>(lane, Whole{});
}
template <class T, int N>
LK_INLINE Pack<Vec<T>, N> load_noise(const float* p, Registers<N>) {
  Pack<Vec<T>, N> v;
  for (int j = 0; j < N; ++j) v.at[j] = load_noise<T>(p + j * lanes<T>, Whole{});
  return v;
}

// Calls f(i, part) for i = 0, ... so that the parts cover [0, n): several registers at a time, then one, then a
// partial one. f is written once, for any type that `load(p + i, part)` returns.
template <class T, int N = 2, class Body>
LK_INLINE void each(int64_t n, Body f) {
  int64_t i = 0;
  for (; i + N * lanes<T> <= n; i += N * lanes<T>) f(i, Registers<N>{});
  for (; i + lanes<T> <= n; i += lanes<T>) f(i, Whole{});
  if (i < n) f(i, First{static_cast<int>(n - i)});
}

// --- operations that the extensions lack ----------------------------------------------------------------------

// 32 x 32 -> 64 bit products of every lane with one constant, as high and low words.
LK_INLINE void multiply(U a, uint32_t m, U& high, U& low) {
#if defined(__AVX512F__)
  const __m512i x = (__m512i)a, k = _mm512_set1_epi32(static_cast<int>(m));
  const __m512i even = _mm512_mul_epu32(x, k);
  const __m512i odd = _mm512_mul_epu32(_mm512_shuffle_epi32(x, _MM_PERM_DDBB), k);
  high = (U)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  low = (U)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
#elif defined(__AVX2__)
  const __m256i x = (__m256i)a, k = _mm256_set1_epi32(static_cast<int>(m));
  const __m256i even = _mm256_mul_epu32(x, k);
  const __m256i odd = _mm256_mul_epu32(_mm256_shuffle_epi32(x, 0xF5), k);
  high = (U)_mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xF5), odd, 0xAA);
  low = (U)_mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA);
#else
  for (int i = 0; i < W; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * m;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
#endif
}

// float32(uint32), rounded once. The two halves are exact, so their sum rounds as the direct conversion does.
LK_INLINE F to_float(U w) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtepu32_ps((__m512i)w);
#else
  return __builtin_convertvector((I)(w >> 16), F) * 65536.0f + __builtin_convertvector((I)(w & 0xFFFFu), F);
#endif
}
LK_INLINE F to_float(I w) { return __builtin_convertvector(w, F); }
LK_INLINE I to_int(F x) { return __builtin_convertvector(x, I); }

// The largest integer not above x, for |x| < 2^31.
LK_INLINE F floor(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (F)_mm256_floor_ps((__m256)x);
#else
  const F whole = to_float(to_int(x));
  return whole > x ? whole - 1.0f : whole;
#endif
}

// x kept between low and high; NaN stays NaN.
LK_INLINE F clamp(F x, float low, float high) {
#if defined(__AVX512F__)  // where an operand is NaN, min and max give the second one
  return (F)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif defined(__AVX2__)
  return (F)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#else
  x = x < low ? splat<float>(low) : x;
  return x > high ? splat<float>(high) : x;
#endif
}
LK_INLINE D clamp(D x, double low, double high) {
  x = x < low ? splat<double>(low) : x;
  return x > high ? splat<double>(high) : x;
}

LK_INLINE F absolute(F x) { return bit_cast<F>(bit_cast<I>(x) & 0x7FFFFFFF); }
LK_INLINE D absolute(D x) { return bit_cast<D>(bit_cast<L>(x) & 0x7FFFFFFFFFFFFFFF); }

LK_INLINE F sqrt(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// Sum of all lanes by halves: lane i takes lane i + n/2, then i + n/4, ...
LK_INLINE double sum_by_halves(D v) {
  double lane[W / 2];
  store(lane, v);
  for (int half = W / 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
LK_INLINE float sum_by_halves(F v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), upper);
#else
  const __m256 eight = (__m256)v;
#endif
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// Stores a, b, c, d so that out holds a[0] b[0] c[0] d[0] a[1] ... in the order of interleaved_index() below.
LK_INLINE void store_interleaved(float* out, F a, F b, F c, F d) {
#if defined(__AVX512F__)
  const __m512 p = _mm512_unpacklo_ps((__m512)a, (__m512)b), q = _mm512_unpackhi_ps((__m512)a, (__m512)b);
  const __m512 r = _mm512_unpacklo_ps((__m512)c, (__m512)d), s = _mm512_unpackhi_ps((__m512)c, (__m512)d);
  store(out, (F)_mm512_shuffle_ps(p, r, 0x44));
  store(out + 16, (F)_mm512_shuffle_ps(p, r, 0xEE));
  store(out + 32, (F)_mm512_shuffle_ps(q, s, 0x44));
  store(out + 48, (F)_mm512_shuffle_ps(q, s, 0xEE));
#elif defined(__AVX2__)
  const __m256 p = _mm256_unpacklo_ps((__m256)a, (__m256)b), q = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  const __m256 r = _mm256_unpacklo_ps((__m256)c, (__m256)d), s = _mm256_unpackhi_ps((__m256)c, (__m256)d);
  store(out, (F)_mm256_shuffle_ps(p, r, 0x44));
  store(out + 8, (F)_mm256_shuffle_ps(p, r, 0xEE));
  store(out + 16, (F)_mm256_shuffle_ps(q, s, 0x44));
  store(out + 24, (F)_mm256_shuffle_ps(q, s, 0xEE));
#else
  for (int i = 0; i < W; ++i) {
    out[4 * i] = a[i];
    out[4 * i + 1] = b[i];
    out[4 * i + 2] = c[i];
    out[4 * i + 3] = d[i];
  }
#endif
}

// Which group of four outputs lane i ends up in. Shuffles that stay inside 128-bit parts are cheap, so counters
// are dealt to lanes in the order that lets store_interleaved use only those: 0, W/4, 2W/4, ..., 1, W/4 + 1, ...
LK_INLINE U interleaved_index() {
  U index = {};
#if defined(__AVX2__)
  for (int i = 0; i < W; ++i) index[i] = static_cast<uint32_t>((i % 4) * (W / 4) + i / 4);
#else
  for (int i = 0; i < W; ++i) index[i] = static_cast<uint32_t>(i);
#endif
  return index;
}

}  // namespace LK_ISA
}  // namespace lk
