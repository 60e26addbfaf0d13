// The elementary functions of the kernels, for the tests of their errors: tests/elementary.py compiles this for each
// instruction set.
#include "simd/math.hpp"

namespace lk {
namespace LK_ISA {

template <class T>
void elementary(int function, int64_t n, const T* from, T* to) {
  each<T>(n, [&](int64_t i, auto k) {
    const auto x = load(from + i, k);
    auto y = x, unused = x;
    if constexpr (sizeof(T) == 4) {
      if (function == 0) y = ln(x);
      if (function == 1) sin_cos_pi(x, y, unused);
      if (function == 2) sin_cos_pi(x, unused, y);
    }
    if (function == 3) y = log1p(x);
    store(to + i, y, k);
  });
}

}  // namespace LK_ISA
}  // namespace lk

extern "C" void elementary_float32(int function, int64_t n, const float* from, float* to) {
  lk::LK_ISA::elementary(function, n, from, to);
}
extern "C" void elementary_float64(int function, int64_t n, const double* from, double* to) {
  lk::LK_ISA::elementary(function, n, from, to);
}
