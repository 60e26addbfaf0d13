from __future__ import annotations
from numba import njit
from latent_kernels.kernels.mixture.simd import load, like, store, spread, store_sums, multiply_add, select_less, lanes
from latent_kernels.kernels.mixture.vector_math import exp, log

OPT = dict(nogil=True, error_model="numpy")


@njit(**OPT)
def pack(X, first, rows, padded, center, x, stride):
    dims = X.shape[1]
    missing = False
    for r in range(rows):
        for d in range(dims):
            v = X[first + r, d] - center[d]
            missing |= v != v
            x[d * stride + r] = v
    for d in range(dims):
        for r in range(rows, padded):
            x[d * stride + r] = 0
    return missing


@njit(**OPT)
def normalize(joint, stride, padded, K, weight, loglik):
    L = lanes(joint)
    for g in range(0, padded, L):
        top = load(joint, g)
        for k in range(1, K):
            v = load(joint, k * stride + g)
            top = select_less(top, v, v, top)
        total = like(joint, 0.0)
        for k in range(K):
            e = exp(load(joint, k * stride + g) - top)
            store(joint, k * stride + g, e)
            total = total + e
        store(loglik, g, top + log(total))
        scale = load(weight, g) / total
        for k in range(K):
            store(joint, k * stride + g, load(joint, k * stride + g) * scale)
