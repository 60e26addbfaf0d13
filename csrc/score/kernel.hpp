// Score-function gradients from the sums of kernel_sums.hpp.
#pragma once

#include "score/kernel_classes.hpp"

namespace lk {
namespace LK_ISA {

// The sums A to F of one parameter at one place; those that are not kept hold anything.
template <class V>
struct Moments {
  V a, b, c, d, e, f;
};

template <class C>
struct GaussianMoments {
  const C* sums;
  int64_t stride;
  bool coefficients, squares;
  int j;  // 0: of t, 1: of u

  template <class Place>
  LK_INLINE auto operator()(int64_t fold, int64_t i, Place k) const {
    const auto row = [&](int name) { return load(sums + (fold * kMostSums + name) * stride + i, k); };
    auto a = row(kAt + j);
    Moments<decltype(a)> m{a, a, a, a, a, a};
    if (squares) m.e = row(kEt + j);
    if (coefficients) m.b = row(kBt + j), m.c = row(kCt + j), m.d = row(kDt + j), m.f = row(kF);
    return m;
  }
};

// The sum in a class where weights_cancel(). Where all samples are in it the gradient is 0 whatever the probabilities:
// `in`, then the same sum as `all`, is what rounding left. NaN where `all` is not finite.
template <class V>
LK_INLINE V centred_sum(V in, V all) {
  return map([](auto in, auto all) { return in == all ? all - all : in + (all - all); }, in, all);
}

// Scores are q in the class and -p outside it; of pairs the sums are their moments. Where weights `cancel`, p may be
// anything that is NaN where there are no probabilities.
template <class C>
struct DiscreteMoments {
  const C* sums;
  int64_t stride;
  bool coefficients, squares, pairs, cancel;
  const C *p, *q;

