"""Gaussian columns with diagonal covariances: log-densities and moments of a tile.

Where all means are near enough to one center c, relative to their standard deviations, x - c serves
every component (`densities`, `moments`): y = (x - c)/sigma - (m - c)/sigma is one multiply-add and
so is the sum of y^2, and both moments are products of the responsibilities with x - c and its
square, moved to the means afterwards. Otherwise, and where values are missing, each component
subtracts its own mean from x first (`direct_densities`, `direct_moments`).
"""

from __future__ import annotations

from numba import njit

from latent_kernels.kernels.mixture.simd import (
    REGISTERS,
    broadcast,
    full_like,
    lanes,
    load,
    multiply_add,
    select_equal,
    store,
    store_sums,
)
from latent_kernels.kernels.mixture.tiles import STRIDE


@njit(nogil=True, error_model="numpy")
def _add_square(total, x, scale, shift):
    y = multiply_add(x, scale, shift)
    return multiply_add(y, y, total)


@njit(nogil=True, error_model="numpy")
def densities(x, dims, padded, factors, constants, components, joint):
    """Compute joint_k = constant_k - |x * scale_k + shift_k|^2 / 2.

    Works on four components and two registers of rows at a time. factors: [components / 4, dims,
    (scale, shift), 4].
    """
    step = lanes(x)
    half = full_like(x, -0.5)
    zero = full_like(x, 0.0)
    for k in range(0, components, 4):
        for g in range(0, padded, 2 * step):
            a0 = b0 = c0 = d0 = zero
            a1 = b1 = c1 = d1 = zero
            at = k * 2 * dims
            for i in range(g, g + dims * STRIDE, STRIDE):
                x0, x1 = load(x, i), load(x, i + step)
                scale, shift = broadcast(factors, at), broadcast(factors, at + 4)
                a0, a1 = _add_square(a0, x0, scale, shift), _add_square(a1, x1, scale, shift)
                scale, shift = broadcast(factors, at + 1), broadcast(factors, at + 5)
                b0, b1 = _add_square(b0, x0, scale, shift), _add_square(b1, x1, scale, shift)
                scale, shift = broadcast(factors, at + 2), broadcast(factors, at + 6)
                c0, c1 = _add_square(c0, x0, scale, shift), _add_square(c1, x1, scale, shift)
                scale, shift = broadcast(factors, at + 3), broadcast(factors, at + 7)
                d0, d1 = _add_square(d0, x0, scale, shift), _add_square(d1, x1, scale, shift)
                at += 8
            o = k * STRIDE + g
            store(joint, o, multiply_add(a0, half, broadcast(constants, k)))
            store(joint, o + step, multiply_add(a1, half, broadcast(constants, k)))
            o += STRIDE
            store(joint, o, multiply_add(b0, half, broadcast(constants, k + 1)))
            store(joint, o + step, multiply_add(b1, half, broadcast(constants, k + 1)))
            o += STRIDE
            store(joint, o, multiply_add(c0, half, broadcast(constants, k + 2)))
            store(joint, o + step, multiply_add(c1, half, broadcast(constants, k + 2)))
            o += STRIDE
            store(joint, o, multiply_add(d0, half, broadcast(constants, k + 3)))
            store(joint, o + step, multiply_add(d1, half, broadcast(constants, k + 3)))


@njit(nogil=True, error_model="numpy")
def _two_moments(joint, k, x, d, padded, sums, at):
    """Compute sums[at:at + 8] = r x and r x^2 over the rows, for two components and two columns."""
    step = lanes(x)
    a0 = a1 = b0 = b1 = e0 = e1 = f0 = f1 = full_like(x, 0.0)
    o = k * STRIDE
    for i in range(d * STRIDE, d * STRIDE + padded, step):
        x0, x1 = load(x, i), load(x, i + STRIDE)
        s0, s1 = x0 * x0, x1 * x1
        r = load(joint, o)
        a0, a1 = multiply_add(r, x0, a0), multiply_add(r, x1, a1)
        e0, e1 = multiply_add(r, s0, e0), multiply_add(r, s1, e1)
        r = load(joint, o + STRIDE)
        b0, b1 = multiply_add(r, x0, b0), multiply_add(r, x1, b1)
        f0, f1 = multiply_add(r, s0, f0), multiply_add(r, s1, f1)
        o += step
    store_sums(sums, at, (a0, e0, a1, e1, b0, f0, b1, f1))


