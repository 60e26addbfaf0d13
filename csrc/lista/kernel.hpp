// Unrolled soft-thresholding, a tile of rows at a time: formulas in kernels/lista/README.md. Between layers codes are
// lists of non-zeros; a layer gathers the rows of its matrix for them.
#pragma once

#include "lista/kernel_sparse.hpp"
#include "lista/problem.hpp"

namespace lk {
namespace LK_ISA {

template <class T>
inline Nonzeros<T> nonzeros(const Codes& codes) {
  return {codes.start, codes.index, static_cast<const T*>(codes.value)};
}
template <class T>
inline const T* of_layer(const void* tensor, bool layered, int64_t layer, int64_t size) {
  return static_cast<const T*>(tensor) + (layered ? layer * size : 0);
}
template <class T>
inline T step_of(const Lista& p, int64_t layer) {
  return p.step != nullptr ? *of_layer<T>(p.step, p.layered_step, layer, 1) : T(1);
}
// Whether a layer adds the codes before it.
inline bool keeps_codes(const Lista& p) { return p.dictionary != nullptr || p.step != nullptr; }

// --- forward ------------------------------------------------------------------------------------------------------

template <class T>
void list_rows(Matrix<const T> x, int64_t columns, int64_t rows, Codes& codes) {
  int end = 0;
  codes.start[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    end = list_row(x.row(i), columns, end, codes.index, static_cast<T*>(codes.value));
    codes.start[i + 1] = end;
  }
}

template <class T>
Matrix<T> dense_codes(const Lista& p, const ListaTile& tile) {
  return {static_cast<T*>(tile.dense_codes), padded(p.components)};
}

// Codes as rows, too, where the next product is shorter with them.
template <class T>
void fill_dense_codes(const Lista& p, const ListaTile& tile) {
  to_dense(nonzeros<T>(tile.codes), tile.rows, p.components, dense_codes<T>(p, tile));
}

// out = from + factor codes matrix.
template <class T>
void codes_product(const Lista& p, const ListaTile& tile, T factor, Matrix<const T> matrix, int64_t columns,
                   Matrix<const T> from, Matrix<T> out, Panels& panels) {
  const int64_t n = p.components;
  T* const workspace = static_cast<T*>(tile.workspace);
  if (!tile.dense)
    return gather_product(nonzeros<T>(tile.codes), tile.rows, n, factor, matrix, columns, from, out, workspace);
  Matrix<T> left = dense_codes<T>(p, tile);
  if (factor != T(1)) {
    for (int64_t i = 0; i < tile.rows * left.stride; ++i) workspace[i] = factor * left.at[i];
    left.at = workspace;
  }
  dense_product(Left<T>{left.at, left.stride, 1}, tile.rows, n, matrix, columns, from, out, panels);
}

template <class T>
void lista_begin(const Lista& p, ListaTile& tile) {
  const int64_t m = p.features, n = p.components, stride = padded(n);
  const T* x = static_cast<const T*>(p.x) + tile.row0 * m;
  if (p.dictionary == nullptr) {
    T* zeros = static_cast<T*>(tile.line);
    if (p.bias == nullptr) zero(zeros, stride);
    const Matrix<const T> from{p.bias != nullptr ? static_cast<const T*>(p.bias) : zeros, 0};
    const Matrix<const T> weight{static_cast<const T*>(p.weight), n};
    const Matrix<T> base{static_cast<T*>(tile.base), stride};
    list_rows(Matrix<const T>{x, m}, m, tile.rows, tile.codes);
    const Nonzeros<T> lists = nonzeros<T>(tile.codes);
    if (is_dense(lists.count(tile.rows), tile.rows, m))
      dense_product(Left<T>{x, m, 1}, tile.rows, m, weight, n, from, base, tile.panels);
    else
      gather_product(lists, tile.rows, m, T(1), weight, n, from, base, static_cast<T*>(tile.workspace));
  }
  tile.coded = p.initial != nullptr;
  if (!tile.coded) return;
  list_rows(Matrix<const T>{static_cast<const T*>(p.initial) + tile.row0 * n, n}, n, tile.rows, tile.codes);
  tile.dense = is_dense(tile.codes.start[tile.rows], tile.rows, n);
  if (tile.dense) fill_dense_codes<T>(p, tile);
}

template <class T>
void lista_layer(const Lista& p, ListaTile& tile, int64_t layer) {
  const int64_t m = p.features, n = p.components, stride = padded(n);
  const Matrix<T> product_rows{static_cast<T*>(tile.product), stride};
  if (p.dictionary == nullptr) {
    tile.pre = tile.base;
    if (!tile.coded) return;
    const Matrix<const T> recurrent{of_layer<T>(p.recurrent, p.layered_recurrent, layer, n * n), n};
    codes_product(p, tile, T(1), recurrent, n, Matrix<const T>{static_cast<const T*>(tile.base), stride}, product_rows,
                  p.layered_recurrent ? tile.panels : tile.recurrent_panels);
    tile.pre = tile.product;
    return;
  }
  const Matrix<const T> x{static_cast<const T*>(p.x) + tile.row0 * m, m};
  Matrix<const T> residual = x;
  if (tile.coded) {
    const Matrix<T> to{static_cast<T*>(tile.residual), padded(m)};
    codes_product(p, tile, T(-1), Matrix<const T>{static_cast<const T*>(p.dictionary), m}, m, x, to, tile.panels);
    residual = Matrix<const T>{to.at, to.stride};
  }
  T* zeros = static_cast<T*>(tile.line);
  zero(zeros, stride);
  const Matrix<const T> weight{of_layer<T>(p.weight, p.layered_weight, layer, m * n), n};
  dense_product(Left<T>{residual.at, residual.stride, 1}, tile.rows, m, weight, n, Matrix<const T>{zeros, 0},
                product_rows, tile.panels);
  tile.pre = tile.product;
}

// Thresholds of a layer; to the end of the last register.
template <class T>
inline void fill_thresholds(const Lista& p, int64_t layer, T* to) {
  const int64_t n = p.components;
  const T* from = of_layer<T>(p.threshold, p.layered_threshold, layer, p.wide_threshold ? n : 1);
  for (int64_t j = 0; j < n; ++j) to[j] = from[p.wide_threshold ? j : 0];
  for (int64_t j = n; j < padded(n); ++j) to[j] = T(0);
}

template <class T>
struct Shrinker {
  const T* theta;
  T step;
  Bits<T> sign;  // the bits that abs() clears: none where codes are positive

