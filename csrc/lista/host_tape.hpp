// The forward pass of unrolled soft-thresholding over all rows, and the codes that it keeps for the backward pass.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>

#include "host/bind.hpp"
#include "lista/problem.hpp"

namespace lk {
namespace lista {

using Bytes = std::unique_ptr<char[]>;
inline Bytes allocate(int64_t bytes) { return Bytes(new char[static_cast<size_t>(std::max<int64_t>(bytes, 1))]); }

constexpr int64_t kTileRows = 128;        // codes of a tile and a block of columns of S fit in the second-level cache
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
    bytes = allocate(flags + (passed ? count : 0));
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
  Dtype dtype;
  int threads;
  int64_t size() const { return bytes_of(dtype); }
};

// Threads worth waking: some 50 microseconds of work for each, at a tenth of the codes.
inline int workers_of(const Call& call) {
  const Lista& p = call.problem;
  const double of_row =
      static_cast<double>(p.components) * static_cast<double>(p.features + (p.layers - 1) * p.components / 10);
  const double microseconds = static_cast<double>(p.rows) * of_row / 40e3;
  return static_cast<int>(std::min<double>(call.threads, std::max(microseconds / 50, 1.0)));
}

// By threads as well as by shape: no result depends on tiles. Powers of two, so that tiles fill chunks.
inline int64_t tile_rows_of(const Call& call) {
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
  explicit Pieces(int64_t bytes) : bytes_(allocate(bytes + 64)) {
    next_ = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(bytes_.get()) + 63) / 64 * 64);
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

// Whether one S serves several layers: then it is copied into panels once.
inline bool shares_recurrent(const Lista& p) { return p.recurrent != nullptr && !p.layered_recurrent; }

struct TileScratch {
  Pieces pieces;
  ListaTile tile{};

  TileScratch(const Call& call, int64_t rows, bool drive, bool passed) : pieces(bytes(call, rows, drive, passed)) {
    const Lista& p = call.problem;
    const int64_t size = call.size(), n = padded(p.components), m = padded(p.features), wide = std::max(n, m);
    tile.base = pieces.take(rows * n * size);
    tile.product = pieces.take(rows * n * size);
    tile.dense_codes = pieces.take(rows * n * size);
    tile.workspace = pieces.take(workspace_rows(rows) * wide * size);
    tile.residual = pieces.take(rows * m * size);
    tile.line = pieces.take(3 * n * size);
    if (rows >= kPackRows) {
      tile.panels = {pieces.take(kPanelColumns * wide * size), false, nullptr};
      if (shares_recurrent(p)) tile.recurrent_panels = {pieces.take(n * n * size), true, nullptr};
    }
    const int64_t most = rows * wide + kListSlack;
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
    const Lista& p = call.problem;
    const int64_t size = call.size(), n = padded(p.components), m = padded(p.features), wide = std::max(n, m);
    const int64_t most = rows * wide + kListSlack;
    const int64_t lists = (rows + 1) * 4 + most * (4 + size + (drive ? size : 0) + (passed ? 1 : 0)) + 5 * 64;
    const int64_t panels = rows >= kPackRows ? kPanelColumns * wide + (shares_recurrent(p) ? n * n : 0) : 0;
    return (3 * rows * n + workspace_rows(rows) * wide + rows * m + 3 * n + panels) * size + 2 * lists + 16 * 64;
  }
};

// Codes z_T of all rows; `out` or `tape` may be null.
inline void run_forward(const Call& call, int64_t tile_rows, void* out, Tape* tape) {
  const Lista& p = call.problem;
  const ListaKernels& kernels = active<ListaKernels>();
  const Dtype dtype = call.dtype;
  const bool drive = tape != nullptr && tape->with_drive, passed = tape != nullptr && call.select != nullptr;
  const int64_t tiles = (p.rows + tile_rows - 1) / tile_rows;
  const auto make = [&] { return TileScratch(call, std::min(tile_rows, p.rows), drive, passed); };
  each_task(tiles, workers_of(call), make, [&](TileScratch& scratch, int64_t i) {
    ListaTile& tile = scratch.tile;
    tile.out = out;
    tile.keep_lists = tape != nullptr;
    tile.row0 = i * tile_rows;
    tile.rows = std::min(tile_rows, p.rows - tile.row0);
    kernels.begin[dtype](p, tile);
    if (tape != nullptr && tile.coded) tape->at(i, 0).keep(tile.codes, tile.rows, call.size(), false, false);
    for (int64_t layer = 0; layer < p.layers; ++layer) {
      kernels.layer[dtype](p, tile, layer);
      kernels.shrink[dtype](p, tile, layer, call.select != nullptr ? call.select[layer] : 0);
      if (tape != nullptr) tape->at(i, layer + 1).keep(tile.codes, tile.rows, call.size(), drive, passed);
    }
  });
}

}  // namespace lista
}  // namespace lk
