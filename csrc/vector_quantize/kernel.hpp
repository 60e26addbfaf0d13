// Vector quantization: formulas in kernels/vector_quantize/README.md.
//
// The score of code k for a row z is z . e_k - |e_k|^2 / 2, one chain of fma over the columns that begins with
// -|e_k|^2 / 2. Codes lie in the lanes, so that every build has the same chains and the same bits. Scores stay in
// registers: a lane keeps the best score and the code that had it.
#pragma once

#include "simd/tile.hpp"
#include "vector_quantize/problem.hpp"

namespace lk {
namespace LK_ISA {

// --- the nearest code -----------------------------------------------------------------------------------------

// Blocks of rows by registers of codes: as many sums as leave registers for codes and a factor.
constexpr int kQuantizeRegisters = W == 16 ? 4 : 2;
constexpr int kQuantizeBlock = 6;
static_assert(kQuantizeRows % kQuantizeBlock == 0, "tiles have whole blocks");

// Columns of a panel that are read for all rows of a tile before the next ones: they stay in the first-level cache.
constexpr int64_t kQuantizeColumns = 128;

// Codes side by side in a panel, whose first row is -|e_k|^2 / 2: panels are [cols + 1, kQuantizeWidth].
template <class C>
constexpr int64_t kQuantizeWidth = kQuantizeRegisters * lanes<C>;

inline int64_t quantize_panels(int64_t codes, int64_t width) { return (codes + width - 1) / width; }

template <class T>
int64_t quantize_panel_elements(const QuantizeProblem& p) {
  constexpr int64_t width = kQuantizeWidth<Compute<T>>;
  return quantize_panels(p.codes, width) * (p.cols + 1) * width;
}

template <class T>
inline Compute<T> quantize_value(T x) {
  if constexpr (std::is_same<T, Compute<T>>::value)
    return x;
  else
    return widen(x);
}

template <class T>
void quantize_pack(const QuantizeProblem& p, int64_t group, void* panels) {
  using C = Compute<T>;
  constexpr int64_t width = kQuantizeWidth<C>;
  const T* e = static_cast<const T*>(p.codebook) + group * p.codes * p.cols;
  for (int64_t k = 0; k < quantize_panels(p.codes, width) * width; ++k) {
    C* const to = static_cast<C*>(panels) + k / width * (p.cols + 1) * width + k % width;
    C square = k < p.codes ? C(0) : static_cast<C>(__builtin_inf());  // a code that is not there is never the nearest
    for (int64_t d = 0; d < p.cols; ++d) {
      const C x = k < p.codes ? quantize_value(e[k * p.cols + d]) : C(0);
      to[(d + 1) * width] = x;
      square = fma(x, x, square);
    }
    to[0] = C(-0.5) * square;
  }
}

// The best scores of a tile's rows, and the registers of codes that had them.
template <class C>
struct QuantizeBest {
  C score[kQuantizeRows][lanes<C>];
  decltype(Bits<C>{}[0] + 0) at[kQuantizeRows][lanes<C>];
};

// Scores of R rows and a panel over `count` columns, from `start` on. They go to `partial`, or, at the last columns,
// to the best scores.
template <int R, class C>
LK_NOINLINE void quantize_block(const C* z, int64_t stride, const C* panel, int64_t count, const C* start,
                                int64_t start_stride, C* partial, int64_t first, C (*score)[lanes<C>],
                                decltype(Bits<C>{}[0] + 0) (*at)[lanes<C>]) {
  constexpr int N = kQuantizeRegisters;
  constexpr int64_t width = kQuantizeWidth<C>;
  Vec<C> sum[R][N];  // the loops over it are unrolled early, or it would stand in memory
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) sum[r][k] = load(start + r * start_stride + k * lanes<C>);
  for (int64_t d = 0; d < count; ++d, panel += width) {
    Vec<C> e[N];
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) e[k] = load(panel + k * lanes<C>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<C> v = splat<C>(z[r * stride + d]);
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) sum[r][k] = fma(v, e[k], sum[r][k]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (partial != nullptr) {
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) store(partial + r * width + k * lanes<C>, sum[r][k]);
      continue;
    }
    using Integer = decltype(Bits<C>{}[0] + 0);
    Vec<C> best = load(score[r]);
    Bits<C> where;
    std::memcpy(&where, at[r], sizeof where);
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
      const auto better = sum[r][k] > best;  // NaN never is; the first of equals stays
      best = better ? sum[r][k] : best;
      where = better ? Bits<C>{} + static_cast<Integer>(first + k) : where;
    }
    store(score[r], best);
    std::memcpy(at[r], &where, sizeof where);
  }
}

