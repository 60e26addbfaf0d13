// Log-densities summed over columns, forward and backward: the diagonal Gaussian, and Bernoulli variables by their
// logits. An input is one for each row of each sample, is shared by the samples, or is a single row for all of them.
#pragma once

#include "densities/problem.hpp"
#include "simd/math.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

// Registers that elementary functions work on in step.
constexpr int kAtOnce = W == 16 ? 3 : 2;

// What becomes of the gradient of an input: it is not wanted, it is written, or it joins a sum.
enum Fate : int { kUnwanted, kWritten, kAdded };
template <int... fates>
struct Fates {
  static constexpr int at[] = {fates...};
};

// f(Fates<...>{}) for the fates of `count` inputs: a loop of its own for each combination, without branches.
template <int count, int... known, class Body>
LK_INLINE void with_fates(const int* fates, Body f) {
  if constexpr (sizeof...(known) == count) {
    f(Fates<known...>{});
  } else {
    const int next = fates[sizeof...(known)];
    if (next == kUnwanted) with_fates<count, known..., kUnwanted>(fates, f);
    if (next == kWritten) with_fates<count, known..., kWritten>(fates, f);
    if (next == kAdded) with_fates<count, known..., kAdded>(fates, f);
  }
}

// Where the operands of a tile begin. By value: what a kernel stores might otherwise change it, for all the compiler
// knows.
template <class C>
struct Places {
  const C* at[kMostOperands];
  LK_INLINE const C* operator[](int j) const { return at[j]; }
};

// A formula says what its last input gives (`prepare`, which may work in place), the term of an element, which `factor`
// multiplies in the sum, and the gradients: give(j, a, b), their product, for each input j whose fate is not kUnwanted.
// Operands as in DensityProblem.

// -1/2 (t^2 + logvar + ln 2 pi), t = (z - mean) / sigma. dz = -g t / sigma, dmean = g t / sigma, dlogvar = g (t^2 - 1)
// / 2.
struct GaussianFormula {
  static constexpr int inputs = 3;
  static constexpr double factor = -0.5;

  template <class C>
  static void prepare(const C* logvar, int64_t n, bool backward, C* inverse, C* shifted) {
    const auto inverse_scale = [](auto l) LK_INLINE_LAMBDA { return exp(l * C(-0.5)); };
    if (backward) {
      each<C, kAtOnce>(
          n, [=](int64_t i, auto k) LK_INLINE_LAMBDA { store(inverse + i, inverse_scale(load(logvar + i, k)), k); });
      return;
    }
    each<C, kAtOnce>(n, [=](int64_t i, auto k) LK_INLINE_LAMBDA {
      const auto l = load(logvar + i, k);
      store(shifted + i, l + C(kLogTwoPi), k);
      store(inverse + i, inverse_scale(l), k);
    });
  }

  template <class C, class Place>
  static LK_INLINE auto term(Places<C> at, int64_t i, Place k) {
    const auto t = (load(at[0] + i, k) - load(at[1] + i, k)) * load(at[2] + i, k);
    return fma(t, t, load(at[3] + i, k));
  }

  template <class Wanted, class C, class Place, class V, class Give>
  static LK_INLINE void gradients(Places<C> at, int64_t i, Place k, V g, Give give) {
    const auto inverse = load(at[2] + i, k), t = (load(at[0] + i, k) - load(at[1] + i, k)) * inverse;
    const auto slope = t * inverse;
    if constexpr (Wanted::at[0] != kUnwanted) give(0, -g, slope);
    if constexpr (Wanted::at[1] != kUnwanted) give(1, g, slope);
    if constexpr (Wanted::at[2] != kUnwanted) give(2, g * C(0.5), fma(t, t, C(-1)));
  }
};

// x l - ln(1 + e^l) = -(w |l| + ln(1 + e^-|l|)), w = 1 - x where l > 0, else x: two terms of one sign where x is in [0,
// 1]. dx = g l; dlogits = g (x - sigmoid(l)) = +-g (w - tail), tail = sigmoid(-|l|), minus where l > 0.
struct BernoulliFormula {
  static constexpr int inputs = 2;
  static constexpr double factor = -1;

