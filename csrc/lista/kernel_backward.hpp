// The backward pass of unrolled soft-thresholding, a tile of rows at a time, and the gradients of matrices.
#pragma once

#include "lista/kernel.hpp"

namespace lk {
namespace LK_ISA {

// sum_q (factor g_q) line[index_q], in order: an element of the product with the transposed matrix, and the same bits.
template <class T>
LK_INLINE T gathered_dot(const T* g, const int32_t* index, int count, T factor, const T* line) {
  T sum = 0;
  for (int q = 0; q < count; ++q) sum = fma(factor * g[q], line[index[q]], sum);
  return sum;
}

// Products of pairs of non-zeros, where lists are short; with `all`, every element.
template <class T>
inline void pair_products(const Nonzeros<T>& g, int64_t i, T factor, Matrix<const T> matrix, const Nonzeros<T>* wanted,
                          int64_t all, T* out) {
  const int begin = g.start[i], count = g.start[i + 1] - begin;
  if (wanted == nullptr) {
    for (int64_t j = 0; j < all; ++j)
      out[j] = gathered_dot(g.value + begin, g.index + begin, count, factor, matrix.row(j));
    return;
  }
  for (int c = wanted->start[i]; c < wanted->start[i + 1]; ++c) {
    const int32_t j = wanted->index[c];
    out[j] = gathered_dot(g.value + begin, g.index + begin, count, factor, matrix.row(j));
  }
}

// Whether the pairs of non-zeros of a tile's rows cost more than products with the transposed matrix.
template <class T>
inline bool pairs_cost_more(const Nonzeros<T>& g, const Nonzeros<T>& wanted, int64_t rows, int64_t columns) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < rows; ++i)
    pairs += static_cast<int64_t>(g.start[i + 1] - g.start[i]) * (wanted.start[i + 1] - wanted.start[i]);
  return pairs > g.count(rows) * (columns / lanes<T>);
}

// Gradients of the codes before a layer, at their places: back[c] = kept g + factor product.
template <class T>
inline void give_back(const Nonzeros<T>& g, const Nonzeros<T>& before, int64_t i, bool keeps, T factor,
                      const T* product, T* line, T* back) {
  if (keeps)
    for (int q = g.start[i]; q < g.start[i + 1]; ++q) line[g.index[q]] = g.value[q];
  for (int c = before.start[i]; c < before.start[i + 1]; ++c) {
    const int32_t j = before.index[c];
    back[c] = keeps ? fma(factor, product[j], line[j]) : factor * product[j];
  }
  if (keeps)
    for (int q = g.start[i]; q < g.start[i + 1]; ++q) line[g.index[q]] = T(0);
}

// The same for z_0, whose gradient is dense.
template <class T>
inline void give_back_all(const Nonzeros<T>& g, int64_t i, bool keeps, T factor, const T* product, int64_t n, T* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = factor * product[j];
  if (keeps)
    for (int q = g.start[i]; q < g.start[i + 1]; ++q) out[g.index[q]] = fma(factor, product[g.index[q]], g.value[q]);
}

template <class T>
struct BackwardTile {
  const Lista& p;
  const ListaBackward& b;
  int64_t m, n, stride, wide;
  T *workspace, *product_rows, *line;

  BackwardTile(const Lista& p, const ListaBackward& b)
      : p(p), b(b), m(p.features), n(p.components), stride(padded(n)), wide(larger(padded(m), stride)) {
    workspace = static_cast<T*>(b.workspace);
    product_rows = workspace + workspace_rows(b.rows) * wide;
    line = product_rows + b.rows * wide;
    zero(line, stride + wide);
  }
  const T* zeros() const { return line + stride; }

  Nonzeros<T> gradient(int64_t layer) const {
    return {b.codes[layer].start, b.codes[layer].index, static_cast<const T*>(b.gradient[layer])};
  }

  void give(int64_t layer, const Nonzeros<T>& g, T factor, const T* products, int64_t products_stride,
            int64_t i) const {
    const T* from = products + i * products_stride;
    if (layer == 0 && b.initial_gradient != nullptr)
      return give_back_all(g, i, keeps_codes(p), factor, from, n, static_cast<T*>(b.initial_gradient) + i * n);
    give_back(g, nonzeros<T>(b.codes[layer]), i, keeps_codes(p), factor, from, line,
              static_cast<T*>(b.gradient[layer]));
  }

