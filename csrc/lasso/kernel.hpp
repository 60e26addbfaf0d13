// Lasso codes: for each row x, the z that minimizes 1/2 ||x - z D||^2 + alpha ||z||_1. See kernels/lasso/README.md.
//
// An algorithm works in T on z and the correlations q = (x - z D) D^T, which it updates by rows of the Gram matrix,
// until its estimate of the duality gap is small enough. Then the residual and the correlations are computed anew in
// double. They give the true gap; where it is still too large the algorithm goes on from these correlations, so that
// rounding errors of q do not accumulate.
#pragma once

#include "lasso/kernel_descent.hpp"

namespace lk {
namespace LK_ISA {

// --- ISTA and FISTA -------------------------------------------------------------------------------------------

// Steps as if all atoms had norm 1, expressed for the given codes: 1 / (L G_kk), with L the largest eigenvalue of the G
// of unit atoms. Values after the last atom stay 0.
template <class T>
inline void scale(const LassoProblem& p, LassoWorkspace<T>& workspace) {
  const int64_t columns = padded(p.components);
  const T* gram = static_cast<const T*>(p.gram);
  for (int64_t k = 0; k < columns; ++k) {
    workspace.norm2[k] = k < p.components ? gram[k * (columns + 1)] : T(0);
    workspace.step[k] = k < p.components ? static_cast<T>(1 / (p.curvature * workspace.norm2[k])) : T(0);
  }
}

// z_(t+1) = soft(y - (y G - b) step, alpha step), y = z_t + beta (z_t - z_(t-1)); beta = 0 is ISTA. FISTA's momentum
// restarts where the step points against it. y G comes from z_t G and z_(t-1) G, each computed once from the rows of G
// where z_t is not zero.
template <bool scaled, class T>
inline void iterate(const LassoProblem& p, LassoWorkspace<T>& workspace, LassoRow<T>& row) {
  const int64_t columns = padded(p.components);
  const T* gram = static_cast<const T*>(p.gram);
  const double alpha = p.alpha[row.index * p.alpha_stride], goal = row.goal;
  const T step = static_cast<T>(1 / p.curvature), weight = static_cast<T>(alpha);
  const Threshold<T> threshold(alpha / p.curvature, p.positive);
  const T *const steps = workspace.step, *const norm2 = workspace.norm2, *const b = workspace.b;
  const Vec<T> unbounded = splat(-static_cast<T>(__builtin_inf()));
  const bool positive = p.positive;
  T *z = row.z, *before = workspace.before, *next = workspace.next, *product = workspace.product,
    *product_before = workspace.product_before;

  const auto multiply = [&](const T* codes, T* out) {
    const int64_t count = nonzeros(codes, p.components, workspace.index);
    for (int64_t i = 0; i < count; ++i) workspace.weight[i] = codes[workspace.index[i]];
    clear(out, columns);
    add_rows(gram, columns, columns, workspace.index, workspace.weight, count, out);
  };
  multiply(z, product);
  copy(z, columns, before);
  copy(z, columns, workspace.z0);
  copy(workspace.q, columns, workspace.q0);
  copy(product, columns, product_before);
  for (int64_t k = 0; k < columns; k += lanes<T>) store(workspace.b + k, load(workspace.q + k) + load(product + k));

  double t = 1;
  const Progress<T> start{z, workspace.q, workspace.z0, workspace.q0, row.residual2};
  bool done = !(start.gap(columns, alpha, p.positive) > goal);
  for (int64_t i = 1; !done && row.left > 0; ++i) {
    --row.left;
    const double t_next = 0.5 * (1 + __builtin_sqrt(1 + 4 * t * t));
    const T beta = p.algorithm == kFista ? static_cast<T>((t - 1) / t_next) : T(0);
    const T against = sum_of<T>(columns, [&](int64_t k) LK_INLINE_LAMBDA {
      const Vec<T> at = load(z + k), g = load(product + k);
      const Vec<T> y = fma(at - load(before + k), beta, at);
      const Vec<T> slope = fma(g - load(product_before + k), beta, g) - load(b + k);
      Vec<T> v;
      if constexpr (scaled) {
        const Vec<T> step_k = load(steps + k), cut = step_k * weight;
        v = soft(fma(-slope, step_k, y), positive ? unbounded : -cut, cut);
      } else {
        v = threshold(fma(-slope, step, y));
      }
      store(next + k, v);
      if constexpr (scaled) return (y - v) * load(norm2 + k) * (v - at);
      return (y - v) * (v - at);
    });
    t = against > 0 ? 1 : t_next;
    T* spare = before;
    before = z;
    z = next;
    next = spare;
    spare = product_before;
    product_before = product;
    product = spare;
    multiply(z, product);
    if (i % kGapEvery != 0 && row.left > 0) continue;
    for (int64_t k = 0; k < columns; k += lanes<T>) store(workspace.q + k, load(b + k) - load(product + k));
    done = !(Progress<T>{z, workspace.q, workspace.z0, workspace.q0, row.residual2}.gap(columns, alpha, p.positive) >
             goal);
  }
  if (z != row.z) copy(z, columns, row.z);
}

// --- rows -----------------------------------------------------------------------------------------------------

template <class T>
inline int64_t find_residual(const LassoProblem& p, LassoWorkspace<T>& workspace, const LassoRow<T>& row) {
  const int64_t count = nonzeros(row.z, p.components, workspace.index);
  residual(static_cast<const T*>(p.dictionary), padded(p.features), row.z, workspace.index, count, row.x, row.r);
  return count;
}

template <class T>
inline void start_row(const LassoProblem& p, LassoRow<T>& row, int64_t index) {
  const T* x = static_cast<const T*>(p.x) + index * p.features;
  row.index = index;
  row.left = p.max_iter;
  row.stalls = 0;
  row.gap = __builtin_inf();
  row.open = true;
  clear(row.x, padded(p.features));
  clear(row.z, padded(p.components));
  for (int64_t f = 0; f < p.features; ++f) row.x[f] = static_cast<double>(x[f]);
  if (p.init != nullptr) copy(static_cast<const T*>(p.init) + index * p.components, p.components, row.z);
  row.x_norm2 = sum_of<double>(padded(p.features), [&](int64_t i) LK_INLINE_LAMBDA {
    const D v = load(row.x + i);
    return v * v;
  });
  row.target = p.tolerance * 0.5 * row.x_norm2;
}

// The gap rounded up to T.
inline double round_up(double gap, double) { return gap; }
inline float round_up(double gap, float) {
  const float near = static_cast<float>(gap);
  return static_cast<double>(near) < gap ? bit_cast<float>(bit_cast<uint32_t>(near) + 1) : near;
}

// Writes the codes and the gap; NaN where x is not finite, or products with it are not, or the gap is beyond T.
template <class T>
inline void finish_row(const LassoProblem& p, LassoRow<T>& row) {
  T* codes = static_cast<T*>(p.codes) + row.index * p.components;
  const T nan = static_cast<T>(__builtin_nan("")), gap = round_up(row.gap, T(0));
  const bool finite = gap - gap == 0 && row.x_norm2 - row.x_norm2 == 0;
  for (int64_t k = 0; k < p.components; ++k) codes[k] = finite ? row.z[k] : nan;
  static_cast<T*>(p.gap)[row.index] = finite ? gap : nan;
  row.open = false;
}

// Checks the true gap of a row whose correlations were just recomputed, and ends the row or continues it.
template <class T>
inline void advance_row(const LassoProblem& p, LassoWorkspace<T>& workspace, LassoRow<T>& row) {
  const int64_t columns = padded(p.components), count = nonzeros(row.z, p.components, workspace.index);
  const double gap = duality_gap(row.z, workspace.index, count, row.r, row.c, p.features, columns, row.x_norm2,
                                 p.alpha[row.index * p.alpha_stride], p.positive, p.largest);
  // The estimate was small enough, the true gap is not. Continuing from recomputed correlations helps until the
  // precision of T is exhausted.
  if (!(gap < 0.5 * row.gap)) ++row.stalls;
  row.gap = gap;
  if (!(gap > row.target) || !(gap < __builtin_inf()) || row.left == 0 || row.stalls == kMaxStalls)
    return finish_row(p, row);
  row.goal = kHeadroom * row.target / (1 << row.stalls);
  row.residual2 = sum_of<double>(padded(p.features), [&](int64_t i) LK_INLINE_LAMBDA {
    const D v = load(row.r + i);
    return v * v;
  });
  for (int64_t k = 0; k < columns; ++k) workspace.q[k] = static_cast<T>(row.c[k]);
  if (p.algorithm == kDescent)
    Descent<T>(p, workspace, row).run();
  else if (p.scaled)
    iterate<true>(p, workspace, row);
  else
    iterate<false>(p, workspace, row);
}

template <class T>
inline void encode_rows(const LassoProblem& p, LassoWorkspace<T>& workspace, int64_t row0, int64_t row1) {
  const int64_t columns = padded(p.components);
  const int rows = static_cast<int>(row1 - row0);
  for (int n = 0; n < rows; ++n) start_row(p, workspace.rows[n], row0 + n);
  for (;;) {
    const double* r[kLassoRows];
    double* c[kLassoRows];
    int open = 0;
    for (int n = 0; n < rows; ++n) {
      LassoRow<T>& row = workspace.rows[n];
      if (!row.open) continue;
      find_residual(p, workspace, row);
      r[open] = row.r;
      c[open++] = row.c;
    }
    if (open == 0) return;
    correlate(static_cast<const T*>(p.panels), p.features, columns, open, r, c);
    for (int n = 0; n < rows; ++n)
      if (workspace.rows[n].open) advance_row(p, workspace, workspace.rows[n]);
  }
}

template <class T>
void lasso_encode(const LassoProblem& p, int64_t row0, int64_t row1, void* memory) {
  LassoWorkspace<T> workspace(p.features, p.components, memory);
  if (p.scaled) scale(p, workspace);
  for (int64_t row = row0; row < row1; row += kLassoRows)
    encode_rows(p, workspace, row, smaller(row + kLassoRows, row1));
}

// Rows of D D^T, each entry summed in double and rounded once.
template <class T>
void lasso_gram(const LassoProblem& p, int64_t row0, int64_t row1, void* gram, void* memory) {
  LassoWorkspace<T> workspace(p.features, p.components, memory);
  const int64_t columns = padded(p.components), width = padded(p.features);
  for (int64_t first = row0; first < row1; first += kLassoRows) {
    const int64_t count = smaller(kLassoRows, row1 - first);
    const double* r[kLassoRows];
    double* c[kLassoRows];
    for (int64_t n = 0; n < count; ++n) {
      const T* d = static_cast<const T*>(p.dictionary) + (first + n) * width;
      for (int64_t f = 0; f < width; ++f) workspace.rows[n].r[f] = static_cast<double>(d[f]);
      r[n] = workspace.rows[n].r;
      c[n] = workspace.rows[n].c;
    }
    correlate(static_cast<const T*>(p.panels), p.features, columns, static_cast<int>(count), r, c);
    for (int64_t n = 0; n < count; ++n)
      for (int64_t k = 0; k < columns; ++k) static_cast<T*>(gram)[(first + n) * columns + k] = static_cast<T>(c[n][k]);
  }
}

}  // namespace LK_ISA
}  // namespace lk