  LK_INLINE Vec<T> moved(const T* pre, const T* z) const { return fma(splat(step), load(pre), load(z)); }
  LK_INLINE Vec<T> size(Vec<T> u) const { return (Vec<T>)((Bits<T>)u & ~sign); }

  // Codes of n entries: 0, or beyond their thresholds; those of size `bound` or more as they are. With `listed` the
  // non-zeros are appended to lists at `end`, with `dense` all are written to `row`, which may be z. Returns `end` and
  // the number of non-zeros.
  template <bool listed, bool dense>
  LK_INLINE int row(const T* pre, const T* z, int64_t n, T bound, int end, const Codes& to, T* row) const {
    T* const value = static_cast<T*>(to.value);
    T* const drive = static_cast<T*>(to.drive);
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const Vec<T> u = moved(pre + j, z + j), at = size(u), limit = load(theta + j);
      const Bits<T> beyond = ~(at <= limit);  // NaN is one of them
      uint32_t set = lanes_set(beyond);
      const bool whole = n - j >= lanes<T>;
      if (!whole) set &= (1u << (n - j)) - 1;
      if (!dense && set == 0) continue;
      const Vec<T> signed_limit = (Vec<T>)((Bits<T>)limit | ((Bits<T>)u & sign));
      const Vec<T> code = at >= bound ? u : u - signed_limit;
      if constexpr (listed) {
        compress(value + end, set, code);
        compress_indices(to.index + end, set, static_cast<int32_t>(j));
        if (drive != nullptr) compress(drive + end, set, load(pre + j));
        if (to.passed != nullptr) {
          const uint32_t passed = lanes_set(at >= bound);
          int place = end;
          for (uint32_t rest = set; rest != 0; rest &= rest - 1)
            to.passed[place++] = passed >> __builtin_ctz(rest) & 1u;
        }
      }
      if constexpr (dense) {
        const Vec<T> kept = (Vec<T>)((Bits<T>)code & beyond);
        if (whole)
          store(row + j, kept);
        else
          store(row + j, kept, First{static_cast<int>(n - j)});
      }
      end += __builtin_popcount(set);
    }
    return end;
  }

  // The size of the `select`-th largest of n entries; NaN counts as infinite.
  T selection_bound(const T* pre, const T* z, int64_t n, int64_t select, T* workspace) const {
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const Vec<T> at = size(moved(pre + j, z + j));
      store(workspace + j, at == at ? at : splat(static_cast<T>(__builtin_inf())));
    }
    return kth_largest(workspace, n, smaller(select, n));
  }
};

