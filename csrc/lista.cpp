#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "bindings.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

using Bytes = std::unique_ptr<char[]>;
Bytes room_of(int64_t bytes) { return Bytes(new char[static_cast<size_t>(std::max<int64_t>(bytes, 1))]); }

constexpr int64_t kTileRows = 64;         // codes of a tile and a block of columns of S fit in the second-level cache
constexpr int64_t kChunkRows = 512;       // rows whose dense gradients are held at a time
constexpr int64_t kBlockBytes = 1 << 19;  // of a matrix gradient, for the second-level cache

// --- codes kept for the backward pass -----------------------------------------------------------------------------

// The codes of one tile after one layer, each array as long as it needs to be.
struct KeptCodes {
  Bytes bytes;
  Codes codes{};

  void keep(const Codes& from, int64_t rows, int64_t size, bool drive, bool passed) {
    const int64_t count = from.start[rows], starts = (rows + 1) * 4;
    const int64_t values = (starts + 4 * count + 7) / 8 * 8, drives = values + size * count;
    const int64_t flags = drives + (drive ? size * count : 0);
    bytes = room_of(flags + (passed ? count : 0));
    const auto copy = [&](int64_t at, const void* data, int64_t length) {
      if (length > 0) std::memcpy(bytes.get() + at, data, static_cast<size_t>(length));
      return bytes.get() + at;
    };
    codes.start = reinterpret_cast<int32_t*>(copy(0, from.start, starts));
    codes.index = reinterpret_cast<int32_t*>(copy(starts, from.index, 4 * count));
    codes.value = copy(values, from.value, size * count);
    if (drive) codes.drive = copy(drives, from.drive, size * count);
    if (passed) codes.passed = reinterpret_cast<uint8_t*>(copy(flags, from.passed, count));
  }
  int64_t count(int64_t rows) const { return codes.start == nullptr ? 0 : codes.start[rows]; }
};

// The codes of all tiles and layers: what autograd holds between the passes.
struct Tape {
  int64_t rows, layers, tile_rows;
  bool with_drive;
  std::vector<KeptCodes> kept;  // [tiles, layers + 1]

  Tape(int64_t rows, int64_t layers, int64_t tile_rows, bool with_drive)
      : rows(rows),
        layers(layers),
        tile_rows(tile_rows),
        with_drive(with_drive),
        kept(static_cast<size_t>(tiles() * (layers + 1))) {}

  int64_t tiles() const { return (rows + tile_rows - 1) / tile_rows; }
  int64_t rows_of(int64_t tile) const { return std::min(tile_rows, rows - tile * tile_rows); }
  const KeptCodes& at(int64_t tile, int64_t layer) const {
    return kept[static_cast<size_t>(tile * (layers + 1) + layer)];
  }
  KeptCodes& at(int64_t tile, int64_t layer) { return kept[static_cast<size_t>(tile * (layers + 1) + layer)]; }
  int64_t nonzeros(int64_t layer) const {
    int64_t total = 0;
    for (int64_t t = 0; t < tiles(); ++t) total += at(t, layer).count(rows_of(t));
    return total;
  }
};

// --- forward ------------------------------------------------------------------------------------------------------

struct Call {
  Lista problem;
  const int64_t* select;  // of each layer, or null
  int type, threads;
  int64_t size() const { return type == kFloat64 ? 8 : 4; }
};

// Threads worth waking: some 50 microseconds of work for each, at a tenth of the codes.
int workers_of(const Call& call) {
  const Lista& p = call.problem;
  const double of_row =
      static_cast<double>(p.components) * static_cast<double>(p.features + (p.layers - 1) * p.components / 10);
  const double microseconds = static_cast<double>(p.rows) * of_row / 40e3;
  return static_cast<int>(std::min<double>(call.threads, std::max(microseconds / 50, 1.0)));
}

// By threads as well as by shape: no result depends on tiles. Powers of two, so that tiles fill chunks.
int64_t tile_rows_of(const Call& call) {
  const int64_t workers = workers_of(call);
  int64_t rows = kTileRows;
  while (workers > 1 && rows > 8 && call.problem.rows <= rows * workers) rows /= 2;
  return rows;
}

// Runs f(scratch, task) for all tasks, where each worker has scratch of its own.
template <class Make, class F>
void each_task(int64_t tasks, int workers, Make make, F f) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(workers, tasks), workers, [&](int64_t) {
    auto scratch = make();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) f(scratch, i);
  });
}

