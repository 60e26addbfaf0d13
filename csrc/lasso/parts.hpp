// Distribution of the rows of a sparse coder to threads.
#pragma once

#include <algorithm>
#include <memory>

#include "host/parts.hpp"
#include "lasso/problem.hpp"

namespace lk {

// Runs f(row0, row1, workspace) for parts of the rows, which do not depend on one another. Rows take unequal time, so a
// thread gets several parts; a part has enough rows to justify its workspace of `bytes`. `work`: elements of a row.
template <class F>
void each_part_of_rows(int64_t rows, int64_t work, int threads, int64_t bytes, F f) {
  const int64_t most = 8 * kLassoRows, share = rows / (4 * std::max(threads, 1)) / kLassoRows * kLassoRows;
  const int64_t step = std::max<int64_t>(std::min(share, most), kLassoRows);
  parallel_for((rows + step - 1) / step, worthwhile_threads(threads, rows * work), [&](int64_t i) {
    const std::unique_ptr<char[]> workspace(new char[static_cast<size_t>(bytes)]);
    f(i * step, std::min((i + 1) * step, rows), workspace.get());
  });
}

}  // namespace lk
