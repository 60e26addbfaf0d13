// The extension module latent_kernels.kernels._core: a table of contents.
#include "bindings.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.def("simd_builds", [] {
    py::list names;
    for (int i = 0; i < lk::builds().count; ++i) names.append(lk::builds().list[i]->name);
    return names;
  });
  m.def("simd_build", [] { return lk::active_build().name; });
  m.def("simd_lanes", [] { return lk::active_build().lanes; });
  m.def("select_simd_build", [](const std::string& name) { return lk::select_build(name.c_str()); });
  lk::bind_noise(m);
  lk::bind_gaussian(m);
  lk::bind_densities(m);
  lk::bind_families(m);
  lk::bind_score(m);
  lk::bind_lista(m);
  lk::bind_lasso(m);
  lk::bind_bounds(m);
}