  template <class Place>
  LK_INLINE auto operator()(int64_t fold, int64_t i, Place k) const {
    const auto row = [&](int name) { return load(sums + (fold * kMostSums + name) * stride + i, k); };
    auto in = row(kIn);
    Moments<decltype(in)> m{in, in, in, in, in, in};
    if (pairs) {
      if (squares) m.e = row(kSquareIn);
      return m;
    }
    const auto pp = load(p + i, k), out = row(kOut);
    if (cancel) m.a = map([](auto a, auto p) { return p == p ? a : p; }, centred_sum(in, out), pp);
    if (cancel && !squares) return m;
    const auto qq = load(q + i, k);
    if (!cancel) m.a = fma(qq, in, -(pp * out));
    if (squares) m.e = fma(qq * qq, row(kSquareIn), (pp * pp) * row(kSquareOut));
    if (coefficients) {
      const auto count_in = row(kCountIn), count_out = row(kCountOut);
      m.b = fma(qq, count_in, -(pp * count_out));
      m.c = fma(qq * qq, in, (pp * pp) * out);
      m.d = fma(qq * qq, count_in, (pp * pp) * count_out);
      m.f = in + out;
    }
    return m;
  }
};

// sum ((f' - b) s)^2 = E - 2 b C + b^2 D.
template <class V>
LK_INLINE V centred_squares(const Moments<V>& m, V b) {
  return fma(-b, fma(-b, m.d, m.c + m.c), m.e);
}

// The mean of the terms (f_s - b_s) s_s of one parameter, and the sum of their squares, less the coupling of the folds
// (kernels/score/README.md); `of(fold)` gives its moments.
template <bool coefficients, class C, class V, class MomentsOf>
LK_INLINE void estimate(const ScoreProblem& p, MomentsOf of, V& gradient, V& square) {
  const C samples = static_cast<C>(p.samples), per_sample = C(1) / samples;
  const C per_other = C(1) / (samples - C(1)), stretch = samples * per_other;
  if constexpr (!coefficients) {
    const auto m = of(0);
    gradient = m.a * (p.control == kNone ? per_sample : per_other);
    square = p.control == kNone ? m.e : m.e * (stretch * stretch);
    return;
  }
  if (p.control == kLeaveOneOut) {  // f' = f - f_0: to be centred
    const auto m = of(0);
    const auto mean = m.f * per_sample;
    gradient = fma(-mean, m.b, m.a) * per_other;
    square = centred_squares(m, mean) * (stretch * stretch);
    return;
  }
  auto first = gradient, b = gradient, bd = gradient, bdd = gradient;  // sums of B_k, B_k d and B_k d^2, d = a_k - a_0
  for (int64_t fold = 0; fold < p.folds; ++fold) {
    const auto m = of(fold);
    const int64_t own = (fold + 1) * p.samples / p.folds - fold * p.samples / p.folds;
    auto c = m.c - m.c, d = c, f = c;
    bool any = false;
    for (int64_t other = 0; other < p.folds; ++other) {
      if (other == fold) continue;
      const auto o = of(other);
      c = any ? c + o.c : o.c;
      d = any ? d + o.d : o.d;
      f = any ? f + o.f : o.f;
      any = true;
    }
    const auto mean = f * (C(1) / static_cast<C>(p.samples - own));
    const auto ratio = [](auto top, auto bottom, auto instead) { return bottom == C(0) ? instead : top / bottom; };
    const auto coefficient = map(ratio, c, d, mean);
    const auto term = fma(-coefficient, m.b, m.a);
    const auto term_square = centred_squares(m, coefficient);
    gradient = fold == 0 ? term : gradient + term;
    square = fold == 0 ? term_square : square + term_square;
    if (fold == 0) first = coefficient;
    const auto apart = coefficient - first, own_bd = m.b * apart;
    b = fold == 0 ? m.b : b + m.b;
    bd = fold == 0 ? own_bd : bd + own_bd;
    bdd = fold == 0 ? own_bd * apart : fma(own_bd, apart, bdd);
  }
  square = square - fma(b, bdd, -(bd * bd));
  gradient = gradient * per_sample;
}

// Writes the gradients of `count` cells: factor times scale (or 1) times the estimate, times weight (or 1); and their
// variances, or nullptr. Without bias: that of independent terms is their sample variance over S, that of leave-one-out
// is derived in kernels/score/README.md.
template <bool coefficients, class C, class MomentsAt>
LK_NOINLINE void write_cells(const ScoreProblem& p, int count, C factor, const C* scale, const C* weight,
                             MomentsAt moments, C* out, C* variance) {
  const bool shared = p.control == kLeaveOneOut;
  const C samples = static_cast<C>(p.samples), others = samples - C(1);
  const C of_square = (shared ? others : C(1)) / samples, of_mean = shared ? samples - C(2) : C(1);
  const C whole = p.samples > 1 ? C(1) / (shared ? fma(others, others, C(1)) : others) : C(__builtin_nan(""));
  each<C>(count, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    const auto of = [&](int64_t fold) LK_INLINE_LAMBDA { return moments(fold, i, k); };
    auto gradient = load(out + i, k), square = gradient;
    estimate<coefficients, C>(p, of, gradient, square);
    auto scaled = gradient * factor;
    if (scale != nullptr) scaled = scaled * load(scale + i, k);
    if (variance != nullptr) {
      auto v = fma(-(gradient * of_mean), gradient, square * of_square) * whole;
      v = map([](auto x) { return x < C(0) ? decltype(x){} : x; }, v) * (factor * factor);
      if (scale != nullptr) v = v * (load(scale + i, k) * load(scale + i, k));
      store(variance + i, v, k);
    }
    if (weight != nullptr) scaled = scaled * load(weight + i, k);
    store(out + i, scaled, k);
  });
}

template <class C, class MomentsAt>
inline void write_cells(const ScoreProblem& p, int count, C factor, const C* scale, const C* weight,
                        const MomentsAt& moments, C* out, C* variance) {
  if (keeps_coefficients(p))
    write_cells<true>(p, count, factor, scale, weight, moments, out, variance);
  else
    write_cells<false>(p, count, factor, scale, weight, moments, out, variance);
}

// The same of `count` elements of parameter j, from `place` on.
template <class T, class MomentsAt>
inline void write_gradient(const ScoreProblem& p, int j, int64_t place, int count, Compute<T> factor,
                           const Compute<T>* scale, const Compute<T>* weight, const MomentsAt& moments,
                           Compute<T>* buffer) {
  using C = Compute<T>;
  T* const to = static_cast<T*>(p.gradients[j]) + place;
  C* const out = output_tile(to, buffer);
  write_cells(p, count, factor, scale, weight, moments, out,
              p.variances[j] != nullptr ? static_cast<C*>(p.variances[j]) + place : nullptr);
  finish_tile(out, count, to);
}

// 1 / (1 + e^-|l|) and e^-|l| / (1 + e^-|l|): the larger and the smaller probability of a Bernoulli.
template <class C, class V>
LK_INLINE void sigmoids(V l, V& larger, V& smaller) {
  const auto e = exp(map([](auto x) { return x > C(0) ? -x : x; }, l));
  larger = map([](auto x) { return C(1) / (x + C(1)); }, e);
  smaller = e * larger;
}

// Upstream gradients of a tile, [rows, cols] flat; null for 1.
template <class C>
inline const C* upstream_tile(const ScoreProblem& p, int64_t group, const Tile& tile, C* buffer) {
  if (p.upstream == nullptr) return nullptr;
  const C* from = static_cast<const C*>(p.upstream) + group * p.rows * (p.per_element ? p.cols : 1);
  if (p.per_element) return from + tile.row0 * p.cols + tile.col0;
  repeat_rows(from + tile.row0, tile, buffer);
  return buffer;
}

template <class T>
inline void finish_gradients(const ScoreProblem& p, int64_t group, const Tile& tile, const Compute<T>* inverse,
                             const Compute<T>* sums, int64_t stride) {
  using C = Compute<T>;
  Scratch<C> buffer, weight_buffer, scale, in, out, result;
  const int n = tile.size();
  const int64_t plane = p.rows * p.cols, place = group * plane + tile.row0 * p.cols + tile.col0;
  const bool coefficients = keeps_coefficients(p), squares = keeps_squares(p), pairs = p.family == kAntithetic;
  const C* weight = upstream_tile(p, group, tile, weight_buffer.at);
  if (p.family == kGaussian) {
    const GaussianMoments<C> of_mean{sums, stride, coefficients, squares, 0};
    const GaussianMoments<C> of_logvar{sums, stride, coefficients, squares, 1};
    write_gradient<T>(p, 0, place, n, C(1), inverse, weight, of_mean, result.at);
    write_gradient<T>(p, 1, place, n, C(0.5), nullptr, weight, of_logvar, result.at);
    return;
  }
  const C* logits = load_tile<T>({p.parameters[0], plane, 0, p.cols}, group, 0, tile, buffer);
  const bool cancel = weights_cancel(p);
  if (cancel && !squares) {
    const DiscreteMoments<C> moments{sums, stride, false, false, false, true, logits, nullptr};
    return write_gradient<T>(p, 0, place, n, C(1), nullptr, weight, moments, result.at);
  }
  each<C>(n, [&](int64_t i, auto k) {
    const auto l = load(logits + i, k);
    auto larger = l, smaller = l;
    sigmoids<C>(l, larger, smaller);
    const auto pick = [](auto x, auto if_positive, auto otherwise) { return x > C(0) ? if_positive : otherwise; };
    store(scale + i, larger, k);
    store(in + i, map(pick, l, larger, smaller), k);
    store(out + i, map(pick, l, smaller, larger), k);
  });
  const DiscreteMoments<C> moments{sums, stride, coefficients, squares, pairs, cancel, in.at, out.at};
  write_gradient<T>(p, 0, place, n, C(1), pairs ? scale.at : nullptr, weight, moments, result.at);
}

// Whether an element has no softmax: a NaN among its logits, or no finite greatest one.
template <class C>
inline bool no_softmax(const C* logits, int64_t classes) {
  C most = logits[0];
  for (int64_t k = 1; k < classes; ++k) most = logits[k] > most || logits[k] != logits[k] ? logits[k] : most;
  return most - most != 0;
}

template <class C>
inline bool all_finite(const C* x, int64_t n) {
  Vec<C> found = {};
  each<C>(n, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    map([&](Vec<C> v) { return found = v - v == C(0) ? found : splat<C>(C(1)); }, load(x + i, k));
  });
  return sum_by_halves(found) == C(0);
}

