// The Gaussian kernels: z = mean + sigma eps with KL to the prior and log q(z), forward and backward.
// eps is computed from the seed in both directions, a tile at a time, and never written to memory.
#pragma once

#include "gaussian/problem.hpp"
#include "noise/sobol.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

// The sigma of a tile, as given or from log sigma^2.
template <class T>
inline const Compute<T>* sigma_tile(const GaussianProblem& p, int64_t group, const Tile& tile, const Compute<T>* logvar,
                                    Compute<T>* buffer) {
  using C = Compute<T>;
  if (p.scale.data != nullptr) return load_tile<T>(p.scale, group, 0, tile, buffer);
  each<C>(tile.size(), [&](int64_t i, auto part) { store(buffer + i, exp(load(logvar + i, part) * C(0.5)), part); });
  return buffer;
}

// The quantities that the KL and its gradients are computed from, for one element: halves of quadratic = ((mean - m0) /
// sigma0)^2 and of psi and expm1 of logvar - l0, which overflow where the KL does; and scaled = (mean - m0) / sigma0^2.
// logvar - l0 is d + lost, with d rounded and lost exact (Knuth's TwoDiff); psi' = expm1 and expm1' = e^d correct for
// lost to first order.
template <class V>
struct KlTerms {
  V half_quadratic, scaled, half_psi, half_expm1;
};

template <class C, class Place>
LK_INLINE auto kl_terms(const C* mean, const C* logvar, const C* m0, const C* l0, int64_t i, Place k) {
  auto delta = load(mean + i, k), l = load(logvar + i, k);
  if (m0 != nullptr) delta = delta - load(m0 + i, k);
  KlTerms<decltype(l)> t{delta * (delta * C(0.5)), delta, l, l};
  if (l0 == nullptr) {
    half_psi_expm1(l, t.half_psi, t.half_expm1);
    return t;
  }
  const auto prior = load(l0 + i, k), d = l - prior, back = d - l, lost = (l - (d - back)) - (prior + back);
  // exp(-l0) in one step; where that would overflow or lose precision, exp(-l0 / 2) twice.
  const auto choose = [](auto at, auto once, auto twice) { return ((at > C(-80)) & (at < C(80))) ? once : twice; };
  const auto half = delta * exp<true>(-prior), root = exp(prior * C(-0.5)), ratio = delta * root;
  t.half_quadratic = map(choose, prior, delta * half, ratio * (ratio * C(0.5)));
  t.scaled = map(choose, prior, half * C(2), ratio * root);
  half_psi_expm1(d, t.half_psi, t.half_expm1);
  const auto psi = fma(lost, t.half_expm1, t.half_psi), expm1 = fma(lost, t.half_expm1 + C(0.5), t.half_expm1);
  const auto if_finite = [](auto slope, auto corrected, auto plain) { return slope < C(5e37) ? corrected : plain; };
  t.half_psi = map(if_finite, t.half_expm1, psi, t.half_psi);
  t.half_expm1 = map(if_finite, t.half_expm1, expm1, t.half_expm1);
  return t;
}

// Flips the sign of a register of noise, or leaves it.
template <bool flipped>
struct Sign {
  static constexpr bool is_flipped = flipped;
  template <class V>
  LK_INLINE V operator()(V eps) const {
    if constexpr (flipped) return -eps;
    return eps;
  }
};

// The noise of a tile, some samples at a time.
class TileNoise {
 public:
  TileNoise(const GaussianProblem& p, int64_t group, const Tile& tile)
      : p(p), seed(seed_of(p.seed, group)), plane(p.rows * p.cols), tile(tile) {}

  // Returns eps of samples s, ..., s + count - 1 side by side, in `buffer` of noise_length(kTile).
  const float* draw(int64_t s, int count, float* buffer) {
    const uint64_t begin = p.offset + static_cast<uint64_t>(tile.row0 * p.cols + tile.col0);
    if (p.dependence != kSobol)
      return noise_tile<kNormals>(seed, begin + static_cast<uint64_t>(s * plane), tile.size() * count, buffer);
    if (!is_started) {
      const int bits = __builtin_ctzll(static_cast<uint64_t>(p.samples));
      points.start(static_cast<const uint32_t*>(p.directions), bits, p.cols, seed, begin, plane, tile);
    }
    is_started = true;
    points.draw(s, count, buffer);
    return buffer;
  }

