#include "densities/problem.hpp"

#include "host/bind.hpp"

namespace lk {

template <>
struct FieldsOf<DensityProblem> {
  using P = DensityProblem;
  static constexpr auto list = std::make_tuple(
      Field{"density", &P::density}, Field{"dtype", &P::dtype}, Field{"groups", &P::groups},
      Field{"samples", &P::samples}, Field{"rows", &P::rows}, Field{"cols", &P::cols}, Field{"inputs", &P::inputs});
};

namespace {

// The gradient of a single row is summed over at most so many blocks of rows and samples, and each has at least so many
// elements: by shape alone, so that bits do not depend on threads.
constexpr int64_t kMostBlocks = 64, kBlockElements = 1 << 16;

int inputs_of(const DensityProblem& p) { return p.density == kGaussianDensity ? 3 : 2; }
bool shared_by_samples(const DensityProblem& p, int j) {
  return p.inputs[j].sample == 0 && p.samples != 1 && !one_row(p, j);
}

// Makes the operands of inputs that are one row for all, and keeps them in memory.
class Precomputed {
 public:
  Precomputed(DensityProblem& p, bool backward) {
    const int64_t bytes = p.groups * width_of_precomputed(p) * compute_bytes_of(p.dtype);
    for (int j = 0; j < inputs_of(p); ++j) {
      if (!one_row(p, j)) continue;
      const bool last = j + 1 == inputs_of(p);
      for (int k = j; k < (last ? kMostOperands : j + 1); ++k) {
        storage_[k].resize(static_cast<size_t>(bytes));
        p.precomputed[k] = operands_[k] = storage_[k].data();
      }
      for (int64_t group = 0; p.rows > 0 && group < p.groups; ++group)
        active<DensityKernels>().precompute[p.dtype](p, j, group, backward, operands_);
    }
  }

 private:
  std::vector<char> storage_[kMostOperands];
  void* operands_[kMostOperands] = {};
};

// Parts of consecutive rows of few samples, as they lie in memory.
Cut rows_first(const DensityProblem& p) {
  Cut cut(p.groups, 1, p.rows, p.cols, true, kTaskColumns);
  cut.samples = p.samples;
  cut.sample_step = std::max<int64_t>(kTaskElements / (cut.row_step * cut.col_step), 1);
  cut.sample_parts = (std::max<int64_t>(p.samples, 1) + cut.sample_step - 1) / cut.sample_step;
  return cut;
}

// Parts with all samples.
Cut samples_together(const DensityProblem& p) {
  const int64_t tiles = kTaskElements / kTile / std::max<int64_t>(p.samples, 1);
  return Cut(p.groups, p.samples, p.rows, p.cols, false, kTile * std::max<int64_t>(tiles, 1));
}

int64_t blocks_of(const Cut& cut) { return cut.sample_parts * cut.row_parts; }

// Joins parts to blocks.
void coarsen(Cut& cut) {
  const int64_t samples = std::max<int64_t>(cut.samples, 1);
  const int64_t block = cut.sample_step * cut.row_step * cut.col_step;
  const int64_t join =
      std::max((blocks_of(cut) + kMostBlocks - 1) / kMostBlocks, kBlockElements / std::max<int64_t>(block, 1));
  cut.sample_step = std::min(cut.sample_step * std::max<int64_t>(join, 1), samples);
  cut.sample_parts = (samples + cut.sample_step - 1) / cut.sample_step;
  if (cut.sample_parts > 1 || cut.rows == 0) return;
  const int64_t more = std::max((cut.row_parts + kMostBlocks - 1) / kMostBlocks,
                                kBlockElements / std::max<int64_t>(samples * cut.row_step * cut.col_step, 1));
  cut.row_step = std::min(cut.row_step * std::max<int64_t>(more, 1), cut.rows);
  cut.row_parts = (cut.rows + cut.row_step - 1) / cut.row_step;
}

void forward(const DensityProblem& given, int threads, void* out) {
  DensityProblem p = given;
  // Where samples share what elementary functions are taken of, those serve all samples of a tile.
  p.tile_by_tile = shared_by_samples(p, inputs_of(p) - 1);
  const Cut cut = p.tile_by_tile ? Cut(p.groups, p.samples, p.rows, p.cols, true, kTaskColumns) : rows_first(p);
  const auto kernel = active<DensityKernels>().forward[p.dtype];
  PartialSums sums(p.groups * p.samples * p.rows, cut.col_parts);
  without_gil([&] {
    const Precomputed precomputed(p, false);
    cut.each_part(threads, [&](const Part& part) { kernel(p, sums.target(out, cut.col_part(part)), part); });
  });
  sums.finish(p.dtype, out);
}

// `input_gradients`: in the order of the inputs.
void backward(const DensityProblem& given, int threads, const void* gradient, void* const (&input_gradients)[3]) {
  DensityProblem p = given;
  const int inputs = inputs_of(p);
  const auto to_one_row = [&](int j) { return input_gradients[j] != nullptr && one_row(p, j); };
  bool single = false;
  p.tile_by_tile = shared_by_samples(p, inputs - 1);
  for (int j = 0; j < inputs; ++j) {
    single |= to_one_row(j);
    p.tile_by_tile |= input_gradients[j] != nullptr && shared_by_samples(p, j);
  }
  Cut cut = p.tile_by_tile ? samples_together(p) : rows_first(p);
  if (single) coarsen(cut);
  const int64_t blocks = blocks_of(cut);
  const DensityKernels& kernels = active<DensityKernels>();
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    const Precomputed precomputed(p, true);
    std::vector<double> sums[3];
    for (int j = 0; j < inputs; ++j)
      if (to_one_row(j)) sums[j].resize(static_cast<size_t>(p.groups * blocks * p.cols));
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      const Part part = cut.part(i);
      DensityGradients gradients{gradient, {}, {}};
      for (int j = 0; j < inputs; ++j) {
        if (to_one_row(j))
          gradients.row_sums[j] = sums[j].data() + i / cut.col_parts * p.cols + part.col0;
        else
          gradients.inputs[j] = input_gradients[j];
      }
      kernels.backward[p.dtype](p, gradients, part);
    });
    for (int j = 0; j < inputs; ++j)
      for (int64_t group = 0; to_one_row(j) && group < p.groups; ++group)
        kernels.total[p.dtype](sums[j].data() + group * blocks * p.cols, blocks, p.cols, p.cols,
                               static_cast<char*>(input_gradients[j]) + group * p.cols * bytes_of(p.dtype));
  });
}

}  // namespace

void bind_densities(pybind11::module_& m) {
  define_enum<Density>(m, "Density", {"gaussian", "bernoulli"});
  define_struct<DensityProblem>(m, "DensityProblem");
  define<&forward>(m, "densities_forward", {"threads", "out"});
  define<&backward>(m, "densities_backward", {"threads", "gradient", "input_gradients"});
}

}  // namespace lk
