// Samples of discrete families from the stream's uniforms. The rules are part of noise stream v2 and frozen:
// kernels/families/README.md states them, kernels/families/reference.py implements them readably.
#pragma once

#include "families/problem.hpp"
#include "noise/kernel.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

// ln u - ln(1 - u) of elements e, ..., e + n - 1 of the uniforms; `buffer` holds noise_length(n) floats.
inline void logistic_tile(uint64_t seed, uint64_t e, int n, float* buffer, float* x) {
  const float* u = noise_tile<kUniforms>(seed, e, n, buffer);
  each<float>(n, [&](int64_t i, auto k) {
    const auto v = load(u + i, k);
    store(x + i, ln(v) - ln(-(v - 1.0f)), k);
  });
}

// z = [x < logit], or [-x < logit] mirrored; NaN where the logit is NaN.
template <class C>
inline void bernoulli_tile(const float* x, bool mirrored, const C* logits, int n, C* z) {
  const C sign = mirrored ? C(-1) : C(1);
  each<C>(n, [&](int64_t i, auto k) {
    const auto draw = [](auto v, auto l) {
      const auto drawn = v < l ? splat<C>(C(1)) : splat<C>(C(0));
      return l == l ? drawn : l;
    };
    store(z + i, map(draw, load_noise<C>(x + i, k) * sign, load(logits + i, k)), k);
  });
}

template <class T>
inline float to_float32(T x) {
  return static_cast<float>(x);
}
inline float to_float32(BFloat16 x) { return widen(x); }
inline float to_float32(Float16 x) { return widen(x); }

// Calls f(source, destination) for the n * classes cells of [n, classes] and their places in [classes, n].
template <class Body>
LK_INLINE void each_cell(int64_t n, int64_t classes, Body f) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < classes; ++k) f(i * classes + k, k * n + i);
}

// The larger of two, NaN if one is.
struct LargerOrNan {
  template <class X>
  LK_INLINE X operator()(X x, X y) const {
    return (x > y) | (x != x) ? x : y;
  }
};

// The weight of the most probable of K classes in fixed point, 2^(62 - ceil(log2 K)): K of them sum to 2^62 at most.
inline float unit_weight(int64_t classes) {
  int32_t exponent = 62;
  for (int64_t k = classes - 1; k > 0; k /= 2) --exponent;
  return bit_cast<float>((exponent + 127) << 23);
}

// Cumulative weights of n elements in fixed point, [n, classes]; kernels/families/README.md has the rule. Returns false
// where an element has none: it has a NaN or infinite logit, or no class that is not ruled out. The table holds
// table_words(n * classes) words: the weights of the single classes follow the cumulative ones.
template <class T>
inline bool cumulative_table(const T* logits, int n, int64_t classes, uint64_t* table) {
  const int64_t cells = n * classes;
  float* const weights = reinterpret_cast<float*>(table + cells);
  bool proper = true;
  for (int i = 0; i < n; ++i) {
    const T* row = logits + i * classes;
    float* out = weights + i * classes;
    float most = to_float32(row[0]);
    bool nan = most != most;
    for (int64_t k = 0; k < classes; ++k) {
      out[k] = to_float32(row[k]);
      nan |= out[k] != out[k];
      most = out[k] > most ? out[k] : most;
    }
    if (nan || most - most != 0) {  // class 0 is certain
      proper = false;
      most = 0;
      for (int64_t k = 0; k < classes; ++k) out[k] = k == 0 ? 0.0f : -__builtin_inff();
    }
    for (int64_t k = 0; k < classes; ++k) out[k] -= most;
  }
  const float unit = unit_weight(classes);
  each<float>(cells, [&](int64_t i, auto k) { store(weights + i, exp(load(weights + i, k)) * unit, k); });
  for (int i = 0; i < n; ++i) {
    uint64_t sum = 0;
    for (int64_t cell = i * classes; cell < (i + 1) * classes; ++cell) {
      sum += static_cast<uint64_t>(static_cast<int64_t>(weights[cell]));
      table[cell] = sum;
    }
  }
  return proper;
}

// The class that a word draws: how many of the first K - 1 cumulative weights are at most word 2^-32 times the last.
inline int64_t categorical_draw(const uint64_t* c, int64_t classes, uint32_t word) {
  const uint64_t total = c[classes - 1];
  const uint64_t x = (total >> 32) * word + (((total & 0xFFFFFFFFu) * word) >> 32);
  int64_t below = 0;
  if (classes <= 8) {
    for (int64_t k = 0; k < classes - 1; ++k) below += c[k] <= x;
    return below;
  }
  for (int64_t left = classes - 1; left > 0;) {
    const int64_t half = left / 2;
    const bool up = c[below + half] <= x;
    below = up ? below + half + 1 : below;
    left = up ? left - half - 1 : half;
  }
  return below;
}

// Works on the plane [rows, cols] as one row: part.col0 and col1 are positions in it.
template <class T>
void bernoulli_sample(const FamilyProblem& p, void* out, const Part& part) {
  using C = Compute<T>;
  alignas(64) float noise[noise_length(kTile)];
  alignas(64) float x[kTile + kReduceLanes];
  Scratch<C> logits_buffer, work;
  const uint64_t seed = seed_of(p.seed, part.group);
  const Input input{p.logits, p.cols, 0, p.cols};
  for (int64_t s = part.sample0; s < part.sample1; ++s) {
    each_tile(part, [&](const Tile& tile) {
      const C* logits = load_tile<T>(input, part.group, 0, tile, logits_buffer);
      const int64_t e = s * p.cols + tile.col0;
      logistic_tile(seed, p.offset + static_cast<uint64_t>(e), tile.cols, noise, x);
      for (int64_t twin = 0; twin <= (p.antithetic ? 1 : 0); ++twin) {
        const int64_t copies = p.antithetic ? 2 : 1;
        T* to = static_cast<T*>(out) + (part.group * copies + twin) * p.samples * p.cols + e;
        bernoulli_tile(x, twin != 0, logits, tile.cols, output_tile(to, work.at));
        finish_tile(work.at, tile.cols, to);
      }
    });
  }
}

// Returns whether all elements have probabilities.
template <class T>
bool categorical_sample(const FamilyProblem& p, void* out, const Part& part, uint64_t* table) {
  alignas(64) float noise[noise_length(kTile)];
  const uint64_t seed = seed_of(p.seed, part.group);
  const int64_t block = elements_of_block(p.classes);
  bool proper = true;
  for (int64_t begin = part.col0; begin < part.col1; begin += block) {
    const int n = static_cast<int>(smaller(block, part.col1 - begin));
    const T* logits = static_cast<const T*>(p.logits) + (part.group * p.cols + begin) * p.classes;
    proper &= cumulative_table(logits, n, p.classes, table);
    for (int64_t s = part.sample0; s < part.sample1; ++s) {
      const int64_t e = s * p.cols + begin;
      const float* words = noise_tile<kWords>(seed, p.offset + static_cast<uint64_t>(e), n, noise);
      int64_t* to = static_cast<int64_t*>(out) + part.group * p.samples * p.cols + e;
      for (int i = 0; i < n; ++i)
        to[i] = categorical_draw(table + i * p.classes, p.classes, bit_cast<uint32_t>(words[i]));
    }
  }
  return proper;
}

}  // namespace LK_ISA
}  // namespace lk
