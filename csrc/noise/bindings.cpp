#include "host/bind.hpp"
#include "noise/problem.hpp"

namespace py = pybind11;

namespace lk {
namespace {

using Fill = void (*const (&)[kTypes])(uint64_t, uint64_t, int64_t, void*);

void fill(Fill fills, int type, int threads, uint64_t seed, uint64_t offset, int64_t n, std::uintptr_t out) {
  static constexpr int64_t bytes[kTypes] = {4, 8, 2, 2};
  without_gil([&] {
    parallel_for((n + kTaskElements - 1) / kTaskElements, worthwhile_threads(threads, n), [&](int64_t i) {
      const int64_t begin = i * kTaskElements;
      fills[type](seed, offset + static_cast<uint64_t>(begin), std::min(kTaskElements, n - begin),
                  at<char>(out) + begin * bytes[type]);
    });
  });
}

}  // namespace

void bind_noise(py::module_& m) {
  m.def("normal", [](int type, int threads, uint64_t seed, uint64_t offset, int64_t n, std::uintptr_t out) {
    fill(active<NoiseKernels>().normal, type, threads, seed, offset, n, out);
  });
  m.def("uniform", [](int type, int threads, uint64_t seed, uint64_t offset, int64_t n, std::uintptr_t out) {
    fill(active<NoiseKernels>().uniform, type, threads, seed, offset, n, out);
  });
  m.def("elementary", [](int type, int function, int64_t n, std::uintptr_t x, std::uintptr_t out) {
    active<NoiseKernels>().elementary[type](function, n, at<const void>(x), at(out));
  });
}

}  // namespace lk