// Memory handed out piece by piece, each at the beginning of a cache line.
class Pieces {
 public:
  explicit Pieces(int64_t bytes) : bytes_(room_of(bytes + 64)) {
    next_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes_.get()) + 63) / 64 * 64);
  }
  void* take(int64_t bytes) {
    char* piece = next_;
    next_ += rounded(bytes);
    return piece;
  }
  static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  Bytes bytes_;
  char* next_;
};

struct TileScratch {
  Pieces pieces;
  ListaTile tile{};

  TileScratch(const Call& call, int64_t rows, bool drive, bool passed) : pieces(bytes(call, rows, drive, passed)) {
    const Lista& p = call.problem;
    const int64_t size = call.size(), n = padded(p.components), m = padded(p.features);
    tile.base = pieces.take(rows * n * size);
    tile.product = pieces.take(rows * n * size);
    tile.room = pieces.take(rows * n * size);
    tile.residual = pieces.take(rows * m * size);
    tile.line = pieces.take(3 * n * size);
    const int64_t most = rows * std::max(n, m) + kListRoom;
    for (Codes* codes : {&tile.codes, &tile.next}) {
      codes->start = static_cast<int32_t*>(pieces.take((rows + 1) * 4));
      codes->index = static_cast<int32_t*>(pieces.take(most * 4));
      codes->value = pieces.take(most * size);
      codes->drive = drive ? pieces.take(most * size) : nullptr;
      codes->passed = passed ? static_cast<uint8_t*>(pieces.take(most)) : nullptr;
    }
  }

 private:
  static int64_t bytes(const Call& call, int64_t rows, bool drive, bool passed) {
    const int64_t size = call.size(), n = padded(call.problem.components), m = padded(call.problem.features);
    const int64_t most = rows * std::max(n, m) + kListRoom;
    const int64_t lists = (rows + 1) * 4 + most * (4 + size + (drive ? size : 0) + (passed ? 1 : 0)) + 5 * 64;
    return (3 * rows * n + rows * m + 3 * n) * size + 2 * lists + 16 * 64;
  }
};

// Codes z_T of all rows; `out` or `tape` may be null.
void run_forward(const Call& call, int64_t tile_rows, void* out, Tape* tape) {
  const Lista& p = call.problem;
  const Kernels& build = active_build();
  const int type = call.type;
  const bool drive = tape != nullptr && tape->with_drive, passed = tape != nullptr && call.select != nullptr;
  const int64_t tiles = (p.rows + tile_rows - 1) / tile_rows;
  const auto make = [&] { return TileScratch(call, std::min(tile_rows, p.rows), drive, passed); };
  each_task(tiles, workers_of(call), make, [&](TileScratch& scratch, int64_t i) {
    ListaTile& tile = scratch.tile;
    tile.row0 = i * tile_rows;
    tile.rows = std::min(tile_rows, p.rows - tile.row0);
    build.lista_begin[type](p, tile);
    if (tape != nullptr && tile.coded) tape->at(i, 0).keep(tile.codes, tile.rows, call.size(), false, false);
    for (int64_t layer = 0; layer < p.layers; ++layer) {
      build.lista_layer[type](p, tile, layer);
      build.lista_shrink[type](p, tile, layer, call.select != nullptr ? call.select[layer] : 0);
      if (tape != nullptr) tape->at(i, layer + 1).keep(tile.codes, tile.rows, call.size(), drive, passed);
    }
    if (out != nullptr) build.lista_finish[type](p, tile, out);
  });
}

