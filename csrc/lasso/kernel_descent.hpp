// Coordinate descent for Lasso codes, and the types that all coders share: a row in progress, a task's workspace.
#pragma once

#include "lasso/kernel_rows.hpp"

namespace lk {
namespace LK_ISA {

constexpr int kSetLimit = 256;              // coordinates of the largest working set with a Gram matrix of its own
constexpr int kSetStride = kSetLimit + 16;  // not a power of two, so that rows lie in different cache sets
constexpr int64_t kFirstSet = 16;           // coordinates of the first working set
constexpr double kSetAccuracy = 0.1;        // a working set is solved to this share of the whole row's gap
constexpr int64_t kStableSweeps = 3;        // sweeps without a new sign before equations are worth solving
constexpr int64_t kPatience = 12;           // sweeps after which they are solved in any case
constexpr int64_t kGapEvery = 10;           // iterations of ISTA and FISTA between checks of the gap
constexpr int kMaxStalls = 4;               // attempts that may fail to halve the true gap
constexpr double kHeadroom = 0.5;           // the estimated gap must fall below this share of the target

// A row in progress.
template <class T>
struct LassoRow {
  int64_t index;
  double *x, *r, *c;                             // [padded(features)], the same, [padded(components)]
  T* z;                                          // [padded(components)]
  double x_norm2, residual2, target, goal, gap;  // goal: the target of the estimated gap
  int64_t left;                                  // iterations left
  int stalls;                                    // how often continuing has not halved the true gap
  bool open;
};

// The workspace of one task. Rows of `columns` T each, unless said otherwise.
template <class T>
struct LassoWorkspace {
  LassoRow<T> rows[kLassoRows];
  int32_t *index, *set;
  T *q, *z0, *q0, *weight, *outside, *inverse;
  T *b, *before, *next, *product, *product_before, *step, *norm2;  // ISTA and FISTA; the last two see `scale`
  // Arrays of the working set: [kSetLimit, kSetStride] the first two, [kSetStride] the others.
  T *set_gram, *system, *set_z, *set_q, *set_z0, *set_q0, *set_inverse, *direction, *bend, *pivot;
  int64_t bytes;

  LassoWorkspace(int64_t features, int64_t components, void* memory) {
    const int64_t width = padded(features), columns = padded(components);
    Pieces pieces(memory);
    for (LassoRow<T>& row : rows) {
      row.x = pieces.take<double>(width);
      row.r = pieces.take<double>(width);
      row.c = pieces.take<double>(columns);
      row.z = pieces.take<T>(columns);
    }
    index = pieces.take<int32_t>(columns + 16);
    set = pieces.take<int32_t>(columns + 16);
    T** const whole[] = {&q,      &z0,   &q0,      &weight,         &outside, &inverse, &b,
                         &before, &next, &product, &product_before, &step,    &norm2};
    for (T** piece : whole) *piece = pieces.take<T>(columns);
    T** const of_set[] = {&set_z, &set_q, &set_z0, &set_q0, &set_inverse, &direction, &bend, &pivot};
    for (T** piece : of_set) *piece = pieces.take<T>(kSetStride);
    set_gram = pieces.take<T>(kSetLimit * kSetStride);
    system = pieces.take<T>(kSetLimit * kSetStride);
    bytes = static_cast<int64_t>(pieces.next - reinterpret_cast<uintptr_t>(memory)) + 64;
  }
};

inline int64_t lasso_workspace(int64_t features, int64_t components) {
  return LassoWorkspace<double>(features, components, nullptr).bytes;
}

template <class T>
inline void copy(const T* from, int64_t n, T* to) {
  std::memcpy(to, from, sizeof(T) * static_cast<size_t>(n));
}
template <class T>
inline void clear(T* x, int64_t n) {
  std::memset(x, 0, sizeof(T) * static_cast<size_t>(n));
}

// --- coordinate descent ---------------------------------------------------------------------------------------

template <class T>
struct Threshold {
  T alpha, low;
  Threshold(double a, bool positive)
      : alpha(static_cast<T>(a)), low(positive ? -static_cast<T>(__builtin_inf()) : -alpha) {}