  void recurrent_layer(int64_t layer) const {
    const Nonzeros<T> g = gradient(layer + 1);
    const T step = step_of<T>(p, layer);
    T* drive = static_cast<T*>(b.drive_gradient);
    for (int64_t i = 0; i < b.rows; ++i)
      for (int q = g.start[i]; q < g.start[i + 1]; ++q) {
        T& sum = drive[i * stride + g.index[q]];
        sum = fma(step, g.value[q], sum);
      }
    const Codes& before = b.codes[layer];
    if (before.start == nullptr) return;
    const bool all = layer == 0 && b.initial_gradient != nullptr;
    if (layer == 0 && !all) return;
    const Nonzeros<T> wanted = nonzeros<T>(before);
    const Matrix<T> products{product_rows, stride};
    if (b.recurrent_columns != nullptr && (all || pairs_cost_more(g, wanted, b.rows, n))) {
      const T* columns = of_layer<T>(b.recurrent_columns, p.layered_recurrent, layer, n * stride);
      product(g, b.rows, n, T(1), Matrix<const T>{columns, stride}, n, Matrix<const T>{zeros(), 0}, products, workspace,
              p.layered_recurrent ? *b.panels : *b.recurrent_panels);
    } else {
      const Matrix<const T> matrix{of_layer<T>(p.recurrent, p.layered_recurrent, layer, n * n), n};
      for (int64_t i = 0; i < b.rows; ++i)
        pair_products(g, i, T(1), matrix, all ? nullptr : &wanted, n, products.row(i));
    }
    for (int64_t i = 0; i < b.rows; ++i) give(layer, g, step, product_rows, stride, i);
  }

  // x - z D again, where the weights' gradient needs it.
  void keep_residual(int64_t layer) const {
    if (b.residual == nullptr) return;
    const Matrix<const T> x{static_cast<const T*>(p.x) + b.row0 * m, m};
    const Matrix<T> to{static_cast<T*>(b.residual) + layer * b.layer_stride, padded(m)};
    if (b.codes[layer].start == nullptr) {
      for (int64_t i = 0; i < b.rows; ++i) std::memcpy(to.row(i), x.row(i), sizeof(T) * static_cast<size_t>(m));
      return;
    }
    product(nonzeros<T>(b.codes[layer]), b.rows, n, T(-1), Matrix<const T>{static_cast<const T*>(p.dictionary), m}, m,
            x, to, workspace, *b.panels);
  }

  void residual_layer(int64_t layer) const {
    keep_residual(layer);
    const Nonzeros<T> g = gradient(layer + 1);
    const T step = step_of<T>(p, layer);
    const Codes& before = b.codes[layer];
    const bool all = layer == 0 && b.initial_gradient != nullptr;
    const bool back = layer > 0 || all;
    if (!back && b.residual_gradient == nullptr && b.x_gradient == nullptr) return;
    Matrix<T> dr{product_rows, padded(m)};
    if (b.residual_gradient != nullptr) dr.at = static_cast<T*>(b.residual_gradient) + layer * b.layer_stride;
    if (b.weight_columns != nullptr) {
      const T* columns = of_layer<T>(b.weight_columns, p.layered_weight, layer, n * padded(m));
      product(g, b.rows, n, step, Matrix<const T>{columns, padded(m)}, m, Matrix<const T>{zeros(), 0}, dr, workspace,
              *b.panels);
    } else {
      const Matrix<const T> weight{of_layer<T>(p.weight, p.layered_weight, layer, m * n), n};
      for (int64_t i = 0; i < b.rows; ++i)
        pair_products(g, i, step, weight, static_cast<const Nonzeros<T>*>(nullptr), m, dr.row(i));
    }
    if (b.x_gradient != nullptr)
      for (int64_t i = 0; i < b.rows; ++i) add_multiple(T(1), dr.row(i), m, static_cast<T*>(b.x_gradient) + i * m);
    if (!back) return;
    const T* dictionary = static_cast<const T*>(p.dictionary);
    for (int64_t i = 0; i < b.rows; ++i) {
      if (all) {
        for (int64_t j = 0; j < n; ++j) workspace[j] = dot(dictionary + j * m, dr.row(i), m);
      } else {
        for (int c = before.start[i]; c < before.start[i + 1]; ++c)
          workspace[before.index[c]] = dot(dictionary + before.index[c] * m, dr.row(i), m);
      }
      give(layer, g, T(-1), workspace, 0, i);
    }
  }

  // The same bits without W transposed, for a few rows.
  void through_weight_by_pairs() const {
    const Matrix<const T> weight{static_cast<const T*>(p.weight), n};
    int32_t* index = static_cast<int32_t*>(static_cast<void*>(product_rows));
    for (int64_t i = 0; i < b.rows; ++i) {
      const int count = list_row(static_cast<const T*>(b.drive_gradient) + i * stride, n, 0, index, workspace);
      for (int64_t f = 0; f < m; ++f)
        static_cast<T*>(b.x_gradient)[i * m + f] = gathered_dot(workspace, index, count, T(1), weight.row(f));
    }
  }

  // x's gradient from that of x W + b.
  void through_weight() const {
    if (b.x_gradient == nullptr) return;
    if (b.weight_columns == nullptr) return through_weight_by_pairs();
    const Matrix<const T> columns{static_cast<const T*>(b.weight_columns), padded(m)};
    dense_product(Left<T>{static_cast<const T*>(b.drive_gradient), stride, 1}, b.rows, n, columns, m,
                  Matrix<const T>{zeros(), 0}, Matrix<T>{static_cast<T*>(b.x_gradient), m}, *b.panels);
  }
};

