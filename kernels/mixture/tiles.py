"""Tiles of rows, for every E-step: reading them, responsibilities, and sums of these.

A tile holds `ROWS` rows as columns: feature d of row r is x[d * STRIDE + r], so that a register
holds one feature of several rows. Rows beyond the end of the data are zero and have weight zero.
"""

from __future__ import annotations

from numba import njit
from numba.extending import register_jitable

from latent_kernels.kernels.mixture.simd import (
    REGISTERS,
    full_like,
    lanes,
    load,
    multiply_add,
    select_equal,
    select_less,
    store,
    store_sums,
)
from latent_kernels.kernels.mixture.vector_math import exp, log

ROWS = 256
# Reports of a kernel: rows with NaN that it has left out, a value outside its column's family.
MISSING, INVALID = 1, 2
# Not a multiple of 4096 bytes: else every feature would fall into the same sets of the L1 cache.
STRIDE = ROWS + 16


@register_jitable
def round_up(n: int, step: int) -> int:
    """Return the least multiple of step that is at least n."""
    return n + -n % step


@njit(nogil=True, error_model="numpy")
def padded_rows(x, rows):
    """Return `rows` rounded up to a multiple of two registers, as the kernels take them."""
    return round_up(rows, 2 * lanes(x))


@njit(nogil=True, error_model="numpy")
def read(X, columns, first, rows, center, x):
    """Set x = the rows less the center; return whether a value among them is NaN."""
    padded = padded_rows(x, rows)
    dims = len(columns)
    whole = rows // 8 * 8
    for r in range(0, whole, 8):  # eight rows share the cache lines that a feature is written to
        for d in range(dims):
            column, c, o = columns[d], center[d], d * STRIDE + r
            for i in range(8):
                x[o + i] = X[first + r + i, column] - c
    missing = False
    for d in range(dims):
        o = d * STRIDE
        for r in range(whole, rows):
            x[o + r] = X[first + r, columns[d]] - center[d]
        for r in range(rows):
            missing |= x[o + r] != x[o + r]
        for r in range(rows, padded):
            x[o + r] = 0
    return missing


@njit(nogil=True, error_model="numpy")
def read_weights(sample_weight, first, rows, weight):
    """Read the weights of the rows, 1 where `sample_weight` is empty; 0 for rows beyond the end.

    Returns whether one of these rows has weight 0.
    """
    padded = padded_rows(weight, rows)
    for r in range(rows):
        weight[r] = 1
    found = False
    if len(sample_weight) > 0:
        for r in range(rows):
            weight[r] = sample_weight[first + r]
        for r in range(rows):
            found |= weight[r] == 0
    for r in range(rows, padded):
        weight[r] = 0
    return found


@njit(nogil=True, error_model="numpy")
def clear_rows_without_weight(x, dims, rows, values, weight):
    """Set rows of weight 0 to these values, since 0 times their own might be NaN."""
    for r in range(rows):
        if weight[r] == 0:
            for d in range(dims):
                x[d * STRIDE + r] = values[d]


@njit(nogil=True, error_model="numpy")
def clear_incomplete_rows(x, dims, rows, values, weight):
    """Set rows with a NaN to these values and weight 0, so that the tile's sums omit them."""
    for d in range(dims):
        for r in range(rows):
            if x[d * STRIDE + r] != x[d * STRIDE + r]:
                weight[r] = -1
    for r in range(rows):
        if weight[r] < 0:
            weight[r] = 0
            for d in range(dims):
                x[d * STRIDE + r] = values[d]


@njit(nogil=True, error_model="numpy")
def soft_responsibilities(joint, components, padded, weight, density):
    """Turn log joint densities into weighted responsibilities; density = log sum_k exp(joint_k)."""
    step = lanes(joint)
    for g in range(0, padded, step):
        top = load(joint, g)
        for k in range(1, components):
            value = load(joint, k * STRIDE + g)
            top = select_less(top, value, value, top)
        total = full_like(joint, 0.0)
        for k in range(components):
            value = exp(load(joint, k * STRIDE + g) - top)
            store(joint, k * STRIDE + g, value)
            total = total + value
        store(density, g, top + log(total))
        scale = load(weight, g) / total
        for k in range(components):
            store(joint, k * STRIDE + g, load(joint, k * STRIDE + g) * scale)


@njit(nogil=True, error_model="numpy")
def hard_responsibilities(joint, components, padded, weight, density):
    """Give the whole weight to the first component of the greatest log joint density.

    density = that log joint density.
    """
    step = lanes(joint)
    zero = full_like(joint, 0.0)
    for g in range(0, padded, step):
        top = load(joint, g)
        for k in range(1, components):
            value = load(joint, k * STRIDE + g)
            top = select_less(top, value, value, top)
        store(density, g, top)
        left = load(weight, g)
        for k in range(components):
            value = select_equal(load(joint, k * STRIDE + g), top, left, zero)
            store(joint, k * STRIDE + g, value)
            left = left - value


@njit(nogil=True, error_model="numpy")
def sum_responsibilities(joint, components, padded, counts):
    """Set counts = the sum of each component's responsibilities."""
    step = lanes(joint)
    for k in range(components):
        total = full_like(joint, 0.0)
        for g in range(0, padded, step):
            total = total + load(joint, k * STRIDE + g)
        store_sums(counts, k, (total,))


