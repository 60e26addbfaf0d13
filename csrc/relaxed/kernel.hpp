// Relaxed samples: sigmoids and softmaxes of logits with the stream's noise, and their gradients. A block of whole
// variables stays in the first-level cache; its noise is never written to memory.
#pragma once

#include "families/kernel.hpp"
#include "relaxed/problem.hpp"

namespace lk {
namespace LK_ISA {

// The cells [begin, begin + n) of an input in the compute type: in place, or in `buffer`.
template <class T>
inline const Compute<T>* relaxed_cells(const void* data, int64_t begin, int64_t n, Compute<T>* buffer) {
  return load_tile<T>(Input{data, 0, 0, 0}, 0, 0, Tile{0, begin, 1, static_cast<int>(n), true, true}, buffer);
}

// --- Bernoulli ------------------------------------------------------------------------------------------------

// sigmoid((logit - x) / tau), by the form that does not overflow.
template <class C>
inline void sigmoid_tile(const C* logits, const float* x, int n, C inverse, C* y) {
  each<C>(n, [&](int64_t i, auto k) {
    const auto v = (load(logits + i, k) - load_noise<C>(x + i, k)) * inverse;
    const auto e = exp(map([](auto v) { return -absolute(v); }, v));
    const auto choose = [](auto v, auto e) {
      const auto larger = C(1) / (e + C(1));
      return v < C(0) ? e * larger : larger;
    };
    store(y + i, map(choose, v, e), k);
  });
}

template <class T>
void relaxed_bernoulli_forward(const RelaxedProblem& p, void* y, const Part& part) {
  using C = Compute<T>;
  alignas(64) float noise[noise_length(kTile)];
  alignas(64) float x[kTile + kReduceLanes];
  Scratch<C> buffer, work;
  const uint64_t seed = seed_of(p.seed, part.group);
  each_tile(part, [&](const Tile& tile) {
    const C* logits = relaxed_cells<T>(p.logits, part.group * p.cells + tile.col0, tile.cols, buffer);
    for (int64_t s = part.sample0; s < part.sample1; ++s) {
      const int64_t e = s * p.cells + tile.col0;
      logistic_tile(seed, p.offset + static_cast<uint64_t>(e), tile.cols, noise, x);
      T* to = static_cast<T*>(y) + part.group * p.samples * p.cells + e;
      C* const out = output_tile(to, work.at);
      if (p.hard)
        bernoulli_tile(x, false, logits, tile.cols, out);
      else
        sigmoid_tile(logits, x, tile.cols, C(p.inverse), out);
      finish_tile(work.at, tile.cols, to);
    }
  });
}

template <class T>
void relaxed_bernoulli_backward(const RelaxedProblem& p, const RelaxedGradients& g, const Part& part) {
  using C = Compute<T>;
  alignas(64) float noise[noise_length(kTile)];
  alignas(64) float x[kTile + kReduceLanes];
  Scratch<C> logits_buffer, y_buffer, g_buffer, sum;
  const uint64_t seed = seed_of(p.seed, part.group);
  each_tile(part, [&](const Tile& tile) {
    const int n = tile.cols;
    const int64_t of_tile = part.group * p.cells + tile.col0;
    const C* logits = p.hard ? relaxed_cells<T>(p.logits, of_tile, n, logits_buffer) : nullptr;
    std::memset(sum.at, 0, sizeof(C) * static_cast<size_t>(n));
    for (int64_t s = 0; s < p.samples; ++s) {
      const int64_t e = s * p.cells + tile.col0, at = part.group * p.samples * p.cells + e;
      const C* of_y = relaxed_cells<T>(g.of_y, at, n, g_buffer);
      const C* y = y_buffer;
      if (p.hard) {
        logistic_tile(seed, p.offset + static_cast<uint64_t>(e), n, noise, x);
        sigmoid_tile(logits, x, n, C(p.inverse), y_buffer.at);
      } else {
        y = relaxed_cells<T>(g.y, at, n, y_buffer);
      }
      each<C>(n, [&](int64_t i, auto k) {
        const auto v = load(y + i, k);
        store(sum + i, fma(load(of_y + i, k), v * -(v - C(1)), load(sum + i, k)), k);
      });
    }
    T* to = static_cast<T*>(g.of_logits) + of_tile;
    C* const out = output_tile(to, y_buffer.at);
    each<C>(n, [&](int64_t i, auto k) { store(out + i, load(sum + i, k) * C(p.inverse), k); });
    finish_tile(y_buffer.at, n, to);
  });
}

// --- Categorical ----------------------------------------------------------------------------------------------

// The arrays of a block, in the workspace of a part.
template <class C>
struct RelaxedArrays {
  C *logits, *t, *y, *sum;
  union {
    float* x;
    C* of_y;  // read once x is not needed any more
  };
  RelaxedArrays(double* workspace, int64_t classes) {
    const auto array = [&](int i) { return reinterpret_cast<C*>(workspace + i * block_array(classes)); };
    logits = array(0), t = array(1), y = array(2), sum = array(3), of_y = array(4);
  }
};

// ln(-ln(1 - u)) of elements e, ..., e + n - 1 of the uniforms: minus a Gumbel variable. Large ones come from small u,
// of which there are many.
inline void minus_gumbel(uint64_t seed, uint64_t e, int64_t n, float* x) {
  alignas(64) float noise[noise_length(kTile)];
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int count = static_cast<int>(smaller(kTile, n - begin));
    const float* u = noise_tile<kUniforms>(seed, e + static_cast<uint64_t>(begin), count, noise);
    each<float>(count, [&](int64_t i, auto k) { store(x + begin + i, ln(exponential(load(u + i, k))), k); });
  }
}

// The largest of t[0..n), NaN if one is; n is at least kManyClasses.
template <class C>
inline C largest_of(const C* t, int64_t n) {
  const LargerOrNan larger_or_nan;
  Vec<C> found = load(t + n - lanes<C>);
  for (int64_t k = 0; k + lanes<C> <= n; k += lanes<C>) found = larger_or_nan(load(t + k), found);
  C most = found[0];
  for (int lane = 0; lane < lanes<C>; ++lane) most = larger_or_nan(C(found[lane]), most);
  return most;
}

// y = softmax((logits + Gumbel) / tau) of each variable of a block; hard: 1 in the first class with the largest sum,
// else 0, and NaN where that is not finite.
template <bool hard, class C>
inline void relaxed_rows(const C* logits, const float* x, int64_t cells, int64_t classes, C inverse, C* t, C* y) {
  for (int64_t begin = 0; begin < cells; begin += classes) {
    each<C>(classes, [&](int64_t k, auto part) {
      store(t + k, load(logits + begin + k, part) - load_noise<C>(x + begin + k, part), part);
    });
    const C most = largest_of(t, classes);
    C* const row = y + begin;
    if constexpr (hard) {
      for (int64_t k = 0; k < classes; ++k) row[k] = most - most;
      int64_t place = 0;
      while (t[place] != most && most == most) ++place;
      row[place] = row[place] + 1;
    } else {
      each<C>(classes, [&](int64_t k, auto part) { store(t + k, exp((load(t + k, part) - most) * inverse), part); });
      const C share = C(1) / lane_sum(t, static_cast<int>(classes));
      each<C>(classes, [&](int64_t k, auto part) { store(row + k, load(t + k, part) * share, part); });
    }
  }
}

// The same where variables have few classes, class by class.
template <bool hard, class C>
inline void relaxed_columns(const C* logits, const float* x, int64_t cells, int64_t classes, C inverse, C* t, C* y) {
  const int64_t n = cells / classes;
  each_cell(n, classes, [=](int64_t from, int64_t to) { t[to] = logits[from] - static_cast<C>(x[from]); });
  each<C>(n, [&](int64_t i, auto part) LK_INLINE_LAMBDA {
    const auto at = [&](int64_t k) LK_INLINE_LAMBDA { return load(t + k * n + i, part); };
    auto most = at(0);
    for (int64_t k = 1; k < classes; ++k) most = map(LargerOrNan(), at(k), most);
    auto total = most - most;
    if constexpr (hard) {
      const auto zero = total;  // or NaN
      const auto first = [](auto x, auto most, auto found, auto zero) {
        return (x == most) & (found == 0) ? found + 1 : zero;
      };
      for (int64_t k = 0; k < classes; ++k) {
        const auto one = map(first, at(k), most, total, zero);
        total = total + one;
        store(t + k * n + i, one, part);
      }
    } else {
      for (int64_t k = 0; k < classes; ++k) {
        const auto weight = exp((at(k) - most) * inverse);
        store(t + k * n + i, weight, part);
        total = total + weight;
      }
      const auto share = map([](auto x) { return C(1) / x; }, total);
      for (int64_t k = 0; k < classes; ++k) store(t + k * n + i, at(k) * share, part);
    }
  });
  each_cell(n, classes, [=](int64_t to, int64_t from) { y[to] = t[from]; });
}

template <bool hard, class C>
inline void relaxed_block(const C* logits, const float* x, int64_t cells, int64_t classes, C inverse, C* t, C* y) {
  const auto f = classes < kManyClasses ? relaxed_columns<hard, C> : relaxed_rows<hard, C>;
  f(logits, x, cells, classes, inverse, t, y);
}

template <class T>
void relaxed_categorical_forward(const RelaxedProblem& p, void* y, const Part& part, double* workspace) {
  using C = Compute<T>;
  const RelaxedArrays<C> at(workspace, p.classes);
  const uint64_t seed = seed_of(p.seed, part.group);
  const int64_t block = cells_of_block(p.classes);
  for (int64_t begin = part.col0; begin < part.col1; begin += block) {
    const int64_t cells = smaller(block, part.col1 - begin);
    const C* logits = relaxed_cells<T>(p.logits, part.group * p.cells + begin, cells, at.logits);
    for (int64_t s = part.sample0; s < part.sample1; ++s) {
      const int64_t e = s * p.cells + begin;
      minus_gumbel(seed, p.offset + static_cast<uint64_t>(e), cells, at.x);
      T* to = static_cast<T*>(y) + part.group * p.samples * p.cells + e;
      C* const out = output_tile(to, at.y);
      const auto draw = p.hard ? relaxed_block<true, C> : relaxed_block<false, C>;
      draw(logits, at.x, cells, p.classes, C(p.inverse), at.t, out);
      finish_tile(at.y, static_cast<int>(cells), to);
    }
  }
}

// Adds y_k (g_k - <g, y>) to the sums of each variable of a block.
template <class C>
inline void add_softmax_gradients(const C* y, const C* g, int64_t cells, int64_t classes, C* t, C* sum) {
  for (int64_t begin = 0; begin < cells; begin += classes) {
    const C *own = y + begin, *of_own = g + begin;
    C* const to = sum + begin;
    if (classes < kManyClasses) {
      C dot = 0;
      for (int64_t k = 0; k < classes; ++k) dot = fma(of_own[k], own[k], dot);
      for (int64_t k = 0; k < classes; ++k) to[k] = fma(own[k], of_own[k] - dot, to[k]);
      continue;
    }
    each<C>(classes, [&](int64_t k, auto part) { store(t + k, load(of_own + k, part) * load(own + k, part), part); });
    const C dot = lane_sum(t, static_cast<int>(classes));
    each<C>(classes, [&](int64_t k, auto part) {
      store(to + k, fma(load(own + k, part), load(of_own + k, part) - dot, load(to + k, part)), part);
    });
  }
}

template <class T>
void relaxed_categorical_backward(const RelaxedProblem& p, const RelaxedGradients& g, const Part& part,
                                  double* workspace) {
  using C = Compute<T>;
  const RelaxedArrays<C> at(workspace, p.classes);
  const uint64_t seed = seed_of(p.seed, part.group);
  const int64_t block = cells_of_block(p.classes);
  for (int64_t begin = part.col0; begin < part.col1; begin += block) {
    const int64_t cells = smaller(block, part.col1 - begin), of_block = part.group * p.cells + begin;
    const C* logits = p.hard ? relaxed_cells<T>(p.logits, of_block, cells, at.logits) : nullptr;
    std::memset(at.sum, 0, sizeof(C) * static_cast<size_t>(cells));
    for (int64_t s = 0; s < p.samples; ++s) {
      const int64_t e = s * p.cells + begin, place = part.group * p.samples * p.cells + e;
      const C* y = at.y;
      if (p.hard) {
        minus_gumbel(seed, p.offset + static_cast<uint64_t>(e), cells, at.x);
        relaxed_block<false>(logits, at.x, cells, p.classes, C(p.inverse), at.t, at.y);
      } else {
        y = relaxed_cells<T>(g.y, place, cells, at.y);
      }
      const C* of_y = relaxed_cells<T>(g.of_y, place, cells, at.of_y);
      add_softmax_gradients(y, of_y, cells, p.classes, at.t, at.sum);
    }
    T* to = static_cast<T*>(g.of_logits) + of_block;
    C* const out = output_tile(to, at.y);
    each<C>(cells, [&](int64_t i, auto k) { store(out + i, load(at.sum + i, k) * C(p.inverse), k); });
    finish_tile(at.y, static_cast<int>(cells), to);
  }
}

}  // namespace LK_ISA
}  // namespace lk