// --- backward -----------------------------------------------------------------------------------------------------

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
void transpose(const T* from, int64_t from_stride, int64_t row0, int64_t row1, int64_t columns, T* to,
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
      : call_(call),
        p_(call.problem),
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
  static constexpr bool wide_type = std::is_same<T, double>::value;
  static constexpr int kType = wide_type ? kFloat64 : kFloat32;

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
    const auto make = [&] { return Pieces(((2 * rows + 1) * wide + stride_) * static_cast<int64_t>(sizeof(T)) + 64); };
    each_task(tiles, workers_, make, [&](Pieces& scratch, int64_t i) { tile_gradients(first_tile_ + i, scratch); });
  }

  T* gradient(int64_t tile, int64_t layer) const {
    const auto& bytes = gradients_[static_cast<size_t>((tile - first_tile_) * (p_.layers + 1) + layer)];
    return reinterpret_cast<T*>(bytes.get());
  }

  void tile_gradients(int64_t tile, Pieces& scratch) {
    const int64_t layers = p_.layers, rows = tape_.rows_of(tile), row0 = tile * tape_.tile_rows;
    const int64_t in_chunk = row0 - first_tile_ * tape_.tile_rows;
    std::vector<Codes> codes;
    std::vector<void*> gradients;
    for (int64_t layer = 0; layer <= layers; ++layer) {
      const KeptCodes& kept = tape_.at(tile, layer);
      codes.push_back(kept.codes);
      gradients_[static_cast<size_t>((tile - first_tile_) * (layers + 1) + layer)] =
          room_of(kept.count(rows) * static_cast<int64_t>(sizeof(T)));
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
    b.room = scratch.take(0);
    active_build().lista_backward[kType](p_, b);
  }

  // --- then the matrices, block by block of their rows, samples in order

  void matrix_gradients() {
    std::vector<std::function<void(T*)>> tasks;
    if (wanted_.weight != nullptr) residual_form_ ? add_weight_columns(tasks) : add_weight(tasks);
    if (wanted_.recurrent != nullptr) add_recurrent(tasks);
    if (wanted_.dictionary != nullptr) add_dictionary(tasks);
    for (int64_t layer = 1; layer <= p_.layers; ++layer)
      if (threshold_sums_ || step_sums_) tasks.push_back([this, layer](T*) { add_thresholds_and_step(layer); });
    if (bias_sums_) tasks.push_back([this](T*) { add_bias(); });
    const int64_t most_rows = std::min(tape_.tile_rows, tape_.rows);
    const int64_t room = std::max(stride_, wide_) + (wanted_.recurrent != nullptr ? most_rows * 2 * stride_ : 0);
    const auto make = [&] { return zeros<T>(room); };
    each_task(static_cast<int64_t>(tasks.size()), workers_, make,
              [&](std::unique_ptr<T[]>& line, int64_t i) { tasks[static_cast<size_t>(i)](line.get()); });
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

  T step_of(int64_t layer) const {
    return p_.step == nullptr ? T(1) : static_cast<const T*>(p_.step)[p_.layered_step ? layer : 0];
  }

  using Tasks = std::vector<std::function<void(T*)>>;

  // S += gamma_t z_{t-1}^T g_t; layers in falling order, then rows.
  void add_recurrent(Tasks& tasks) {
    const auto of_layers = [this](int64_t from, int64_t to, int64_t first, int64_t end, T* out, T* line) {
      for (int64_t layer = to - 1; layer >= from; --layer) {
        each_tile_of_chunk([&](int64_t tile) {
          const Codes &left = tape_.at(tile, layer).codes, &right = tape_.at(tile, layer + 1).codes;
          if (left.start == nullptr) return;
          const Outer o{tape_.rows_of(tile),
                        first,
                        end,
                        n_,
                        left.start,
                        left.index,
                        left.value,
                        step_of(layer),
                        right.start,
                        right.index,
                        gradient(tile, layer + 1),
                        0,
                        line,
                        out,
                        stride_};
          active_build().lista_outer[kType](o);
        });
      }
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
      tasks.push_back([=](T*) {
        const DenseOuter o{rows,
                           first,
                           std::min(first + block, m_),
                           n_,
                           static_cast<const T*>(p_.x) + row0 * m_,
                           m_,
                           drive_gradient_.get(),
                           weight_sums_.get()};
        active_build().lista_dense_outer[kType](o);
      });
    }
  }

  // The residual form: W_t^T += gamma_t g_t^T (x - z_{t-1} D).
  void add_weight_columns(Tasks& tasks) {
    each_block(n_, m_, [&](int64_t first, int64_t end) {
      for (int64_t group = 0; group < (p_.layered_weight ? p_.layers : 1); ++group) {
        tasks.push_back([=](T* line) {
          const int64_t from = p_.layered_weight ? group : 0, to = p_.layered_weight ? group + 1 : p_.layers;
          for (int64_t layer = to - 1; layer >= from; --layer) {
            each_tile_of_chunk([&](int64_t tile) {
              const Codes& left = tape_.at(tile, layer + 1).codes;
              const Outer o{tape_.rows_of(tile),
                            first,
                            end,
                            m_,
                            left.start,
                            left.index,
                            gradient(tile, layer + 1),
                            step_of(layer),
                            nullptr,
                            nullptr,
                            of_chunk(residual_, tile, layer),
                            wide_,
                            line,
                            weight_sums_.get() + group * n_ * wide_,
                            wide_};
              active_build().lista_outer[kType](o);
            });
          }
        });
      }
    });
  }

  // D -= z_{t-1}^T (the residual's gradient).
  void add_dictionary(Tasks& tasks) {
    each_block(n_, m_, [&](int64_t first, int64_t end) {
      tasks.push_back([=](T* line) {
        for (int64_t layer = p_.layers - 1; layer >= 0; --layer) {
          each_tile_of_chunk([&](int64_t tile) {
            const Codes& left = tape_.at(tile, layer).codes;
            if (left.start == nullptr) return;
            const Outer o{tape_.rows_of(tile),
                          first,
                          end,
                          m_,
                          left.start,
                          left.index,
                          left.value,
                          -1,
                          nullptr,
                          nullptr,
                          of_chunk(residual_gradient_, tile, layer),
                          wide_,
                          line,
                          wanted_.dictionary,
                          m_};
            active_build().lista_outer[kType](o);
          });
        }
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
        double sum = 0;
        for (int32_t c = 0; c < count; ++c) sum += static_cast<double>(g[c]) * static_cast<double>(drive[c]);
        step_sums_[static_cast<size_t>(layer - 1)] += sum;
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

  const Call& call_;
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

// --- bindings -----------------------------------------------------------------------------------------------------

// What stays the same from call to call: sizes, choices and the addresses of the parameters, in the order of
// kernels/lista/problem.py without x and z_0. Whoever holds a plan keeps the parameters alive.
struct Plan {
  Lista problem{};
  std::vector<int64_t> select;
  int type;

  Plan(int type, int64_t features, int64_t components, int64_t layers, int flags,
       const std::array<uintptr_t, 6>& parameters, std::vector<int64_t> select)
      : select(std::move(select)), type(type) {
    const auto flag = [flags](int bit) { return (flags >> bit & 1) != 0; };
    Lista& p = problem;
    p.features = features;
    p.components = components;
    p.layers = layers;
    p.positive = flag(0);
    p.layered_weight = flag(1);
    p.layered_recurrent = flag(2);
    p.layered_step = flag(3);
    p.layered_threshold = flag(4);
    p.wide_threshold = flag(5);
    const void** const to[] = {&p.weight, &p.threshold, &p.bias, &p.recurrent, &p.dictionary, &p.step};
    for (size_t i = 0; i < parameters.size(); ++i) *to[i] = at(parameters[i]);
  }

  Call call(int threads, int64_t rows, uintptr_t x, uintptr_t initial) const {
    Call call{problem, select.empty() ? nullptr : select.data(), type, threads};
    call.problem.rows = rows;
    call.problem.x = at(x);
    call.problem.initial = at(initial);
    return call;
  }
};

std::unique_ptr<Tape> forward(const Plan& plan, int threads, int64_t rows, uintptr_t x, uintptr_t initial,
                              uintptr_t out, bool with_tape, bool with_drive) {
  const Call call = plan.call(threads, rows, x, initial);
  std::unique_ptr<Tape> tape;
  without_gil([&] {
    const int64_t tile_rows = tile_rows_of(call);
    if (with_tape) tape = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, with_drive);
    run_forward(call, tile_rows, at(out), tape.get());
  });
  return tape;
}

// `gradients`: addresses in the order of kernels/lista/problem.py. Without a tape that holds what they
// need the forward pass runs again.
void backward(const Plan& plan, int threads, int64_t rows, uintptr_t x, uintptr_t initial, Tape* tape,
              uintptr_t upstream, const std::array<uintptr_t, 8>& gradients) {
  const Call call = plan.call(threads, rows, x, initial);
  const auto& g = gradients;
  const Gradients wanted{at(g[0]), at(g[1]), at(g[2]), at(g[3]), at(g[4]), at(g[5]), at(g[6]), at(g[7])};
  without_gil([&] {
    std::unique_ptr<Tape> again;
    const bool drive = wanted.step != nullptr;
    const bool enough = tape != nullptr && (tape->with_drive || !drive);
    if (!enough) {
      const int64_t tile_rows = tile_rows_of(call);
      again = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, drive);
      run_forward(call, tile_rows, nullptr, again.get());
    }
    Tape& codes = enough ? *tape : *again;
    if (plan.type == kFloat64)
      Backward<double>(call, codes, at<const double>(upstream), wanted).run();
    else
      Backward<float>(call, codes, at<const float>(upstream), wanted).run();
  });
}

std::vector<int64_t> nonzeros_by_layer(const Tape& tape) {
  std::vector<int64_t> counts;
  for (int64_t layer = 0; layer <= tape.layers; ++layer) counts.push_back(tape.nonzeros(layer));
  return counts;
}

}  // namespace

void bind_lista(py::module_& m) {
  py::class_<Tape>(m, "ListaTape").def_property_readonly("nonzeros", &nonzeros_by_layer);
  py::class_<Plan>(m, "ListaPlan")
      .def(py::init<int, int64_t, int64_t, int64_t, int, const std::array<uintptr_t, 6>&, std::vector<int64_t>>())
      .def("forward", &forward)
      .def("backward", &backward);
}

}  // namespace lk
