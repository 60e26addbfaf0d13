// Score-function gradients: z is read once (or drawn again), and leaves a few sums for each parameter.
//
// With f' = f - shift, over the samples of a fold:  A = sum f' s   B = sum s   C = sum f' s^2   D = sum s^2
// E = sum (f' s)^2   F = sum f'.  A alone makes the gradient where f' is already centred; B, C, D and F the
// coefficients of a control variate found in the same pass; E the variance. The Gaussian keeps them for t = (z - mean)
// / sigma and u = t^2 - 1, whose multiples t / sigma and u / 2 are its scores. Discrete families keep sums over samples
// in the class and outside it, from which all six follow by the probabilities p and q = 1 - p at the end.
#pragma once

#include "families/kernel.hpp"
#include "score/problem.hpp"

namespace lk {
namespace LK_ISA {

// Which sums a family keeps. Names of rows in the arrays of sums. Where weights_cancel(), kOut is the sum over
// all samples: of a Categorical one for each row.
enum GaussianSum { kAt, kAu, kEt, kEu, kBt, kBu, kCt, kCu, kDt, kDu, kF, kGaussianSums };
enum DiscreteSum { kIn, kOut, kSquareIn, kSquareOut, kCountIn, kCountOut, kDiscreteSums };
static_assert(kGaussianSums == kMostSums && kDiscreteSums <= kMostSums, "score_workspace counts them");

// Whether the pass also keeps what coefficients, and what variances need.
inline bool keeps_coefficients(const ScoreProblem& p) {
  return p.control == kOptimal || (p.control == kLeaveOneOut && p.per_element);
}
inline bool keeps_squares(const ScoreProblem& p) { return p.variances[0] != nullptr; }
inline bool keeps(const ScoreProblem& p, int sum) {
  const bool gaussian = p.family == kGaussian;
  if (sum < 2) return true;
  if (sum < 4) return keeps_squares(p);
  return keeps_coefficients(p) && (gaussian || sum < kDiscreteSums);
}

// --- weights f' -----------------------------------------------------------------------------------------------

template <class V, class C>
inline void row_weights(const ScoreProblem& p, int64_t group, int64_t s, int64_t row0, int count, const double* shift,
                        C* w) {
  const int64_t twin = p.family == kAntithetic ? p.samples * p.rows : 0;
  const V* f = static_cast<const V*>(p.values) + (group * (twin != 0 ? 2 : 1) * p.samples + s) * p.rows + row0;
  if (twin != 0) {
    for (int r = 0; r < count; ++r) w[r] = static_cast<C>(0.5 * (static_cast<double>(f[r]) - f[twin + r]));
  } else if (p.baseline_sampled) {
    const V* b = static_cast<const V*>(p.baseline) + (group * p.samples + s) * p.rows + row0;
    for (int r = 0; r < count; ++r) w[r] = static_cast<C>(static_cast<double>(f[r]) - b[r]);
  } else if (shift != nullptr) {
    for (int r = 0; r < count; ++r) w[r] = static_cast<C>(f[r] - shift[r]);
  } else {
    for (int r = 0; r < count; ++r) w[r] = static_cast<C>(f[r]);
  }
}

// Samples whose mean is the shift of a value per element.
constexpr int64_t kShiftSamples = 4;

// What weights of a tile need besides the values: rows' shifts, repeated for samples side by side.
template <class C>
struct Weights {
  const ScoreProblem& p;
  int64_t group;
  const Tile& tile;
  int copies;
  double row_shift[kTile];
  Scratch<C> element_shift, rows;
  bool shifted = false;

  Weights(const ScoreProblem& p, int64_t group, const Tile& tile, int copies)
      : p(p), group(group), tile(tile), copies(copies) {
    const int n = tile.size();
    if (!p.per_element) {
      shifted = p.shift != nullptr;
      for (int r = 0; shifted && r < tile.rows * copies; ++r)
        row_shift[r] = p.shift[group * p.rows + tile.row0 + r % tile.rows];
      return;
    }
    // Element by element: a given baseline, or the mean of the first samples. Any shift may be undone later; one near
    // the mean of all samples leaves sums of squares in which little cancels.
    const int64_t plane = p.rows * p.cols, begin = tile.row0 * p.cols + tile.col0;
    if (keeps_coefficients(p)) {
      const C* from = static_cast<const C*>(p.values) + group * p.samples * plane + begin;
      const int64_t count = smaller(p.samples, kShiftSamples);
      each<C>(n, [&](int64_t i, auto k) {
        auto sum = load(from + i, k);
        for (int64_t s = 1; s < count; ++s) sum = sum + load(from + s * plane + i, k);
        store(element_shift + i, sum * (C(1) / static_cast<C>(count)), k);
      });
      shifted = true;
    } else if (p.baseline != nullptr && !p.baseline_sampled) {
      const C* from = static_cast<const C*>(p.baseline) + group * plane + begin;
      std::memcpy(element_shift, from, sizeof(C) * static_cast<size_t>(n));
      shifted = true;
    }
    if (shifted) repeat<C>(element_shift, n, copies, element_shift);
  }