  LK_INLINE T operator()(T u) const { return soft(u, low, alpha); }
  LK_INLINE Vec<T> operator()(Vec<T> u) const { return soft(u, splat(low), splat(alpha)); }
};

template <class T>
struct Sweep {
  T change = 0;       // the largest change of a code, as a share of the largest code
  int64_t flips = 0;  // codes that became zero or non-zero, or changed their signs
};

// One pass over coordinates at[0..count) (null: 0, 1, ...): each to its minimum with the others fixed,
//   z_j <- soft(q_j + G_jj z_j, alpha) / G_jj,  q <- q - (change of z_j) G_j.
// The next coordinate's q is computed by itself, ahead of the row's, whose way through memory takes longer.
template <class T>
inline Sweep<T> sweep(const T* gram, int64_t stride, int64_t columns, const int32_t* at, int64_t count,
                      const T* inverse, const Threshold<T>& threshold, T* z, T* q) {
  Sweep<T> result;
  T most = 0, correlation = count > 0 ? q[at != nullptr ? at[0] : 0] : T(0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = at != nullptr ? at[i] : i, following = i + 1 == count ? j : at != nullptr ? at[i + 1] : i + 1;
    const T* g = gram + j * stride;
    const T old = z[j], v = threshold(fma(g[j], old, correlation)) * inverse[j];
    const T step = v - old, size = v < 0 ? -v : v, moved = step < 0 ? -step : step;
    correlation = fma(-step, g[following], q[following]);
    most = size > most ? size : most;
    if (moved == 0) continue;
    result.change = moved > result.change ? moved : result.change;
    result.flips += (v > 0) != (old > 0) || (v < 0) != (old < 0);
    z[j] = v;
    for (int64_t k = 0; k < columns; k += lanes<T>) store(q + k, fma(-step, load(g + k), load(q + k)));
  }
  if (most > 0) result.change /= most;
  return result;
}

template <class T>
struct Descent {
  const LassoProblem& p;
  LassoWorkspace<T>& workspace;
  LassoRow<T>& row;
  const T* gram;
  int64_t columns, size = 0;  // columns and size of the working set
  double alpha, goal;
  Threshold<T> threshold;

  Descent(const LassoProblem& p, LassoWorkspace<T>& workspace, LassoRow<T>& row)
      : p(p),
        workspace(workspace),
        row(row),
        gram(static_cast<const T*>(p.gram)),
        columns(padded(p.components)),
        alpha(p.alpha[row.index * p.alpha_stride]),
        goal(row.goal),
        threshold(alpha, p.positive) {}

  void run() {
    for (int64_t i = 0; i < columns; ++i) workspace.outside[i] = 1;
    add(nonzeros(row.z, p.components, workspace.index));
    for (bool moving = true; row.left > 0;) {
      const double gap =
          Progress<T>{row.z, workspace.q, row.z, workspace.q, row.residual2}.gap(columns, alpha, p.positive);
      if (!(gap > goal)) return;
      const int64_t added = size <= kSetLimit ? add(violators()) : 0;
      if (added == 0 && !moving) return;
      if (size > kSetLimit) return sweep_all();
      moving = solve_set(larger_of(goal, kSetAccuracy * gap));
    }
  }

 private:
  static constexpr T tiny = sizeof(T) == 4 ? T(0x1p-22) : T(0x1p-51);  // a change of the size of rounding errors

  static double larger_of(double a, double b) { return a > b ? a : b; }

  // Lists in workspace.index coordinates outside the set whose condition |q| <= alpha is broken, about as many as the
  // set has already: those above a level that is found by halving.
  int64_t violators() {
    T* excess = workspace.weight;
    for (int64_t k = 0; k < columns; k += lanes<T>) {
      const Vec<T> q = load(workspace.q + k);
      const Vec<T> over = threshold(q) * load(workspace.outside + k);
      store(excess + k, over < T(0) ? -over : over);
    }
    T low = 0, level = 0, high = largest(excess, columns, true);
    const int64_t wanted = size > kFirstSet ? size : kFirstSet;
    for (int step = 0; step < 8 && count_above(step == 0 ? T(0) : low) > wanted; ++step) {
      level = (low + high) * T(0.5);
      const int64_t above = count_above(level);
      if (above >= wanted / 2 && above <= wanted) break;
      (above > wanted ? low : high) = level;
    }
    for (int64_t k = 0; k < columns; k += lanes<T>) {
      const Vec<T> v = load(excess + k);
      store(excess + k, v > level ? v : Vec<T>{});
    }
    return nonzeros(excess, columns, workspace.index);
  }

