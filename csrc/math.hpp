// Elementary functions, written out so that every backend rounds alike. Each is a fixed sequence of IEEE
// operations, compiled without contraction; kernels/noise and kernels/gaussian hold the same sequences for
// Triton. `ln` and `sin_cos_pi` are part of noise stream v1 and frozen; errors are stated in kernels/*/README.md.
#pragma once

#include "simd.hpp"

namespace lk {
namespace LK_ISA {

template <class V, class T, size_t N>
LK_INLINE V horner(const T (&c)[N], V x) {
  V p = c[N - 1] - V{};
  for (size_t i = N - 1; i-- > 0;) p = p * x + c[i];
  return p;
}
template <int M, size_t N>
LK_INLINE Pack<M> horner(const float (&c)[N], const Pack<M>& x) {
  Pack<M> p = x * c[N - 1] + c[N - 2];
  for (size_t i = N - 2; i-- > 0;) p = p * x + c[i];
  return p;
}

// --- frozen: noise stream v1 ----------------------------------------------------------------------------------

// ln(u) for normal u > 0. u = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f - f^2/2 + f^3 P(f).
template <int N>
LK_INLINE Pack<N> ln(const Pack<N>& u) {
  constexpr float P[] = {0.33333316445350647f, -0.25000810623168945f, 0.2000228613615036f,  -0.16624553501605988f,
                         0.14181192219257355f, -0.13128754496574402f, 0.12881647050380707f, -0.07859611511230469f};
  constexpr int32_t sqrt_half = 0x3F3504F3;
  const Pack<N> k = map<N>([](F x) { return to_float((bit_cast<I>(x) - sqrt_half) >> 23); }, u);
  const Pack<N> f = map<N>(
      [](F x) { return bit_cast<F>(((bit_cast<I>(x) - sqrt_half) & 0x7FFFFF) + sqrt_half) - 1.0f; }, u);
  const Pack<N> s = f * f;
  Pack<N> y = (horner(P, f) * f) * s;
  y = y + k * -2.12194440e-4f;  // ln 2 = 0.693359375 - 2.12194440e-4, the first exact times any k here
  y = y - s * 0.5f;
  y = y + f;
  return y + k * 0.693359375f;
}

// sin(pi t) and cos(pi t) for |t| <= 1. t = q/2 + r with q = floor(2t + 1/2), |r| <= 1/4, exact.
template <int N>
LK_INLINE void sin_cos_pi(const Pack<N>& t, Pack<N>& sine, Pack<N>& cosine) {
  constexpr float S[] = {-5.1677093505859375f, 2.5498106479644775f, -0.5894796848297119f};
  constexpr float C[] = {-4.934802055358887f, 4.0587077140808105f, -1.3350584506988525f, 0.2314295470714569f};
  const Pack<N> q = map<N>([](F x) { return floor(x); }, t * 2.0f + 0.5f);
  const Pack<N> r = t - q * 0.5f;
  const Pack<N> y = r * r;
  const Pack<N> s = (horner(S, y) * y + -8.742277657347586e-08f) * r + r * 3.1415927410125732f;  // pi = high + low
  const Pack<N> c = horner(C, y) * y + 1.0f;
  for (int j = 0; j < N; ++j) {
    const U quadrant = bit_cast<U>(to_int(q.at[j]));
    const U swap = -(quadrant & 1u);  // all ones where sine and cosine trade places
    const U s_bits = bit_cast<U>(s.at[j]), c_bits = bit_cast<U>(c.at[j]);
    const U differ = (s_bits ^ c_bits) & swap;
    sine.at[j] = bit_cast<F>((s_bits ^ differ) ^ ((quadrant & 2u) << 30));
    cosine.at[j] = bit_cast<F>((c_bits ^ differ) ^ (((quadrant + 1u) & 2u) << 30));
  }
}

// --- exp, and psi(d) = e^d - 1 - d ----------------------------------------------------------------------------

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f, log2_e = 1.4426950216293335f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  static constexpr int32_t mantissa_bits = 23, bias = 127;
  static constexpr float Q[] = {0.5f, 0.1666666567325592f, 0.04166628047823906f, 0.00833350419998169f,
                                0.0013945752289146185f, 0.0001978926156880334f};
  static constexpr float P[] = {0.5f, 0.1666666716337204f, 0.0416666679084301f, 0.00833334494382143f,
                                0.0013888858957216144f, 0.00019837048603221774f, 2.4804367058095522e-05f,
                                2.812300181176397e-06f, 2.771255083189317e-07f};
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0, highest = 710.0, log2_e = 1.4426950408889634;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int64_t mantissa_bits = 52, bias = 1023;
  // Taylor: 1 / (k + 2)!
  static constexpr double Q[] = {1. / 2,        1. / 6,         1. / 24,         1. / 120,
                                 1. / 720,      1. / 5040,      1. / 40320,      1. / 362880,
                                 1. / 3628800,  1. / 39916800., 1. / 479001600., 1. / 6227020800.,
                                 1. / 87178291200.};
  static constexpr double P[] = {1. / 2,
                                 1. / 6,
                                 1. / 24,
                                 1. / 120,
                                 1. / 720,
                                 1. / 5040,
                                 1. / 40320,
                                 1. / 362880,
                                 1. / 3628800,
                                 1. / 39916800.,
                                 1. / 479001600.,
                                 1. / 6227020800.,
                                 1. / 87178291200.,
                                 1. / 1307674368000.,
                                 1. / 20922789888000.,
                                 1. / 355687428096000.,
                                 1. / 6402373705728000.,
                                 1. / 121645100408832000.};
};

template <class T>
LK_INLINE Vec<T> power_of_two(Bits<T> n) {
  using K = ExpConstants<T>;
  return bit_cast<Vec<T>>((n + K::bias) << K::mantissa_bits);
}

// e^x = 2^n e^r, n = round(x / ln 2), e^r = 1 + r + r^2 Q(r). Subnormal results are right; NaN stays NaN.
template <class T>
LK_INLINE Vec<T> exp(Vec<T> x) {
  using K = ExpConstants<T>;
  x = clamp(x, K::lowest, K::highest);
  const Vec<T> shifted = x * K::log2_e + K::to_integer;
  const Vec<T> n = shifted - K::to_integer;
  const Vec<T> r = (x - n * K::ln2_high) - n * K::ln2_low;
  const Vec<T> p = (r * r) * horner(K::Q, r) + r + T(1);
#if defined(__AVX512F__)  // the same product, rounded once
  if constexpr (sizeof(T) == 4) return (F)_mm512_scalef_ps((__m512)p, (__m512)n);
#endif
  const Bits<T> k = bit_cast<Bits<T>>(shifted) - bit_cast<Bits<T>>(splat<T>(K::to_integer));
  const Bits<T> half = k >> 1;
  return (p * power_of_two<T>(half)) * power_of_two<T>(k - half);
}

// psi(d) = e^d - 1 - d >= 0, and expm1(d) = psi(d) + d, with no cancellation: d^2 P(d) where |d| < 1.
template <class T>
LK_INLINE void psi_expm1(Vec<T> d, Vec<T>& psi, Vec<T>& expm1) {
  const Vec<T> small = (d * d) * horner(ExpConstants<T>::P, d);
  const Vec<T> large = exp<T>(d) - T(1);
  const Bits<T> near = (d < T(1)) & (d > T(-1));
  psi = near ? small : large - d;
  expm1 = near ? small + d : large;
}

}  // namespace LK_ISA
}  // namespace lk
