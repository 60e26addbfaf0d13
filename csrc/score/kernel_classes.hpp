// The categorical family's score-function gradients: sums over the samples of each class, and what follows from them.
//
// Where probabilities are needed, a tile's arrays lie class by class, [K, n]: a register holds one class of several
// elements, so that sums, maxima and softmax run over registers in order of k, with no sum across lanes.
#pragma once

#include <algorithm>

#include "score/kernel_sums.hpp"

namespace lk {
namespace LK_ISA {

// --- sums over samples ----------------------------------------------------------------------------------------

// How many sums `sum` has in a tile.
inline int64_t sums_in_tile(const ScoreProblem& p, const Tile& tile, int sum) {
  if (p.family == kCategorical && weights_cancel(p) && sum == kOut) return tile.rows;
  return tile.size() * larger(p.classes, 1);
}

// Adds f, f^2 or 1 to the sum of each element's class: [n, K] where they lie `by_element`, else [K, n].
template <int sum, bool by_element, class C>
inline void add_to_classes(const int64_t* z, const Tile& tile, int64_t classes, const C* weights, bool by_row,
                           C* cells) {
  const int64_t n = tile.size();
  const auto add = [=](int64_t i, C f) LK_INLINE_LAMBDA {
    C& cell = by_element ? cells[i * classes + z[i]] : cells[z[i] * n + i];
    cell += sum == kCountIn ? C(1) : sum == kSquareIn ? f * f : f;
  };
  for (int64_t begin = 0, r = 0; begin < n; begin += tile.cols, ++r) {
    const C of_row = weights[r];
    if (by_row)
      for (int64_t i = begin; i < begin + tile.cols; ++i) add(i, of_row);
    else
      for (int64_t i = begin; i < begin + tile.cols; ++i) add(i, weights[i]);
  }
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

// The classes of sample s at a tile, where they lie or in `buffer`; nullptr where some are outside the support.
// `ahead`: the distance in z to what is read next.
template <class T>
inline const int64_t* classes_of_sample(const ScoreProblem& p, const Part& part, const Tile& tile, int64_t s,
                                        int64_t ahead, const uint64_t* table, int64_t* buffer) {
  const int n = tile.size();
  const int64_t plane = p.rows * p.cols, e = s * plane + tile.row0 * p.cols + tile.col0, K = p.classes;
  if (p.z == nullptr) {
    alignas(64) float noise[noise_length(kTile)];
    const float* words = noise_tile<kWords>(seed_of(p.seed, part.group), p.offset + static_cast<uint64_t>(e), n, noise);
    for (int i = 0; i < n; ++i) buffer[i] = categorical_draw(table + i * K, K, bit_cast<uint32_t>(words[i]));
    return buffer;
  }
  const int64_t* z = static_cast<const int64_t*>(p.z) + part.group * p.samples * plane + e;
  for (int i = 0; i < n; i += 8) __builtin_prefetch(z + ahead + i);
  int64_t outside = 0;
  for (int i = 0; i < n; ++i) outside |= static_cast<uint64_t>(z[i]) >= static_cast<uint64_t>(K) ? 1 : 0;
  return outside != 0 ? nullptr : z;
}

// The sums of a tile over the part's samples: sum j of fold f at sums[(f * kMostSums + j) * stride].
template <class T>
inline void class_sums(const ScoreProblem& p, const Part& part, const Tile& tile, Compute<T>* sums, int64_t stride,
                       uint64_t* table, bool& outside) {
  using C = Compute<T>;
  const int n = tile.size();
  const int64_t K = p.classes, plane = p.rows * p.cols, place = tile.row0 * p.cols + tile.col0;
  Weights<C> weights(p, part.group, tile, 1);
  Scratch<C> buffer;
  int64_t drawn[kTile];
  if (p.z == nullptr)
    cumulative_table(static_cast<const T*>(p.parameters[0]) + (part.group * plane + place) * K, n, K, table);
  for (int64_t fold = 0; fold < p.folds; ++fold) {
    C* const to = sums + fold * kMostSums * stride;
    for (int j = 0; j < kDiscreteSums; ++j)
      if (keeps(p, j)) std::memset(to + j * stride, 0, sizeof(C) * static_cast<size_t>(sums_in_tile(p, tile, j)));
    const int64_t end = smaller(part.sample1, (fold + 1) * p.samples / p.folds);
    for (int64_t s = larger(part.sample0, fold * p.samples / p.folds); s < end; ++s) {
      // The same place of the next sample, or the next tile of the first.
      const int64_t ahead = s + 1 < part.sample1 ? plane : (part.sample0 - s) * plane + n;
      const int64_t* z = classes_of_sample<T>(p, part, tile, s, ahead, table, drawn);
      outside |= z == nullptr;
      if (z == nullptr) continue;
      const C* w = weights.at(s, n, buffer);
      const bool by_row = weights.by_row();
      if (weights_cancel(p))
        for (int r = 0; r < tile.rows; ++r) to[kOut * stride + r] += w[by_row ? r : r * tile.cols];
      if (sums_by_element(p)) {
        add_to_classes<kIn, true>(z, tile, K, w, by_row, to + kIn * stride);
        continue;
      }
      add_to_classes<kIn, false>(z, tile, K, w, by_row, to + kIn * stride);
      if (keeps(p, kSquareIn)) add_to_classes<kSquareIn, false>(z, tile, K, w, by_row, to + kSquareIn * stride);
      if (keeps(p, kCountIn)) add_to_classes<kCountIn, false>(z, tile, K, w, by_row, to + kCountIn * stride);
    }
    for (int j = weights_cancel(p) ? kSquareIn : kIn; j < kDiscreteSums; j += 2)
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
    const auto larger_of = [](auto x, auto y) { return x > y ? x : y; };
    auto most = at(0);
    for (int64_t k = 1; k < classes; ++k) most = map(LargerOrNan(), at(k), most);
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