  template <class C>
  static void prepare(const C* logits, int64_t n, bool backward, C* tail, C*) {
    const auto small = [](auto l) LK_INLINE_LAMBDA { return exp(map([](auto x) { return -absolute(x); }, l)); };
    if (backward) {
      each<C, kAtOnce>(n, [=](int64_t i, auto k) LK_INLINE_LAMBDA {
        const auto e = small(load(logits + i, k));
        store(tail + i, e / (e + C(1)), k);
      });
      return;
    }
    each<C, kAtOnce>(
        n, [=](int64_t i, auto k) LK_INLINE_LAMBDA { store(tail + i, log1p(small(load(logits + i, k))), k); });
  }

  template <class C, class Place>
  static LK_INLINE auto term(Places<C> at, int64_t i, Place k) {
    // A weight of 0 is the end of it, were the logit infinite.
    const auto term = [](auto x, auto l, auto rest) {
      const auto w = l > C(0) ? C(1) - x : x;
      return w == C(0) ? rest : fma(w, absolute(l), rest);
    };
    return map(term, load(at[0] + i, k), load(at[1] + i, k), load(at[2] + i, k));
  }

  template <class Wanted, class C, class Place, class V, class Give>
  static LK_INLINE void gradients(Places<C> at, int64_t i, Place k, V g, Give give) {
    const auto logit = load(at[1] + i, k);
    const auto slope = [](auto x, auto l, auto tail) { return l > C(0) ? tail - (C(1) - x) : x - tail; };
    if constexpr (Wanted::at[0] != kUnwanted) give(0, g, logit);
    if constexpr (Wanted::at[1] != kUnwanted) give(1, g, map(slope, load(at[0] + i, k), logit, load(at[2] + i, k)));
  }
};

// The operands of a tile, kept from sample to sample where they do not change.
template <class T, class Formula>
struct Operands {
  using C = Compute<T>;
  static constexpr int last = Formula::inputs - 1;
  Scratch<C> buffers[kMostOperands], raw;
  Places<C> places = {};

  void load(const DensityProblem& p, int64_t group, int64_t sample, const Tile& tile, bool new_tile, bool backward) {
    for (int j = 0; j <= last; ++j) {
      if (!new_tile && p.inputs[j].sample == 0) continue;
      if (one_row(p, j)) {
        for (int k = j; k < (j < last ? j + 1 : kMostOperands); ++k)
          places.at[k] = p.precomputed[k]
                             ? static_cast<const C*>(p.precomputed[k]) + group * width_of_precomputed(p) + tile.col0
                             : nullptr;
        continue;
      }
      const C* x = load_tile<T>(p.inputs[j], group, sample, tile, j < last ? buffers[j].at : raw.at);
      if (j < 2) places.at[j] = x;
      if (j < last) continue;
      Formula::prepare(x, tile.size(), backward, buffers[2].at, buffers[3].at);
      places.at[2] = buffers[2], places.at[3] = buffers[3];
    }
  }
};

template <class Formula, class T>
void density_precompute_of(const DensityProblem& p, int j, int64_t group, bool backward, void* const* operands) {
  using C = Compute<T>;
  const int last = Formula::inputs - 1;
  const Tile row{0, 0, 1, static_cast<int>(p.cols), true, true};
  const int64_t begin = group * width_of_precomputed(p);
  C* to[kMostOperands];
  for (int k = 0; k < kMostOperands; ++k) to[k] = operands[k] ? static_cast<C*>(operands[k]) + begin : nullptr;
  C* buffer = to[j];
  const C* x = load_tile<T>(p.inputs[j], group, 0, row, buffer);
  if (x != buffer) std::memcpy(buffer, x, sizeof(C) * static_cast<size_t>(p.cols));
  if (j == last) Formula::prepare(buffer, p.cols, backward, to[2], to[3]);
  for (int k = j; k < (j < last ? j + 1 : kMostOperands); ++k)
    for (int64_t end = p.cols; to[k] != nullptr && end < width_of_precomputed(p); end += p.cols)
      std::memcpy(to[k] + end, to[k], sizeof(C) * static_cast<size_t>(p.cols));
}