  // Long rows have one weight each; the rows of short ones are written out.
  bool by_row() const { return !p.per_element && tile.cols >= 4 * lanes<C>; }

  // f' of the m elements from sample s on, or of their rows, in `buffer` or where values lie.
  const C* at(int64_t s, int m, C* buffer) {
    if (!p.per_element) {
      const int count = tile.cols > 0 ? m / tile.cols : 0;
      const bool by_element = tile.cols > 1 && !by_row();
      C* w = by_element ? rows.at : buffer;
      const double* shift = shifted ? row_shift : nullptr;
      if (p.double_values)
        row_weights<double>(p, group, s, tile.row0, count, shift, w);
      else
        row_weights<C>(p, group, s, tile.row0, count, shift, w);
      if (by_element) repeat_rows(w, Tile{0, 0, count, tile.cols, true, true}, buffer);
      return buffer;
    }
    const int64_t plane = p.rows * p.cols, begin = tile.row0 * p.cols + tile.col0;
    const int64_t pairs = p.family == kAntithetic ? 2 : 1;
    const C* f = static_cast<const C*>(p.values) + (group * pairs * p.samples + s) * plane + begin;
    if (p.family == kAntithetic) {
      const C* other = f + p.samples * plane;
      each<C>(m, [&](int64_t i, auto k) { store(buffer + i, (load(f + i, k) - load(other + i, k)) * C(0.5), k); });
      return buffer;
    }
    const C* minus = shifted ? element_shift.at : nullptr;
    if (p.baseline_sampled) minus = static_cast<const C*>(p.baseline) + (group * p.samples + s) * plane + begin;
    if (minus == nullptr) return f;
    each<C>(m, [&](int64_t i, auto k) { store(buffer + i, load(f + i, k) - load(minus + i, k), k); });
    return buffer;
  }
};

// --- sums over samples ----------------------------------------------------------------------------------------

// Addresses held by value: in registers, where an array of them would be read again after every store.
template <class P, int N>
struct Addresses {
  P at[N];
  Addresses() = default;
  explicit Addresses(const P* from) {
    for (int j = 0; j < N; ++j) at[j] = from[j];
  }
  P operator[](int j) const { return at[j]; }
};

// The m elements of a tile (of samples side by side, too) as the sums go over them: flat, with a weight for each
// element, or row by row with one weight each, which saves writing it out.
struct Run {
  int m, cols;
  bool by_row;
};

// Calls f(i, part, weight) over the run; weight(j) is f' of sample j there, a register or one number.
template <int K, class C, class Body>
LK_INLINE void each_weighted(const Run& run, const C* const* weights, const Body& f) {
  const Addresses<const C*, K> w(weights);
  if (!run.by_row) {
    each<C>(run.m, [&](int64_t i, auto k)
                       LK_INLINE_LAMBDA { f(i, k, [&](int j) LK_INLINE_LAMBDA { return load(w[j] + i, k); }); });
    return;
  }
  int r = 0;
  for (int begin = 0; begin < run.m; begin += run.cols, ++r) {
    each<C>(run.cols, [&](int64_t i, auto k)
                          LK_INLINE_LAMBDA { f(begin + i, k, [&](int j) LK_INLINE_LAMBDA { return w[j][r]; }); });
  }
}

// K samples of a Gaussian at once: t = eps where the samples are drawn again.
template <bool coefficients, bool squares, bool drawn, int K, class C>
LK_NOINLINE void gaussian_sums(Run run, int64_t ahead, const C* mean, const C* inverse, const C* const* zs,
                               const float* const* noises, const C* const* ws, C* const* to) {
  const Addresses<const C*, K> z(zs);
  const Addresses<const float*, K> eps(noises);
  const Addresses<C*, kGaussianSums> sums(to);
  each_weighted<K, C>(run, ws, [&](int64_t i, auto k, const auto& weight) LK_INLINE_LAMBDA {
    auto at = load(sums[kAt] + i, k), au = load(sums[kAu] + i, k);
    auto et = at, eu = at, bt = at, bu = at, ct = at, cu = at, dt = at, du = at, total = at;
    if (squares) et = load(sums[kEt] + i, k), eu = load(sums[kEu] + i, k);
    if (coefficients) {
      bt = load(sums[kBt] + i, k), bu = load(sums[kBu] + i, k), ct = load(sums[kCt] + i, k);
      cu = load(sums[kCu] + i, k), dt = load(sums[kDt] + i, k), du = load(sums[kDu] + i, k);
      total = load(sums[kF] + i, k);
    }
    for (int j = 0; j < K; ++j) {
      auto t = at;
      if constexpr (drawn) {
        t = load_noise<C>(eps[j] + i, k);
      } else {
        prefetch(z[j] + i + ahead, k);
        t = (load(z[j] + i, k) - load(mean + i, k)) * load(inverse + i, k);
      }
      const auto f = weight(j);
      const auto u = fma(t, t, C(-1));
      at = fma(t, f, at);
      au = fma(u, f, au);
      if (!coefficients && !squares) continue;
      const auto ft = t * f, fu = u * f;
      if (squares) et = fma(ft, ft, et), eu = fma(fu, fu, eu);
      if (coefficients) {
        bt = bt + t;
        bu = bu + u;
        ct = fma(ft, t, ct);
        cu = fma(fu, u, cu);
        dt = fma(t, t, dt);
        du = fma(u, u, du);
        total = total + f;
      }
    }
    store(sums[kAt] + i, at, k);
    store(sums[kAu] + i, au, k);
    if (squares) store(sums[kEt] + i, et, k), store(sums[kEu] + i, eu, k);
    if (coefficients) {
      store(sums[kBt] + i, bt, k), store(sums[kBu] + i, bu, k), store(sums[kCt] + i, ct, k);
      store(sums[kCu] + i, cu, k), store(sums[kDt] + i, dt, k), store(sums[kDu] + i, du, k);
      store(sums[kF] + i, total, k);
    }
  });
}

// Bernoulli: sums over samples with z = 1, and over the others; kOut is the sum over all where those `cancel`.
template <bool cancel, bool coefficients, bool squares, int K, class C>
LK_NOINLINE void bernoulli_sums(Run run, int64_t ahead, const C* const* zs, const C* const* ws, C* const* to) {
  const Addresses<const C*, K> z(zs);
  const Addresses<C*, kDiscreteSums> sums(to);
  each_weighted<K, C>(run, ws, [&](int64_t i, auto k, const auto& weight) LK_INLINE_LAMBDA {
    auto in = load(sums[kIn] + i, k), out = load(sums[kOut] + i, k);
    auto square_in = in, square_out = in, count_in = in, count_out = in;
    if (squares) square_in = load(sums[kSquareIn] + i, k), square_out = load(sums[kSquareOut] + i, k);
    if (coefficients) count_in = load(sums[kCountIn] + i, k), count_out = load(sums[kCountOut] + i, k);
    for (int j = 0; j < K; ++j) {
      prefetch(z[j] + i + ahead, k);
      const auto f = weight(j);
      const auto one = load(z[j] + i, k);
      in = fma(one, f, in);
      if (cancel) out = out + f;
      if (cancel && !squares) continue;
      const auto f_in = one * f, f_out = -(f_in - f);
      if (!cancel) out = out + f_out;
      if (squares) square_in = fma(f_in, f_in, square_in), square_out = fma(f_out, f_out, square_out);
      if (coefficients) count_in = count_in + one, count_out = count_out - (one - C(1));
    }
    store(sums[kIn] + i, in, k), store(sums[kOut] + i, out, k);
    if (squares) store(sums[kSquareIn] + i, square_in, k), store(sums[kSquareOut] + i, square_out, k);
    if (coefficients) store(sums[kCountIn] + i, count_in, k), store(sums[kCountOut] + i, count_out, k);
  });
}

// Pairs: z - z' is 1, 0 or -1. A stands in the place of kIn, E in that of kSquareIn.
template <bool squares, int K, class C>
LK_NOINLINE void antithetic_sums(Run run, int64_t ahead, const C* const* zs, const C* const* twins, const C* const* ws,
                                 C* const* to) {
  const Addresses<const C*, K> z(zs), twin(twins);
  const Addresses<C*, kDiscreteSums> sums(to);
  each_weighted<K, C>(run, ws, [&](int64_t i, auto k, const auto& weight) LK_INLINE_LAMBDA {
    auto sum = load(sums[kIn] + i, k), square = sum;
    if (squares) square = load(sums[kSquareIn] + i, k);
    for (int j = 0; j < K; ++j) {
      prefetch(z[j] + i + ahead, k);
      prefetch(twin[j] + i + ahead, k);
      const auto term = (load(z[j] + i, k) - load(twin[j] + i, k)) * weight(j);
      sum = sum + term;
      if (squares) square = fma(term, term, square);
    }
    store(sums[kIn] + i, sum, k);
    if (squares) store(sums[kSquareIn] + i, square, k);
  });
}

// Whether some z is neither 0 nor 1. NaN passes: it spreads by itself.
template <class C>
inline bool outside_of_bernoulli(const C* z, int m) {
  Bits<C> found = {};
  each<C>(m, [&](int64_t i, auto k) LK_INLINE_LAMBDA {
    const auto one = load(z + i, k);
    map([&](Vec<C> d) LK_INLINE_LAMBDA { return bit_cast<Vec<C>>(found |= bit_cast<Bits<C>>(d)); },
        fma(one, one, -one));
  });
  bool outside = false;
  for (int lane = 0; lane < lanes<C>; ++lane) outside |= found[lane] != 0;
  if (!outside) return false;
  for (int i = 0; i < m; ++i)
    if (z[i] != C(0) && z[i] != C(1) && z[i] == z[i]) return true;
  return false;
}

// --- a tile's sums --------------------------------------------------------------------------------------------

constexpr int kSamples = 4;  // samples that pass over the sums together

// Rooms for the samples in work.
template <class C>
struct SampleBuffers {
  Scratch<C> z[kSamples], twin[kSamples], w[kSamples];
  alignas(64) float noise[kSamples][noise_length(kTile)];
  alignas(64) float logistic[kTile + kReduceLanes];
};

// Adds the samples s, s + copies, ..., K of them with m elements each, to the sums.
template <class T, int K>
inline void add_samples(const ScoreProblem& p, int64_t group, const Tile& tile, int copies, int64_t s, int m,
                        int64_t ahead, const Compute<T>* first, const Compute<T>* inverse, Weights<Compute<T>>& weights,
                        SampleBuffers<Compute<T>>& buffers, Compute<T>* const* sums, bool& outside) {
  using C = Compute<T>;
  const int64_t plane = p.rows * p.cols, begin = tile.row0 * p.cols + tile.col0;
  const bool coefficients = keeps_coefficients(p), squares = keeps_squares(p), drawn = p.z == nullptr;
  const uint64_t seed = drawn ? seed_of(p.seed, group) : 0;
  const int64_t pairs = p.family == kAntithetic ? 2 : 1;
  const Input input{p.z, pairs * p.samples * plane, p.samples * plane, 0};
  const C *z[K], *twin[K], *w[K];
  const float* eps[K];
  for (int j = 0; j < K; ++j) {
    const int64_t e = (s + j * copies) * plane + begin;
    const uint64_t element = p.offset + static_cast<uint64_t>(e);
    const Tile flat{0, e, 1, m, true, true};
    z[j] = twin[j] = nullptr;
    eps[j] = nullptr;
    if (!drawn) {
      z[j] = load_tile<T>(input, group, 0, flat, buffers.z[j]);
      if (pairs == 2) twin[j] = load_tile<T>(input, group, 1, flat, buffers.twin[j]);
      if (p.family != kGaussian) outside |= outside_of_bernoulli(z[j], m);
      if (pairs == 2) outside |= outside_of_bernoulli(twin[j], m);
    } else if (p.family == kGaussian) {
      eps[j] = noise_tile<kNormals>(seed, element, m, buffers.noise[j]);
    } else {
      logistic_tile(seed, element, m, buffers.noise[0], buffers.logistic);
      bernoulli_tile(buffers.logistic, false, first, m, buffers.z[j].at);
      z[j] = buffers.z[j];
      if (pairs == 2) bernoulli_tile(buffers.logistic, true, first, m, buffers.twin[j].at);
      twin[j] = buffers.twin[j];
    }
    w[j] = weights.at(s + j * copies, m, buffers.w[j]);
  }
  if (!std::is_same<T, C>::value) ahead = 0;  // z has been read
  const Run run{m, tile.cols, weights.by_row()};
  const auto choose = [&](auto with_coefficients, auto with_squares) {
    constexpr bool c = decltype(with_coefficients)::value, q = decltype(with_squares)::value;
    if (weights_cancel(p))
      bernoulli_sums<true, false, q, K>(run, ahead, z, w, sums);
    else if (p.family == kBernoulli)
      bernoulli_sums<false, c, q, K>(run, ahead, z, w, sums);
    else if (p.family == kAntithetic)
      antithetic_sums<q, K>(run, ahead, z, twin, w, sums);
    else if (drawn)
      gaussian_sums<c, q, true, K>(run, ahead, first, inverse, z, eps, w, sums);
    else
      gaussian_sums<c, q, false, K>(run, ahead, first, inverse, z, eps, w, sums);
  };
  const std::true_type yes;
  const std::false_type no;
  if (coefficients)
    squares ? choose(yes, yes) : choose(yes, no);
  else
    squares ? choose(no, yes) : choose(no, no);
}

// 1 / sigma of a Gaussian's tile.
template <class T>
inline void inverse_scales(const ScoreProblem& p, int64_t group, const Tile& tile, Compute<T>* inverse) {
  using C = Compute<T>;
  const C* logvar = load_tile<T>({p.parameters[1], p.rows * p.cols, 0, p.cols}, group, 0, tile, inverse);
  each<C>(tile.size(), [&](int64_t i, auto k) { store(inverse + i, exp(load(logvar + i, k) * C(-0.5)), k); });
}

// The sums of a tile over the part's samples: sum j of fold f at sums[(f * kMostSums + j) * stride].
template <class T>
inline void tile_sums(const ScoreProblem& p, const Part& part, const Tile& tile, const Compute<T>* inverse,
                      Compute<T>* sums, int64_t stride, bool& outside) {
  using C = Compute<T>;
  Scratch<C> first_buffer, second_buffer, side[kMostSums];
  SampleBuffers<C> buffers;
  const int n = tile.size(), copies = samples_at_once(p.rows, p.cols, tile, p.samples);
  const int64_t plane = p.rows * p.cols;
  const Input input{p.parameters[0], plane, 0, p.cols};
  const C* first = repeat(load_tile<T>(input, part.group, 0, tile, first_buffer), n, copies, first_buffer.at);
  if (p.family == kGaussian) inverse = repeat(inverse, n, copies, second_buffer.at);
  Weights<C> weights(p, part.group, tile, copies);

  for (int64_t fold = 0; fold < p.folds; ++fold) {
    C* const to = sums + fold * kMostSums * stride;
    C* at[kMostSums];
    for (int j = 0; j < kMostSums; ++j) {
      at[j] = copies == 1 ? to + j * stride : side[j].at;
      if (keeps(p, j)) std::memset(at[j], 0, sizeof(C) * static_cast<size_t>(n * copies));
    }
    int64_t s = larger(part.sample0, fold * p.samples / p.folds);
    const int64_t end = smaller(part.sample1, (fold + 1) * p.samples / p.folds);
    // What is read next: the same place of later samples, then the next tile of the first.
    const auto ahead = [&](int64_t step) {
      return s + step < part.sample1 ? step * plane : (part.sample0 - s) * plane + n;
    };
    for (; s + kSamples * copies <= end; s += kSamples * copies) {
      add_samples<T, kSamples>(p, part.group, tile, copies, s, n * copies, ahead(kSamples * copies), first, inverse,
                               weights, buffers, at, outside);
    }
    for (; s < end; s += copies) {
      const int m = n * static_cast<int>(smaller(copies, end - s));
      add_samples<T, 1>(p, part.group, tile, copies, s, m, ahead(copies), first, inverse, weights, buffers, at,
                        outside);
    }
    for (int j = 0; copies > 1 && j < kMostSums; ++j) {
      if (!keeps(p, j)) continue;
      for (int c = 1; c < copies; ++c)
        each<C>(n, [&](int64_t i, auto k) { store(at[j] + i, load(at[j] + i, k) + load(at[j] + c * n + i, k), k); });
      std::memcpy(to + j * stride, at[j], sizeof(C) * static_cast<size_t>(n));
    }
  }
}

}  // namespace LK_ISA
}  // namespace lk
