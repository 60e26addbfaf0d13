// Unrolled soft-thresholding: what the host hands to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Layers of soft-thresholding over x [rows, features] and codes [rows, components]; see kernels/lista. Contiguous. What
// is not `layered` is shared by all layers.
struct Lista {
  int64_t rows, features, components, layers;
  bool positive;
  bool layered_weight, layered_recurrent, layered_step, layered_threshold;
  bool wide_threshold;  // one for each component
  const void* x;
  const void* weight;      // [layers or 1, features, components]
  const void* threshold;   // [layers or 1, components or 1]
  const void* bias;        // [components]; from here on each may be null
  const void* recurrent;   // [layers or 1, components, components]
  const void* dictionary;  // [components, features]: the residual form
  const void* step;        // [layers or 1]
  const void* initial;     // [rows, components]
};

constexpr int64_t kListSlack = 16;  // elements beyond the end of a list that may be written

// The non-zero codes of a tile's rows: those of row i in [start[i], start[i + 1]), indices ascending.
struct Codes {
  int32_t* start;
  int32_t* index;
  void* value;
  void* drive;      // what the layer's step multiplied there; or null
  uint8_t* passed;  // whether the entry passed without its threshold; or null
};

// Products of so many rows or more may copy a block of 128 columns of their matrix: their workspace has space for it.
constexpr int64_t kPackRows = 16, kPackColumns = 128;
static inline int64_t workspace_rows(int64_t rows) {
  return rows < kPackRows || rows > kPackColumns ? rows : kPackColumns;
}

// Columns of a matrix copied side by side, a panel of some registers after the other, for dense products.
constexpr int64_t kPanelColumns = 48;
struct Panels {
  void* at;
  bool whole;      // whether there is space for all columns, else for kPanelColumns of them
  const void* of;  // the matrix whose columns lie here, or null
};

// A tile of rows on its way through the layers, in scratch.
struct ListaTile {
  int64_t row0, rows;
  void* base;                       // [rows, padded components]: x W + b
  void* pre;                        // the same shape: what the step multiplies; where it lies after lista_layer
  void* product;                    // the same shape
  void* workspace;                  // [workspace_rows, the larger of padded components and features]
  void* residual;                   // [rows, padded features]
  void* line;                       // three lines of padded components
  Panels panels, recurrent_panels;  // of the matrix at hand; of S, where all layers share it
  void* out;                        // of all rows [.., components]: where the last layer's codes go, or null
  bool keep_lists;                  // whether `codes` is wanted after every layer
  bool coded;                       // whether there are codes
  bool dense;                       // whether so many of them are not 0 that `dense_codes` holds them, too
  bool dense_first;                 // the same after the first layer of the tile before
  void* dense_codes;                // [rows, padded components]
  Codes codes, next;                // lists; where `dense`, only with keep_lists
};

// The backward pass of a tile.
struct ListaBackward {
  int64_t row0, rows;
  const Codes* codes;             // [layers + 1]: of z_0 to z_T; start of the first is null without z_0
  void* const* gradient;          // [layers + 1]: of the values of those codes; that of z_T is given
  void* drive_gradient;           // [rows, padded components] of zeros, for the sum over layers of x W + b's gradient
  void* residual;                 // [layers, ..., padded features], rows of this tile; for x - z D, or null
  void* residual_gradient;        // the same for its gradient, or null
  int64_t layer_stride;           // of those two, in elements
  const void* recurrent_columns;  // S transposed [layers or 1, components, padded components], or null
  const void* weight_columns;     // W transposed [layers or 1, components, padded features], or null
  void* initial_gradient;         // [rows, components], or null
  void* x_gradient;               // [rows, features], or null
  Panels *panels, *recurrent_panels;  // of the matrix at hand; of S transposed, where all layers share it
  void* workspace;  // [workspace_rows + rows + 1, padded components or features, the larger], and padded
                    // components
};

// out[j, :] += factor left[i, j] right[i, :] for all rows i in order and first <= j < end. Right is sparse where it has
// an index, else `value` is dense [rows, stride].
struct Outer {
  int64_t rows, first, end, columns;
  const int32_t *left_start, *left_index;
  const void* left_value;
  double factor;
  const int32_t *right_start, *right_index;
  const void* right_value;
  int64_t right_stride;
  void* workspace;     // [padded columns] of zeros; where both are sparse besides a panel of `rows` and
                       // [rows, padded columns + end - first]
  void* out;           // [.., out_stride]
  int64_t out_stride;  // where both are sparse: padded columns
};

// out[f, :] += x[i, f] gradient[i, :] for first <= f < end, over padded columns.
struct DenseOuter {
  int64_t rows, first, end, columns;
  const void* x;
  int64_t x_stride;
  const void* gradient;
  void* panel;  // of `rows`
  void* out;
};

struct ListaKernels {
  static const ListaKernels generic, avx2, avx512;
  // For float and double. A tile begins with x W + b and z_0; a layer is a product and then soft-thresholding, from
  // which the `select` largest entries of a row are exempt, and which in the last layer also writes to `out`.
  void (*begin[2])(const Lista&, ListaTile&);
  void (*layer[2])(const Lista&, ListaTile&, int64_t layer);
  void (*shrink[2])(const Lista&, ListaTile&, int64_t layer, int64_t select);
  void (*backward[2])(const Lista&, const ListaBackward&);
  void (*outer[2])(const Outer&);
  void (*dense_outer[2])(const DenseOuter&);
  double (*least[2])(int64_t n, const void* x);  // the least value; infinity of none, NaN where one is not finite
};

}  // namespace lk