template <class Formula, class T>
void density_forward_of(const DensityProblem& p, const RowSums& out, const Part& part) {
  using C = Compute<T>;
  Operands<T, Formula> operands;
  Scratch<C> work;
  RowSumWriter<C> sums{out};
  double begun[kLongRowSamples] = {};  // the sums of long rows, sample by sample
  const int64_t step = p.tile_by_tile ? part.sample1 - part.sample0 : 1;
  for (int64_t s0 = part.sample0; s0 < part.sample1; s0 += step) {
    each_tile(part, [&](const Tile& tile) {
      const bool whole = tile.first && tile.last;
      for (int64_t s = s0; s < s0 + step; ++s) {
        operands.load(p, part.group, s, tile, s == s0, false);
        const Places<C> at = operands.places;
        each<C>(tile.size(),
                [=, &work](int64_t i, auto k) LK_INLINE_LAMBDA { store(work + i, Formula::term(at, i, k), k); });
        if (!whole) sums.row = begun[s - s0];
        sums.add(work, tile, (part.group * p.samples + s) * p.rows + tile.row0, C(Formula::factor));
        if (!whole) begun[s - s0] = sums.row;
      }
    });
  }
}

// Sums over rows and samples of a single row's gradients: in the compute type over so many tiles, then in float64.
constexpr int kTilesOfSum = 64;

template <class C>
inline void flush_rows(C* sums, int rows, int cols, double* to) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) to[c] += static_cast<double>(sums[r * cols + c]);
  std::memset(sums, 0, sizeof(C) * static_cast<size_t>(rows * cols));
}

template <class C>
struct Targets {
  C* at[3];
};

// The gradients of one tile, over `upstream` [n], or over its first registers where all rows have the same.
template <class Formula, class Known, class C>
inline void tile_gradients(Places<C> from, Targets<C> into, int n, const C* upstream, bool many_rows) {
  const int64_t step = many_rows ? -1 : 0;
  each<C>(n, [=](int64_t i, auto k) LK_INLINE_LAMBDA {
    const auto give = [=](int j, auto a, auto b) LK_INLINE_LAMBDA {
      store(into.at[j] + i, Known::at[j] == kAdded ? fma(a, b, load(into.at[j] + i, k)) : a * b, k);
    };
    Formula::template gradients<Known>(from, i, k, load(upstream + (i & step), k), give);
  });
}

// The backward pass of a part.
template <class Formula, class T>
struct DensityBackward {
  using C = Compute<T>;
  static constexpr int inputs = Formula::inputs;
  const DensityProblem& p;
  const DensityGradients& g;
  const Part& part;
  bool wanted[inputs];
  bool to_rows[inputs];  // an input that is one row for all: its gradients join g.row_sums
  bool summed[inputs];   // an input that samples share: its gradient is a sum over them
  int added_tiles = 0;   // since row sums went to float64
  Operands<T, Formula> operands;
  Scratch<C> row_gradient, outputs[inputs];

  DensityBackward(const DensityProblem& p, const DensityGradients& g, const Part& part) : p(p), g(g), part(part) {
    for (int j = 0; j < inputs; ++j) {
      to_rows[j] = g.row_sums[j] != nullptr;
      wanted[j] = g.inputs[j] != nullptr || to_rows[j];
      summed[j] = !to_rows[j] && p.inputs[j].sample == 0 && p.samples != 1;
    }
  }

  void run() {
    const int64_t step = p.tile_by_tile ? part.sample1 - part.sample0 : 1;
    for (int64_t col = part.col0; col < part.col1; col += kTile) {
      const int cols = static_cast<int>(smaller(kTile, part.col1 - col));
      const int rows = static_cast<int>(p.cols > kTile ? 1 : smaller(rows_of_tile(cols), part.row1 - part.row0));
      for (int j = 0; j < inputs; ++j)
        if (to_rows[j]) std::memset(outputs[j].at, 0, sizeof(C) * static_cast<size_t>(rows * cols));
      for (int64_t s0 = part.sample0; s0 == part.sample0 || s0 < part.sample1; s0 += larger(step, 1)) {
        for (int64_t row = part.row0; row < part.row1; row += rows) {
          const Tile tile{row, col, static_cast<int>(smaller(rows, part.row1 - row)), cols, true, true};
          if (p.samples == 0) write_zeros(tile);
          for (int64_t s = s0; s < smaller(s0 + step, part.sample1); ++s) {
            add_sample(tile, s, s == s0);
            if (++added_tiles == kTilesOfSum) flush(rows, col, cols);
          }
        }
      }
      flush(rows, col, cols);
    }
  }

