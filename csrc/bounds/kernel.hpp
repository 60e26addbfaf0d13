// Importance-weighted bounds: log-sum-exp over samples with normalised weights, and VIMCO's learning signal. Every
// sum is relative to the largest weight of its row, so that nothing overflows and weights add up to 1.
#pragma once

#include "bounds/problem.hpp"
#include "simd/math.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

template <class C>
constexpr C kLargest = static_cast<C>(1.7976931348623157e308);
template <>
constexpr float kLargest<float> = 3.4028234663852886e38f;

constexpr int kLinesAtOnce = 8;

// Values for the columns of a part, padded by one register.
template <class C>
struct alignas(64) Columns {
  C at[kBoundColumns + kReduceLanes];
};

// The larger of a and b; not NaN unless b is.
constexpr auto larger_lane = [](auto a, auto b) LK_INLINE_LAMBDA { return a > b ? a : b; };

// Line `line` of the part's columns, and the number of columns that it has.
template <class T>
inline const Compute<T>* load_line(const BoundProblem& p, const Part& part, int64_t line, Compute<T>* buffer,
                                   int64_t& count) {
  const int64_t begin = line * width_of(p) + part.col0;
  count = larger(smaller(part.col1 - part.col0, p.samples * p.rows - begin), 0);
  const T* from = static_cast<const T*>(p.log_w) + part.group * p.samples * p.rows + begin;
  if constexpr (std::is_same<T, Compute<T>>::value) {
    return from;
  } else {
    widen_all(from, count, buffer);
    return buffer;
  }
}

// Adds N lines of n values to the sums, relative to the largest value so far, which may be one of them.
template <int N, class C>
inline void absorb(const C* const (&lines)[kLinesAtOnce], int64_t n, C* top, C* total) {
  each<C>(n, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    const auto before = load(top + i, k);
    auto most = before;
    decltype(most) x[N];
    for (int j = 0; j < N; ++j) {
      x[j] = load(lines[j] + i, k);
      most = map(larger_lane, x[j], most);
    }
    auto sum = fma(load(total + i, k), exp(before - most), exp(x[0] - most));
    for (int j = 1; j < N; ++j) sum = sum + exp(x[j] - most);
    store(top + i, most, k);
    store(total + i, sum, k);
  });
}

template <class T>
void bound_sums(const BoundProblem& p, const BoundSums& out, const Part& part) {
  using C = Compute<T>;
  Columns<C> buffers[kLinesAtOnce];
  C *top = static_cast<C*>(out.top) + part.col0, *total = static_cast<C*>(out.total) + part.col0;
  for (int64_t i = 0; i < part.col1 - part.col0; ++i) {
    top[i] = -kLargest<C>;
    total[i] = 0;
  }
  const int64_t whole = smaller(part.sample1, p.samples / p.wrap);  // lines that are not cut short
  const C* lines[kLinesAtOnce] = {};
  int64_t line = part.sample0, count = 0;
  for (; line + kLinesAtOnce <= whole; line += kLinesAtOnce) {
    for (int j = 0; j < kLinesAtOnce; ++j) lines[j] = load_line<T>(p, part, line + j, buffers[j].at, count);
    absorb<kLinesAtOnce>(lines, count, top, total);
  }
  for (; line < part.sample1; ++line) {
    lines[0] = load_line<T>(p, part, line, buffers[0].at, count);
    absorb<1>(lines, count, top, total);
  }
}

// Adds the sums of chunks of lines, `stride` apart, to those of the first chunk.
template <class C>
void bound_merge(int64_t chunks, int64_t stride, int64_t n, void* tops, void* totals) {
  C *top = static_cast<C*>(tops), *total = static_cast<C*>(totals);
  each<C>(n, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    auto most = load(top + i, k);
    for (int64_t c = 1; c < chunks; ++c) most = map(larger_lane, load(top + c * stride + i, k), most);
    auto sum = load(total + i, k) * exp(load(top + i, k) - most);
    for (int64_t c = 1; c < chunks; ++c)
      sum = fma(load(total + c * stride + i, k), exp(load(top + c * stride + i, k) - most), sum);
    store(top + i, most, k);
    store(total + i, sum, k);
  });
}

