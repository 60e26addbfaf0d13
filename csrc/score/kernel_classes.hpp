// The categorical family's score-function gradients: sums over the samples of each class, and what follows from them.
//
// Inside a tile, arrays lie class by class, [K, n]: a register holds one class of several elements, so that sums,
// maxima and softmax run over registers in order of k, with no sum across lanes.
#pragma once

#include <algorithm>

#include "score/kernel_sums.hpp"

namespace lk {
namespace LK_ISA {

// Calls f(source, destination) for the n * classes cells of [n, classes] and their places in [classes, n].
template <class Body>
LK_INLINE void each_cell(int n, int64_t classes, Body f) {
  for (int i = 0; i < n; ++i)
    for (int64_t k = 0; k < classes; ++k) f(i * classes + k, k * n + i);
}

// --- sums over samples ----------------------------------------------------------------------------------------

// Samples of a tile side by side: their weights, and their classes as the bits of integers as wide, -1 for none.
template <class C>
struct ClassSamples {
  using Class = typename std::conditional<sizeof(C) == 4, int32_t, int64_t>::type;
  int count;
  Scratch<C> classes, weights;
};

// Adds f, f^2 or 1 of samples in `groups` classes from k on to their sums: each class in a register, chosen by a mask.
template <int groups, int sum, class C, class Place>
LK_INLINE void add_to_classes(const ClassSamples<C>& samples, int n, int64_t i, int64_t k, C* cells, Place part) {
  using V = Vec<C>;
  V total[groups];
  for (int j = 0; j < groups; ++j) total[j] = load(cells + (k + j) * n + i, part);
  for (int s = 0; s < samples.count; ++s) {
    const auto z = bit_cast<Bits<C>>(load(samples.classes.at + s * n + i, part));
    V f = splat<C>(C(1));
    if constexpr (sum != kCountIn) f = load(samples.weights.at + s * n + i, part);
    if constexpr (sum == kSquareIn) f = f * f;
    for (int j = 0; j < groups; ++j) {
      const auto k_bits = Bits<C>{} + static_cast<typename ClassSamples<C>::Class>(k + j);
      total[j] = total[j] + (z == k_bits ? f : V{});
    }
  }
  for (int j = 0; j < groups; ++j) store(cells + (k + j) * n + i, total[j], part);
}

// The same of all classes; of many, cell by cell.
template <int sum, class C>
inline void add_samples_of_classes(const ClassSamples<C>& samples, int n, int64_t classes, C* cells) {
  if (classes > 4 * lanes<C>) {
    for (int s = 0; s < samples.count; ++s) {
      for (int i = 0; i < n; ++i) {
        const auto z = bit_cast<typename ClassSamples<C>::Class>(samples.classes.at[s * n + i]);
        const C f = samples.weights.at[s * n + i];
        if (z >= 0) cells[z * n + i] += sum == kCountIn ? C(1) : sum == kSquareIn ? f * f : f;
      }
    }
    return;
  }
  const auto block = [&](int64_t i, auto part) LK_INLINE_LAMBDA {
    int64_t k = 0;
    const auto step = [&](auto groups) LK_INLINE_LAMBDA {
      constexpr int count = decltype(groups)::value;
      for (; k + count <= classes; k += count) add_to_classes<count, sum>(samples, n, i, k, cells, part);
    };
    step(std::integral_constant<int, 8>{});
    step(std::integral_constant<int, 4>{});
    step(std::integral_constant<int, 1>{});
  };
  int i = 0;
  for (; i + lanes<C> <= n; i += lanes<C>) block(i, Whole{});
  if (i < n) block(i, First{n - i});
}

// What is outside a class is the total less the class.
template <class C>
inline void fill_outside(int n, int64_t classes, const C* in, C* out) {
  each<C>(n, [&](int64_t i, auto part) {
    auto total = load(in + i, part) + C(0);
    for (int64_t k = 1; k < classes; ++k) total = total + load(in + k * n + i, part);
    for (int64_t k = 0; k < classes; ++k) store(out + k * n + i, total - load(in + k * n + i, part), part);
  });
}

// Draws or reads `count` samples of a tile from sample s on. Returns whether all lie in the support.
template <class T>
inline bool take_samples(const ScoreProblem& p, const Part& part, const Tile& tile, int64_t s, int count,
                         const uint64_t* table, Weights<Compute<T>>& weights, ClassSamples<Compute<T>>& samples) {
  using C = Compute<T>;
  using Class = typename ClassSamples<C>::Class;
  const int n = tile.size();
  const int64_t plane = p.rows * p.cols, place = tile.row0 * p.cols + tile.col0, K = p.classes;
  alignas(64) float noise[noise_length(kClassTile)];
  Scratch<C> buffer;
  bool inside = true;
  samples.count = count;
  for (int j = 0; j < count; ++j, ++s) {
    const int64_t e = s * plane + place;
    C* const classes = samples.classes.at + j * n;
    if (p.z == nullptr) {
      const float* words =
          noise_tile<kWords>(seed_of(p.seed, part.group), p.offset + static_cast<uint64_t>(e), n, noise);
      for (int i = 0; i < n; ++i)
        classes[i] = bit_cast<C>(static_cast<Class>(categorical_draw(table + i * K, K, bit_cast<uint32_t>(words[i]))));
    } else {
      const int64_t* z = static_cast<const int64_t*>(p.z) + part.group * p.samples * plane + e;
      int64_t outside = 0;
      for (int i = 0; i < n; ++i) {
        const bool in = static_cast<uint64_t>(z[i]) < static_cast<uint64_t>(K);
        outside |= !in;
        classes[i] = bit_cast<C>(in ? static_cast<Class>(z[i]) : Class(-1));
      }
      inside &= outside == 0;
    }
    C* const to = samples.weights.at + j * n;
    const C* w = weights.at(s, n, buffer);
    if (weights.by_row())
      for (int r = 0; r < tile.rows; ++r) std::fill_n(to + r * tile.cols, tile.cols, w[r]);
    else
      std::memcpy(to, w, sizeof(C) * static_cast<size_t>(n));
  }
  return inside;
}

// The sums of a tile over the part's samples, [K, n] each: sum j of fold f at sums[(f * kMostSums + j) * stride].
template <class T>
inline void class_sums(const ScoreProblem& p, const Part& part, const Tile& tile, Compute<T>* sums, int64_t stride,
                       uint64_t* table, bool& outside) {
  using C = Compute<T>;
  const int n = tile.size();
  const int64_t K = p.classes, place = part.group * p.rows * p.cols + tile.row0 * p.cols + tile.col0;
  Weights<C> weights(p, part.group, tile, 1);
  ClassSamples<C> samples;
  if (p.z == nullptr) cumulative_table(static_cast<const T*>(p.parameters[0]) + place * K, n, K, table);
  for (int64_t fold = 0; fold < p.folds; ++fold) {
    C* const to = sums + fold * kMostSums * stride;
    for (int j = 0; j < kDiscreteSums; j += 2)
      if (keeps(p, j)) std::memset(to + j * stride, 0, sizeof(C) * static_cast<size_t>(n * K));
    const int64_t first = larger(part.sample0, fold * p.samples / p.folds);
    const int64_t end = smaller(part.sample1, (fold + 1) * p.samples / p.folds);
    const int64_t at_once = larger(kTile / n, 1);
    for (int64_t s = first; s < end; s += at_once) {
      const int count = static_cast<int>(smaller(at_once, end - s));
      outside |= !take_samples<T>(p, part, tile, s, count, table, weights, samples);
      add_samples_of_classes<kIn>(samples, n, K, to + kIn * stride);
      if (keeps(p, kSquareIn)) add_samples_of_classes<kSquareIn>(samples, n, K, to + kSquareIn * stride);
      if (keeps(p, kCountIn)) add_samples_of_classes<kCountIn>(samples, n, K, to + kCountIn * stride);
    }
    for (int j = 0; j < kDiscreteSums; j += 2)
      if (keeps(p, j)) fill_outside(n, K, to + j * stride, to + (j + 1) * stride);
  }
}

// --- gradients ------------------------------------------------------------------------------------------------

// Softmax of n elements and 1 less it, both without cancellation: logits [n, K], p and q [K, n].
template <class T>
inline void softmax_by_class(const T* logits, int n, int64_t classes, Compute<T>* p, Compute<T>* q) {
  using C = Compute<T>;
  if constexpr (std::is_same<T, C>::value) {
    each_cell(n, classes, [&](int64_t from, int64_t to) { p[to] = logits[from]; });
  } else {
    widen_all(logits, n * classes, q);  // which is written last
    each_cell(n, classes, [&](int64_t from, int64_t to) { p[to] = q[from]; });
  }
  each<C>(n, [&](int64_t i, auto part) LK_INLINE_LAMBDA {
    const auto at = [&](int64_t k) LK_INLINE_LAMBDA { return load(p + k * n + i, part); };
    const auto larger_or_nan = [](auto x, auto y) { return (x > y) | (x != x) ? x : y; };
    const auto larger_of = [](auto x, auto y) { return x > y ? x : y; };
    auto most = at(0);
    for (int64_t k = 1; k < classes; ++k) most = map(larger_or_nan, at(k), most);
    auto top = exp(at(0) - most);
    store(p + i, top, part);
    for (int64_t k = 1; k < classes; ++k) {
      const auto x = exp(at(k) - most);
      store(p + k * n + i, x, part);
      top = map(larger_of, x, top);
    }
    // The first class of the greatest probability has 1 less it from the sum of the others.
    const auto zero = top - top;
    const auto first_top = [](auto x, auto top, auto found) { return (x == top) & (found == 0) ? found + 1 : x - x; };
    auto found = zero, below = zero;
    for (int64_t k = 0; k < classes; ++k) {
      const auto x = at(k), is_top = map(first_top, x, top, found);
      found = found + is_top;
      below = below + map([](auto x, auto is_top) { return is_top != 0 ? x - x : x; }, x, is_top);
      store(q + k * n + i, is_top, part);
    }
    const auto share = map([](auto x) { return C(1) / x; }, top + below);
    const auto rest = below * share;
    for (int64_t k = 0; k < classes; ++k) {
      const auto x = at(k) * share;
      store(p + k * n + i, x, part);
      const auto other = [](auto is_top, auto rest, auto x) { return is_top != 0 ? rest : C(1) - x; };
      store(q + k * n + i, map(other, load(q + k * n + i, part), rest, x), part);
    }
  });
}

}  // namespace LK_ISA
}  // namespace lk
