"""What every E-step does with a tile of rows: read it, turn log joint densities into
responsibilities, sum these.

A tile holds `ROWS` rows as columns: feature d of row r stands at x[d * STRIDE + r], so that a
register holds one feature of several rows. Rows beyond the end of the data are zero, and have
weight zero.
"""

from __future__ import annotations

from numba import njit
from numba.extending import register_jitable

from latent_kernels.kernels.mixture.simd import (
    lanes,
    like,
    load,
    multiply_add,
    select_equal,
    select_less,
    store,
    store_sums,
)
from latent_kernels.kernels.mixture.vector_math import exp, log

ROWS = 256
MISSING, INVALID = (
    1,
    2,
)  # what a span reports: rows with NaN that it has set aside, a value outside its family
STRIDE = (
    ROWS + 16
)  # not a multiple of 4096 bytes: else every feature would fall into the same sets of the L1 cache


@register_jitable
def up(n: int, step: int) -> int:
    """n made a multiple of step."""
    return n + -n % step


@njit(nogil=True, error_model="numpy")
def padded_rows(x, rows):
    """`rows` made a multiple of two registers, which is what the kernels work on at a time."""
    return up(rows, 2 * lanes(x))


@njit(nogil=True, error_model="numpy")
def read(X, columns, first, rows, center, x):
    """x = the rows less the center; whether a value among them is NaN."""
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
    """The weights of the rows, 1 where `sample_weight` is empty; 0 for the rows beyond."""
    padded = padded_rows(weight, rows)
    for r in range(rows):
        weight[r] = 1
    if len(sample_weight) > 0:
        for r in range(rows):
            weight[r] = sample_weight[first + r]
    for r in range(rows, padded):
        weight[r] = 0


@njit(nogil=True, error_model="numpy")
def set_aside(x, dims, rows, values, weight):
    """Rows with a NaN get these values and no weight, so that the tile's sums are those of the
    others.
    """
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
def respond(joint, components, padded, weight, density):
    """Log joint densities become weighted responsibilities; density = log sum_k exp(joint_k)."""
    step = lanes(joint)
    for g in range(0, padded, step):
        top = load(joint, g)
        for k in range(1, components):
            value = load(joint, k * STRIDE + g)
            top = select_less(top, value, value, top)
        total = like(joint, 0.0)
        for k in range(components):
            value = exp(load(joint, k * STRIDE + g) - top)
            store(joint, k * STRIDE + g, value)
            total = total + value
        store(density, g, top + log(total))
        scale = load(weight, g) / total
        for k in range(components):
            store(joint, k * STRIDE + g, load(joint, k * STRIDE + g) * scale)


@njit(nogil=True, error_model="numpy")
def respond_hard(joint, components, padded, weight, density):
    """The whole weight goes to the first of the greatest log joint densities; density = that
    density.
    """
    step = lanes(joint)
    zero = like(joint, 0.0)
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
def count(joint, components, padded, counts):
    """counts = the sum of each component's responsibilities."""
    step = lanes(joint)
    for k in range(components):
        total = like(joint, 0.0)
        for g in range(0, padded, step):
            total = total + load(joint, k * STRIDE + g)
        store_sums(counts, k, (total,))


@njit(nogil=True, error_model="numpy")
def outer_sums(a, i, b, j, padded, sums, at):
    """sums[at:at + 16] = the sums over the rows of a_p b_q, [4, 4], for features p from i on and q
    from j on.
    """
    step = lanes(a)
    zero = like(a, 0.0)
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
def total_density(density, weight, rows):
    """The sum of weight * density, in float64, by four sums in step."""
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
    """total[at:at + size] += values[:size], in float64."""
    for i in range(size):
        total[at + i] += values[i]


@njit(nogil=True, error_model="numpy")
def write_labels(joint, components, first, rows, labels):
    """The component of the greatest log joint density of each row, if `labels` has room."""
    if len(labels) > 0:
        for r in range(rows):
            best = 0
            for k in range(1, components):
                if joint[k * STRIDE + r] > joint[best * STRIDE + r]:
                    best = k
            labels[first + r] = best


@njit(nogil=True, error_model="numpy")
def write_posterior(joint, components, density, first, rows, densities, responsibilities):
    """Log densities and responsibilities of each row, if the arrays have room."""
    if len(densities) > 0:
        for r in range(rows):
            densities[first + r] = density[r]
    if len(responsibilities) > 0:
        for r in range(rows):
            for k in range(components):
                responsibilities[first + r, k] = joint[k * STRIDE + r]


@njit(nogil=True, error_model="numpy")
def respond_to_tile(joint, components, first, rows, hard, weight, density, outputs):
    """Log joint densities become weighted responsibilities; what `outputs` has room for is written
    there.
    """
    densities, labels, responsibilities = outputs
    padded = padded_rows(joint, rows)
    write_labels(joint, components, first, rows, labels)
    if hard:
        respond_hard(joint, components, padded, weight, density)
    else:
        respond(joint, components, padded, weight, density)
    write_posterior(joint, components, density, first, rows, densities, responsibilities)


@njit(nogil=True, error_model="numpy")
def add_lower_products(a, b, dims, padded, sums, total, at):
    """total, from `at` on, += the sums over the rows of a_p b_q, the [4, 4] blocks with q <= p, row
    by row.
    """
    for i in range(0, dims, 4):
        for j in range(0, i + 4, 4):
            outer_sums(a, i, b, j, padded, sums, 0)
            add(total, at, sums, 16)
            at += 16
