// Noise: elements offset, offset + 1, ... of a seed's stream.
#pragma once

#include "common.hpp"

namespace lk {

struct NoiseKernels {
  static const NoiseKernels generic, avx2, avx512;
  void (*normal[kDtypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
  void (*uniform[kDtypes])(uint64_t seed, uint64_t offset, int64_t n, void* out);
};

}  // namespace lk
