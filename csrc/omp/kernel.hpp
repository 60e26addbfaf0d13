// Orthogonal matching pursuit: atoms are chosen one by one, by their correlations with the residual, and the codes of
// the chosen ones are least squares. See kernels/omp/README.md.
//
// With G = D D^T, S the chosen atoms in their order and G_SS = L L^T, the kernel keeps the columns of the factor
// extended to all atoms, W = G_.S L^-T, one row of memory for each chosen atom: L's next row lies in W, and so no
// triangular system has to be solved until the end. The rows of W are the correlations of all atoms with an orthonormal
// basis of the chosen ones, so that a step takes (coefficient) W_i from the correlations q = r D^T.
#pragma once

#include "lasso/kernel_rows.hpp"
#include "omp/problem.hpp"

namespace lk {
namespace LK_ISA {

// The workspace of one task.
template <class T>
struct OmpWorkspace {
  double *x[kLassoRows], *c[kLassoRows];  // [padded(features)], [padded(components)]
  T *q, *factor;                          // [columns], [most, columns]: W
  T* along;                               // [most], the new row of L
  double *coefficient, *root, *code;      // [most]
  int32_t* index;                         // [most], the chosen atoms
  int64_t bytes;

  OmpWorkspace(int64_t features, int64_t components, int64_t most, void* memory) {
    const int64_t columns = padded(components);
    Pieces pieces(memory);
    for (int n = 0; n < kLassoRows; ++n) {
      x[n] = pieces.take<double>(padded(features));
      c[n] = pieces.take<double>(columns);
    }
    q = pieces.take<T>(columns);
    along = pieces.take<T>(most);
    double** const of_chosen[] = {&coefficient, &root, &code};
    for (double** piece : of_chosen) *piece = pieces.take<double>(most);
    index = pieces.take<int32_t>(most);
    factor = pieces.take<T>(most * columns);
    bytes = static_cast<int64_t>(pieces.next - reinterpret_cast<uintptr_t>(memory)) + 64;
  }
};

inline int64_t omp_workspace(int64_t features, int64_t components, int64_t most) {
  return OmpWorkspace<double>(features, components, most, nullptr).bytes;
}

// Returns the index of the first entry of the largest absolute value.
template <class T>
inline int64_t strongest(const T* q, int64_t columns) {
  using Integer = decltype(Bits<T>{}[0] + 0);
  Vec<T> best = {};
  Bits<T> at = {};
  for (int64_t k = 0; k < columns; k += lanes<T>) {
    const Vec<T> size = absolute(load(q + k));
    const Bits<T> better = size > best;
    best = better ? size : best;
    at = better ? Bits<T>{} + static_cast<Integer>(k) : at;
  }
  T most = -1;
  int64_t found = 0;
  for (int i = 0; i < lanes<T>; ++i) {
    const int64_t k = at[i] + i;
    if (best[i] > most || (best[i] == most && k < found)) {
      most = best[i];
      found = k;
    }
  }
  return found;
}

template <int N, class T>
LK_INLINE void extend_chunk(const T* gram, const T* factor, int64_t stride, const T* along, int64_t count, T inverse,
                            T coefficient, T* out, T* q) {
  Pack<Vec<T>, N> sum = load(gram, Registers<N>{});
  for (int64_t j = 0; j < count; ++j) sum = fma(load(factor + j * stride, Registers<N>{}), -along[j], sum);
  sum = sum * inverse;
  store(out, sum, Registers<N>{});
  store(q, fma(sum, -coefficient, load(q, Registers<N>{})), Registers<N>{});
}

// The next row of W, (g - sum_j along_j W_j) inverse, and q less `coefficient` times it.
template <class T>
inline void extend(const T* gram, T* factor, int64_t columns, const T* along, int64_t count, T inverse, T coefficient,
                   T* q) {
  constexpr int L = lanes<T>;
  T* const out = factor + count * columns;
  int64_t k = 0;
  for (; k + 8 * L <= columns; k += 8 * L)
    extend_chunk<8>(gram + k, factor + k, columns, along, count, inverse, coefficient, out + k, q + k);
  for (; k + 2 * L <= columns; k += 2 * L)
    extend_chunk<2>(gram + k, factor + k, columns, along, count, inverse, coefficient, out + k, q + k);
  for (; k < columns; k += L)
    extend_chunk<1>(gram + k, factor + k, columns, along, count, inverse, coefficient, out + k, q + k);
}

// Chooses atoms for one row, whose correlations are in workspace.q. Returns their number.
template <class T>
inline int64_t choose(const OmpProblem& p, OmpWorkspace<T>& workspace, double norm2) {
  // Relative thresholds: of a correlation that rounding explains, and of the squared distance between an atom and the
  // span of the chosen atoms below which it counts as a combination of them.
  constexpr double unit = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, noise = 32 * unit * (32 * unit), dependent = 16 * unit;
  const int64_t columns = padded(p.components);
  const T* gram = static_cast<const T*>(p.gram);
  double left = norm2;
  int64_t count = 0;
  while (count < p.most && left > p.tolerance) {
    const int64_t k = strongest(workspace.q, columns);
    const T* g = gram + k * columns;
    const double norm = static_cast<double>(g[k]), product = static_cast<double>(workspace.q[k]);
    if (!(product * product > noise * norm * norm2)) break;
    double square = norm;
    for (int64_t j = 0; j < count; ++j) {
      const T l = workspace.factor[j * columns + k];
      workspace.along[j] = l;
      square = fma(-static_cast<double>(l), static_cast<double>(l), square);
    }
    if (!(square > dependent * norm)) break;
    const double root = __builtin_sqrt(square), coefficient = product / root;
    extend(g, workspace.factor, columns, workspace.along, count, static_cast<T>(1 / root), static_cast<T>(coefficient),
           workspace.q);
    left = fma(-coefficient, coefficient, left);
    workspace.root[count] = root;
    workspace.coefficient[count] = coefficient;
    workspace.index[count++] = static_cast<int32_t>(k);
    for (int64_t i = 0; i < count; ++i) workspace.q[workspace.index[i]] = 0;  // which rounding may have left non-zero
  }
  return count;
}

// The codes: L^T z_S = coefficients. NaN where x is not finite, or products with it are not.
template <class T>
inline void finish(const OmpProblem& p, OmpWorkspace<T>& workspace, int64_t count, double norm2, T* codes) {
  const int64_t columns = padded(p.components);
  double* const code = workspace.code;
  bool finite = norm2 - norm2 == 0;
  for (int64_t i = count; i-- > 0;) {
    const T* row = workspace.factor + i * columns;
    double sum = workspace.coefficient[i];
    for (int64_t j = i + 1; j < count; ++j) sum = fma(-static_cast<double>(row[workspace.index[j]]), code[j], sum);
    code[i] = sum / workspace.root[i];
    const T rounded = static_cast<T>(code[i]);
    finite = finite && rounded - rounded == 0;
  }
  const T fill = finite ? T(0) : static_cast<T>(__builtin_nan(""));
  for (int64_t k = 0; k < p.components; ++k) codes[k] = fill;
  for (int64_t i = 0; finite && i < count; ++i) codes[workspace.index[i]] = static_cast<T>(code[i]);
}

template <class T>
void omp_encode(const OmpProblem& p, int64_t row0, int64_t row1, void* memory) {
  OmpWorkspace<T> workspace(p.features, p.components, p.most, memory);
  const int64_t columns = padded(p.components), width = padded(p.features);
  for (int64_t first = row0; first < row1; first += kLassoRows) {
    const int rows = static_cast<int>(row1 - first < kLassoRows ? row1 - first : kLassoRows);
    for (int n = 0; n < rows; ++n) {
      const T* x = static_cast<const T*>(p.x) + (first + n) * p.features;
      for (int64_t f = 0; f < width; ++f) workspace.x[n][f] = f < p.features ? static_cast<double>(x[f]) : 0;
    }
    correlate(static_cast<const T*>(p.panels), p.features, columns, rows, workspace.x, workspace.c);
    for (int n = 0; n < rows; ++n) {
      const double* x = workspace.x[n];
      const double norm2 = sum_of<double>(width, [&](int64_t i) LK_INLINE_LAMBDA {
        const D v = load(x + i);
        return v * v;
      });
      for (int64_t k = 0; k < columns; ++k) workspace.q[k] = static_cast<T>(workspace.c[n][k]);
      const int64_t count = choose(p, workspace, norm2);
      finish(p, workspace, count, norm2, static_cast<T*>(p.codes) + (first + n) * p.components);
    }
  }
}

}  // namespace LK_ISA
}  // namespace lk
