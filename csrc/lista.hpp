// Unrolled soft-thresholding, a tile of rows at a time: formulas in kernels/lista/README.md. Between layers codes are
// lists of non-zeros; a layer gathers the rows of its matrix for them.
#pragma once

#include "sparse.hpp"

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
void list_rows(const T* x, int64_t columns, int64_t rows, Codes& codes) {
  int end = 0;
  codes.start[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    end = list_row(x + i * columns, columns, end, codes.index, static_cast<T*>(codes.value));
    codes.start[i + 1] = end;
  }
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
    list_rows(x, m, tile.rows, tile.codes);
    const Nonzeros<T> lists = nonzeros<T>(tile.codes);
    if (is_dense(lists.count(tile.rows), tile.rows, m))
      dense_product(Left<T>{x, m, 1}, tile.rows, m, weight, n, from, base);
    else
      gather_product(lists, tile.rows, T(1), weight, n, from, base);
  }
  tile.coded = p.initial != nullptr;
  if (tile.coded) list_rows(static_cast<const T*>(p.initial) + tile.row0 * n, n, tile.rows, tile.codes);
}

template <class T>
void lista_layer(const Lista& p, ListaTile& tile, int64_t layer) {
  const int64_t m = p.features, n = p.components, stride = padded(n);
  const Matrix<T> product_rows{static_cast<T*>(tile.product), stride};
  const Nonzeros<T> codes = nonzeros<T>(tile.codes);
  if (p.dictionary == nullptr) {
    tile.pre = tile.base;
    if (!tile.coded) return;
    const Matrix<const T> recurrent{of_layer<T>(p.recurrent, p.layered_recurrent, layer, n * n), n};
    product(codes, tile.rows, n, T(1), recurrent, n, Matrix<const T>{static_cast<const T*>(tile.base), stride},
            product_rows, Matrix<T>{static_cast<T*>(tile.room), stride});
    tile.pre = tile.product;
    return;
  }
  const Matrix<const T> x{static_cast<const T*>(p.x) + tile.row0 * m, m};
  Matrix<const T> residual = x;
  if (tile.coded) {
    const Matrix<T> to{static_cast<T*>(tile.residual), padded(m)};
    product(codes, tile.rows, n, T(-1), Matrix<const T>{static_cast<const T*>(p.dictionary), m}, m, x, to,
            Matrix<T>{static_cast<T*>(tile.room), stride});
    residual = Matrix<const T>{to.at, to.stride};
  }
  T* zeros = static_cast<T*>(tile.line);
  zero(zeros, stride);
  const Matrix<const T> weight{of_layer<T>(p.weight, p.layered_weight, layer, m * n), n};
  dense_product(Left<T>{residual.at, residual.stride, 1}, tile.rows, m, weight, n, Matrix<const T>{zeros, 0},
                product_rows);
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

  LK_INLINE Vec<T> moved(const T* pre, const T* z) const { return splat(step) * load(pre) + load(z); }
  LK_INLINE Vec<T> size(Vec<T> u) const { return (Vec<T>)((Bits<T>)u & ~sign); }

  // Appends the entries of n beyond their thresholds at `end`; those of size `bound` or more as they are.
  LK_INLINE int row(const T* pre, const T* z, int64_t n, T bound, int end, const Codes& to) const {
    T* const value = static_cast<T*>(to.value);
    T* const drive = static_cast<T*>(to.drive);
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const Vec<T> u = moved(pre + j, z + j), at = size(u), limit = load(theta + j);
      uint32_t set = lanes_set(~(at <= limit));  // NaN is listed
      if (n - j < lanes<T>) set &= (1u << (n - j)) - 1;
      if (set == 0) continue;
      const Vec<T> signed_limit = (Vec<T>)((Bits<T>)limit | ((Bits<T>)u & sign));
      compress(value + end, set, at >= bound ? u : u - signed_limit);
      compress_indices(to.index + end, set, static_cast<int32_t>(j));
      if (drive != nullptr) compress(drive + end, set, load(pre + j));
      if (to.passed != nullptr) {
        const uint32_t passed = lanes_set(at >= bound);
        int place = end;
        for (uint32_t rest = set; rest != 0; rest &= rest - 1) to.passed[place++] = passed >> __builtin_ctz(rest) & 1u;
      }
      end += __builtin_popcount(set);
    }
    return end;
  }

  // The size of the `select`-th largest of n entries; NaN counts as infinite.
  T selection_bound(const T* pre, const T* z, int64_t n, int64_t select, T* room) const {
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const Vec<T> at = size(moved(pre + j, z + j));
      store(room + j, at == at ? at : splat(static_cast<T>(__builtin_inf())));
    }
    return kth_largest(room, n, smaller(select, n));
  }
};

