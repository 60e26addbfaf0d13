// Gaussian samples, KL and log q: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// How the samples of a problem depend on each other; the numbers of kernels/gaussian/problem.py.
enum Dependence : int64_t { kIndependent, kAntithetic, kSobol };

// Logical noise tensor [drawn(), rows, cols] at `offset` of the stream of each group's seed.
struct GaussianProblem {
  Dtype dtype;
  int64_t groups, samples, rows, cols;
  Input mean;
  Input logvar, scale;  // log sigma^2 or sigma, one of them; with sigma there is no KL and no log q
  Input prior_mean, prior_logvar;
  Seeds seed;
  uint64_t offset;
  int64_t dependence;
  const void* directions;  // uint32 [bits, cols] of Sobol' points, or null

  // The number of samples whose noise is drawn: the others are their twins, with the signs of the noise flipped.
  int64_t drawn() const { return dependence == kAntithetic ? samples - samples / 2 : samples; }
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
  void* mean;         // the outputs, [groups, rows, cols], each may be null
  void* logvar;       // this or the next
  void* scale;
  void* prior_mean;
  void* prior_logvar;
};

// Pairs of Gaussians by their scales: the KL of each, or its gradients. Flat arrays of n.
struct ScaleKlProblem {
  Dtype dtype;
  int64_t n;
  const void *loc, *scale, *q_loc, *q_scale;
};

struct GaussianKernels {
  static const GaussianKernels generic, avx2, avx512;
  void (*forward[kDtypes])(const GaussianProblem&, const GaussianOutputs&, const Part&);
  void (*backward[kDtypes])(const GaussianProblem&, const GaussianGradients&, const Part&);
  void (*path_backward[kDtypes])(const GaussianProblem&, const void* log_q_gradient, void* z_gradient, const Part&);
  // For float and double; gradients [4] as the inputs, each may be null.
  void (*scale_kl[2])(const ScaleKlProblem&, void* kl, const Part&);
  void (*scale_kl_backward[2])(const ScaleKlProblem&, const void* kl_gradient, void* const* gradients, const Part&);
};

}  // namespace lk
