#include "noise/kernel.hpp"
#include "noise/problem.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {
namespace {

template <class T, Noise kind>
void fill(uint64_t seed, uint64_t offset, int64_t n, void* out) {
  using C = Compute<T>;
  alignas(64) float buffer[noise_length(kTile)];
  Scratch<C> work;
  T* to = static_cast<T*>(out);
  for (int64_t i = 0; i < n; i += kTile) {
    const int count = static_cast<int>(n - i < kTile ? n - i : kTile);
    const uint64_t e = offset + static_cast<uint64_t>(i);
    if constexpr (std::is_same<T, float>::value) {
      if (e % 4 == 0 && count % kStep == 0) {
        noise_tile<kind>(seed, e, count, to + i);
        continue;
      }
    }
    const float* eps = noise_tile<kind>(seed, e, count, buffer);
    C* at = output_tile(to + i, work.at);
    each<C>(count, [&](int64_t j, auto k) { store(at + j, load_noise<C>(eps + j, k), k); });
    finish_tile(work.at, count, to + i);
  }
}

template <class T>
constexpr auto normal = fill<T, kNormals>;
template <class T>
constexpr auto uniform = fill<T, kUniforms>;

}  // namespace
}  // namespace LK_ISA

const NoiseKernels NoiseKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::normal),
    LK_DTYPES(LK_ISA::uniform),
};

}  // namespace lk