template <class T>
void lista_backward(const Lista& p, const ListaBackward& b) {
  const BackwardTile<T> tile(p, b);
  if (p.dictionary != nullptr) {
    for (int64_t layer = p.layers - 1; layer >= 0; --layer) tile.residual_layer(layer);
    return;
  }
  for (int64_t layer = p.layers - 1; layer >= 0; --layer) tile.recurrent_layer(layer);
  tile.through_weight();
}

// --- gradients of matrices ----------------------------------------------------------------------------------------

inline int lower_bound(const int32_t* index, int begin, int end, int64_t at) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (index[middle] < at)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The rows of the left factor that stand in o's block, of row i.
struct Range {
  int begin, end;
};
inline Range left_range(const Outer& o, int64_t i) {
  const int begin = lower_bound(o.left_index, o.left_start[i], o.left_start[i + 1], o.first);
  return {begin, lower_bound(o.left_index, begin, o.left_start[i + 1], o.end)};
}

// Whether both factors are so dense, on average, that a product of dense tiles is shorter. Left and right are as wide.
template <class T>
inline bool outer_is_dense(const Outer& o) {
  if (o.right_index == nullptr) return false;
  const double columns = static_cast<double>(o.columns), line = columns / lanes<T>;
  const double left = o.left_start[o.rows] / columns, right = o.right_start[o.rows] / static_cast<double>(o.rows);
  return left * (right < line ? right : 1.5 * line) > 0.35 * static_cast<double>(o.rows) * line;
}

template <class T>
inline void dense_outer(const Outer& o) {
  const int64_t block = o.end - o.first, stride = padded(o.columns);
  T* const panel = static_cast<T*>(o.workspace) + stride;  // the first line stays zero
  T* const right = panel + kPanelColumns * o.rows;
  T* const left = right + o.rows * stride;
  zero(right, o.rows * (stride + block));
  const T* values = static_cast<const T*>(o.left_value);
  for (int64_t i = 0; i < o.rows; ++i) {
    const Range range = left_range(o, i);
    for (int c = range.begin; c < range.end; ++c)
      left[i * block + o.left_index[c] - o.first] = static_cast<T>(o.factor) * values[c];
    for (int q = o.right_start[i]; q < o.right_start[i + 1]; ++q)
      right[i * stride + o.right_index[q]] = static_cast<const T*>(o.right_value)[q];
  }
  T* const out = static_cast<T*>(o.out) + o.first * o.out_stride;
  Panels panels{panel, false, nullptr};
  dense_product(Left<T>{left, 1, block}, block, o.rows, Matrix<const T>{right, stride}, o.out_stride,
                Matrix<const T>{out, o.out_stride}, Matrix<T>{out, o.out_stride}, panels);
}

template <class T>
void lista_outer(const Outer& o) {
  if (outer_is_dense<T>(o)) return dense_outer<T>(o);
  const T* left = static_cast<const T*>(o.left_value);
  const T* right = static_cast<const T*>(o.right_value);
  const T factor = static_cast<T>(o.factor);
  T* const line = static_cast<T*>(o.workspace);
  T* const out = static_cast<T*>(o.out);
  for (int64_t i = 0; i < o.rows; ++i) {
    const Range range = left_range(o, i);
    if (range.begin == range.end) continue;
    const auto each_left = [&](auto add) {
      for (int c = range.begin; c < range.end; ++c) add(factor * left[c], out + o.left_index[c] * o.out_stride);
    };
    if (o.right_index == nullptr) {
      each_left([&](T v, T* to) { add_multiple(v, right + i * o.right_stride, o.columns, to); });
      continue;
    }
    const int first = o.right_start[i], last = o.right_start[i + 1];
    if ((last - first) * lanes<T> <= o.columns) {
      each_left([&](T v, T* to) {
        for (int q = first; q < last; ++q) to[o.right_index[q]] = fma(right[q], v, to[o.right_index[q]]);
      });
      continue;
    }
    for (int q = first; q < last; ++q) line[o.right_index[q]] = right[q];
    each_left([&](T v, T* to) { add_multiple(v, line, o.columns, to); });
    for (int q = first; q < last; ++q) line[o.right_index[q]] = T(0);
  }
}

template <class T>
void lista_dense_outer(const DenseOuter& o) {
  const int64_t stride = padded(o.columns);
  T* out = static_cast<T*>(o.out) + o.first * stride;
  Panels panels{o.panel, false, nullptr};
  dense_product(Left<T>{static_cast<const T*>(o.x) + o.first, 1, o.x_stride}, o.end - o.first, o.rows,
                Matrix<const T>{static_cast<const T*>(o.gradient), stride}, stride, Matrix<const T>{out, stride},
                Matrix<T>{out, stride}, panels);
}

}  // namespace LK_ISA
}  // namespace lk
