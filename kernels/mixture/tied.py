"""The E-step of Gaussians with one covariance for all components, for consecutive rows.

With Sigma^-1 = U U^T a row is whitened once, y = U^T (x - c), and its distance to a component is
then |y - U^T (m_k - c)|^2, as for unit variances. The second moments, summed over components, are
those of the data. Both are differences of larger numbers: float32 serves only where `Tied` finds
these not much larger.
"""

from __future__ import annotations

from numba import njit

from latent_kernels.kernels.mixture.diagonal import densities
from latent_kernels.kernels.mixture.full import weigh
from latent_kernels.kernels.mixture.simd import (
    broadcast,
    full_like,
    lanes,
    load,
    multiply_add,
    store,
)
from latent_kernels.kernels.mixture.tiles import (
    MISSING,
    ROWS,
    STRIDE,
    add,
    add_lower_products,
    clear_incomplete_rows,
    clear_rows_without_weight,
    outer_sums,
    padded_rows,
    read,
    read_weights,
    round_up,
    sum_responsibilities,
    tile_responsibilities,
    total_density,
)


@njit(nogil=True, error_model="numpy")
def _whiten(x, dims, padded, factors, y):
    """Compute y = U^T x, for four columns of U and two registers of rows at a time.

    factors: [dims4 / 4, dims, 4].
    """
    step = lanes(x)
    for j in range(0, dims, 4):
        for g in range(0, padded, 2 * step):
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = full_like(x, 0.0)
            n = j * dims
            for i in range(g, g + min(j + 4, dims) * STRIDE, STRIDE):
                x0, x1 = load(x, i), load(x, i + step)
                a0, a1 = (
                    multiply_add(x0, broadcast(factors, n), a0),
                    multiply_add(x1, broadcast(factors, n), a1),
                )
                b0, b1 = (
                    multiply_add(x0, broadcast(factors, n + 1), b0),
                    multiply_add(x1, broadcast(factors, n + 1), b1),
                )
                c0, c1 = (
                    multiply_add(x0, broadcast(factors, n + 2), c0),
                    multiply_add(x1, broadcast(factors, n + 2), c1),
                )
                d0, d1 = (
                    multiply_add(x0, broadcast(factors, n + 3), d0),
                    multiply_add(x1, broadcast(factors, n + 3), d1),
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
    gaussian,  # columns, center, zeros, factors of U, whitened means as factors of `densities`
    constants,
    workspace,  # x, y, weighted, joint, weight, density, sums
    # empty if no sums are wanted; else first [K4 / 4, D4 / 4, 4, 4], blocks of second, counts,
    # log-likelihood
    total,
    outputs,  # densities, labels, responsibilities
):
    """Run the E-step of the rows first:last.

    Returns MISSING if some rows hold NaN, which are left out, else 0.
    """
    columns, center, zeros, factors, means = gaussian
    x, y, weighted, joint, weight, density, sums = workspace
    dims = len(columns)
    status = 0
    for start in range(first, last, ROWS):
        rows = min(ROWS, last - start)
        padded = padded_rows(x, rows)
        without_weight = read_weights(sample_weight, start, rows, weight)
        if read(X, columns, start, rows, center, x):
            clear_incomplete_rows(x, dims, rows, zeros, weight)
            status = MISSING
        if without_weight:
            clear_rows_without_weight(x, dims, rows, zeros, weight)
        _whiten(x, dims, padded, factors, y)
        densities(y, dims, padded, means, constants, components, joint)
        tile_responsibilities(joint, components, start, rows, hard, weight, density, outputs)
        if len(total) == 0:
            continue
        at = 0
        for k in range(0, components, 4):
            for d in range(0, dims, 4):
                outer_sums(joint, k, x, d, padded, sums, 0)
                add(total, at, sums, 16)
                at += 16
        weigh(weight, 0, x, round_up(dims, 4), padded, weighted, sums)
        add_lower_products(weighted, x, dims, padded, sums, total, at)
        sum_responsibilities(joint, components, padded, sums)
        add(total, len(total) - components - 1, sums, components)
        total[len(total) - 1] += total_density(density, weight, rows)
    return status
