// The extension module latent_kernels.kernels._core: a table of contents.
#include "host/bind.hpp"

namespace py = pybind11;

namespace lk {
void bind_noise(py::module_& m);
void bind_gaussian(py::module_& m);
void bind_densities(py::module_& m);
void bind_families(py::module_& m);
void bind_relaxed(py::module_& m);
void bind_score(py::module_& m);
void bind_bounds(py::module_& m);
void bind_lista(py::module_& m);
void bind_lasso(py::module_& m);
void bind_omp(py::module_& m);
void bind_vector_quantize(py::module_& m);
}  // namespace lk

PYBIND11_MODULE(_core, m) {
  m.def("simd_builds", [] {
    py::list names;
    for (int i = 0; i < lk::runnable_builds(); ++i) names.append(lk::kBuilds[i].name);
    return names;
  });
  m.def("simd_build", [] { return lk::kBuilds[lk::active_build()].name; });
  m.def("simd_lanes", [] { return lk::kBuilds[lk::active_build()].lanes; });
  m.def("select_simd_build", [](const std::string& name) { return lk::select_build(name.c_str()); });
  lk::define_enum<lk::Dtype>(m, "Dtype", {"float32", "float64", "bfloat16", "float16"});
  lk::bind_noise(m);
  lk::bind_gaussian(m);
  lk::bind_densities(m);
  lk::bind_families(m);
  lk::bind_relaxed(m);
  lk::bind_score(m);
  lk::bind_bounds(m);
  lk::bind_lista(m);
  lk::bind_lasso(m);
  lk::bind_omp(m);
  lk::bind_vector_quantize(m);
}
