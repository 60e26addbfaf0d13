// Gaussian samples, KL and log q: what the host hands to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Logical noise tensor [samples, rows, cols] at `offset` of the stream of each group's seed.
struct Gaussian {
  int64_t groups, samples, rows, cols;
  Input mean, spread, prior_mean, prior_logvar;
  bool spread_is_scale;  // spread holds sigma instead of log sigma^2; then there is no KL and no log q
  const int64_t* seeds;  // [groups], or one with seed_stride 0
  int64_t seed_stride;
  uint64_t offset;
};

struct GaussianOutputs {
  void* z;        // [groups, samples, rows, cols]
  RowSums kl;     // [groups, rows], or both null
  RowSums log_q;  // [groups, samples, rows], or both null
};

struct GaussianGradients {
  const void* z;      // gradient of z, [groups, samples, rows, cols], or null
  const void* kl;     // gradient of kl, [groups, rows] in the compute type, or null
  const void* log_q;  // gradient of log q, [groups, samples, rows] in the compute type, or null
  void* mean;         // the four outputs, [groups, rows, cols], each may be null
  void* spread;
  void* prior_mean;
  void* prior_logvar;
};

struct GaussianKernels {
  static const GaussianKernels baseline, avx2, avx512;
  void (*forward[kTypes])(const Gaussian&, const GaussianOutputs&, const Part&);
  void (*backward[kTypes])(const Gaussian&, const GaussianGradients&, const Part&);
  void (*path_backward[kTypes])(const Gaussian&, const void* log_q_gradient, void* z_gradient, const Part&);
};

}  // namespace lk