template <class T>
void bound_weights(const BoundProblem& p, const BoundWeights& w, const Part& part) {
  using C = Compute<T>;
  Columns<C> buffer, work, top, factor;
  const C *tops = static_cast<const C*>(w.sums) + 2 * part.group * p.rows, *totals = tops + p.rows;
  const C* gradients = static_cast<const C*>(w.gradient);
  if (gradients != nullptr) gradients += part.group * p.rows;
  int64_t row = part.col0 % p.rows;
  for (int64_t i = 0; i < part.col1 - part.col0; ++i) {
    top.at[i] = tops[row];
    factor.at[i] = (gradients == nullptr ? C(1) : gradients[row]) / totals[row];
    if (++row == p.rows) row = 0;
  }
  for (int64_t line = part.sample0; line < part.sample1; ++line) {
    int64_t count;
    const C* x = load_line<T>(p, part, line, buffer.at, count);
    T* to = static_cast<T*>(w.out) + part.group * p.samples * p.rows + line * width_of(p) + part.col0;
    C* out = output_tile(to, work.at);
    each<C>(count, [=, &top, &factor](int64_t i, auto k) LK_INLINE_LAMBDA {
      store(out + i, exp(load(x + i, k) - load(top.at + i, k)) * load(factor.at + i, k), k);
    });
    finish_tile(work.at, static_cast<int>(count), to);
  }
}

// --- VIMCO ----------------------------------------------------------------------------------------------------

// The quantities that a row's signals are computed from. The largest weight may dominate the sum, so the sum without it
// has a scale of its own: the second largest weight.
template <class C>
struct SignalSums {
  Columns<C> top, second;
  Columns<C> rest;      // sum of e^(x - second) without those that equal top
  Columns<C> ties;      // the number of weights that equal top
  Columns<C> distance;  // sum of x - top over finite x
  Columns<C> zeros;     // the number of weights that are 0
  Columns<C> inverse;   // 1 / sum of e^(x - top)
  Columns<C> of_top;    // the signal of the weights that equal top
};

// Computed in double by the C library: these are a few operations for each row.
template <class C>
inline void finish_signal_sums(int64_t samples, int64_t i, SignalSums<C>& s) {
  const double top = s.top.at[i], second = s.second.at[i], gap = top - second;
  const double rest = s.rest.at[i] + (static_cast<double>(s.ties.at[i]) - 1), left = rest * __builtin_exp(-gap);
  const double mean = s.zeros.at[i] > 0 ? -__builtin_inf() : s.distance.at[i] / static_cast<double>(samples - 1);
  const bool none = static_cast<int64_t>(s.zeros.at[i]) == samples;
  // -ln(1 + change) is accurate for a small change; the difference is accurate where little is left without top.
  const double change = __builtin_expm1(mean) / (1 + left);
  const double signal = change > -0.5 ? -__builtin_log1p(change)
                                      : gap + __builtin_log1p(left) - __builtin_log(rest + __builtin_exp(mean + gap));
  s.of_top.at[i] = static_cast<C>(none ? __builtin_nan("") : signal);
  s.inverse.at[i] = static_cast<C>(none ? __builtin_nan("") : 1 / (1 + left));
}

// The largest and second largest of the part's columns.
template <class T>
inline void find_largest(const BoundProblem& p, const Part& part, Columns<Compute<T>>& buffer,
                         SignalSums<Compute<T>>& s) {
  using C = Compute<T>;
  int64_t count;
  for (int64_t line = 0; line < p.samples; ++line) {
    const C* x = load_line<T>(p, part, line, buffer.at, count);
    each<C>(part.col1 - part.col0, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
      const auto v = load(x + i, k), top = load(s.top.at + i, k);
      const auto lower = map([](auto a, auto b) { return a < b ? a : b; }, v, top);
      store(s.second.at + i, map(larger_lane, lower, load(s.second.at + i, k)), k);
      store(s.top.at + i, map(larger_lane, v, top), k);
    });
  }
}

constexpr auto nothing = [](auto v) LK_INLINE_LAMBDA { return decltype(v){}; };