 private:
  const GaussianProblem& p;
  uint64_t seed;
  int64_t plane;
  const Tile& tile;
  bool is_started = false;
  SobolTile points;
};

// The workspace for a part's samples.
template <class C>
struct SampleScratch {
  Scratch<C> mean, logvar, sigma, work, terms;
  alignas(64) float noise[noise_length(kTile)];
  double log_q[kLongRowSamples];  // sums so far of each sample's row, where a row is longer than a tile
};

// Calls f(first, count, sign) for `count` drawn samples from s on, with the sign of their noise, and for those of them
// that have twins.
template <class Body>
inline void each_twin(const GaussianProblem& p, int64_t s, int count, Body f) {
  f(s, count, Sign<false>{});
  const int64_t twins = smaller(p.samples - p.drawn() - s, count);
  if (twins > 0) f(s + p.drawn(), static_cast<int>(twins), Sign<true>{});
}

// Writes z and log q of a tile, for all samples of the part and their twins.
template <class T>
inline void draw_tile(const GaussianProblem& p, const GaussianOutputs& out, const Part& part, const Tile& tile,
                      bool with_log_q, const Compute<T>* mean, const Compute<T>* logvar,
                      SampleScratch<Compute<T>>& at) {
  using C = Compute<T>;
  const int n = tile.size(), copies = samples_at_once(p.rows, p.cols, tile, part.sample1 - part.sample0);
  const int64_t plane = p.rows * p.cols, begin = tile.row0 * p.cols + tile.col0;
  TileNoise noise(p, part.group, tile);
  const C* sigma = sigma_tile<T>(p, part.group, tile, logvar, at.sigma);
  const C* means = repeat(mean, n, copies, at.mean.at);
  const C* sigmas = repeat(sigma, n, copies, at.sigma.at);
  const C* logvars = with_log_q ? repeat(logvar, n, copies, at.logvar.at) : nullptr;
  for (int64_t s = part.sample0; s < part.sample1; s += copies) {
    const int drawn = static_cast<int>(smaller(copies, part.sample1 - s));
    const float* eps = noise.draw(s, drawn, at.noise);
    if (with_log_q) {
      each<C>(n * drawn, [&](int64_t i, auto k) {
        const auto v = load_noise<C>(eps + i, k);
        store(at.terms + i, fma(v, v, load(logvars + i, k) + C(kLogTwoPi)), k);
      });
    }
    const bool whole = tile.first && tile.last;
    double& row = at.log_q[whole ? 0 : s - part.sample0];
    const double row_so_far = tile.first ? 0 : row;
    each_twin(p, s, drawn, [&](int64_t first, int count, auto sign) {
      const int m = n * count;
      T* to = static_cast<T*>(out.z) + (part.group * p.samples + first) * plane + begin;
      C* z = output_tile(to, at.work.at);
      each<C>(m, [&](int64_t i, auto k) {
        store(z + i, fma(load(sigmas + i, k), sign(load_noise<C>(eps + i, k)), load(means + i, k)), k);
      });
      finish_tile(at.work.at, m, to);
      if (!with_log_q) return;
      RowSumWriter<C> log_q{out.log_q, row_so_far};
      const Tile side_by_side{0, 0, tile.rows * count, tile.cols, tile.first, tile.last};
      log_q.add(at.terms, side_by_side, (part.group * p.samples + first) * p.rows + tile.row0, C(-0.5));
      row = log_q.row;
    });
  }
}

template <class T>
void gaussian_forward(const GaussianProblem& p, const GaussianOutputs& out, const Part& part) {
  using C = Compute<T>;
  SampleScratch<C> scratch;
  Scratch<C> prior_mean, prior_logvar;
  const bool with_kl = out.kl.out != nullptr || out.kl.partial != nullptr;
  const bool with_log_q = out.log_q.out != nullptr || out.log_q.partial != nullptr;
  RowSumWriter<C> kl{out.kl};

  each_tile(part, [&](const Tile& tile) {
    const C* mean = load_tile<T>(p.mean, part.group, 0, tile, scratch.mean);
    const C* logvar = load_tile<T>(p.logvar, part.group, 0, tile, scratch.logvar);
    if ((out.z != nullptr || with_log_q) && part.sample0 < part.sample1)  // z without columns has no address
      draw_tile<T>(p, out, part, tile, with_log_q, mean, logvar, scratch);
    if (with_kl) {
      const C* m0 = load_tile<T>(p.prior_mean, part.group, 0, tile, prior_mean);
      const C* l0 = load_tile<T>(p.prior_logvar, part.group, 0, tile, prior_logvar);
      each<C>(tile.size(), [&](int64_t i, auto k) {
        const auto t = kl_terms(mean, logvar, m0, l0, i, k);
        store(scratch.work + i, t.half_quadratic + t.half_psi, k);
      });
      kl.add(scratch.work, tile, part.group * p.rows + tile.row0, C(1));
    }
  });
}

