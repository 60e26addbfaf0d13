// The backward pass of unrolled soft-thresholding over all rows: chunk by chunk, first the codes and then the matrices.
#pragma once

#include <cmath>
#include <functional>
#include <type_traits>

#include "lista/host_tape.hpp"

namespace lk {
namespace lista {

// Where gradients go, in the shapes of the inputs; null where one is not wanted.
struct Gradients {
  void *x, *weight, *threshold, *bias, *recurrent, *dictionary, *step, *initial;
};

template <class T>
std::unique_ptr<T[]> zeros(int64_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(std::max<int64_t>(n, 1))]());
}

// to[j, i] = from[i, j] for rows [row0, row1), in blocks that the first-level cache holds.
template <class T>
inline void transpose(const T* from, int64_t from_stride, int64_t row0, int64_t row1, int64_t columns, T* to,
                      int64_t to_stride) {
  constexpr int64_t block = 16;
  for (int64_t i0 = row0; i0 < row1; i0 += block)
    for (int64_t j0 = 0; j0 < columns; j0 += block)
      for (int64_t j = j0; j < std::min(j0 + block, columns); ++j)
        for (int64_t i = i0; i < std::min(i0 + block, row1); ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

template <class T>
class Backward {
 public:
  Backward(const Call& call, Tape& tape, const T* upstream, const Gradients& wanted)
      : p_(call.problem),
        tape_(tape),
        upstream_(upstream),
        wanted_(wanted),
        m_(p_.features),
        n_(p_.components),
        stride_(padded(n_)),
        wide_(padded(m_)),
        residual_form_(p_.dictionary != nullptr),
        workers_(workers_of(call)) {}

  void run() {
    make_columns();
    make_sums();
    const int64_t chunk_tiles = kChunkRows / tape_.tile_rows;
    for (int64_t tile = 0; tile < tape_.tiles(); tile += chunk_tiles) {
      first_tile_ = tile;
      end_tile_ = std::min(tile + chunk_tiles, tape_.tiles());
      codes_gradients();
      matrix_gradients();
    }
    write_sums();
  }

 private:
  static constexpr Dtype kDtype = std::is_same<T, double>::value ? kFloat64 : kFloat32;
  using Tasks = std::vector<std::function<void(T*)>>;

  // Transposed matrices, [layers or 1, components, ...].
  std::unique_ptr<T[]> columns_of(const void* matrix, bool layered, int64_t rows, int64_t columns) const {
    const int64_t count = layered ? p_.layers : 1, stride = padded(rows);
    std::unique_ptr<T[]> to(new T[static_cast<size_t>(count * columns * stride)]);
    constexpr int64_t block = 64;
    const int64_t blocks = (rows + block - 1) / block;
    parallel_for(count * blocks, workers_, [&](int64_t i) {
      const int64_t layer = i / blocks, row = i % blocks * block;
      transpose(static_cast<const T*>(matrix) + layer * rows * columns, columns, row, std::min(row + block, rows),
                columns, to.get() + layer * columns * stride, stride);
    });
    return to;
  }

  // Where lists are so long that pairs of non-zeros cost more than a transposed matrix and products with it.
  bool wants_columns(int64_t rows, int64_t columns, bool layered, bool pairs_of_all) const {
    const double count = static_cast<double>(tape_.rows * p_.layers);
    double nonzeros = 0;
    for (int64_t layer = 1; layer <= p_.layers; ++layer) nonzeros += static_cast<double>(tape_.nonzeros(layer));
    const double of_row = nonzeros / std::max(count, 1.0);
    const double registers = static_cast<double>(rows) * sizeof(T) / 64;
    const double pairs = nonzeros * (pairs_of_all ? static_cast<double>(rows) : of_row) * 0.7;
    const double products = nonzeros * registers * 0.5;
    const double making = static_cast<double>(rows * columns * (layered ? p_.layers : 1)) * 0.7;
    return pairs > products + making;
  }

  void make_columns() {
    if (residual_form_) {
      if (wants_columns(m_, n_, p_.layered_weight, true))
        weight_columns_ = columns_of(p_.weight, p_.layered_weight, m_, n_);
      return;
    }
    if (wanted_.x != nullptr && wants_columns(m_, n_, false, true))
      weight_columns_ = columns_of(p_.weight, false, m_, n_);
    if (p_.recurrent != nullptr && wants_columns(n_, n_, p_.layered_recurrent, wanted_.initial != nullptr))
      recurrent_columns_ = columns_of(p_.recurrent, p_.layered_recurrent, n_, n_);
  }

  void make_sums() {
    const int64_t chunk = std::min(tape_.rows, kChunkRows);
    if (residual_form_) {
      if (wanted_.weight != nullptr) {
        weight_sums_ = zeros<T>((p_.layered_weight ? p_.layers : 1) * n_ * wide_);
        residual_.reset(new T[static_cast<size_t>(p_.layers * chunk * wide_)]);
      }
      if (wanted_.dictionary != nullptr) {
        residual_gradient_.reset(new T[static_cast<size_t>(p_.layers * chunk * wide_)]);
        zero_out(wanted_.dictionary, n_ * m_);
      }
    } else {
      drive_gradient_.reset(new T[static_cast<size_t>(chunk * stride_)]);
      if (wanted_.weight != nullptr) weight_sums_ = zeros<T>(m_ * stride_);
      if (wanted_.bias != nullptr) bias_sums_ = zeros<double>(n_);
      if (wanted_.recurrent != nullptr) make_recurrent_sums();
    }
    chunk_rows_ = chunk;
    if (wanted_.threshold != nullptr) threshold_sums_ = zeros<double>(p_.layers * n_);
    if (wanted_.step != nullptr) step_sums_ = zeros<double>(p_.layers);
    if (wanted_.x != nullptr && residual_form_) zero_out(wanted_.x, tape_.rows * m_);
  }

  // In place where rows of the gradient end with a register.
  void make_recurrent_sums() {
    const int64_t elements = recurrent_layers() * n_ * stride_;
    if (n_ != stride_) padded_recurrent_sums_ = zeros<T>(elements);
    recurrent_sums_ = n_ != stride_ ? padded_recurrent_sums_.get() : static_cast<T*>(wanted_.recurrent);
    if (n_ == stride_) zero_out(recurrent_sums_, elements);
  }
  int64_t recurrent_layers() const { return p_.layered_recurrent ? p_.layers : 1; }

  static void zero_out(void* to, int64_t elements) { std::memset(to, 0, static_cast<size_t>(elements) * sizeof(T)); }

  // --- first the codes, tile by tile

  void codes_gradients() {
    const int64_t tiles = end_tile_ - first_tile_, layers = p_.layers;
    gradients_.clear();
    gradients_.resize(static_cast<size_t>(tiles * (layers + 1)));
    const int64_t wide = std::max(stride_, wide_), rows = std::min(tape_.tile_rows, tape_.rows);
    const int64_t elements = (workspace_rows(rows) + rows + 1) * wide + stride_;
    const auto make = [&] {
      return TileWorkspace(elements, wide, recurrent_columns_ && shares_recurrent(p_) ? n_ : 0);
    };
    each_task(tiles, workers_, make,
              [&](TileWorkspace& scratch, int64_t i) { tile_gradients(first_tile_ + i, scratch); });
  }

  // Scratch memory of one worker thread.
  struct TileWorkspace {
    Pieces pieces;
    void* workspace;
    Panels panels, recurrent_panels;

    TileWorkspace(int64_t elements, int64_t wide, int64_t recurrent)
        : pieces(static_cast<int64_t>(sizeof(T)) * (elements + kPanelColumns * wide + recurrent * padded(recurrent)) +
                 3 * 64),
          workspace(pieces.take(elements * static_cast<int64_t>(sizeof(T)))),
          panels{pieces.take(kPanelColumns * wide * static_cast<int64_t>(sizeof(T))), false, nullptr},
          recurrent_panels{pieces.take(recurrent * padded(recurrent) * static_cast<int64_t>(sizeof(T))), true,
                           nullptr} {}
  };

  T* gradient(int64_t tile, int64_t layer) const {
    const auto& bytes = gradients_[static_cast<size_t>((tile - first_tile_) * (p_.layers + 1) + layer)];
    return reinterpret_cast<T*>(bytes.get());
  }

  void tile_gradients(int64_t tile, TileWorkspace& scratch) {
    const int64_t layers = p_.layers, rows = tape_.rows_of(tile), row0 = tile * tape_.tile_rows;
    const int64_t in_chunk = row0 - first_tile_ * tape_.tile_rows;
    std::vector<Codes> codes;
    std::vector<void*> gradients;
    for (int64_t layer = 0; layer <= layers; ++layer) {
      const KeptCodes& kept = tape_.at(tile, layer);
      codes.push_back(kept.codes);
      gradients_[static_cast<size_t>((tile - first_tile_) * (layers + 1) + layer)] =
          allocate(kept.count(rows) * static_cast<int64_t>(sizeof(T)));
      gradients.push_back(gradient(tile, layer));
    }
    const Codes& last = codes.back();
    for (int64_t i = 0; i < rows; ++i)
      for (int32_t c = last.start[i]; c < last.start[i + 1]; ++c)
        gradient(tile, layers)[c] = upstream_[(row0 + i) * n_ + last.index[c]];
    ListaBackward b{};
    b.row0 = row0;
    b.rows = rows;
    b.codes = codes.data();
    b.gradient = gradients.data();
    if (drive_gradient_) {
      T* drive = drive_gradient_.get() + in_chunk * stride_;
      zero_out(drive, rows * stride_);
      b.drive_gradient = drive;
    }
    if (residual_) b.residual = residual_.get() + in_chunk * wide_;
    if (residual_gradient_) b.residual_gradient = residual_gradient_.get() + in_chunk * wide_;
    b.layer_stride = chunk_rows_ * wide_;
    b.recurrent_columns = recurrent_columns_.get();
    b.weight_columns = weight_columns_.get();
    if (wanted_.initial != nullptr) b.initial_gradient = static_cast<T*>(wanted_.initial) + row0 * n_;
    if (wanted_.x != nullptr) b.x_gradient = static_cast<T*>(wanted_.x) + row0 * m_;
    b.panels = &scratch.panels;
    b.recurrent_panels = &scratch.recurrent_panels;
    b.workspace = scratch.workspace;
    active<ListaKernels>().backward[kDtype](p_, b);
  }

  // --- then the matrices, block by block of their rows, samples in order

  void matrix_gradients() {
    Tasks tasks;
    if (wanted_.weight != nullptr) residual_form_ ? add_weight_columns(tasks) : add_weight(tasks);
    if (wanted_.recurrent != nullptr) add_recurrent(tasks);
    if (wanted_.dictionary != nullptr) add_dictionary(tasks);
    for (int64_t layer = 1; layer <= p_.layers; ++layer)
      if (threshold_sums_ || step_sums_) tasks.push_back([this, layer](T*) { add_thresholds_and_step(layer); });
    if (bias_sums_) tasks.push_back([this](T*) { add_bias(); });
    const int64_t most_rows = std::min(tape_.tile_rows, tape_.rows);
    const int64_t line = std::max(stride_, wide_);
    const int64_t elements =
        line + kPanelColumns * chunk_rows_ + (wanted_.recurrent != nullptr ? most_rows * 2 * stride_ : 0);
    const auto make = [&] {
      Pieces pieces(elements * static_cast<int64_t>(sizeof(T)));
      zero_out(static_cast<T*>(pieces.take(0)), line);
      return pieces;
    };
    each_task(static_cast<int64_t>(tasks.size()), workers_, make,
              [&](Pieces& scratch, int64_t i) { tasks[static_cast<size_t>(i)](static_cast<T*>(scratch.take(0))); });
  }

  // Calls f(first, end) for blocks of `rows` rows of `columns` elements each.
  template <class F>
  void each_block(int64_t rows, int64_t columns, F f) const {
    const int64_t by_size = rows * columns * static_cast<int64_t>(sizeof(T)) / kBlockBytes + 1;
    const int64_t blocks = std::min(std::max<int64_t>(by_size, workers_ > 1 ? 2 * workers_ : 1), rows);
    for (int64_t b = 0; b < blocks; ++b) f(b * rows / blocks, (b + 1) * rows / blocks);
  }

  // Calls f(tile) for the chunk's tiles, in order.
  template <class F>
  void each_tile_of_chunk(F f) const {
    for (int64_t tile = first_tile_; tile < end_tile_; ++tile) f(tile);
  }

  // Calls f(layer, tile) for layers [from, to) in falling order and all tiles of the chunk: the order of every sum
  // here.
  template <class F>
  void each_layer_and_tile(int64_t from, int64_t to, F f) const {
    for (int64_t layer = to - 1; layer >= from; --layer) each_tile_of_chunk([&](int64_t tile) { f(layer, tile); });
  }

  // What gradients of matrices share: rows [first, end) of a sum of outer products over a tile's rows, with lists on
  // the left.
  Outer outer_of(int64_t tile, const Codes& left, const void* values, double factor, int64_t first, int64_t end,
                 T* workspace) const {
    Outer o{};
    o.rows = tape_.rows_of(tile);
    o.first = first;
    o.end = end;
    o.left_start = left.start;
    o.left_index = left.index;
    o.left_value = values;
    o.factor = factor;
    o.workspace = workspace;
    return o;
  }
  void add_sparse(Outer o, const Codes& right, const T* values, T* out) const {
    o.columns = n_;
    o.right_start = right.start;
    o.right_index = right.index;
    o.right_value = values;
    o.out = out;
    o.out_stride = stride_;
    active<ListaKernels>().outer[kDtype](o);
  }
  void add_dense(Outer o, const T* right, void* out, int64_t out_stride) const {
    o.columns = m_;
    o.right_value = right;
    o.right_stride = wide_;
    o.out = out;
    o.out_stride = out_stride;
    active<ListaKernels>().outer[kDtype](o);
  }

  T step_of(int64_t layer) const {
    return p_.step == nullptr ? T(1) : static_cast<const T*>(p_.step)[p_.layered_step ? layer : 0];
  }

  // S += gamma_t z_{t-1}^T g_t.
  void add_recurrent(Tasks& tasks) {
    const auto of_layers = [this](int64_t from, int64_t to, int64_t first, int64_t end, T* out, T* line) {
      each_layer_and_tile(from, to, [&](int64_t layer, int64_t tile) {
        const Codes& left = tape_.at(tile, layer).codes;
        if (left.start == nullptr) return;
        add_sparse(outer_of(tile, left, left.value, step_of(layer), first, end, line), tape_.at(tile, layer + 1).codes,
                   gradient(tile, layer + 1), out);
      });
    };
    each_block(n_, n_, [&](int64_t first, int64_t end) {
      T* out = recurrent_sums_;
      if (!p_.layered_recurrent) {
        tasks.push_back([=](T* line) { of_layers(0, p_.layers, first, end, out, line); });
        return;
      }
      for (int64_t layer = 0; layer < p_.layers; ++layer)
        tasks.push_back([=](T* line) { of_layers(layer, layer + 1, first, end, out + layer * n_ * stride_, line); });
    });
  }

  // W += x^T (the drive's gradient).
  void add_weight(Tasks& tasks) {
    const int64_t row0 = first_tile_ * tape_.tile_rows, rows = std::min(end_tile_ * tape_.tile_rows, tape_.rows) - row0;
    constexpr int64_t block = 16;
    for (int64_t first = 0; first < m_; first += block) {
      tasks.push_back([=](T* line) {
        const DenseOuter o{rows,
                           first,
                           std::min(first + block, m_),
                           n_,
                           static_cast<const T*>(p_.x) + row0 * m_,
                           m_,
                           drive_gradient_.get(),
                           line + std::max(stride_, wide_),
                           weight_sums_.get()};
        active<ListaKernels>().dense_outer[kDtype](o);
      });
    }
  }

  // The residual form: W_t^T += gamma_t g_t^T (x - z_{t-1} D).
  void add_weight_columns(Tasks& tasks) {
    each_block(n_, m_, [&](int64_t first, int64_t end) {
      for (int64_t group = 0; group < (p_.layered_weight ? p_.layers : 1); ++group) {
        tasks.push_back([=](T* line) {
          const int64_t from = p_.layered_weight ? group : 0, to = p_.layered_weight ? group + 1 : p_.layers;
          T* out = weight_sums_.get() + group * n_ * wide_;
          each_layer_and_tile(from, to, [&](int64_t layer, int64_t tile) {
            const Codes& left = tape_.at(tile, layer + 1).codes;
            add_dense(outer_of(tile, left, gradient(tile, layer + 1), step_of(layer), first, end, line),
                      of_chunk(residual_, tile, layer), out, wide_);
          });
        });
      }
    });
  }

  // D -= z_{t-1}^T (the residual's gradient).
  void add_dictionary(Tasks& tasks) {
    each_block(n_, m_, [&](int64_t first, int64_t end) {
      tasks.push_back([=](T* line) {
        each_layer_and_tile(0, p_.layers, [&](int64_t layer, int64_t tile) {
          const Codes& left = tape_.at(tile, layer).codes;
          if (left.start == nullptr) return;
          add_dense(outer_of(tile, left, left.value, -1, first, end, line), of_chunk(residual_gradient_, tile, layer),
                    wanted_.dictionary, m_);
        });
      });
    });
  }

  const T* of_chunk(const std::unique_ptr<T[]>& rows, int64_t tile, int64_t layer) const {
    return rows.get() + (layer * chunk_rows_ + (tile - first_tile_) * tape_.tile_rows) * wide_;
  }

  void add_thresholds_and_step(int64_t layer) {
    double* sums = threshold_sums_ ? threshold_sums_.get() + (layer - 1) * n_ : nullptr;
    each_tile_of_chunk([&](int64_t tile) {
      const Codes& codes = tape_.at(tile, layer).codes;
      const T *value = static_cast<const T*>(codes.value), *drive = static_cast<const T*>(codes.drive);
      const T* g = gradient(tile, layer);
      const int32_t count = codes.start[tape_.rows_of(tile)];
      if (sums != nullptr) {
        for (int32_t c = 0; c < count; ++c)
          if (codes.passed == nullptr || codes.passed[c] == 0)
            sums[codes.index[c]] -= static_cast<double>(g[c] * std::copysign(T(1), value[c]));
      }
      if (step_sums_) {
        double& sum = step_sums_[static_cast<size_t>(layer - 1)];  // element by element, whatever the tiles
        for (int32_t c = 0; c < count; ++c) sum += static_cast<double>(g[c]) * static_cast<double>(drive[c]);
      }
    });
  }

  void add_bias() {
    const int64_t row0 = first_tile_ * tape_.tile_rows, rows = std::min(end_tile_ * tape_.tile_rows, tape_.rows) - row0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n_; ++j)
        bias_sums_[static_cast<size_t>(j)] += drive_gradient_[static_cast<size_t>(i * stride_ + j)];
  }

  // --- what was summed elsewhere than in place

  void write_sums() {
    if (wanted_.weight != nullptr) write_weight();
    if (padded_recurrent_sums_)
      for (int64_t j = 0; j < recurrent_layers() * n_; ++j)
        std::copy_n(recurrent_sums_ + j * stride_, n_, static_cast<T*>(wanted_.recurrent) + j * n_);
    if (bias_sums_) std::copy_n(bias_sums_.get(), n_, static_cast<T*>(wanted_.bias));
    if (step_sums_) write_shared(step_sums_.get(), 1, p_.layered_step, true, static_cast<T*>(wanted_.step));
    if (threshold_sums_)
      write_shared(threshold_sums_.get(), n_, p_.layered_threshold, p_.wide_threshold,
                   static_cast<T*>(wanted_.threshold));
  }

  void write_weight() {
    T* out = static_cast<T*>(wanted_.weight);
    if (!residual_form_) {
      for (int64_t f = 0; f < m_; ++f) std::copy_n(weight_sums_.get() + f * stride_, n_, out + f * n_);
      return;
    }
    for (int64_t layer = 0; layer < (p_.layered_weight ? p_.layers : 1); ++layer)
      transpose(weight_sums_.get() + layer * n_ * wide_, wide_, 0, n_, m_, out + layer * m_ * n_, n_);
  }

  // sums [layers, columns] -> [layers or 1, columns or 1].
  void write_shared(const double* sums, int64_t columns, bool layered, bool wide, T* out) const {
    const int64_t out_layers = layered ? p_.layers : 1, out_columns = wide ? columns : 1;
    const std::unique_ptr<double[]> total = zeros<double>(out_layers * out_columns);
    for (int64_t layer = 0; layer < p_.layers; ++layer)
      for (int64_t j = 0; j < columns; ++j)
        total[static_cast<size_t>((layered ? layer : 0) * out_columns + (wide ? j : 0))] += sums[layer * columns + j];
    for (int64_t i = 0; i < out_layers * out_columns; ++i) out[i] = static_cast<T>(total[static_cast<size_t>(i)]);
  }

  const Lista& p_;
  Tape& tape_;
  const T* upstream_;
  const Gradients wanted_;
  const int64_t m_, n_, stride_, wide_;
  const bool residual_form_;
  const int workers_;
  int64_t chunk_rows_ = 0, first_tile_ = 0, end_tile_ = 0;
  std::unique_ptr<T[]> recurrent_columns_, weight_columns_;
  std::unique_ptr<T[]> drive_gradient_, residual_, residual_gradient_;  // of the chunk's rows
  std::unique_ptr<T[]> weight_sums_, padded_recurrent_sums_;
  T* recurrent_sums_ = nullptr;  // [layers or 1, components, padded components]
  std::unique_ptr<double[]> bias_sums_, threshold_sums_, step_sums_;
  std::vector<Bytes> gradients_;  // of the chunk: [tiles, layers + 1], aligned with the tape's lists
};

}  // namespace lista
}  // namespace lk