// The sums relative to these two.
template <class T>
inline void add_relative(const BoundProblem& p, const Part& part, Columns<Compute<T>>& buffer,
                         SignalSums<Compute<T>>& s) {
  using C = Compute<T>;
  int64_t count;
  for (int64_t line = 0; line < p.samples; ++line) {
    const C* x = load_line<T>(p, part, line, buffer.at, count);
    each<C>(part.col1 - part.col0, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
      const auto v = load(x + i, k), top = load(s.top.at + i, k), zero = map(nothing, v);
      const auto e = exp(v - load(s.second.at + i, k));
      const auto if_top = [](auto a, auto b, auto yes, auto no) { return a == b ? yes : no; };
      const auto if_zero = [](auto a, auto yes, auto no) { return a < -kLargest<C> ? yes : no; };
      store(s.rest.at + i, load(s.rest.at + i, k) + map(if_top, v, top, zero, e), k);
      store(s.ties.at + i, load(s.ties.at + i, k) + map(if_top, v, top, zero + C(1), zero), k);
      store(s.distance.at + i, load(s.distance.at + i, k) + map(if_zero, v, zero, v - top), k);
      store(s.zeros.at + i, load(s.zeros.at + i, k) + map(if_zero, v, zero + C(1), zero), k);
    });
  }
}

// L - L_{-s} = -ln(1 + (e^m_s - w_s) / sum w), whose argument is between 1/2 and 2 except for the largest weight.
template <class C, class V>
LK_INLINE V signal_of(V v, V top, V distance, V zeros, V inverse, V of_top, V others) {
  const auto d = v - top;
  const auto mean = map(
      [](auto v, auto d, auto distance, auto zeros, auto scale) {
        const auto own = v < -kLargest<C> ? decltype(v){} + C(1) : decltype(v){};
        const auto left = v < -kLargest<C> ? distance : distance - d;
        return zeros - own > C(0) ? decltype(v){} - kLargest<C> : left * scale;
      },
      v, d, distance, zeros, others);
  // e^mean - e^d from the larger one and their ratio, which is accurate where the two are close.
  const auto apart = mean - d, most = map(larger_lane, mean, d);
  const auto turn = [](auto apart, auto x) { return apart > C(0) ? -x : x; };
  const auto change = (exp(most) * map(turn, apart, expm1(map(turn, apart, apart)))) * inverse;
  return map([](auto v, auto top, auto of_top, auto y) { return v == top ? of_top : y; }, v, top, of_top,
             -log1p(change));
}

template <class T>
void bound_signal(const BoundProblem& p, const void* gradients, void* to, const Part& part) {
  using C = Compute<T>;
  SignalSums<C> s;
  Columns<C> buffer, work;
  const int64_t n = part.col1 - part.col0;
  for (int64_t i = 0; i < n; ++i) {
    s.top.at[i] = s.second.at[i] = -kLargest<C>;
    s.rest.at[i] = s.ties.at[i] = s.distance.at[i] = s.zeros.at[i] = 0;
  }
  find_largest<T>(p, part, buffer, s);
  add_relative<T>(p, part, buffer, s);
  for (int64_t i = 0; i < n; ++i) finish_signal_sums(p.samples, i, s);

  const C* gradient = static_cast<const C*>(gradients) + part.group * p.rows + part.col0;
  const C others = C(1) / static_cast<C>(p.samples - 1);
  int64_t count;
  for (int64_t line = 0; line < p.samples; ++line) {
    const C* x = load_line<T>(p, part, line, buffer.at, count);
    T* at = static_cast<T*>(to) + (part.group * p.samples + line) * p.rows + part.col0;
    C* out = output_tile(at, work.at);
    each<C>(n, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
      const auto v = load(x + i, k);
      const auto signal = signal_of<C>(v, load(s.top.at + i, k), load(s.distance.at + i, k), load(s.zeros.at + i, k),
                                       load(s.inverse.at + i, k), load(s.of_top.at + i, k), map(nothing, v) + others);
      store(out + i, signal * load(gradient + i, k), k);
    });
    finish_tile(work.at, static_cast<int>(n), at);
  }
}

}  // namespace LK_ISA
}  // namespace lk