// Computes sum_s g_s of a tile and, where `noise` is given as workspace, sum_s g_s eps_s, with g the gradient of z.
// `copies` samples lie side by side; the sums run over every copies-th sample, then over those sums.
template <class T>
inline void sum_samples(const GaussianProblem& p, const void* z_gradient, int64_t group, const Tile& tile, float* noise,
                        Compute<T>* sum_g, Compute<T>* sum_g_eps) {
  using C = Compute<T>;
  Scratch<C> widened;
  const int n = tile.size();
  const int64_t plane = p.rows * p.cols, begin = tile.row0 * p.cols + tile.col0;
  if (z_gradient == nullptr || p.samples == 0) {
    std::memset(sum_g, 0, sizeof(C) * static_cast<size_t>(n));
    std::memset(sum_g_eps, 0, sizeof(C) * static_cast<size_t>(n));
    return;
  }
  const Input gradient{z_gradient, p.samples * plane, plane, p.cols};
  TileNoise noise_of(p, group, tile);
  const int copies = samples_at_once(p.rows, p.cols, tile, p.drawn());
  for (int64_t s = 0; s < p.drawn(); s += copies) {
    const int drawn = static_cast<int>(smaller(copies, p.drawn() - s));
    const float* eps = noise != nullptr ? noise_of.draw(s, drawn, noise) : nullptr;
    each_twin(p, s, drawn, [&](int64_t first, int count, auto sign) {
      const bool is_first = s == 0 && !sign.is_flipped;
      const Tile flat{0, first * plane + begin, 1, n * count, true, true};
      const C* g = load_tile<T>(gradient, group, 0, flat, widened.at);
      each<C>(n * count, [&](int64_t i, auto k) {
        const auto v = load(g + i, k);
        store(sum_g + i, is_first ? v : load(sum_g + i, k) + v, k);
        if (noise != nullptr) {
          const auto w = sign(load_noise<C>(eps + i, k));
          store(sum_g_eps + i, is_first ? v * w : fma(v, w, load(sum_g_eps + i, k)), k);
        }
      });
    });
  }
  for (int c = 1; c < copies; ++c) {
    each<C>(n, [&](int64_t i, auto k) {
      store(sum_g + i, load(sum_g + i, k) + load(sum_g + c * n + i, k), k);
      store(sum_g_eps + i, load(sum_g_eps + i, k) + load(sum_g_eps + c * n + i, k), k);
    });
  }
}

// log q depends on logvar through -1/2 sum_d logvar alone: subtracts 1/2 sum_s g_s, with g the gradient of log q, from
// logvar's gradient `to`.
template <class C>
inline void subtract_log_q(const GaussianProblem& p, const void* log_q_gradient, int64_t group, const Tile& tile,
                           C* to) {
  Scratch<C> sum, of_elements;
  const C* gradients = static_cast<const C*>(log_q_gradient) + group * p.samples * p.rows + tile.row0;
  const int together = samples_at_once(p.rows, p.cols, tile, p.samples);
  std::memset(sum.at, 0, sizeof(C) * static_cast<size_t>(tile.rows * together));
  for (int64_t s = 0; s < p.samples; s += together) {
    const int64_t values = tile.rows * smaller(together, p.samples - s);
    each<C>(values,
            [&](int64_t i, auto k) { store(sum + i, load(sum + i, k) + load(gradients + s * p.rows + i, k), k); });
  }
  for (int c = 1; c < together; ++c)
    for (int r = 0; r < tile.rows; ++r) sum[r] += sum[c * tile.rows + r];
  repeat_rows(sum.at, tile, of_elements.at);
  each<C>(tile.size(),
          [&](int64_t i, auto k) { store(to + i, fma(load(of_elements + i, k), C(-0.5), load(to + i, k)), k); });
}

