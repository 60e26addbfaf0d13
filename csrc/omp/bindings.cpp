#include "host/bind.hpp"
#include "lasso/parts.hpp"
#include "omp/problem.hpp"

namespace lk {

template <>
struct FieldsOf<OmpProblem> {
  using P = OmpProblem;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"rows", &P::rows}, Field{"features", &P::features},
                      Field{"components", &P::components}, Field{"most", &P::most}, Field{"tolerance", &P::tolerance},
                      Field{"x", &P::x}, Field{"panels", &P::panels}, Field{"gram", &P::gram});
};

namespace {

void encode(const OmpProblem& given, int threads, void* codes) {
  OmpProblem p = given;
  p.codes = codes;
  const OmpKernels& kernels = active<OmpKernels>();
  const auto kernel = kernels.encode[p.dtype];
  without_gil([&] {
    each_part_of_rows(p.rows, (p.features + p.most) * p.components, threads,
                      kernels.workspace(p.features, p.components, p.most),
                      [&](int64_t row0, int64_t row1, void* workspace) { kernel(p, row0, row1, workspace); });
  });
}

}  // namespace

void bind_omp(pybind11::module_& m) {
  define_struct<OmpProblem>(m, "OmpProblem");
  define<&encode>(m, "omp_encode", {"threads", "codes"});
}

}  // namespace lk