// Where sums_by_element(). Elements without probabilities have NaN.
template <class T>
inline void finish_in_class(const ScoreProblem& p, int64_t group, const Tile& tile, const Compute<T>* sums,
                            int64_t stride, Compute<T>* beside) {
  using C = Compute<T>;
  const int K = static_cast<int>(p.classes), n = tile.size();
  const int64_t place = ((group * p.rows + tile.row0) * p.cols + tile.col0) * K, cells = cells_of_tile(p);
  C *const weight_buffer = beside, *const all = beside + cells, *const buffer = all + cells,
           *const wide = buffer + cells;
  const Tile tile_of_cells{tile.row0, tile.col0, tile.rows, tile.cols * K, true, true};
  const C* weight = upstream_tile(p, group, tile_of_cells, weight_buffer);
  repeat_rows(sums + kOut * stride, tile_of_cells, all);
  T* const to = static_cast<T*>(p.gradients[0]) + place;
  C* const out = output_tile(to, buffer);
  const C per_other = C(1) / (static_cast<C>(p.samples) - C(1));
  each<C>(n * K, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    auto gradient = centred_sum(load(sums + i, k), load(all + i, k)) * per_other;
    if (weight != nullptr) gradient = gradient * load(weight + i, k);
    store(out + i, gradient, k);
  });
  const C* logits = load_tile<T>({p.parameters[0], 0, 0, 0}, 0, 0, Tile{0, place, 1, n * K, true, true}, wide);
  for (int i = all_finite(logits, n * K) ? n : 0; i < n; ++i)
    if (no_softmax(logits + i * K, K))
      for (int k = 0; k < K; ++k) out[i * K + k] = C(__builtin_nan(""));
  finish_tile(out, n * K, to);
}