@njit(nogil=True, error_model="numpy")
def _two_outer_sums(a, i, b, j, padded, sums, at):
    """Set sums[at:at + 8] = the sums over the rows of a_p b_q, [2, 4]."""
    step = lanes(a)
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = full_like(a, 0.0)
    o = i * STRIDE
    for n in range(j * STRIDE, j * STRIDE + padded, step):
        x0, x1 = load(b, n), load(b, n + STRIDE)
        x2, x3 = load(b, n + 2 * STRIDE), load(b, n + 3 * STRIDE)
        r = load(a, o)
        s0, s1 = multiply_add(r, x0, s0), multiply_add(r, x1, s1)
        s2, s3 = multiply_add(r, x2, s2), multiply_add(r, x3, s3)
        r = load(a, o + STRIDE)
        t0, t1 = multiply_add(r, x0, t0), multiply_add(r, x1, t1)
        t2, t3 = multiply_add(r, x2, t2), multiply_add(r, x3, t3)
        o += step
    store_sums(sums, at, (s0, s1, s2, s3, t0, t1, t2, t3))


@njit(nogil=True, error_model="numpy")
def _four_outer_sums(a, i, b, j, padded, sums, at):
    """Set sums[at:at + 16] = the sums over the rows of a_p b_q, [4, 4]."""
    step = lanes(a)
    zero = full_like(a, 0.0)
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero
    u0 = u1 = u2 = u3 = v0 = v1 = v2 = v3 = zero
    o = i * STRIDE
    for n in range(j * STRIDE, j * STRIDE + padded, step):
        x0, x1 = load(b, n), load(b, n + STRIDE)
        x2, x3 = load(b, n + 2 * STRIDE), load(b, n + 3 * STRIDE)
        r = load(a, o)
        s0, s1 = multiply_add(r, x0, s0), multiply_add(r, x1, s1)
        s2, s3 = multiply_add(r, x2, s2), multiply_add(r, x3, s3)
        r = load(a, o + STRIDE)
        t0, t1 = multiply_add(r, x0, t0), multiply_add(r, x1, t1)
        t2, t3 = multiply_add(r, x2, t2), multiply_add(r, x3, t3)
        r = load(a, o + 2 * STRIDE)
        u0, u1 = multiply_add(r, x0, u0), multiply_add(r, x1, u1)
        u2, u3 = multiply_add(r, x2, u2), multiply_add(r, x3, u3)
        r = load(a, o + 3 * STRIDE)
        v0, v1 = multiply_add(r, x0, v0), multiply_add(r, x1, v1)
        v2, v3 = multiply_add(r, x2, v2), multiply_add(r, x3, v3)
        o += step
    store_sums(sums, at, (s0, s1, s2, s3, t0, t1, t2, t3, u0, u1, u2, u3, v0, v1, v2, v3))


@njit(nogil=True, error_model="numpy")
def outer_sums(a, i, b, j, padded, sums, at):
    """Set sums[at:at + 16] = the sums over the rows of a_p b_q, [4, 4].

    The features p begin at i, the features q at j. Sixteen accumulators fit 32 registers, of 16
    they would spill.
    """
    if REGISTERS >= 32:
        _four_outer_sums(a, i, b, j, padded, sums, at)
    else:
        _two_outer_sums(a, i, b, j, padded, sums, at)
        _two_outer_sums(a, i + 2, b, j, padded, sums, at + 8)


@njit(nogil=True, error_model="numpy")
def total_density(density, weight, rows):
    """Return the sum of weight * density in float64, as four interleaved sums."""
    a = b = c = d = 0.0
    for r in range(0, rows - 3, 4):
        a += weight[r] * float(density[r])
        b += weight[r + 1] * float(density[r + 1])
        c += weight[r + 2] * float(density[r + 2])
        d += weight[r + 3] * float(density[r + 3])
    for r in range(rows // 4 * 4, rows):
        a += weight[r] * float(density[r])
    return (a + b) + (c + d)


@njit(nogil=True, error_model="numpy")
def add(total, at, values, size):
    """Compute total[at:at + size] += values[:size], in float64."""
    for i in range(size):
        total[at + i] += values[i]


@njit(nogil=True, error_model="numpy")
def write_labels(joint, components, first, rows, labels):
    """Write each row's component of greatest log joint density, unless `labels` is empty."""
    if len(labels) > 0:
        for r in range(rows):
            best = 0
            for k in range(1, components):
                if joint[k * STRIDE + r] > joint[best * STRIDE + r]:
                    best = k
            labels[first + r] = best


@njit(nogil=True, error_model="numpy")
def write_posterior(joint, components, density, first, rows, densities, responsibilities):
    """Write log-densities and responsibilities of each row into the arrays that are not empty."""
    if len(densities) > 0:
        for r in range(rows):
            densities[first + r] = density[r]
    if len(responsibilities) > 0:
        for r in range(rows):
            for k in range(components):
                responsibilities[first + r, k] = joint[k * STRIDE + r]


@njit(nogil=True, error_model="numpy")
def tile_responsibilities(joint, components, first, rows, hard, weight, density, outputs):
    """Turn log joint densities into weighted responsibilities; write the non-empty `outputs`."""
    densities, labels, responsibilities = outputs
    padded = padded_rows(joint, rows)
    write_labels(joint, components, first, rows, labels)
    if hard:
        hard_responsibilities(joint, components, padded, weight, density)
    else:
        soft_responsibilities(joint, components, padded, weight, density)
    write_posterior(joint, components, density, first, rows, densities, responsibilities)


@njit(nogil=True, error_model="numpy")
def add_lower_products(a, b, dims, padded, sums, total, at):
    """Add the sums over the rows of a_p b_q to total, from `at` on.

    These are the [4, 4] blocks with q <= p, row by row.
    """
    for i in range(0, dims, 4):
        for j in range(0, i + 4, 4):
            outer_sums(a, i, b, j, padded, sums, 0)
            add(total, at, sums, 16)
            at += 16
