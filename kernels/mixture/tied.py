"""The E-step of Gaussians with one covariance for all components, one function for a span of rows.

With Sigma^-1 = U U^T a row is turned once, y = U^T (x - c), and then differs from a component by
|y - U^T (m_k - c)|^2, as for unit variances. The second moments, summed over components, are those of the data. Both
are differences of larger numbers, so that this is done in float64 whatever the dtype of the data.
"""

from __future__ import annotations

from numba import njit

from latent_kernels.kernels.mixture.diagonal import densities
from latent_kernels.kernels.mixture.full import weigh
from latent_kernels.kernels.mixture.simd import lanes, like, load, multiply_add, spread, store
from latent_kernels.kernels.mixture.tiles import (
    MISSING,
    ROWS,
    STRIDE,
    add,
    add_lower_products,
    count,
    outer_sums,
    padded_rows,
    read,
    read_weights,
    respond_to_tile,
    set_aside,
    total_density,
    up,
)


@njit(nogil=True, error_model="numpy")
def _turn(x, dims, padded, factors, y):
    """y = U^T x, for four columns of U and two registers of rows at a time; factors: [dims4 / 4,
    dims, 4].
    """
    step = lanes(x)
    for j in range(0, dims, 4):
        for g in range(0, padded, 2 * step):
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = like(x, 0.0)
            n = j * dims
            for i in range(g, g + min(j + 4, dims) * STRIDE, STRIDE):
                x0, x1 = load(x, i), load(x, i + step)
                a0, a1 = (
                    multiply_add(x0, spread(factors, n), a0),
                    multiply_add(x1, spread(factors, n), a1),
                )
                b0, b1 = (
                    multiply_add(x0, spread(factors, n + 1), b0),
                    multiply_add(x1, spread(factors, n + 1), b1),
                )
                c0, c1 = (
                    multiply_add(x0, spread(factors, n + 2), c0),
                    multiply_add(x1, spread(factors, n + 2), c1),
                )
                d0, d1 = (
                    multiply_add(x0, spread(factors, n + 3), d0),
                    multiply_add(x1, spread(factors, n + 3), d1),
                )
                n += 4
            o = j * STRIDE + g
            store(y, o, a0)
            store(y, o + step, a1)
            store(y, o + STRIDE, b0)
            store(y, o + STRIDE + step, b1)
            store(y, o + 2 * STRIDE, c0)
            store(y, o + 2 * STRIDE + step, c1)
            store(y, o + 3 * STRIDE, d0)
            store(y, o + 3 * STRIDE + step, d1)


def span(
    X,
    first,
    last,
    sample_weight,
    hard,
    components,
    gaussian,  # columns, center, zeros, factors of U, turned means as factors of `densities`
    constants,
    work,  # x, y, weighted, joint, weight, density, sums
    total,  # with no room: sums are not wanted; [K4 / 4, D4 / 4, 4, 4] first, blocks of second, counts, log-likelihood
    outputs,  # densities, labels, responsibilities
):
    """The E-step of the rows first:last; returns MISSING if there was a NaN: such rows are left
    out, else 0.
    """
    columns, center, at_center, factors, means = gaussian
    x, y, weighted, joint, weight, density, sums = work
    dims = len(columns)
    status = 0
    for start in range(first, last, ROWS):
        rows = min(ROWS, last - start)
        padded = padded_rows(x, rows)
        read_weights(sample_weight, start, rows, weight)
        if read(X, columns, start, rows, center, x):
            set_aside(x, dims, rows, at_center, weight)
            status = MISSING
        _turn(x, dims, padded, factors, y)
        densities(y, dims, padded, means, constants, components, joint)
        respond_to_tile(joint, components, start, rows, hard, weight, density, outputs)
        if len(total) == 0:
            continue
        at = 0
        for k in range(0, components, 4):
            for d in range(0, dims, 4):
                outer_sums(joint, k, x, d, padded, sums, 0)
                add(total, at, sums, 16)
                at += 16
        weigh(weight, 0, x, up(dims, 4), padded, weighted, sums)
        add_lower_products(weighted, x, dims, padded, sums, total, at)
        count(joint, components, padded, sums)
        add(total, len(total) - components - 1, sums, components)
        total[len(total) - 1] += total_density(density, weight, rows)
    return status
