// Cutting a problem into tasks on the host, and adding up their results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common.hpp"
#include "host/threads.hpp"

namespace lk {

// The least number of elements for one task: some ten microseconds of work, well above the cost of dispatching it.
constexpr int64_t kTaskElements = 1 << 14;
static_assert(kTaskElements / kTile <= kLongRowSamples, "the sums of long rows have their places");
// The number of elements that make it worth waking another thread, which takes some 25 to 50 microseconds.
constexpr int64_t kThreadElements = 1 << 16;
inline int worthwhile_threads(int threads, int64_t elements) {
  return static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(elements / kThreadElements, 1)));
}

// Columns of one task. A fixed number: the sums of a longer row are added up over these blocks.
constexpr int64_t kTaskColumns = 1 << 15;

// Cuts [groups, samples, rows, cols] into parts; the cut depends on the shape alone. Parts have whole tiles of rows, so
// that none ends in a small tile; samples are cut only where a single tile of rows is too much work.
struct Cut {
  int64_t groups, samples, rows, cols;
  int64_t sample_step, row_step, col_step;
  int64_t sample_parts, row_parts, col_parts;

  Cut(int64_t groups, int64_t samples, int64_t rows, int64_t cols, bool cut_samples, int64_t columns)
      : groups(groups), samples(samples), rows(rows), cols(cols) {
    const int64_t repeats = std::max<int64_t>(samples, 1);
    col_step = std::max<int64_t>(std::min(cols, columns), 1);
    const int64_t tile_rows = col_step < cols ? 1 : rows_of_tile(col_step);
    const int64_t per_tile = tile_rows * col_step;
    row_step = col_step < cols ? 1 : tile_rows * std::max<int64_t>(kTaskElements / per_tile / repeats, 1);
    row_step = std::max<int64_t>(std::min(row_step, rows), 1);
    sample_step = cut_samples ? std::max<int64_t>(kTaskElements / (row_step * col_step), 1) : repeats;
    sample_parts = (repeats + sample_step - 1) / sample_step;
    row_parts = (rows + row_step - 1) / row_step;
    col_parts = std::max<int64_t>((cols + col_step - 1) / col_step, 1);
  }

  int64_t elements() const { return groups * std::max<int64_t>(samples, 1) * rows * cols; }

  int64_t parts() const { return groups * sample_parts * row_parts * col_parts; }

  Part part(int64_t i) const {
    Part p;
    p.col0 = i % col_parts * col_step;
    p.col1 = std::min(p.col0 + col_step, cols);
    i /= col_parts;
    p.row0 = i % row_parts * row_step;
    p.row1 = std::min(p.row0 + row_step, rows);
    i /= row_parts;
    p.sample0 = i % sample_parts * sample_step;
    p.sample1 = std::min(p.sample0 + sample_step, samples);
    p.group = i / sample_parts;
    return p;
  }

  int64_t col_part(const Part& p) const { return p.col0 / col_step; }

  // Calls f(part) for each part, on as many threads as are worth waking.
  template <class F>
  void each_part(int threads, F&& f) const {
    parallel_for(parts(), worthwhile_threads(threads, elements()), [&](int64_t i) { f(part(i)); });
  }
};

// The sums of the blocks of rows that are cut, and their total in the order of the blocks.
struct PartialSums {
  std::vector<double> of_blocks;
  int64_t blocks;

  PartialSums(int64_t sums, int64_t blocks)
      : of_blocks(blocks > 1 ? static_cast<size_t>(sums * blocks) : 0), blocks(blocks) {}

  RowSums target(void* out, int64_t block) {
    if (blocks == 1) return {out, nullptr, 0};
    return {nullptr, of_blocks.data() + block, blocks};
  }

  void finish(Dtype dtype, void* out) const {
    if (blocks == 1) return;
    const int64_t sums = static_cast<int64_t>(of_blocks.size()) / blocks;
    for (int64_t i = 0; i < sums; ++i) {
      double total = 0;
      for (int64_t b = 0; b < blocks; ++b) total += of_blocks[static_cast<size_t>(i * blocks + b)];
      if (dtype == kFloat64)
        static_cast<double*>(out)[i] = total;
      else
        static_cast<float*>(out)[i] = static_cast<float>(total);
    }
  }
};

}  // namespace lk
