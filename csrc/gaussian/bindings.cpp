#include "gaussian/problem.hpp"

#include "host/bind.hpp"

namespace lk {

template <>
struct FieldsOf<GaussianProblem> {
  using P = GaussianProblem;
  static constexpr auto list = std::make_tuple(
      Field{"dtype", &P::dtype}, Field{"groups", &P::groups}, Field{"samples", &P::samples}, Field{"rows", &P::rows},
      Field{"cols", &P::cols}, Field{"mean", &P::mean}, Field{"logvar", &P::logvar}, Field{"scale", &P::scale},
      Field{"prior_mean", &P::prior_mean}, Field{"prior_logvar", &P::prior_logvar}, Field{"seed", &P::seed},
      Field{"offset", &P::offset}, Field{"dependence", &P::dependence}, Field{"directions", &P::directions});
};

template <>
struct FieldsOf<ScaleKlProblem> {
  using P = ScaleKlProblem;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"n", &P::n}, Field{"loc", &P::loc}, Field{"scale", &P::scale},
                      Field{"q_loc", &P::q_loc}, Field{"q_scale", &P::q_scale});
};

namespace {

void forward(const GaussianProblem& p, int threads, void* z, void* kl, void* log_q) {
  // Without columns only the sums are left to write, and the KL does not depend on the number of samples.
  const int64_t samples = p.cols == 0 && log_q == nullptr ? 1 : p.drawn();
  const Cut cut(p.groups, samples, p.rows, p.cols, true, kTaskColumns);
  const auto kernel = active<GaussianKernels>().forward[p.dtype];
  PartialSums kl_sums(kl != nullptr ? p.groups * p.rows : 0, cut.col_parts);
  PartialSums log_q_sums(log_q != nullptr ? p.groups * p.samples * p.rows : 0, cut.col_parts);
  without_gil([&] {
    cut.each_part(threads, [&](const Part& part) {
      const int64_t col_part = cut.col_part(part);
      const bool with_kl = kl != nullptr && part.sample0 == 0;  // the part with the first samples computes the KL
      const RowSums none{nullptr, nullptr, 0};
      kernel(p,
             {z, with_kl ? kl_sums.target(kl, col_part) : none,
              log_q != nullptr ? log_q_sums.target(log_q, col_part) : none},
             part);
    });
  });
  if (kl != nullptr) kl_sums.finish(p.dtype, kl);
  if (log_q != nullptr) log_q_sums.finish(p.dtype, log_q);
}

void backward(const GaussianProblem& p, int threads, const void* z_gradient, const void* kl_gradient,
              const void* log_q_gradient, void* mean_gradient, void* logvar_gradient, void* scale_gradient,
              void* prior_mean_gradient, void* prior_logvar_gradient) {
  const GaussianGradients gradients{z_gradient,      kl_gradient,    log_q_gradient,      mean_gradient,
                                    logvar_gradient, scale_gradient, prior_mean_gradient, prior_logvar_gradient};
  const int64_t tiles = kTaskElements / kTile / std::max<int64_t>(p.samples, 1);
  const Cut cut(p.groups, p.samples, p.rows, p.cols, false, kTile * std::max<int64_t>(tiles, 1));
  const auto kernel = active<GaussianKernels>().backward[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, gradients, part); }); });
}

void path_backward(const GaussianProblem& p, int threads, const void* log_q_gradient, void* z_gradient) {
  const Cut cut(p.groups, p.drawn(), p.rows, p.cols, true, kTaskColumns);
  const auto kernel = active<GaussianKernels>().path_backward[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, log_q_gradient, z_gradient, part); }); });
}

void scale_kl(const ScaleKlProblem& p, int threads, void* kl) {
  const Cut cut(1, 1, 1, p.n, false, kTaskElements);
  const auto kernel = active<GaussianKernels>().scale_kl[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, kl, part); }); });
}

void scale_kl_backward(const ScaleKlProblem& p, int threads, const void* kl_gradient, void* loc_gradient,
                       void* scale_gradient, void* q_loc_gradient, void* q_scale_gradient) {
  void* const gradients[] = {loc_gradient, scale_gradient, q_loc_gradient, q_scale_gradient};
  const Cut cut(1, 1, 1, p.n, false, kTaskElements);
  const auto kernel = active<GaussianKernels>().scale_kl_backward[p.dtype];
  without_gil([&] { cut.each_part(threads, [&](const Part& part) { kernel(p, kl_gradient, gradients, part); }); });
}

}  // namespace

void bind_gaussian(pybind11::module_& m) {
  define_struct<GaussianProblem>(m, "GaussianProblem");
  define<&forward>(m, "gaussian_forward", {"threads", "z", "kl", "log_q"});
  define<&backward>(m, "gaussian_backward",
                    {"threads", "z_gradient", "kl_gradient", "log_q_gradient", "mean_gradient", "logvar_gradient",
                     "scale_gradient", "prior_mean_gradient", "prior_logvar_gradient"});
  define<&path_backward>(m, "gaussian_path_backward", {"threads", "log_q_gradient", "z_gradient"});
  define_struct<ScaleKlProblem>(m, "ScaleKlProblem");
  define<&scale_kl>(m, "gaussian_scale_kl", {"threads", "kl"});
  define<&scale_kl_backward>(
      m, "gaussian_scale_kl_backward",
      {"threads", "kl_gradient", "loc_gradient", "scale_gradient", "q_loc_gradient", "q_scale_gradient"});
}

}  // namespace lk
