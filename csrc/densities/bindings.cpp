#include "densities/problem.hpp"
#include "host/bind.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

// The gradient of a single row is summed over at most so many blocks of rows and samples, and each has at least so many
// elements: by shape alone, so that bits do not depend on threads.
constexpr int64_t kMostBlocks = 64, kBlockElements = 1 << 16;

// The arguments that forward and backward share, in the order in which Python passes them.
#define LK_DENSITY_PARAMETERS                                                                                       \
  int type, int threads, int density, int64_t groups, int64_t samples, int64_t rows, int64_t cols, uintptr_t first, \
      int64_t first_group, int64_t first_sample, int64_t first_row, uintptr_t second, int64_t second_group,         \
      int64_t second_sample, int64_t second_row, uintptr_t third, int64_t third_group, int64_t third_sample,        \
      int64_t third_row
#define LK_DENSITY_PROBLEM                                      \
  {                                                             \
    static_cast<Density>(density), groups, samples, rows, cols, \
        {{at(first), first_group, first_sample, first_row},     \
         {at(second), second_group, second_sample, second_row}, \
         {at(third), third_group, third_sample, third_row}},    \
        false, {}                                               \
  }

int inputs_of(const LogDensity& p) { return p.density == kGaussianDensity ? 3 : 2; }
bool shared_by_samples(const LogDensity& p, int j) {
  return p.inputs[j].sample == 0 && p.samples != 1 && !one_row(p, j);
}

// Makes the operands of inputs that are one row for all, and keeps them in memory.
class Ready {
 public:
  Ready(LogDensity& p, int type, bool backward) {
    const int64_t bytes = p.groups * width_of_ready(p) * (type == kFloat64 ? 8 : 4);
    for (int j = 0; j < inputs_of(p); ++j) {
      if (!one_row(p, j)) continue;
      const bool last = j + 1 == inputs_of(p);
      for (int k = j; k < (last ? kMostOperands : j + 1); ++k) {
        room_[k].resize(static_cast<size_t>(bytes));
        p.ready[k] = operands_[k] = room_[k].data();
      }
      for (int64_t group = 0; p.rows > 0 && group < p.groups; ++group)
        active<DensityKernels>().ready[type](p, j, group, backward, operands_);
    }
  }

 private:
  std::vector<char> room_[kMostOperands];
  void* operands_[kMostOperands] = {};
};

// Parts of consecutive rows of few samples, as they lie in memory.
Cut rows_first(const LogDensity& p) {
  Cut cut(p.groups, 1, p.rows, p.cols, true, kTaskColumns);
  cut.samples = p.samples;
  cut.sample_step = std::max<int64_t>(kTaskElements / (cut.row_step * cut.col_step), 1);
  cut.sample_parts = (std::max<int64_t>(p.samples, 1) + cut.sample_step - 1) / cut.sample_step;
  return cut;
}

// Parts with all samples.
Cut samples_together(const LogDensity& p) {
  const int64_t tiles = kTaskElements / (kTile * std::max<int64_t>(p.samples, 1));
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

void forward(LK_DENSITY_PARAMETERS, uintptr_t out) {
  LogDensity problem = LK_DENSITY_PROBLEM;
  // Where samples share what elementary functions are taken of, those serve all samples of a tile.
  problem.tile_by_tile = shared_by_samples(problem, inputs_of(problem) - 1);
  const Cut cut = problem.tile_by_tile ? Cut(groups, samples, rows, cols, true, kTaskColumns) : rows_first(problem);
  const auto kernel = active<DensityKernels>().forward[type];
  PartialSums sums(groups * samples * rows, cut.col_parts);
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    const Ready ready(problem, type, false);
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      int64_t col_part;
      const Part part = cut.part(i, col_part);
      kernel(problem, sums.target(at(out), col_part), part);
    });
  });
  sums.finish(type, at(out));
}

void backward(LK_DENSITY_PARAMETERS, uintptr_t gradient, uintptr_t d_first, uintptr_t d_second, uintptr_t d_third) {
  LogDensity problem = LK_DENSITY_PROBLEM;
  void* const outputs[3] = {at(d_first), at(d_second), at(d_third)};
  const int inputs = inputs_of(problem);
  bool single = false;
  problem.tile_by_tile = shared_by_samples(problem, inputs - 1);
  for (int j = 0; j < inputs; ++j) {
    single |= outputs[j] != nullptr && one_row(problem, j);
    problem.tile_by_tile |= outputs[j] != nullptr && shared_by_samples(problem, j);
  }
  Cut cut = problem.tile_by_tile ? samples_together(problem) : rows_first(problem);
  if (single) coarsen(cut);
  const int64_t blocks = blocks_of(cut);
  const DensityKernels& kernels = active<DensityKernels>();
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    const Ready ready(problem, type, true);
    std::vector<double> sums[3];
    for (int j = 0; j < inputs; ++j)
      if (outputs[j] != nullptr && one_row(problem, j)) sums[j].resize(static_cast<size_t>(groups * blocks * cols));
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      int64_t col_part;
      const Part part = cut.part(i, col_part);
      LogDensityGradients gradients{at(gradient), {}, {}};
      for (int j = 0; j < inputs; ++j) {
        const bool to_rows = outputs[j] != nullptr && one_row(problem, j);
        if (to_rows)
          gradients.row_sums[j] = sums[j].data() + i / cut.col_parts * cols + part.col0;
        else
          gradients.inputs[j] = outputs[j];
      }
      kernels.backward[type](problem, gradients, part);
    });
    const int64_t bytes = type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2;
    for (int j = 0; j < inputs; ++j)
      for (int64_t group = 0; outputs[j] != nullptr && one_row(problem, j) && group < groups; ++group)
        kernels.total[type](sums[j].data() + group * blocks * cols, blocks, cols, cols,
                            static_cast<char*>(outputs[j]) + group * cols * bytes);
  });
}

}  // namespace

void bind_densities(py::module_& m) {
  m.def("densities_forward", &forward);
  m.def("densities_backward", &backward);
}

}  // namespace lk
