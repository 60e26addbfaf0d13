#include "host/bind.hpp"
#include "noise/problem.hpp"

namespace lk {
namespace {

template <auto kernels>
void fill(Dtype dtype, int threads, uint64_t seed, uint64_t offset, int64_t n, void* out) {
  const auto kernel = (active<NoiseKernels>().*kernels)[dtype];
  without_gil([&] {
    parallel_for((n + kTaskElements - 1) / kTaskElements, worthwhile_threads(threads, n), [&](int64_t i) {
      const int64_t begin = i * kTaskElements;
      kernel(seed, offset + static_cast<uint64_t>(begin), std::min(kTaskElements, n - begin),
             static_cast<char*>(out) + begin * bytes_of(dtype));
    });
  });
}

}  // namespace

void bind_noise(pybind11::module_& m) {
  constexpr const char* keywords[] = {"dtype", "threads", "seed", "offset", "n", "out"};
  define<&fill<&NoiseKernels::normal>>(m, "normal", keywords);
  define<&fill<&NoiseKernels::uniform>>(m, "uniform", keywords);
}

}  // namespace lk
