"""Columns of other exponential families: features, products with natural parameters, and sums.

The features phi(x) of a tile are rows of `phi`. After them, from the next multiple of four, one row
for each column holds 1 where the column is present and 0 where it is missing. If nothing is
missing, these rows are left out and the log-partition functions are part of the constants.
"""

from __future__ import annotations

import math

from numba import njit

from latent_kernels.kernels.mixture.model import KINDS
from latent_kernels.kernels.mixture.simd import broadcast, lanes, load, multiply_add, store
from latent_kernels.kernels.mixture.tiles import INVALID, MISSING, STRIDE

BERNOULLI, POISSON, CATEGORICAL = (
    KINDS.index(kind) for kind in ("bernoulli", "poisson", "categorical")
)


@njit(nogil=True, error_model="numpy")
def read_features(X, columns, kinds, starts, first, rows, padded, phi, log_base):
    """Read phi(x), 0 where x is missing, and log h(x) [rows]; return MISSING | INVALID."""
    found = 0
    for i in range(starts[-1] * STRIDE):
        phi[i] = 0
    for r in range(rows):
        log_base[r] = 0.0
    for c in range(len(columns)):
        start, size, kind = starts[c], starts[c + 1] - starts[c], kinds[c]
        for r in range(rows):
            value = X[first + r, columns[c]]
            if value != value:
                found |= MISSING
            elif not 0 <= value < math.inf or value != math.floor(value):
                found |= INVALID
            elif kind == POISSON:
                phi[start * STRIDE + r] = value
                log_base[r] -= math.lgamma(value + 1.0)
            elif kind == BERNOULLI:
                if value > 1:
                    found |= INVALID
                phi[start * STRIDE + r] = value
            elif value < size:
                phi[(start + int(value)) * STRIDE + r] = 1
            else:
                found |= INVALID
    return found


@njit(nogil=True, error_model="numpy")
def read_observed(X, columns, first, rows, padded, phi, at):
    """Write 1 where a column is present and 0 elsewhere, into the rows of phi from `at` on."""
    for c in range(len(columns)):
        o = (at + c) * STRIDE
        for r in range(rows):
            value = X[first + r, columns[c]]
            phi[o + r] = 1 if value == value else 0
        for r in range(rows, padded):
            phi[o + r] = 0


@njit(nogil=True, error_model="numpy")
def add_products(phi, features, padded, natural, at, size, components, joint):
    """Compute joint_k += <natural_k, phi>, for four components and two registers of rows at a time.

    natural: [components / 4, size, 4], of which the features at:at + features are used.
    """
    step = lanes(phi)
    for k in range(0, components, 4):
        for g in range(0, padded, 2 * step):
            o = k * STRIDE + g
            a0, a1 = load(joint, o), load(joint, o + step)
            b0, b1 = load(joint, o + STRIDE), load(joint, o + STRIDE + step)
            c0, c1 = load(joint, o + 2 * STRIDE), load(joint, o + 2 * STRIDE + step)
            d0, d1 = load(joint, o + 3 * STRIDE), load(joint, o + 3 * STRIDE + step)
            n = k * size + 4 * at
            for i in range(g + at * STRIDE, g + (at + features) * STRIDE, STRIDE):
                x0, x1 = load(phi, i), load(phi, i + step)
                a0, a1 = (
                    multiply_add(x0, broadcast(natural, n), a0),
                    multiply_add(x1, broadcast(natural, n), a1),
                )
                b0, b1 = (
                    multiply_add(x0, broadcast(natural, n + 1), b0),
                    multiply_add(x1, broadcast(natural, n + 1), b1),
                )
                c0, c1 = (
                    multiply_add(x0, broadcast(natural, n + 2), c0),
                    multiply_add(x1, broadcast(natural, n + 2), c1),
                )
                d0, d1 = (
                    multiply_add(x0, broadcast(natural, n + 3), d0),
                    multiply_add(x1, broadcast(natural, n + 3), d1),
                )
                n += 4
            store(joint, o, a0)
            store(joint, o + step, a1)
            store(joint, o + STRIDE, b0)
            store(joint, o + STRIDE + step, b1)
            store(joint, o + 2 * STRIDE, c0)
            store(joint, o + 2 * STRIDE + step, c1)
            store(joint, o + 3 * STRIDE, d0)
            store(joint, o + 3 * STRIDE + step, d1)
