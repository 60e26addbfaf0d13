// Elementary functions, written out so that every backend rounds alike. Each is a fixed sequence of IEEE
// operations, fused where fma() says so and nowhere else; kernels/noise and kernels/triton_math.py hold the same
// sequences for Triton. `ln` and `sin_cos_pi` are part of noise stream v2 and frozen; errors are stated in
// kernels/*/README.md.
#pragma once

#include "simd/registers.hpp"

namespace lk {
namespace LK_ISA {

constexpr double kLogTwoPi = 1.8378770664093454835606594728112;

// c[0] + x (c[1] + x (c[2] + ...)), for a register or a Pack of them.
template <class V, class T, size_t N>
LK_INLINE V horner(const T (&c)[N], V x) {
  V p = fma(x, c[N - 1], c[N - 2]);
  for (size_t i = N - 2; i-- > 0;) p = fma(p, x, c[i]);
  return p;
}

// --- frozen: noise stream v2 ----------------------------------------------------------------------------------

// k ln 2 + ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f + f^2 P(f).
template <class V>
LK_INLINE V ln_of_parts(V k, V f) {
  constexpr float P[] = {-0.5f,
                         0.33333316445350647f,
                         -0.25000810623168945f,
                         0.2000228613615036f,
                         -0.16624553501605988f,
                         0.14181192219257355f,
                         -0.13128754496574402f,
                         0.12881647050380707f,
                         -0.07859611511230469f};
  return fma(k, 0.6931471824645996f, fma(horner(P, f), f * f, f));  // ln 2, off by 3e-9 of it
}

// The k and f of normal u = 2^k (1 + f).
template <class V>
LK_INLINE void parts_of(V u, V& k, V& f) {
  constexpr int32_t sqrt_half = 0x3F3504F3;
  k = map([](F x) { return to_float((bit_cast<I>(x) - sqrt_half) >> 23); }, u);
  f = map([](F x) { return bit_cast<F>(((bit_cast<I>(x) - sqrt_half) & 0x7FFFFF) + sqrt_half) - 1.0f; }, u);
}

// ln(u) for normal u > 0.
template <class V>
LK_INLINE V ln(V u) {
  V k, f;
  parts_of(u, k, f);
  return ln_of_parts(k, f);
}

// -ln(1 - u) for u in (0, 1), the least included: where 1 - u > sqrt(1/2), f is -u itself, and no digit is lost.
template <class V>
LK_INLINE V exponential(V u) {
  V k, f;
  parts_of(-(u - 1.0f), k, f);
  return -ln_of_parts(k, map([](F k, F f, F u) { return k == 0.0f ? -u : f; }, k, f, u));
}

// sin(pi t) and cos(pi t) for |t| <= 1. t = q/2 + r with q = floor(2t + 1/2), |r| <= 1/4, exact.
template <class V>
LK_INLINE void sin_cos_pi(V t, V& sine, V& cosine) {
  // The low part of pi, then sin(pi r) = pi r + r^3 (...); cos(pi r) = 1 + r^2 (...).
  constexpr float S[] = {-8.742277657347586e-08f, -5.167708873748779f, 2.5497946739196777f, -0.5892776846885681f};
  constexpr float C[] = {1.0f, -4.93479061126709f, 4.057638168334961f, -1.3065298795700073f};
  const V q = map([](F x) { return floor(x); }, fma(t, 2.0f, 0.5f));
  const V r = fma(q, -0.5f, t);
  const V y = r * r;
  const V s = fma(r, 3.1415927410125732f, horner(S, y) * r);
  const V c = horner(C, y);
  // Where the quadrant is odd sine and cosine trade places; its bits tell their signs.
  const auto choose = [](F own, F other, U trade, U sign) {
    const U differ = (bit_cast<U>(own) ^ bit_cast<U>(other)) & -(trade & 1u);
    return bit_cast<F>((bit_cast<U>(own) ^ differ) ^ ((sign & 2u) << 30));
  };
  sine = map([&](F a, F b, F q) { return choose(a, b, bit_cast<U>(to_int(q)), bit_cast<U>(to_int(q))); }, s, c, q);
  cosine =
      map([&](F a, F b, F q) { return choose(a, b, bit_cast<U>(to_int(q)), bit_cast<U>(to_int(q)) + 1u); }, c, s, q);
}

// --- exp, expm1, and psi(d) = e^d - 1 - d ---------------------------------------------------------------------

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f, log2_e = 1.4426950216293335f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  static constexpr int32_t mantissa_bits = 23, bias = 127;
  static constexpr float Q[] = {1.0f,
                                0.4999999403953552f,
                                0.1666652113199234f,
                                0.041668254882097244f,
                                0.008368662558495998f,
                                0.0013821459142491221f};
  static constexpr float P[] = {0.5f,
                                0.1666666567325592f,
                                0.04166661947965622f,
                                0.008333361707627773f,
                                0.0013889892725273967f,
                                0.00019839138258248568f,
                                2.4728875359869562e-05f,
                                2.759976723609725e-06f,
                                2.9672227697119524e-07f,
                                2.5569949713144524e-08f};
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0, highest = 710.0, log2_e = 1.4426950408889634;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int64_t mantissa_bits = 52, bias = 1023;
  // Taylor: 1 / (k + 1)!
  static constexpr double Q[] = {
      1.,         1. / 2,      1. / 6,       1. / 24,        1. / 120,        1. / 720,         1. / 5040,
      1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800., 1. / 479001600., 1. / 6227020800., 1. / 87178291200.};
  static constexpr double P[] = {1. / 2.,
                                 1. / 6.,
                                 1. / 24.,
                                 1. / 120.,
                                 1. / 720.,
                                 1. / 5040.,
                                 1. / 40320.,
                                 1. / 362880.,
                                 1. / 3628800.,
                                 1. / 39916800.,
                                 1. / 479001600.,
                                 1. / 6227020800.,
                                 1. / 87178291200.,
                                 1. / 1307674368000.,
                                 1. / 20922789888000.,
                                 1. / 355687428096000.,
                                 1. / 6402373705728000.,
                                 1. / 121645100408832000.,
                                 1. / 2432902008176640000.,
                                 1. / 51090942171709440000.,
                                 1. / 1124000727777607680000.,
                                 1. / 25852016738884976640000.,
                                 1. / 620448401733239439360000.,
                                 1. / 15511210043330985984000000.};
};

template <class T>
LK_INLINE Vec<T> power_of_two(Bits<T> n) {
  using K = ExpConstants<T>;
  return bit_cast<Vec<T>>((n + K::bias) << K::mantissa_bits);
}

// p 2^n, rounded once, subnormal results included; n = shifted - to_integer is a whole number.
LK_INLINE D scale(D p, D n, D shifted) {
  using K = ExpConstants<double>;
  (void)n;
  const L k = bit_cast<L>(shifted) - bit_cast<L>(splat<double>(K::to_integer));
  const L half = k >> 1;
  return (p * power_of_two<double>(half)) * power_of_two<double>(k - half);
}
LK_INLINE F scale(F p, F n, F shifted) {
#if defined(__AVX512F__)
  (void)shifted;
  return (F)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  using K = ExpConstants<float>;
  (void)n;
  const I k = bit_cast<I>(shifted) - bit_cast<I>(splat<float>(K::to_integer));
  const I half = k >> 1;
  return (p * power_of_two<float>(half)) * power_of_two<float>(k - half);
#endif
}

// x = n ln 2 + r, n the nearest whole number, which `shifted` = n + to_integer holds in its last bits.
template <class V>
LK_INLINE void reduce_exp(V x, V& shifted, V& n, V& r) {
  using K = ExpConstants<Scalar<V>>;
  shifted = fma(x, K::log2_e, K::to_integer);
  n = shifted - K::to_integer;
  r = fma(n, -K::ln2_low, fma(n, -K::ln2_high, x));
}

// e^x = 2^n e^r, e^r = 1 + r Q(r); or half of it, which overflows later. NaN stays NaN.
template <bool kHalf = false, class V>
LK_INLINE V exp(V x) {
  using K = ExpConstants<Scalar<V>>;
  constexpr int halvings = kHalf ? 1 : 0;
  x = map([](auto v) { return clamp(v, K::lowest, K::highest + halvings); }, x);
  V shifted, n, r;
  reduce_exp(x, shifted, n, r);
  const V p = fma(horner(K::Q, r), r, Scalar<V>(1));
  if constexpr (kHalf)
    return map([](auto v, auto whole, auto bits) { return scale(v, whole, bits); }, p, n - Scalar<V>(1),
               shifted - Scalar<V>(1));
  return map([](auto v, auto whole, auto bits) { return scale(v, whole, bits); }, p, n, shifted);
}

// e^x - 1. Near 0, where n = 0, it is r Q(r) itself.
template <class V>
LK_INLINE V expm1(V x) {
  using K = ExpConstants<Scalar<V>>;
  x = map([](auto v) { return clamp(v, K::lowest, K::highest); }, x);
  V shifted, n, r;
  reduce_exp(x, shifted, n, r);
  const V q = horner(K::Q, r);
  const auto choose = [](auto near, auto p, auto whole, auto bits) {
    return whole == Scalar<V>(0) ? near : scale(p, whole, bits) - Scalar<V>(1);
  };
  return map(choose, q * r, fma(q, r, Scalar<V>(1)), n, shifted);
}

// Half of psi(d) = e^d - 1 - d >= 0 and of expm1(d) = psi(d) + d, with no cancellation: psi = d^2 P(d) where |d| < 2,
// so that an error of e^d in its last place weighs at most 1.7 times as much in it. Halves, as a KL and its gradients
// have them, overflow where those do.
template <class V>
LK_INLINE void half_psi_expm1(V d, V& psi, V& expm1) {
  using T = Scalar<V>;
  const V half = d * T(0.5), small = (half * d) * horner(ExpConstants<T>::P, d);
  const V large = exp<true>(d) - T(0.5);
  const auto near = [](auto x, auto if_near, auto if_far) { return ((x < T(2)) & (x > T(-2))) ? if_near : if_far; };
  psi = map(near, d, small, large - half);
  expm1 = map(near, d, small + half, large);
}

// --- ln(1 + x) for -1/2 <= x <= 1 --------------------------------------------------------------------------------

template <class T>
struct Log1pConstants;
template <>
struct Log1pConstants<float> {
  static constexpr float Q[] = {0.6666641235351562f, 0.4002170264720917f, 0.2799908220767975f, 0.2802472710609436f};
};
template <>
struct Log1pConstants<double> {
  // Taylor: 2 / (2 k + 3)
  static constexpr double Q[] = {2. / 3,  2. / 5,  2. / 7,  2. / 9,  2. / 11, 2. / 13, 2. / 15, 2. / 17, 2. / 19,
                                 2. / 21, 2. / 23, 2. / 25, 2. / 27, 2. / 29, 2. / 31, 2. / 33, 2. / 35};
};

// ln(1 + x) = 2 artanh(s), s = x / (2 + x), is x - s (x - R), R = s^2 Q(s^2): the larger part of it is x itself, exact.
template <class V>
LK_INLINE V log1p(V e) {
  const V s = e / (e + Scalar<V>(2)), y = s * s;
  return fma(-s, fma(-y, horner(Log1pConstants<Scalar<V>>::Q, y), e), e);
}

// --- ln(a / b) for positive a and b ------------------------------------------------------------------------------

template <class T>
struct LnConstants;
template <>
struct LnConstants<float> {
  static constexpr int32_t sqrt_half = 0x3F3504F3, mantissa = 0x7FFFFF;
  static constexpr float least = 0x1p-126f, up = 0x1p64f, up_exponent = 64, infinity = __builtin_inff();
};
template <>
struct LnConstants<double> {
  static constexpr int64_t sqrt_half = 0x3FE6A09E667F3BCD, mantissa = 0xFFFFFFFFFFFFF;
  static constexpr double least = 0x1p-1022, up = 0x1p64, up_exponent = 64, infinity = __builtin_inf();
};
LK_INLINE D to_float(L small) {  // |small| < 2^51
  const double to_integer = ExpConstants<double>::to_integer;
  return bit_cast<D>(small + bit_cast<L>(splat<double>(to_integer))) - to_integer;
}

// k ln 2 + ln(1 + f). Where a and b are within a factor of two k = 0 and f = (a - b) / b, whose difference is exact, so
// that every digit is there; elsewhere 2^k (1 + f) is the quotient r, its 1 + f from sqrt(1/2) to sqrt(2).
template <class V>
LK_INLINE V ln_ratio(V r, V a, V b) {
  using T = Scalar<V>;
  using K = ExpConstants<T>;
  using C = LnConstants<T>;
  const auto is_near = [](auto r) { return (r >= T(0.5)) & (r <= T(2)); };
  const auto bits_of = [](auto r) { return bit_cast<Bits<T>>(r < C::least ? r * C::up : r) - C::sqrt_half; };
  const auto exponent = [&](auto r) {
    const auto k = to_float(bits_of(r) >> K::mantissa_bits) - (r < C::least ? splat<T>(C::up_exponent) : Vec<T>{});
    return is_near(r) ? Vec<T>{} : k;
  };
  const auto fraction = [&](auto r, auto x, auto y) {
    const auto f = bit_cast<Vec<T>>((bits_of(r) & C::mantissa) + C::sqrt_half) - T(1);
    return is_near(r) ? (x - y) / y : f;
  };
  const V k = map(exponent, r);
  const V ln = fma(k, K::ln2_high, fma(k, K::ln2_low, log1p(map(fraction, r, a, b))));
  const auto at_ends = [](auto r, auto ln) {
    const auto end = r == T(0) ? splat<T>(-C::infinity) : r > T(0) ? r : splat<T>(__builtin_nan(""));
    return (r > T(0)) & (r < C::infinity) ? ln : end;
  };
  return map(at_ends, r, ln);
}

}  // namespace LK_ISA
}  // namespace lk