template <class T>
void lista_shrink(const Lista& p, ListaTile& tile, int64_t layer, int64_t select) {
  const int64_t n = p.components, stride = padded(n);
  T* const theta = static_cast<T*>(tile.line);
  T* const z = theta + stride;
  T* const room = z + stride;
  fill_thresholds(p, layer, theta);
  zero(z, stride);
  const bool keeps = tile.coded && keeps_codes(p);
  const Bits<T> sign = (Bits<T>)splat(p.positive ? T(0) : T(-0.0));
  const Shrinker<T> shrinker{theta, step_of<T>(p, layer), sign};
  const Nonzeros<T> old = nonzeros<T>(tile.codes);
  int end = 0;
  tile.next.start[0] = 0;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* pre = static_cast<const T*>(tile.pre) + i * stride;
    if (keeps)
      for (int c = old.start[i]; c < old.start[i + 1]; ++c) z[old.index[c]] = old.value[c];
    // Without selection an infinite bound: an infinite entry less its threshold is the entry.
    T bound = static_cast<T>(__builtin_inf());
    if (select > 0 && n > 0) bound = shrinker.selection_bound(pre, z, n, select, room);
    end = shrinker.row(pre, z, n, bound, end, tile.next);
    tile.next.start[i + 1] = end;
    if (keeps)
      for (int c = old.start[i]; c < old.start[i + 1]; ++c) z[old.index[c]] = T(0);
  }
  const Codes last = tile.codes;
  tile.codes = tile.next;
  tile.next = last;
  tile.coded = true;
}

template <class T>
void lista_finish(const Lista& p, const ListaTile& tile, void* out) {
  const int64_t n = p.components;
  to_dense(nonzeros<T>(tile.codes), tile.rows, n, Matrix<T>{static_cast<T*>(out) + tile.row0 * n, n});
}

// --- backward -----------------------------------------------------------------------------------------------------

// sum_q (factor g_q) line[index_q], in order: an element of the product with the transposed matrix, and the same bits.
template <class T>
LK_INLINE T gathered_dot(const T* g, const int32_t* index, int count, T factor, const T* line) {
  T sum = 0;
  for (int q = 0; q < count; ++q) sum += (factor * g[q]) * line[index[q]];
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
    back[c] = keeps ? line[j] + factor * product[j] : factor * product[j];
  }
  if (keeps)
    for (int q = g.start[i]; q < g.start[i + 1]; ++q) line[g.index[q]] = T(0);
}

// The same for z_0, whose gradient is dense.
template <class T>
inline void give_back_all(const Nonzeros<T>& g, int64_t i, bool keeps, T factor, const T* product, int64_t n, T* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = factor * product[j];
  if (keeps)
    for (int q = g.start[i]; q < g.start[i + 1]; ++q) out[g.index[q]] = g.value[q] + factor * product[g.index[q]];
}

template <class T>
struct BackwardTile {
  const Lista& p;
  const ListaBackward& b;
  int64_t m, n, stride, wide;
  T *room, *product_rows, *line;