 private:
  void flush(int rows, int64_t col, int cols) {
    for (int j = 0; j < inputs; ++j)
      if (to_rows[j]) flush_rows(outputs[j].at, rows, cols, g.row_sums[j] + (col - part.col0));
    added_tiles = 0;
  }

  // Where the gradient of input j at a tile goes: `index` counts planes.
  T* place(int j, int64_t index, const Tile& tile) const {
    if (g.inputs[j] == nullptr) return nullptr;
    return static_cast<T*>(g.inputs[j]) + index * p.rows * p.cols + tile.row0 * p.cols + tile.col0;
  }

  // Sums over no samples.
  void write_zeros(const Tile& tile) const {
    for (int j = 0; j < inputs; ++j)
      if (summed[j] && wanted[j]) std::memset(place(j, part.group, tile), 0, sizeof(T) * tile.size());
  }

  void add_sample(const Tile& tile, int64_t s, bool new_tile) {
    const bool many_rows = tile.rows > 1;
    operands.load(p, part.group, s, tile, new_tile, true);
    // Of a single row the first registers are enough, for all of it.
    const int cols = many_rows ? tile.cols : static_cast<int>(smaller(tile.cols, 4 * lanes<C>));
    const C* upstream = static_cast<const C*>(g.log_density) + (part.group * p.samples + s) * p.rows + tile.row0;
    repeat_rows(upstream, Tile{tile.row0, tile.col0, tile.rows, cols, true, true}, row_gradient.at);
    T* to[inputs];
    Targets<C> into;
    int fates[inputs];
    for (int j = 0; j < inputs; ++j) {
      to[j] = place(j, summed[j] ? part.group : part.group * p.samples + s, tile);
      into.at[j] = to[j] != nullptr ? output_tile(to[j], outputs[j].at) : outputs[j].at;
      fates[j] = !wanted[j] ? kUnwanted : to_rows[j] || (summed[j] && s > 0) ? kAdded : kWritten;
    }
    with_fates<inputs>(fates, [&](auto known) {
      tile_gradients<Formula, decltype(known)>(operands.places, into, tile.size(), row_gradient.at, many_rows);
    });
    for (int j = 0; j < inputs; ++j)
      if (to[j] != nullptr && (!summed[j] || s + 1 == p.samples)) finish_tile(outputs[j].at, tile.size(), to[j]);
  }
};

template <class T>
void density_total(const double* sums, int64_t blocks, int64_t stride, int64_t n, void* out) {
  using C = Compute<T>;
  Scratch<C> buffer;
  double total[kTile];
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int count = static_cast<int>(smaller(kTile, n - begin));
    std::memset(total, 0, sizeof(total));
    for (int64_t b = 0; b < blocks; ++b)
      for (int i = 0; i < count; ++i) total[i] += sums[b * stride + begin + i];
    T* to = static_cast<T*>(out) + begin;
    C* at = output_tile(to, buffer.at);
    for (int i = 0; i < count; ++i) at[i] = static_cast<C>(total[i]);
    finish_tile(buffer.at, count, to);
  }
}

// --- for the table of kernels ---------------------------------------------------------------------------------

template <class T>
void density_precompute(const DensityProblem& p, int j, int64_t group, bool backward, void* const* operands) {
  const auto f = p.density == kGaussianDensity ? density_precompute_of<GaussianFormula, T>
                                               : density_precompute_of<BernoulliFormula, T>;
  f(p, j, group, backward, operands);
}

template <class T>
void density_forward(const DensityProblem& p, const RowSums& out, const Part& part) {
  const auto f =
      p.density == kGaussianDensity ? density_forward_of<GaussianFormula, T> : density_forward_of<BernoulliFormula, T>;
  f(p, out, part);
}

template <class T>
void density_backward(const DensityProblem& p, const DensityGradients& g, const Part& part) {
  if (p.density == kGaussianDensity)
    DensityBackward<GaussianFormula, T>(p, g, part).run();
  else
    DensityBackward<BernoulliFormula, T>(p, g, part).run();
}

}  // namespace LK_ISA
}  // namespace lk