@njit(nogil=True, error_model="numpy")
def _four_moments(joint, k, x, d, padded, sums, at):
    """Compute sums[at:at + 16] = r x and r x^2 over the rows, four components and two columns."""
    step = lanes(x)
    zero = full_like(x, 0.0)
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = zero
    e0 = e1 = f0 = f1 = g0 = g1 = h0 = h1 = zero
    o = k * STRIDE
    for i in range(d * STRIDE, d * STRIDE + padded, step):
        x0, x1 = load(x, i), load(x, i + STRIDE)
        s0, s1 = x0 * x0, x1 * x1
        r = load(joint, o)
        a0, a1 = multiply_add(r, x0, a0), multiply_add(r, x1, a1)
        e0, e1 = multiply_add(r, s0, e0), multiply_add(r, s1, e1)
        r = load(joint, o + STRIDE)
        b0, b1 = multiply_add(r, x0, b0), multiply_add(r, x1, b1)
        f0, f1 = multiply_add(r, s0, f0), multiply_add(r, s1, f1)
        r = load(joint, o + 2 * STRIDE)
        c0, c1 = multiply_add(r, x0, c0), multiply_add(r, x1, c1)
        g0, g1 = multiply_add(r, s0, g0), multiply_add(r, s1, g1)
        r = load(joint, o + 3 * STRIDE)
        d0, d1 = multiply_add(r, x0, d0), multiply_add(r, x1, d1)
        h0, h1 = multiply_add(r, s0, h0), multiply_add(r, s1, h1)
        o += step
    store_sums(sums, at, (a0, e0, a1, e1, b0, f0, b1, f1, c0, g0, c1, g1, d0, h0, d1, h1))


@njit(nogil=True, error_model="numpy")
def moments(joint, components, x, dims, padded, sums):
    """Compute sums = r x and r x^2 over the rows.

    sums: [components / 4, dims / 2, 4, 2, (x, x^2)]. Blocks of four components and two columns have
    16 accumulators, which fit 32 registers; of 16 they would spill.
    """
    at = 0
    for k in range(0, components, 4):
        for d in range(0, dims, 2):
            if REGISTERS >= 32:
                _four_moments(joint, k, x, d, padded, sums, at)
            else:
                _two_moments(joint, k, x, d, padded, sums, at)
                _two_moments(joint, k + 2, x, d, padded, sums, at + 8)
            at += 16


@njit(nogil=True, error_model="numpy")
def direct_densities(x, dims, padded, factors, constants, components, joint):
    """Compute joint_k = constant_k + the log-density of the columns that are present.

    x is NaN where a column is missing. factors: [components, dims, (mean, 1/sigma, rounding error
    of the mean, log(1/sigma) - log(2 pi)/2)].
    """
    step = lanes(x)
    zero = full_like(x, 0.0)
    for k in range(components):
        for g in range(0, padded, step):
            squares = zero
            logs = broadcast(constants, k)
            at = 4 * k * dims
            for i in range(g, g + dims * STRIDE, STRIDE):
                value = load(x, i)
                y = multiply_add(
                    value - broadcast(factors, at),
                    broadcast(factors, at + 1),
                    broadcast(factors, at + 2),
                )
                y = select_equal(value, value, y, zero)
                squares = multiply_add(y, y, squares)
                logs = logs + select_equal(value, value, broadcast(factors, at + 3), zero)
                at += 4
            store(joint, k * STRIDE + g, multiply_add(squares, full_like(x, -0.5), logs))


@njit(nogil=True, error_model="numpy")
def direct_moments(joint, components, x, dims, padded, factors, sums):
    """Compute sums = r, r (x - mean), r (x - mean)^2 over the rows where x is present.

    The mean is the rounded one in `factors`. sums: [components, dims, (r, first, second, 0)].
    """
    step = lanes(x)
    zero = full_like(x, 0.0)
    at = 0
    for k in range(components):
        for d in range(dims):
            observed = first = second = zero
            mean = broadcast(factors, at)
            o = k * STRIDE
            for i in range(d * STRIDE, d * STRIDE + padded, step):
                value = load(x, i)
                r = select_equal(value, value, load(joint, o), zero)
                t = select_equal(value, value, value - mean, zero)
                observed = observed + r
                r = r * t
                first = first + r
                second = multiply_add(r, t, second)
                o += step
            store_sums(sums, at, (observed, first, second, zero))
            at += 4