template <class T>
inline void finish_classes(const ScoreProblem& p, int64_t group, const Tile& tile, Compute<T>* sums, int64_t stride,
                           Compute<T>* beside) {
  if (sums_by_element(p)) return finish_in_class<T>(p, group, tile, sums, stride, beside);
  using C = Compute<T>;
  Scratch<C> weight_buffer, all;
  const int n = tile.size();
  const int64_t K = p.classes, cells = cells_of_tile(p),
                place = (group * p.rows * p.cols + tile.row0 * p.cols + tile.col0) * K;
  C *const in = beside, *const out = in + cells, *const of_classes = out + cells, *const gradient = of_classes + cells,
           *const variance = gradient + cells;
  softmax_by_class(static_cast<const T*>(p.parameters[0]) + place, n, K, in, out);
  const C* weight = upstream_tile(p, group, tile, weight_buffer.at);
  for (int64_t k = 0; weight != nullptr && k < K; ++k)
    std::memcpy(of_classes + k * n, weight, sizeof(C) * static_cast<size_t>(n));
  if (weights_cancel(p)) {  // for each row, to be read for each cell
    repeat_rows(sums + kOut * stride, tile, all.at);
    for (int64_t k = 0; k < K; ++k)
      std::memcpy(sums + kOut * stride + k * n, all.at, sizeof(C) * static_cast<size_t>(n));
  }
  const DiscreteMoments<C> moments{sums, stride, keeps_coefficients(p), keeps_squares(p), false, weights_cancel(p),
                                   in,   out};
  write_cells(p, static_cast<int>(n * K), C(1), static_cast<const C*>(nullptr),
              weight != nullptr ? of_classes : nullptr, moments, gradient, keeps_squares(p) ? variance : nullptr);
  T* const to = static_cast<T*>(p.gradients[0]) + place;
  C* const by_element = output_tile(to, in);
  each_cell(n, K, [&](int64_t i, int64_t by_class) { by_element[i] = gradient[by_class]; });
  finish_tile(by_element, static_cast<int>(n * K), to);
  if (!keeps_squares(p)) return;
  C* const variances = static_cast<C*>(p.variances[0]) + place;
  each_cell(n, K, [&](int64_t i, int64_t by_class) { variances[i] = variance[by_class]; });
}

// --- what the bindings call -----------------------------------------------------------------------------------

inline int64_t tile_limit(const ScoreProblem& p) { return p.family == kCategorical ? class_tile(p) : kTile; }