  int64_t count_above(T level) const {
    const T count = sum_of<T>(columns, [&](int64_t i) LK_INLINE_LAMBDA {
      return load(workspace.weight + i) > level ? splat<T>(1) : Vec<T>{};
    });
    return static_cast<int64_t>(count);
  }

  // Takes the coordinates workspace.index[0..count) into the set, with their rows and columns of its Gram matrix.
  int64_t add(int64_t count) {
    const int64_t total = size + count;
    if (total > kSetLimit) {
      size = total;
      return count;
    }
    for (int64_t i = 0; i < count; ++i) {
      workspace.set[size + i] = workspace.index[i];
      workspace.outside[workspace.index[i]] = 0;
      workspace.set_inverse[size + i] = 1 / gram[workspace.index[i] * (columns + 1)];
    }
    const int64_t width = padded(total);
    for (int64_t i = size; i < total; ++i) {
      const T* from = gram + workspace.set[i] * columns;
      T* to = workspace.set_gram + i * kSetStride;
      for (int64_t j = 0; j < total; ++j) to[j] = from[workspace.set[j]];
      for (int64_t j = 0; j < size; ++j) workspace.set_gram[j * kSetStride + i] = to[j];
      for (int64_t j = total; j < width; ++j) to[j] = 0;
    }
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = total; j < width; ++j) workspace.set_gram[i * kSetStride + j] = 0;
    size = total;
    return count;
  }

  // Sweeps over the set until its own gap is below `accuracy`, then brings all correlations up to date.
  // Returns false where no coordinate changed any more.
  bool solve_set(double accuracy) {
    const int64_t width = padded(size);
    for (int64_t i = 0; i < width; ++i) {
      workspace.set_z[i] = workspace.set_z0[i] = i < size ? row.z[workspace.set[i]] : T(0);
      workspace.set_q[i] = workspace.set_q0[i] = i < size ? workspace.q[workspace.set[i]] : T(0);
    }
    const Progress<T> progress{workspace.set_z, workspace.set_q, workspace.set_z0, workspace.set_q0, row.residual2};
    bool moving = false;
    for (int64_t stable = 0, since = 1; row.left > 0; ++since) {
      --row.left;
      const Sweep<T> found = sweep(workspace.set_gram, kSetStride, width, nullptr, size, workspace.set_inverse,
                                   threshold, workspace.set_z, workspace.set_q);
      if (!(found.change > tiny)) break;
      moving = true;
      if (!(progress.gap(width, alpha, p.positive) > accuracy)) break;
      stable = found.flips == 0 ? stable + 1 : 0;
      if (stable < kStableSweeps && since < kPatience) continue;
      while (solve_signs(width) && stable < kStableSweeps) {
      }
      stable = since = 0;
      if (!(progress.gap(width, alpha, p.positive) > accuracy)) break;
    }
    row.residual2 = progress.residual(width);
    int64_t count = 0;
    for (int64_t i = 0; i < size; ++i) {
      const T change = workspace.set_z0[i] - workspace.set_z[i];
      row.z[workspace.set[i]] = workspace.set_z[i];
      workspace.weight[count] = change;
      workspace.index[count] = workspace.set[i];
      count += change != 0;
    }
    add_rows(gram, columns, columns, workspace.index, workspace.weight, count, workspace.q);
    return moving;
  }