  BackwardTile(const Lista& p, const ListaBackward& b)
      : p(p), b(b), m(p.features), n(p.components), stride(padded(n)), wide(larger(padded(m), stride)) {
    room = static_cast<T*>(b.room);
    product_rows = room + b.rows * wide;
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
      for (int q = g.start[i]; q < g.start[i + 1]; ++q) drive[i * stride + g.index[q]] += step * g.value[q];
    const Codes& before = b.codes[layer];
    if (before.start == nullptr) return;
    const bool all = layer == 0 && b.initial_gradient != nullptr;
    if (layer == 0 && !all) return;
    const Nonzeros<T> wanted = nonzeros<T>(before);
    const Matrix<T> products{product_rows, stride};
    if (b.recurrent_columns != nullptr && (all || pairs_cost_more(g, wanted, b.rows, n))) {
      const T* columns = of_layer<T>(b.recurrent_columns, p.layered_recurrent, layer, n * stride);
      product(g, b.rows, n, T(1), Matrix<const T>{columns, stride}, n, Matrix<const T>{zeros(), 0}, products,
              Matrix<T>{room, stride});
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
            x, to, Matrix<T>{room, stride});
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
      product(g, b.rows, n, step, Matrix<const T>{columns, padded(m)}, m, Matrix<const T>{zeros(), 0}, dr,
              Matrix<T>{room, stride});
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
        for (int64_t j = 0; j < n; ++j) room[j] = dot(dictionary + j * m, dr.row(i), m);
      } else {
        for (int c = before.start[i]; c < before.start[i + 1]; ++c)
          room[before.index[c]] = dot(dictionary + before.index[c] * m, dr.row(i), m);
      }
      give(layer, g, T(-1), room, 0, i);
    }
  }

  // The same bits without W transposed, for a few rows.
  void through_weight_by_pairs() const {
    const Matrix<const T> weight{static_cast<const T*>(p.weight), n};
    int32_t* index = static_cast<int32_t*>(static_cast<void*>(product_rows));
    for (int64_t i = 0; i < b.rows; ++i) {
      const int count = list_row(static_cast<const T*>(b.drive_gradient) + i * stride, n, 0, index, room);
      for (int64_t f = 0; f < m; ++f)
        static_cast<T*>(b.x_gradient)[i * m + f] = gathered_dot(room, index, count, T(1), weight.row(f));
    }
  }

  // x's gradient from that of x W + b.
  void through_weight() const {
    if (b.x_gradient == nullptr) return;
    if (b.weight_columns == nullptr) return through_weight_by_pairs();
    const Matrix<const T> columns{static_cast<const T*>(b.weight_columns), padded(m)};
    dense_product(Left<T>{static_cast<const T*>(b.drive_gradient), stride, 1}, b.rows, n, columns, m,
                  Matrix<const T>{zeros(), 0}, Matrix<T>{static_cast<T*>(b.x_gradient), m});
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

// Whether both factors are so dense that a product of dense tiles is shorter, in registers to be multiplied.
template <class T>
inline bool outer_is_dense(const Outer& o) {
  if (o.right_index == nullptr) return false;
  const double line = static_cast<double>(o.columns) / lanes<T>;
  double sparse = 0;
  for (int64_t i = 0; i < o.rows; ++i) {
    const Range left = left_range(o, i);
    const double right = o.right_start[i + 1] - o.right_start[i];
    sparse += (left.end - left.begin) * (right < line ? right : 1.5 * line);
  }
  return sparse > 0.6 * static_cast<double>(o.rows * (o.end - o.first)) * line;
}

template <class T>
inline void dense_outer(const Outer& o) {
  const int64_t block = o.end - o.first, stride = padded(o.columns);
  T* const left = static_cast<T*>(o.room) + stride;  // the first line stays zero
  T* const right = left + o.rows * block;
  zero(left, o.rows * (block + stride));
  const T* values = static_cast<const T*>(o.left_value);
  for (int64_t i = 0; i < o.rows; ++i) {
    const Range range = left_range(o, i);
    for (int c = range.begin; c < range.end; ++c)
      left[i * block + o.left_index[c] - o.first] = static_cast<T>(o.factor) * values[c];
    for (int q = o.right_start[i]; q < o.right_start[i + 1]; ++q)
      right[i * stride + o.right_index[q]] = static_cast<const T*>(o.right_value)[q];
  }
  T* const out = static_cast<T*>(o.out) + o.first * o.out_stride;
  dense_product(Left<T>{left, 1, block}, block, o.rows, Matrix<const T>{right, stride}, o.out_stride,
                Matrix<const T>{out, o.out_stride}, Matrix<T>{out, o.out_stride});
}

template <class T>
void lista_outer(const Outer& o) {
  if (outer_is_dense<T>(o)) return dense_outer<T>(o);
  const T* left = static_cast<const T*>(o.left_value);
  const T* right = static_cast<const T*>(o.right_value);
  const T factor = static_cast<T>(o.factor);
  T* const line = static_cast<T*>(o.room);
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
        for (int q = first; q < last; ++q) to[o.right_index[q]] += right[q] * v;
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
  dense_product(Left<T>{static_cast<const T*>(o.x) + o.first, 1, o.x_stride}, o.end - o.first, o.rows,
                Matrix<const T>{static_cast<const T*>(o.gradient), stride}, stride, Matrix<const T>{out, stride},
                Matrix<T>{out, stride});
}

}  // namespace LK_ISA
}  // namespace lk
