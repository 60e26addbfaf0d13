// Vector quantization: what the host hands to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Rows z [groups, rows, cols], each of which the nearest of the codes e [groups, codes, cols] stands for. All memory is
// contiguous.
struct QuantizeProblem {
  Dtype dtype;
  int64_t groups, rows, codes, cols;
  const void *z, *codebook;
  const int64_t* assigned;  // [groups, rows], the code of each row; -1 for none. Null where they are to be found
};

// What of a row or of a code is written; each may be null.
struct QuantizeOutputs {
  void* quantized;                   // [groups, rows, cols]
  void *commitment, *codebook_loss;  // [groups, rows] in the compute type
};
struct QuantizeUpstream {
  const void* quantized;
  const void *commitment, *codebook_loss;
};

// Rows of one code, in ascending order.
struct RowsOfCode {
  int64_t group, code;
  const int64_t *begin, *end;
};

// Rows are assigned in tiles of so many.
constexpr int64_t kQuantizeRows = 48;

struct QuantizeKernels {
  static const QuantizeKernels generic, avx2, avx512;
  // The codebook of a group as `assign` reads it, and how many elements of the compute type that has.
  int64_t (*panel_elements[kDtypes])(const QuantizeProblem&);
  void (*pack[kDtypes])(const QuantizeProblem&, int64_t group, void* panels);
  // Codes of rows [row0, row1), at most kQuantizeRows. `wide` has space for these rows in the compute type.
  void (*assign[kDtypes])(const QuantizeProblem&, int64_t group, int64_t row0, int64_t row1, const void* panels,
                          void* wide, int64_t* codes);
  // The sum of a code's rows, in the compute type; and the gradient of its row of the codebook.
  void (*sum[kDtypes])(const QuantizeProblem&, const RowsOfCode&, void* out);
  void (*code_gradient[kDtypes])(const QuantizeProblem&, const RowsOfCode&, const QuantizeUpstream&, void* out);
  // Rows [row0, row1) of all groups, one after the other.
  void (*forward[kDtypes])(const QuantizeProblem&, const QuantizeOutputs&, int64_t row0, int64_t row1);
  void (*row_gradients[kDtypes])(const QuantizeProblem&, const QuantizeUpstream&, int64_t row0, int64_t row1,
                                 void* out);
};

}  // namespace lk