template <class T>
void lista_shrink(const Lista& p, ListaTile& tile, int64_t layer, int64_t select) {
  const int64_t n = p.components, stride = padded(n);
  T* const theta = static_cast<T*>(tile.line);
  T* const z = theta + stride;
  T* const workspace = z + stride;
  fill_thresholds(p, layer, theta);
  zero(z, stride);
  const bool keeps = tile.coded && keeps_codes(p), keeps_lists = keeps && !tile.dense;
  const Bits<T> sign = (Bits<T>)splat(p.positive ? T(0) : T(-0.0));
  const Shrinker<T> shrinker{theta, step_of<T>(p, layer), sign};
  const Nonzeros<T> old = nonzeros<T>(tile.codes);
  // Whether the codes will be dense is known only afterwards: it is guessed from the layer before, in the first layer
  // from the tile before, and lists and rows are made of each other where the guess was wrong.
  const bool last = layer + 1 == p.layers;
  Matrix<T> to = dense_codes<T>(p, tile);
  if (last)
    to = {tile.out != nullptr ? static_cast<T*>(tile.out) + tile.row0 * n : nullptr, n};
  else if (!(tile.coded ? tile.dense : tile.dense_first))
    to.at = nullptr;
  const bool listed = tile.keep_lists || to.at == nullptr;
  int end = 0;
  tile.next.start[0] = 0;
  const auto each_row = [&](auto lists, auto dense) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      const T* pre = static_cast<const T*>(tile.pre) + i * stride;
      if (keeps_lists)
        for (int c = old.start[i]; c < old.start[i + 1]; ++c) z[old.index[c]] = old.value[c];
      const T* before = keeps && tile.dense ? dense_codes<T>(p, tile).row(i) : z;
      // Without selection an infinite bound: an infinite entry less its threshold is the entry.
      T bound = static_cast<T>(__builtin_inf());
      if (select > 0 && n > 0) bound = shrinker.selection_bound(pre, before, n, select, workspace);
      end = shrinker.template row<decltype(lists)::value, decltype(dense)::value>(pre, before, n, bound, end, tile.next,
                                                                                  to.row(i));
      tile.next.start[i + 1] = end;
      if (keeps_lists)
        for (int c = old.start[i]; c < old.start[i + 1]; ++c) z[old.index[c]] = T(0);
    }
  };
  if (to.at == nullptr)
    each_row(std::true_type{}, std::false_type{});
  else if (listed)
    each_row(std::true_type{}, std::true_type{});
  else
    each_row(std::false_type{}, std::true_type{});
  const Codes former = tile.codes;
  tile.codes = tile.next;
  tile.next = former;
  if (last) return;
  tile.dense = is_dense(end, tile.rows, n);
  if (!tile.coded) tile.dense_first = tile.dense;
  tile.coded = true;
  if (tile.dense && to.at == nullptr) fill_dense_codes<T>(p, tile);
  if (!tile.dense && !listed) list_rows(Matrix<const T>{to.at, to.stride}, n, tile.rows, tile.codes);
}

template <class T>
double lista_least(int64_t n, const void* values) {
  constexpr int kChains = 4;
  const T* x = static_cast<const T*>(values);
  T low = static_cast<T>(__builtin_inf()), spoiled = 0;  // spoiled: 0, or NaN
  Vec<T> lows[kChains], spoils[kChains] = {};
  for (int j = 0; j < kChains; ++j) lows[j] = splat(low);
  int64_t i = 0;
  for (; i + kChains * lanes<T> <= n; i += kChains * lanes<T>) {
    for (int j = 0; j < kChains; ++j) {
      const Vec<T> v = load(x + i + j * lanes<T>);
      lows[j] = v < lows[j] ? v : lows[j];
      spoils[j] = spoils[j] + (v - v);
    }
  }
  for (; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    spoiled += x[i] - x[i];
  }
  for (int j = 0; j < kChains; ++j) {
    for (int lane = 0; lane < lanes<T>; ++lane) {
      low = lows[j][lane] < low ? lows[j][lane] : low;
      spoiled += spoils[j][lane];
    }
  }
  return spoiled == 0 ? static_cast<double>(low) : __builtin_nan("");
}

}  // namespace LK_ISA
}  // namespace lk
