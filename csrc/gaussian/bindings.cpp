#include "gaussian/problem.hpp"
#include "host/bind.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

// The arguments that forward and backward share, in the order in which Python passes them.
#define LK_GAUSSIAN_PARAMETERS                                                                                   \
  int type, int threads, int64_t groups, int64_t samples, int64_t rows, int64_t cols, uintptr_t mean,            \
      int64_t mean_group, int64_t mean_row, uintptr_t spread, int64_t spread_group, int64_t spread_row,          \
      uintptr_t prior_mean, int64_t prior_mean_group, int64_t prior_mean_row, uintptr_t prior_logvar,            \
      int64_t prior_logvar_group, int64_t prior_logvar_row, bool spread_is_scale, int64_t seed, uintptr_t seeds, \
      int64_t seed_stride, uint64_t offset
#define LK_GAUSSIAN_PROBLEM                                     \
  {groups,                                                      \
   samples,                                                     \
   rows,                                                        \
   cols,                                                        \
   {at(mean), mean_group, 0, mean_row},                         \
   {at(spread), spread_group, 0, spread_row},                   \
   {at(prior_mean), prior_mean_group, 0, prior_mean_row},       \
   {at(prior_logvar), prior_logvar_group, 0, prior_logvar_row}, \
   spread_is_scale,                                             \
   seeds != 0 ? at<const int64_t>(seeds) : &seed,               \
   seeds != 0 ? seed_stride : 0,                                \
   offset}

void forward(LK_GAUSSIAN_PARAMETERS, uintptr_t z, uintptr_t kl, uintptr_t log_q) {
  const Gaussian problem = LK_GAUSSIAN_PROBLEM;
  const Cut cut(groups, samples, rows, cols, true, kTaskColumns);
  const auto kernel = active<GaussianKernels>().forward[type];
  PartialSums kl_sums(kl != 0 ? groups * rows : 0, cut.col_parts);
  PartialSums log_q_sums(log_q != 0 ? groups * samples * rows : 0, cut.col_parts);
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      int64_t col_part;
      const Part part = cut.part(i, col_part);
      const bool with_kl = kl != 0 && part.sample0 == 0;  // the part with the first samples brings the KL
      const RowSums none{nullptr, nullptr, 0};
      kernel(problem,
             {at(z), with_kl ? kl_sums.target(at(kl), col_part) : none,
              log_q != 0 ? log_q_sums.target(at(log_q), col_part) : none},
             part);
    });
  });
  if (kl != 0) kl_sums.finish(type, at(kl));
  if (log_q != 0) log_q_sums.finish(type, at(log_q));
}

void backward(LK_GAUSSIAN_PARAMETERS, uintptr_t z, uintptr_t kl, uintptr_t log_q, uintptr_t d_mean, uintptr_t d_spread,
              uintptr_t d_prior_mean, uintptr_t d_prior_logvar) {
  const Gaussian problem = LK_GAUSSIAN_PROBLEM;
  const GaussianGradients gradients{at(z),        at(kl),           at(log_q),         at(d_mean),
                                    at(d_spread), at(d_prior_mean), at(d_prior_logvar)};
  const int64_t tiles = kTaskElements / (kTile * std::max<int64_t>(samples, 1));
  const Cut cut(groups, samples, rows, cols, false, kTile * std::max<int64_t>(tiles, 1));
  const auto kernel = active<GaussianKernels>().backward[type];
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      int64_t col_part;
      kernel(problem, gradients, cut.part(i, col_part));
    });
  });
}

void path_backward(int type, int threads, int64_t groups, int64_t samples, int64_t rows, int64_t cols, uintptr_t logvar,
                   int64_t logvar_group, int64_t logvar_row, int64_t seed, uintptr_t seeds, int64_t seed_stride,
                   uint64_t offset, uintptr_t log_q_gradient, uintptr_t z_gradient) {
  const Input absent{nullptr, 0, 0, 0};
  const Gaussian problem{groups,
                         samples,
                         rows,
                         cols,
                         absent,
                         {at(logvar), logvar_group, 0, logvar_row},
                         absent,
                         absent,
                         false,
                         seeds != 0 ? at<const int64_t>(seeds) : &seed,
                         seeds != 0 ? seed_stride : 0,
                         offset};
  const Cut cut(groups, samples, rows, cols, true, kTaskColumns);
  const auto kernel = active<GaussianKernels>().path_backward[type];
  const int workers = worthwhile_threads(threads, cut.elements());
  without_gil([&] {
    parallel_for(cut.parts(), workers, [&](int64_t i) {
      int64_t col_part;
      kernel(problem, at(log_q_gradient), at(z_gradient), cut.part(i, col_part));
    });
  });
}
}  // namespace

void bind_gaussian(py::module_& m) {
  m.def("gaussian_forward", &forward);
  m.def("gaussian_backward", &backward);
  m.def("gaussian_path_backward", &path_backward);
}

}  // namespace lk
