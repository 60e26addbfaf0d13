// One build of every kernel, for the instruction set that LK_ISA names (see CMakeLists.txt).
#include "kernels.hpp"

#include "bounds.hpp"
#include "densities.hpp"
#include "gaussian.hpp"
#include "lasso.hpp"
#include "lista_backward.hpp"
#include "score.hpp"

namespace lk {
namespace LK_ISA {
namespace {

template <class T, Substream substream>
void fill(uint64_t seed, uint64_t offset, int64_t n, void* out) {
  using C = Compute<T>;
  alignas(64) float room[noise_room(kTile)];
  Scratch<C> work;
  T* to = static_cast<T*>(out);
  for (int64_t i = 0; i < n; i += kTile) {
    const int count = static_cast<int>(n - i < kTile ? n - i : kTile);
    const uint64_t e = offset + static_cast<uint64_t>(i);
    if constexpr (std::is_same<T, float>::value) {
      if (e % 4 == 0 && count % kStep == 0) {
        noise_tile<substream>(seed, e, count, to + i);
        continue;
      }
    }
    const float* eps = noise_tile<substream>(seed, e, count, room);
    C* at = output_tile(to + i, work.at);
    each<C>(count, [&](int64_t j, auto k) { store(at + j, load_noise<C>(eps + j, k), k); });
    finish_tile(work.at, count, to + i);
  }
}

template <class T>
void elementary(int function, int64_t n, const void* argument, void* out) {
  const T* from = static_cast<const T*>(argument);
  T* to = static_cast<T*>(out);
  each<T>(n, [&](int64_t i, auto k) {
    const auto x = load(from + i, k);
    auto y = x, unused = x;
    if constexpr (std::is_same<T, float>::value) {
      if (function == 0) y = ln(x);
      if (function == 1) sin_cos_pi(x, y, unused);
      if (function == 2) sin_cos_pi(x, unused, y);
    }
    if (function == 3) y = exp(x);
    if (function == 4) psi_expm1(x, y, unused);
    if (function == 5) y = log1p(x);
    store(to + i, y, k);
  });
}

// One function for each Type, in that order.
#define LK_TYPES(function) {function<float>, function<double>, function<BFloat16>, function<Float16>}
#define LK_FLOATS(function) {function<float>, function<double>}
template <class T>
constexpr auto normal = fill<T, kNormals>;
template <class T>
constexpr auto uniform = fill<T, kUniforms>;

#define LK_TEXT(x) #x
#define LK_NAME(x) LK_TEXT(x)

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    LK_NAME(LK_ISA),
    W,
    LK_TYPES(normal),
    LK_TYPES(uniform),
    LK_TYPES(gaussian_forward),
    LK_TYPES(gaussian_backward),
    LK_TYPES(gaussian_path_backward),
    LK_TYPES(density_ready),
    LK_TYPES(density_forward),
    LK_TYPES(density_backward),
    LK_TYPES(density_total),
    LK_TYPES(bernoulli_sample),
    LK_TYPES(categorical_sample),
    LK_TYPES(score_gradient),
    LK_TYPES(score_merge),
    LK_FLOATS(row_means),
    LK_TYPES(bound_sums),
    LK_FLOATS(bound_merge),
    LK_TYPES(bound_weights),
    LK_TYPES(bound_signal),
    LK_FLOATS(lista_begin),
    LK_FLOATS(lista_layer),
    LK_FLOATS(lista_shrink),
    LK_FLOATS(lista_finish),
    LK_FLOATS(lista_backward),
    LK_FLOATS(lista_outer),
    LK_FLOATS(lista_dense_outer),
    LK_FLOATS(elementary),
    LK_FLOATS(lasso_encode),
    LK_FLOATS(lasso_gram),
    room_of_lasso,
};

}  // namespace LK_ISA
}  // namespace lk