template <class T>
void quantize_assign(const QuantizeProblem& p, int64_t group, int64_t row0, int64_t row1, const void* panels,
                     void* wide, int64_t* codes) {
  using C = Compute<T>;
  constexpr int64_t width = kQuantizeWidth<C>;
  const int64_t rows = row1 - row0;
  const Tile tile{row0, 0, static_cast<int>(rows), static_cast<int>(p.cols), true, true};
  const C* z = load_tile<T>(Input{p.z, p.rows * p.cols, 0, p.cols}, group, 0, tile, static_cast<C*>(wide));
  alignas(64) QuantizeBest<C> best;
  alignas(64) C partial[kQuantizeRows * width];
  for (int64_t i = 0; i < rows; ++i) {
    store(best.score[i], splat(static_cast<C>(-__builtin_inf())));
    std::memset(best.at[i], 0, sizeof best.at[i]);
  }
  for (int64_t q = 0; q < quantize_panels(p.codes, width); ++q) {
    const C* const panel = static_cast<const C*>(panels) + q * (p.cols + 1) * width;
    for (int64_t d = 0; d == 0 || d < p.cols; d += kQuantizeColumns) {
      const int64_t count = smaller(kQuantizeColumns, p.cols - d);
      const bool is_last = d + count == p.cols;
      int64_t i = 0;
      const auto block = [&](auto many) {
        constexpr int R = decltype(many)::value;
        C* const own = partial + i * width;
        quantize_block<R>(z + i * p.cols + d, p.cols, panel + (d + 1) * width, count, d == 0 ? panel : own,
                          d == 0 ? 0 : width, is_last ? nullptr : own, q * kQuantizeRegisters, best.score + i,
                          best.at + i);
        i += R;
      };
      while (rows - i >= kQuantizeBlock) block(std::integral_constant<int, kQuantizeBlock>{});
      if (rows - i >= 4) block(std::integral_constant<int, 4>{});
      if (rows - i >= 2) block(std::integral_constant<int, 2>{});
      if (rows - i >= 1) block(std::integral_constant<int, 1>{});
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    C most = static_cast<C>(-__builtin_inf());
    int64_t found = -1;
    for (int lane = 0; lane < lanes<C>; ++lane) {
      const C score = best.score[i][lane];
      const int64_t k = static_cast<int64_t>(best.at[i][lane]) * lanes<C> + lane;
      if (score > most || (score == most && k < found)) {
        most = score;
        found = k;
      }
    }
    codes[i] = found;
  }
}

// --- sums over the rows of a code, in float64 -----------------------------------------------------------------

// Values in float64, as a register of W / 2.
template <class T>
LK_INLINE D quantize_load(const T* p) {
  if constexpr (std::is_same<T, double>::value) {
    return load(p);
  } else if constexpr (std::is_same<T, float>::value) {
    return load_noise<double>(p, Whole{});
  } else {
    float values[W / 2];
    for (int i = 0; i < W / 2; ++i) values[i] = widen(p[i]);
    return load_noise<double>(values, Whole{});
  }
}
template <class T>
LK_INLINE double quantize_load_one(const T* p) {
  return static_cast<double>(quantize_value(*p));
}

template <class T>
inline void quantize_store(double x, T* to) {
  if constexpr (std::is_same<T, Compute<T>>::value)
    *to = static_cast<T>(x);
  else
    narrow(static_cast<float>(x), *to);
}

// Columns [col, col + width) of sum_n z_n; or, with the upstream gradient g, of 2 sum_n g_n (e - z_n).
template <class V, class T, class Load>
LK_INLINE V quantize_total(const QuantizeProblem& p, const RowsOfCode& rows, const Compute<T>* g, int64_t col,
                           Load load_from) {
  const T* z = static_cast<const T*>(p.z) + rows.group * p.rows * p.cols + col;
  V sum = {};
  if (g == nullptr) {
    for (const int64_t* n = rows.begin; n != rows.end; ++n) sum = sum + load_from(z + *n * p.cols);
    return sum;
  }
  const V e = load_from(static_cast<const T*>(p.codebook) + (rows.group * p.codes + rows.code) * p.cols + col);
  for (const int64_t* n = rows.begin; n != rows.end; ++n)
    sum = fma(e - load_from(z + *n * p.cols), static_cast<double>(g[*n]), sum);
  return sum * 2.0;
}

template <class T, class Out>
inline void quantize_totals(const QuantizeProblem& p, const RowsOfCode& rows, const Compute<T>* g, Out* out) {
  constexpr int N = 8, L = lanes<double>;
  int64_t col = 0;
  for (; col + N * L <= p.cols; col += N * L) {
    const auto sum = quantize_total<Pack<D, N>, T>(p, rows, g, col, [](const T* x) LK_INLINE_LAMBDA {
      Pack<D, N> v;
      for (int j = 0; j < N; ++j) v.at[j] = quantize_load(x + j * L);
      return v;
    });
    for (int j = 0; j < N * L; ++j) quantize_store(sum.at[j / L][j % L], out + col + j);
  }
  for (; col + L <= p.cols; col += L) {
    const D sum = quantize_total<D, T>(p, rows, g, col, [](const T* x) LK_INLINE_LAMBDA { return quantize_load(x); });
    for (int j = 0; j < L; ++j) quantize_store(sum[j], out + col + j);
  }
  for (; col < p.cols; ++col)
    quantize_store(
        quantize_total<double, T>(p, rows, g, col, [](const T* x) LK_INLINE_LAMBDA { return quantize_load_one(x); }),
        out + col);
}

template <class T>
void quantize_sum(const QuantizeProblem& p, const RowsOfCode& rows, void* out) {
  using C = Compute<T>;
  quantize_totals<T>(p, rows, nullptr, static_cast<C*>(out) + (rows.group * p.codes + rows.code) * p.cols);
}

template <class T>
void quantize_code_gradient(const QuantizeProblem& p, const RowsOfCode& rows, const QuantizeUpstream& upstream,
                            void* out) {
  const auto* g = static_cast<const Compute<T>*>(upstream.codebook_loss) + rows.group * p.rows;
  quantize_totals<T>(p, rows, g, static_cast<T*>(out) + (rows.group * p.codes + rows.code) * p.cols);
}

// --- row by row -----------------------------------------------------------------------------------------------

inline bool quantize_has_code(const QuantizeProblem& p, int64_t n) {
  return p.assigned[n] >= 0 && p.assigned[n] < p.codes;
}

// The row of the codebook that stands for row n of all groups' rows; null where none does.
template <class T>
inline const T* quantize_code_of(const QuantizeProblem& p, int64_t n) {
  if (!quantize_has_code(p, n)) return nullptr;
  return static_cast<const T*>(p.codebook) + (n / p.rows * p.codes + p.assigned[n]) * p.cols;
}

// Calls f(first column, their number, z, e) for pieces of a row; without a code e is NaN.
template <class T, class Body>
LK_INLINE void quantize_each_piece(const QuantizeProblem& p, int64_t n, const T* e, Scratch<Compute<T>>& z_buffer,
                                   Scratch<Compute<T>>& e_buffer, Body f) {
  using C = Compute<T>;
  for (int64_t col = 0; col < p.cols; col += kTile) {
    const Tile piece{0, col, 1, static_cast<int>(smaller(kTile, p.cols - col)), true, true};
    const C* const z = load_tile<T>(Input{static_cast<const T*>(p.z) + n * p.cols, 0, 0, 0}, 0, 0, piece, z_buffer.at);
    if (e == nullptr)
      for (int i = 0; i < piece.cols; ++i) e_buffer.at[i] = static_cast<C>(__builtin_nan(""));
    f(col, piece.cols, z, e == nullptr ? e_buffer.at : load_tile<T>(Input{e, 0, 0, 0}, 0, 0, piece, e_buffer.at));
  }
}

// sum (z - e)^2 over kReduceLanes lanes and a fixed tree.
template <class C>
inline C quantize_distance(const C* z, const C* e, int64_t n) {
  constexpr int parts = kReduceLanes / lanes<C>;
  Vec<C> sum[parts] = {};
  const auto add = [&](int k, Vec<C> t) { sum[k] = fma(t, t, sum[k]); };
  int64_t i = 0;
  for (; i + kReduceLanes <= n; i += kReduceLanes)
    for (int k = 0; k < parts; ++k) add(k, load(z + i + k * lanes<C>) - load(e + i + k * lanes<C>));
  for (int k = 0; k < parts && i < n; ++k, i += lanes<C>) {
    const First part{static_cast<int>(smaller(n - i, lanes<C>))};
    add(k, load(z + i, part) - load(e + i, part));
  }
  for (int half = parts / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  return sum_by_halves(sum[0]);
}

template <class T>
void quantize_forward(const QuantizeProblem& p, const QuantizeOutputs& out, int64_t row0, int64_t row1) {
  using C = Compute<T>;
  Scratch<C> z_buffer, e_buffer;
  for (int64_t n = row0; n < row1; ++n) {
    const T* const e = quantize_code_of<T>(p, n);
    double distance = 0;
    quantize_each_piece<T>(p, n, e, z_buffer, e_buffer, [&](int64_t col, int count, const C* z, const C* code) {
      distance += static_cast<double>(quantize_distance(z, code, count));
      if (out.quantized == nullptr) return;
      T* const to = static_cast<T*>(out.quantized) + n * p.cols + col;
      if (e != nullptr)
        std::memcpy(to, e + col, sizeof(T) * static_cast<size_t>(count));
      else
        for (int i = 0; i < count; ++i) quantize_store(__builtin_nan(""), to + i);
    });
    if (!quantize_has_code(p, n)) distance = __builtin_nan("");  // also where there are no columns
    if (out.commitment != nullptr) static_cast<C*>(out.commitment)[n] = static_cast<C>(distance);
    if (out.codebook_loss != nullptr) static_cast<C*>(out.codebook_loss)[n] = static_cast<C>(distance);
  }
}

// g_quantized + 2 g_commitment (z - e).
template <class T>
void quantize_row_gradients(const QuantizeProblem& p, const QuantizeUpstream& upstream, int64_t row0, int64_t row1,
                            void* out) {
  using C = Compute<T>;
  Scratch<C> z_buffer, e_buffer, result, g_buffer = {};  // zeros where `quantized` has no gradient
  for (int64_t n = row0; n < row1; ++n) {
    T* const to = static_cast<T*>(out) + n * p.cols;
    const T* const g = upstream.quantized == nullptr ? nullptr : static_cast<const T*>(upstream.quantized) + n * p.cols;
    if (upstream.commitment == nullptr) {  // the gradient passes, whatever the row
      for (int64_t i = 0; i < p.cols; ++i) to[i] = g == nullptr ? T{} : g[i];
      continue;
    }
    const C twice = C(2) * static_cast<const C*>(upstream.commitment)[n];
    quantize_each_piece<T>(
        p, n, quantize_code_of<T>(p, n), z_buffer, e_buffer, [&](int64_t col, int count, const C* z, const C* e) {
          const Tile piece{0, col, 1, count, true, true};
          const Input given{g, 0, 0, 0};
          const C* const above = g == nullptr ? g_buffer.at : load_tile<T>(given, 0, 0, piece, g_buffer.at);
          C* const at = output_tile(to + col, result.at);
          each<C>(count, [=](int64_t i, auto k) LK_INLINE_LAMBDA {
            const auto t = load(z + i, k) - load(e + i, k);
            store(at + i, fma(t, twice, load(above + i, k)), k);
          });
          finish_tile(result.at, count, to + col);
        });
  }
}

}  // namespace LK_ISA
}  // namespace lk