template <class T>
void gaussian_backward(const GaussianProblem& p, const GaussianGradients& g, const Part& part) {
  using C = Compute<T>;
  Scratch<C> mean_buffer, logvar_buffer, prior_mean_buffer, prior_logvar_buffer, sigma_buffer, sum_g, sum_g_eps,
      row_gradient;
  Scratch<C> outputs[4];
  alignas(64) float noise[noise_length(kTile)];
  const int64_t plane = p.rows * p.cols;
  const bool need_noise = g.logvar != nullptr || g.scale != nullptr;
  const bool with_z = g.z != nullptr && p.samples > 0, with_kl = g.kl != nullptr;
  void* const targets[4] = {g.mean, g.scale != nullptr ? g.scale : g.logvar, g.prior_mean, g.prior_logvar};

  each_tile(part, [&](const Tile& tile) {
    const int n = tile.size();
    const int64_t begin = tile.row0 * p.cols + tile.col0;
    const C* mean = load_tile<T>(p.mean, part.group, 0, tile, mean_buffer);
    const C* logvar = load_tile<T>(p.logvar, part.group, 0, tile, logvar_buffer);
    const C *sigma = nullptr, *m0 = nullptr, *l0 = nullptr;
    sum_samples<T>(p, g.z, part.group, tile, need_noise ? noise : nullptr, sum_g.at, sum_g_eps.at);
    if (with_z && g.logvar != nullptr) sigma = sigma_tile<T>(p, part.group, tile, logvar, sigma_buffer);
    if (with_kl) {
      repeat_rows(static_cast<const C*>(g.kl) + part.group * p.rows + tile.row0, tile, row_gradient.at);
      m0 = load_tile<T>(p.prior_mean, part.group, 0, tile, prior_mean_buffer);
      l0 = load_tile<T>(p.prior_logvar, part.group, 0, tile, prior_logvar_buffer);
    }
    T* to[4];
    C* at[4];
    for (int j = 0; j < 4; ++j) {
      to[j] = targets[j] ? static_cast<T*>(targets[j]) + part.group * plane + begin : nullptr;
      at[j] = targets[j] ? output_tile(to[j], outputs[j].at) : nullptr;
    }
    each<C>(n, [&](int64_t i, auto k) {
      auto d_mean = load(sum_g + i, k), d_sigma = load(sum_g_eps + i, k);  // d_sigma is d_logvar where that is given
      if (sigma != nullptr) d_sigma = d_sigma * (load(sigma + i, k) * C(0.5));
      auto toward_prior = d_mean, d_prior_logvar = d_mean;
      if (with_kl) {
        const auto gk = load(row_gradient + i, k);
        const auto t = kl_terms(mean, logvar, m0, l0, i, k);
        toward_prior = gk * t.scaled;
        d_mean = fma(gk, t.scaled, d_mean);
        d_sigma = fma(gk, t.half_expm1, d_sigma);
        if (at[3] != nullptr) d_prior_logvar = -(gk * (t.half_expm1 + t.half_quadratic));
      } else {
        toward_prior = d_prior_logvar = map([](auto v) { return decltype(v){}; }, d_mean);
      }
      if (at[0] != nullptr) store(at[0] + i, d_mean, k);
      if (at[1] != nullptr) store(at[1] + i, d_sigma, k);
      if (at[2] != nullptr) store(at[2] + i, -toward_prior, k);
      if (at[3] != nullptr) store(at[3] + i, d_prior_logvar, k);
    });
    if (g.log_q != nullptr && at[1] != nullptr && n > 0) subtract_log_q(p, g.log_q, part.group, tile, at[1]);
    for (int j = 0; j < 4; ++j)
      if (to[j] != nullptr) finish_tile(outputs[j].at, n, to[j]);
  });
}

