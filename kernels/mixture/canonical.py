"""Columns of other exponential families: features, products with natural parameters, and sums.

The features phi(x) of a tile are rows of `phi`. After them, from the next multiple of four, one row
for each column holds 1 where the column is present and 0 where it is missing. If nothing is
missing, these rows are left out and the log-partition functions are part of the constants.
"""

from __future__ import annotations

import math
import sys

from numba import njit

from latent_kernels.kernels.mixture.model import KINDS
from latent_kernels.kernels.mixture.simd import broadcast, lanes, load, multiply_add, store
from latent_kernels.kernels.mixture.tiles import INVALID, MISSING, STRIDE

BERNOULLI, POISSON, CATEGORICAL = (
    KINDS.index(kind) for kind in ("bernoulli", "poisson", "categorical")
)
LARGEST = sys.float_info.max  # infinity is no count
INTEGERS = 2.0**52  # from here on every float64 is one


@njit(nogil=True, error_model="numpy")
def _read_categories(X, column, first, rows, size, at, phi):
    """Set the rows of phi from `at` on to 1 at a row's category; return MISSING | INVALID."""
    for i in range(at, at + size * STRIDE):
        phi[i] = 0
    found = 0
    for r in range(rows):
        value = X[first + r, column]
        if 0 <= value < size and value == int(value):
            phi[at + int(value) * STRIDE + r] = 1
        else:
            found |= MISSING if value != value else INVALID
    return found


@njit(nogil=True, error_model="numpy")
def _read_counts(X, column, first, rows, most, at, phi):
    """Set a row of phi to the values, integers from 0 to `most`; return MISSING | INVALID."""
    for r in range(rows):
        phi[at + r] = X[first + r, column]
    missing = invalid = False
    for r in range(at, at + rows):  # has no branch, so that LLVM takes many rows at a time
        value = phi[r]
        here = value == value
        # Adding 2^52 rounds a lesser number to an integer; greater ones are integers.
        fraction = ((value + INTEGERS) - INTEGERS != value) & (value < INTEGERS)
        missing |= not here
        invalid |= here & ((value < 0) | (value > most) | fraction)
        phi[r] = value if here else 0.0
    return (MISSING if missing else 0) | (INVALID if invalid else 0)


@njit(nogil=True, error_model="numpy")
def read_features(X, columns, kinds, starts, first, rows, padded, phi, log_base):
    """Read phi(x), 0 where x is missing, and log h(x) [rows]; return MISSING | INVALID."""
    found = 0
    for r in range(rows):
        log_base[r] = 0.0
    for c in range(len(columns)):
        at, size = starts[c] * STRIDE, starts[c + 1] - starts[c]
        if kinds[c] == CATEGORICAL:
            found |= _read_categories(X, columns[c], first, rows, size, at, phi)
            continue
        most = 1.0 if kinds[c] == BERNOULLI else LARGEST
        found |= _read_counts(X, columns[c], first, rows, most, at, phi)
        for r in range(rows, padded):
            phi[at + r] = 0
        if kinds[c] == POISSON and not found & INVALID:
            for r in range(rows):
                log_base[r] -= math.lgamma(phi[at + r] + 1.0)
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
