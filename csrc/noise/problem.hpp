// Noise: elements offset, offset + 1, ... of a seed's stream.
#pragma once

#include "common.hpp"

namespace lk {

struct NoiseKernels {
  static const NoiseKernels baseline, avx2, avx512;
  void (*normal[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*uniform[kTypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  // ln, sin(pi t), cos(pi t), exp, psi, ln(1 + e): for the tests of their errors
  void (*elementary[2])(int function, int64_t n, const void* x, void* out);
};

}  // namespace lk
