// What each build of kernels.cpp offers to the bindings: plain functions over pointers and sizes.
#pragma once

#include <cstdint>

namespace lk {

enum Type : int { kFloat32, kFloat64, kBFloat16, kFloat16, kTypes };

// One input of shape [groups, samples, rows, cols]; cols are contiguous, a stride of 0 repeats. Strides are in
// elements. data == nullptr stands for an input that is not given.
struct Input {
  const void* data;
  int64_t group, sample, row;
};

// Elements of a tile, the piece of the problem that stays in the first-level cache; and how many whole rows of
// `cols` columns make one. Rows come in numbers that fill registers, where that leaves a tile at all.
constexpr int64_t kTile = 1024;
static inline int64_t rows_of_tile(int64_t cols) {
  if (cols >= kTile) return 1;
  int64_t even = 16;  // rows that together end on a register's edge: 16 / gcd(16, cols)
  while (even > 1 && cols * (even / 2) % 16 == 0) even /= 2;
  const int64_t rows = kTile / cols;
  return rows >= even ? rows / even * even : rows;
}

// Which part of the problem one call works on: rows [row0, row1), columns [col0, col1) and samples
// [sample0, sample1) of one group. Where a part has several rows it has all columns.
struct Part {
  int64_t group, sample0, sample1, row0, row1, col0, col1;
};

// Logical noise tensor [samples, rows, cols] at `offset` of the stream of each group's seed.
struct Gaussian {
  int64_t groups, samples, rows, cols;
  Input mean, spread, prior_mean, prior_logvar;
  bool spread_is_scale;  // spread holds sigma instead of log sigma^2; then there is no KL and no log q
  const int64_t* seeds;  // [groups], or one with seed_stride 0
  int64_t seed_stride;
  uint64_t offset;
};

// A sum over cols: written to `out` (compute type, one per row) where a part has all columns, and otherwise to
// `partial`, so that the caller adds the parts of a row in their order, whatever the number of threads.
struct RowSums {
  void* out;
  double* partial;
  int64_t partial_stride;  // partial[row * partial_stride]
};

// Rows longer than a tile come in parts of at most as many samples, whose sums are in progress together.
constexpr int kLongRowSamples = 16;

struct GaussianOutputs {
  void* z;        // [groups, samples, rows, cols]
  RowSums kl;     // [groups, rows], or both null
  RowSums log_q;  // [groups, samples, rows], or both null
};

struct GaussianGradients {
  const void* z;      // gradient of z, [groups, samples, rows, cols], or null
  const void* kl;     // gradient of kl, [groups, rows] in the compute type, or null
  const void* log_q;  // gradient of log q, [groups, samples, rows] in the compute type, or null
  void* mean;         // the four outputs, [groups, rows, cols], each may be null
  void* spread;
  void* prior_mean;
  void* prior_logvar;
};

enum Density : int { kGaussianDensity, kBernoulliDensity };
constexpr int kMostOperands = 4;

// log N(z; mean, exp(logvar)), or the log-probability of x under logits, summed over cols. A tile of the kernels has
// these operands: z or x; mean or logits; and one or two that elementary functions make of the last input.
struct LogDensity {
  Density density;
  int64_t groups, samples, rows, cols;
  Input inputs[3];                   // z, mean, logvar; or x, logits
  bool tile_by_tile;                 // all samples of a tile before the next tile, else one sample after the other
  const void* ready[kMostOperands];  // operands of an input that is one row for all: [groups, width_of_ready]; or null
};
static inline bool one_row(const LogDensity& p, int j) { return p.inputs[j].row == 0 && p.rows != 1; }

// One row, repeated so often that it lies under a tile of whole rows; in elements of the compute type.
static inline int64_t width_of_ready(const LogDensity& p) {
  if (p.cols == 0 || p.cols > kTile) return p.cols;
  const int64_t rows = rows_of_tile(p.cols);
  return (rows < p.rows ? rows : p.rows) * p.cols;
}

struct LogDensityGradients {
  const void* log_density;  // [groups, samples, rows] in the compute type
  void* inputs[3];          // each may be null: [groups, samples, rows, cols], or summed over samples where the input's
                            // sample stride is 0
  double* row_sums[3];      // instead, of an input that is one row for all: sums of the part's columns, to be added to
};

// Samples of Bernoulli or Categorical variables over a plane of `cols` elements.
struct Discrete {
  int64_t groups, samples, cols, classes;  // classes: 0 for Bernoulli
  const void* logits;                      // [groups, cols], or [groups, cols, classes]
  bool antithetic;                         // out is [groups, 2, samples, cols]
  const int64_t* seeds;
  int64_t seed_stride;
  uint64_t offset;
};

enum Family : int { kGaussian, kBernoulli, kAntithetic, kCategorical };
enum Control : int { kNone, kLeaveOneOut, kOptimal };

// Score-function gradients; every tensor is contiguous. See kernels/score/problem.py for shapes.
struct Score {
  Family family;
  Control control;
  int64_t groups, samples, rows, cols, classes, folds;
  const void* parameters[2];
  const void* z;  // or null: drawn again from the seeds
  const int64_t* seeds;
  int64_t seed_stride;
  uint64_t offset;
  bool per_element, double_values;  // values and baseline are float64, else of the compute type
  const void* values;
  const void* baseline;   // or null
  bool baseline_sampled;  // has samples, as values have
  const double* shift;    // [groups, rows], subtracted from values; or null
  const void* upstream;   // or null for 1
  void* gradients[2];     // of the parameters
  void* variances[2];     // each may be null
};

// Elements of the categorical family whose classes fill a block of tables: as many as one tile has.
constexpr int64_t kClassBlock = 4096;
static inline int64_t elements_of_block(int64_t classes) {
  const int64_t elements = kClassBlock / classes;
  return elements < 1 ? 1 : elements < kTile ? elements : kTile;
}

// Room that one call of score_gradient or score_merge works in, in elements of the compute type: for each fold the sums
// of a tile, and some arrays of that size beside them. One register more each, as arithmetic runs over the end.
constexpr int kMostSums = 11, kBesideSums = 5;
static inline int64_t cells_of_tile(const Score& p) {
  return (p.family == kCategorical ? elements_of_block(p.classes) * p.classes : kTile) + 16;
}
static inline int64_t room_of_score(const Score& p) { return (p.folds * kMostSums + kBesideSums) * cells_of_tile(p); }

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

// Rows of scratch are longer than those of the problem, so that they end with a register.
static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
constexpr int64_t kListRoom = 16;  // elements beyond the end of a list that may be written

// The non-zero codes of a tile's rows: those of row i in [start[i], start[i + 1]), indices ascending.
struct Codes {
  int32_t* start;
  int32_t* index;
  void* value;
  void* drive;      // what the layer's step multiplied there; or null
  uint8_t* passed;  // whether the entry passed without its threshold; or null
};

// A tile of rows on its way through the layers, in scratch.
struct ListaTile {
  int64_t row0, rows;
  void* base;      // [rows, padded components]: x W + b
  void* pre;       // the same shape: what the step multiplies; where it lies after lista_layer
  void* product;   // the same shape
  void* room;      // [rows, padded components]
  void* residual;  // [rows, padded features]
  void* line;      // three lines of padded components
  bool coded;      // whether `codes` holds any
  Codes codes, next;
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
  void* room;                     // [2 rows + 1, padded components or features, the larger], and padded components
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
  void* room;          // [padded columns] of zeros; where both are sparse besides [rows, end - first + padded columns]
  void* out;           // [.., out_stride]
  int64_t out_stride;  // where both are sparse: padded columns
};

// out[f, :] += x[i, f] gradient[i, :] for first <= f < end, over padded columns.
struct DenseOuter {
  int64_t rows, first, end, columns;
  const void* x;
  int64_t x_stride;
  const void* gradient;
  void* out;
};

enum LassoAlgorithm : int { kIsta, kFista, kDescent };

// Lasso codes of rows of x. Columns of what the kernel runs over come in whole registers, `padded`, the rest zeros.
struct Lasso {
  LassoAlgorithm algorithm;
  bool positive;
  int64_t features, components, max_iter;
  double tolerance, curvature;  // at least G's largest eigenvalue; for kDescent its largest diagonal entry will do
  const void* x;                // [rows, features]
  const void* dictionary;       // [components, padded(features)]
  const void* panels;           // the same transposed, in panels: [padded(components) / 16, features, 16]
  const void* gram;             // [components, padded(components)]
  const double* alpha;          // [rows], or one with alpha_stride 0
  int64_t alpha_stride;
  const void* init;  // [rows, components], where to start; or null for zeros
  void* codes;       // [rows, components]
  void* gap;         // [rows]
};
constexpr int kLassoRows = 4;  // rows whose correlations are computed together

// Importance-weighted bounds of log_w [groups, samples, rows]: sums over samples, for each row. Few rows are `fold`ed:
// consecutive samples lie side by side as lines of `width` = fold * rows values, the last line shorter where samples
// are not a multiple of fold.
struct Bounds {
  int64_t groups, samples, rows, fold;
  const void* log_w;
  int64_t width() const { return fold * rows; }
  int64_t lines() const { return (samples + fold - 1) / fold; }
};
constexpr int64_t kBoundColumns = 512;  // of a line, that one call works on at most

// For each place of a line the largest log-weight and the sum of e^(log_w - largest), [groups, width] in the compute
// type; -kLargest and 0 where there is none above.
struct BoundSums {
  void* top;
  void* total;
};

// out = gradient e^(log_w - top) / total.
struct BoundWeights {
  const void* sums;      // top and total, [groups, 2, rows] in the compute type
  const void* gradient;  // [groups, rows] in the compute type, or null for 1
  void* out;             // of log_w's type and shape
};

struct Kernels {
  const char* name;
  int lanes;  // float32 values in a register
  void (*normal[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*uniform[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*gaussian_forward[kTypes])(const Gaussian&, const GaussianOutputs&, const Part&);
  void (*gaussian_backward[kTypes])(const Gaussian&, const GaussianGradients&, const Part&);
  void (*gaussian_path_backward[kTypes])(const Gaussian&, const void* log_q_gradient, void* z_gradient, const Part&);
  // What one row for all gives of input j in a group, as `ready`; a part; and the total of blocks of row_sums.
  void (*density_ready[kTypes])(const LogDensity&, int j, int64_t group, bool backward, void* const* operands);
  void (*density_forward[kTypes])(const LogDensity&, const RowSums&, const Part&);
  void (*density_backward[kTypes])(const LogDensity&, const LogDensityGradients&, const Part&);
  void (*density_total[kTypes])(const double* sums, int64_t blocks, int64_t stride, int64_t n, void* out);
  void (*bernoulli_sample[kTypes])(const Discrete&, void* out, const Part&);
  void (*categorical_sample[kTypes])(const Discrete&, void* out, const Part&, float* table);
  // False where z has values outside the family's support. With `partial`, [chunk, fold, sum, groups * rows * cols *
  // max(classes, 1)], only the sums of the part's samples, which score_merge adds up over chunks.
  bool (*score_gradient[kTypes])(const Score&, const Part&, void* room, void* partial);
  void (*score_merge[kTypes])(const Score&, const Part&, void* room, const void* partial, int64_t chunks);
  void (*row_means[2])(const void* values, int64_t samples, int64_t rows, int64_t row0, int64_t row1, double* out);
  // Parts have lines for samples: [sample0, sample1) of columns [col0, col1), at most kBoundColumns.
  void (*bound_sums[kTypes])(const Bounds&, const BoundSums&, const Part&);
  void (*bound_merge[2])(int64_t chunks, int64_t stride, int64_t n, void* tops, void* totals);
  void (*bound_weights[kTypes])(const Bounds&, const BoundWeights&, const Part&);
  // VIMCO's signal, times gradient [groups, rows] in the compute type, into out; fold is 1, parts have all samples.
  void (*bound_signal[kTypes])(const Bounds&, const void* gradient, void* out, const Part&);
  // For float and double. A tile begins with x W + b and z_0; a layer is a product and then soft-thresholding, from
  // which the `select` largest entries of a row are exempt; at the end the codes become dense.
  void (*lista_begin[2])(const Lista&, ListaTile&);
  void (*lista_layer[2])(const Lista&, ListaTile&, int64_t layer);
  void (*lista_shrink[2])(const Lista&, ListaTile&, int64_t layer, int64_t select);
  void (*lista_finish[2])(const Lista&, const ListaTile&, void* out);
  void (*lista_backward[2])(const Lista&, const ListaBackward&);
  void (*lista_outer[2])(const Outer&);
  void (*lista_dense_outer[2])(const DenseOuter&);
  // ln, sin(pi t), cos(pi t), exp, psi, ln(1 + e): for the tests of their errors
  void (*elementary[2])(int function, int64_t n, const void* x, void* out);
  // Codes of rows [row0, row1); rows of the Gram matrix into `gram`. `room` has room_of_lasso bytes.
  void (*lasso_encode[2])(const Lasso&, int64_t row0, int64_t row1, void* room);
  void (*lasso_gram[2])(const Lasso&, int64_t row0, int64_t row1, void* gram, void* room);
  int64_t (*room_of_lasso)(int64_t features, int64_t components);
};

// Every build in this binary that this processor can run, narrowest first.
struct Builds {
  const Kernels* list[3];
  int count;
};
const Builds& builds();

// The build in use: the widest, until select_build names another.
const Kernels& active_build();
bool select_build(const char* name);

}  // namespace lk