// The whole gradient of a part, or with `partial` its samples' sums alone. False where z is outside the support.
template <class T>
bool score_gradient(const ScoreProblem& p, const Part& part, void* workspace, void* partial) {
  using C = Compute<T>;
  bool outside = false;
  const int64_t cells = cells_of_tile(p), K = larger(p.classes, 1), plane = p.rows * p.cols;
  C* const sums = static_cast<C*>(workspace);
  C* const beside = sums + p.folds * kMostSums * cells;
  each_tile(
      part,
      [&](const Tile& tile) {
        if (p.family == kGaussian) inverse_scales<T>(p, part.group, tile, beside);
        if (p.family == kCategorical)  // whose table may take what lies beside the sums
          class_sums<T>(p, part, tile, sums, cells, reinterpret_cast<uint64_t*>(beside), outside);
        else
          tile_sums<T>(p, part, tile, beside, sums, cells, outside);
        if (partial != nullptr) {
          const int64_t stride = p.groups * plane * K;
          C* to = static_cast<C*>(partial) + (part.group * plane + tile.row0 * p.cols + tile.col0) * K;
          for (int64_t j = 0; j < p.folds * kMostSums; ++j)
            if (keeps(p, static_cast<int>(j % kMostSums)))
              std::memcpy(to + j * stride, sums + j * cells,
                          sizeof(C) * static_cast<size_t>(sums_in_tile(p, tile, static_cast<int>(j % kMostSums))));
        } else if (p.family == kCategorical) {
          finish_classes<T>(p, part.group, tile, sums, cells, beside);
        } else {
          finish_gradients<T>(p, part.group, tile, beside, sums, cells);
        }
      },
      tile_limit(p));
  return !outside;
}

// Adds up the partial sums of a part's tiles, chunk after chunk, and finishes.
template <class T>
void score_merge(const ScoreProblem& p, const Part& part, void* workspace, const void* partial, int64_t chunks) {
  using C = Compute<T>;
  const int64_t cells = cells_of_tile(p), K = larger(p.classes, 1), plane = p.rows * p.cols;
  const int64_t stride = p.groups * plane * K;
  C* const sums = static_cast<C*>(workspace);
  each_tile(
      part,
      [&](const Tile& tile) {
        const int64_t place = (part.group * plane + tile.row0 * p.cols + tile.col0) * K;
        for (int64_t j = 0; j < p.folds * kMostSums; ++j) {
          if (!keeps(p, static_cast<int>(j % kMostSums))) continue;
          const C* from = static_cast<const C*>(partial) + j * stride + place;
          C* const to = sums + j * cells;
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const C* part_sums = from + chunk * p.folds * kMostSums * stride;
            each<C>(sums_in_tile(p, tile, static_cast<int>(j % kMostSums)), [&](int64_t i, auto k) {
              store(to + i, chunk == 0 ? load(part_sums + i, k) : load(to + i, k) + load(part_sums + i, k), k);
            });
          }
        }
        C* const beside = sums + p.folds * kMostSums * cells;
        if (p.family == kGaussian) inverse_scales<T>(p, part.group, tile, beside);
        if (p.family == kCategorical)
          finish_classes<T>(p, part.group, tile, sums, cells, beside);
        else
          finish_gradients<T>(p, part.group, tile, beside, sums, cells);
      },
      tile_limit(p));
}

// Means over samples of rows [row0, row1) of values, in float64.
template <class V>
void row_means(const void* values, int64_t samples, int64_t rows, int64_t row0, int64_t row1, double* out) {
  const V* f = static_cast<const V*>(values);
  for (int64_t r = row0; r < row1; ++r) out[r] = 0;
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t r = row0; r < row1; ++r) out[r] += static_cast<double>(f[s * rows + r]);
  for (int64_t r = row0; r < row1; ++r) out[r] /= static_cast<double>(samples);
}

// Compiled by kernel_double.cpp, so that no unit takes much longer than the others.
extern template bool score_gradient<double>(const ScoreProblem&, const Part&, void*, void*);
extern template void score_merge<double>(const ScoreProblem&, const Part&, void*, const void*, int64_t);

}  // namespace LK_ISA
}  // namespace lk