  // A step towards the exact minimum for the present signs, where sweeps would take long: Newton's,
  //   G_SS direction = q_S - alpha sign(z_S), S the codes that are not zero,
  // by elimination, as far as the objective falls and no sign changes. Returns true where the step ended at a code that
  // became zero.
  bool solve_signs(int64_t width) {
    T *const z = workspace.set_z, *const q = workspace.set_q, *const direction = workspace.direction;
    const int64_t n = nonzeros(z, size, workspace.index), across = padded(n + 1);
    for (int64_t i = 0; i < n; ++i) {
      const T* from = workspace.set_gram + workspace.index[i] * kSetStride;
      T* to = workspace.system + i * kSetStride;
      clear(to, across);
      for (int64_t j = i; j < n; ++j) to[j] = from[workspace.index[j]];
      to[n] = slope(workspace.index[i]);
    }
    eliminate(n, across);
    clear(workspace.bend, width);
    add_rows(workspace.set_gram, kSetStride, width, workspace.index, direction, n, workspace.bend);
    T down = 0, bend = 0;
    for (int64_t i = 0; i < n; ++i) {
      down += slope(workspace.index[i]) * direction[i];
      bend += workspace.bend[workspace.index[i]] * direction[i];
    }
    if (!(down > 0 && bend > 0)) return false;
    T step = down / bend;
    int64_t first = -1;  // the coordinate whose code becomes zero first
    for (int64_t i = 0; i < n; ++i) {
      const T old = z[workspace.index[i]], v = old + step * direction[i];
      if (old > 0 ? v > 0 : v < 0) continue;
      step = -old / direction[i];
      first = i;
    }
    for (int64_t i = 0; i < n; ++i) {
      const T old = z[workspace.index[i]], v = old + step * direction[i];
      z[workspace.index[i]] = i != first && (old > 0 ? v > 0 : v < 0) ? v : T(0);
    }
    for (int64_t k = 0; k < width; k += lanes<T>) store(q + k, fma(-step, load(workspace.bend + k), load(q + k)));
    return first >= 0;
  }

  T slope(int64_t i) const {
    return workspace.set_q[i] - (workspace.set_z[i] > 0 ? threshold.alpha : -threshold.alpha);
  }

  // Solves the n equations in workspace.system, [n, n + 1] with the right-hand sides last and only the upper triangle
  // of the symmetric matrix, into workspace.direction. A coordinate whose atom is a combination of others, to
  // the precision of T, does not move.
  void eliminate(int64_t n, int64_t across) {
    T *const direction = workspace.direction, *const pivot = workspace.pivot;
    for (int64_t j = 0; j < n; ++j) {
      const T* top = workspace.system + j * kSetStride;
      const T norm = workspace.set_gram[workspace.index[j] * (kSetStride + 1)];
      pivot[j] = top[j] > 32 * tiny * norm ? 1 / top[j] : T(0);
      if (pivot[j] == 0) continue;
      for (int64_t i = j + 1; i < n; ++i) {
        T* to = workspace.system + i * kSetStride;
        const T factor = top[i] * pivot[j];
        for (int64_t k = i / lanes<T> * lanes<T>; k < across; k += lanes<T>)
          store(to + k, fma(-factor, load(top + k), load(to + k)));
      }
    }
    clear(direction, across);
    for (int64_t j = n; j-- > 0;) {
      const T* top = workspace.system + j * kSetStride;
      const int64_t first = j / 16 * 16;
      const T known = sum_of<T>(across - first, [&](int64_t k) LK_INLINE_LAMBDA {
        return load(top + first + k) * load(direction + first + k);
      });
      direction[j] = (top[n] - known) * pivot[j];
    }
  }

  // Where the set is too large for a Gram matrix of its own: over all coordinates that are not zero or should not be.
  void sweep_all() {
    copy(row.z, columns, workspace.z0);
    copy(workspace.q, columns, workspace.q0);
    for (int64_t k = 0; k < p.components; ++k) workspace.inverse[k] = 1 / gram[k * (columns + 1)];
    const Progress<T> progress{row.z, workspace.q, workspace.z0, workspace.q0, row.residual2};
    for (int64_t passes = 0; row.left > 0; ++passes) {
      const bool fresh = passes % kGapEvery == 0;
      if (fresh) list_active();
      --row.left;
      const Sweep<T> found =
          sweep(gram, columns, columns, workspace.set, size, workspace.inverse, threshold, row.z, workspace.q);
      if (!(progress.gap(columns, alpha, p.positive) > goal)) return;
      if (!(found.change > tiny)) {
        if (fresh) return;
        passes = -1;
      }
    }
  }

  void list_active() {
    for (int64_t k = 0; k < columns; k += lanes<T>) {
      const Vec<T> z = load(row.z + k), over = threshold(load(workspace.q + k));
      store(workspace.weight + k, z != T(0) ? z : over);
    }
    size = nonzeros(workspace.weight, columns, workspace.set);
  }
};

}  // namespace LK_ISA
}  // namespace lk