// The gradient of z where log q depends on z alone: -g eps / sigma.
template <class T>
void gaussian_path_backward(const GaussianProblem& p, const void* log_q_gradient, void* z_gradient, const Part& part) {
  using C = Compute<T>;
  Scratch<C> logvar_buffer, inverse_buffer, row_gradient, work;
  alignas(64) float noise[noise_length(kTile)];
  const int64_t plane = p.rows * p.cols;

  each_tile(part, [&](const Tile& tile) {
    const int n = tile.size();
    const int64_t begin = tile.row0 * p.cols + tile.col0;
    const C* logvar = load_tile<T>(p.logvar, part.group, 0, tile, logvar_buffer);
    each<C>(n, [&](int64_t i, auto k) { store(inverse_buffer + i, exp(load(logvar + i, k) * C(-0.5)), k); });
    const int copies = samples_at_once(p.rows, p.cols, tile, part.sample1 - part.sample0);
    TileNoise noise_of(p, part.group, tile);
    const C* inverses = repeat<C>(inverse_buffer, n, copies, inverse_buffer);
    for (int64_t s = part.sample0; s < part.sample1; s += copies) {
      const int drawn = static_cast<int>(smaller(copies, part.sample1 - s));
      const float* eps = noise_of.draw(s, drawn, noise);
      each_twin(p, s, drawn, [&](int64_t first, int count, auto sign) {
        const int64_t sample = part.group * p.samples + first;
        const Tile side_by_side{0, 0, tile.rows * count, tile.cols, true, true};
        const C* of_rows = static_cast<const C*>(log_q_gradient) + sample * p.rows + tile.row0;
        repeat_rows(of_rows, side_by_side, row_gradient.at);
        T* to = static_cast<T*>(z_gradient) + sample * plane + begin;
        C* at = output_tile(to, work.at);
        each<C>(n * count, [&](int64_t i, auto k) {
          const auto slope = load_noise<C>(eps + i, k) * load(inverses + i, k);
          store(at + i, -(load(row_gradient + i, k) * sign(slope)), k);
        });
        finish_tile(work.at, n * count, to);
      });
    }
  });
}

// --- the KL by scales, element by element ---------------------------------------------------------------------

template <class T, class Body>
inline void each_pair(const ScaleKlProblem& p, const Part& part, Body f) {
  const auto at = [&](const void* x) { return static_cast<const T*>(x) + part.col0; };
  const T *loc = at(p.loc), *scale = at(p.scale), *q_loc = at(p.q_loc), *q_scale = at(p.q_scale);
  each<T>(part.col1 - part.col0, [=](int64_t i, auto k) LK_INLINE_LAMBDA {
    const auto s0 = load(q_scale + i, k);
    f(i, k, (load(loc + i, k) - load(q_loc + i, k)) / s0, load(scale + i, k), s0);
  });
}

// 1/2 [t^2 + psi(d)], t = (m - m0) / s0, d = 2 ln(s / s0).
template <class T>
void scale_kl(const ScaleKlProblem& p, void* kl, const Part& part) {
  T* const to = static_cast<T*>(kl) + part.col0;
  each_pair<T>(p, part, [=](int64_t i, auto k, auto t, auto s, auto s0) LK_INLINE_LAMBDA {
    const auto r = s / s0, ln = ln_ratio(r, s, s0), d = ln * T(2);
    // psi comes from its series where it is small; elsewhere e^d is r^2, whose error does not grow with d.
    const auto half_psi = [](auto d, auto small, auto r, auto ln) {
      const auto large = fma(r * T(0.5), r, splat<T>(T(-0.5))) - ln;
      return (d < T(2)) & (d > T(-2)) ? small : r < LnConstants<T>::infinity ? large : r;
    };
    const auto small = (ln * d) * horner(ExpConstants<T>::P, d);
    store(to + i, fma(t, t * T(0.5), map(half_psi, d, small, r, ln)), k);
  });
}

// g t / s0 and g (r^2 - 1) / s for p; -g t / s0 and -g (t^2 + r^2 - 1) / s0 for q; r^2 - 1 = e (2 + e), e = (s - s0) /
// s0.
template <class T>
void scale_kl_backward(const ScaleKlProblem& p, const void* kl_gradient, void* const* gradients, const Part& part) {
  T* to[4];
  for (int j = 0; j < 4; ++j) to[j] = gradients[j] != nullptr ? static_cast<T*>(gradients[j]) + part.col0 : nullptr;
  T *const d_loc = to[0], *const d_scale = to[1], *const d_q_loc = to[2], *const d_q_scale = to[3];
  const T* const upstream = static_cast<const T*>(kl_gradient) + part.col0;
  each_pair<T>(p, part, [=](int64_t i, auto k, auto t, auto s, auto s0) LK_INLINE_LAMBDA {
    const auto g = load(upstream + i, k), toward = (t * g) / s0;
    const auto e = (s - s0) / s0, excess = (e + T(2)) * e;
    if (d_loc != nullptr) store(d_loc + i, toward, k);
    if (d_scale != nullptr) store(d_scale + i, (excess * g) / s, k);
    if (d_q_loc != nullptr) store(d_q_loc + i, -toward, k);
    if (d_q_scale != nullptr) store(d_q_scale + i, -((fma(t, t, excess) * g) / s0), k);
  });
}
}  // namespace LK_ISA
}  // namespace lk
