"""The E-step of Gaussians with full covariances, one function for consecutive rows.

For each component t = x - mean. The density needs y = U^T t with Sigma^-1 = U U^T, U upper
triangular: D(D + 1)/2 multiply-adds a row. The second moment is the lower triangle of the product
of r t with t: as many again.
"""

from __future__ import annotations

from numba import njit

from latent_kernels.kernels.mixture.simd import (
    broadcast,
    full_like,
    lanes,
    load,
    multiply_add,
    store,
    store_sums,
)
from latent_kernels.kernels.mixture.tiles import (
    MISSING,
    ROWS,
    STRIDE,
    add,
    add_lower_products,
    clear_incomplete_rows,
    clear_rows_without_weight,
    padded_rows,
    read,
    read_weights,
    round_up,
    sum_responsibilities,
    tile_responsibilities,
    total_density,
)


@njit(nogil=True, error_model="numpy")
def _subtract(x, dims, padded, means, at, t):
    """Compute t = x - the mean of one component."""
    step = lanes(x)
    for d in range(dims):
        mean = broadcast(means, at + d)
        for i in range(d * STRIDE, d * STRIDE + padded, step):
            store(t, i, load(x, i) - mean)


@njit(nogil=True, error_model="numpy")
def _density(t, dims, padded, factors, at, shifts, k, constants, joint):
    """Compute joint_k = constant_k - |U^T t + shift|^2 / 2.

    Works on four columns of U and two registers of rows at a time. factors: U of the component,
    [dims4 / 4, dims, 4] from `at` on. shifts: the rounding errors of the means, times U,
    [components, dims4].
    """
    step = lanes(t)
    blocks = round_up(dims, 4)
    for g in range(0, padded, 2 * step):
        total0 = total1 = full_like(t, 0.0)
        for j in range(0, blocks, 4):
            a0 = a1 = broadcast(shifts, k * blocks + j)
            b0 = b1 = broadcast(shifts, k * blocks + j + 1)
            c0 = c1 = broadcast(shifts, k * blocks + j + 2)
            d0 = d1 = broadcast(shifts, k * blocks + j + 3)
            n = at + j * dims
            for i in range(g, g + min(j + 4, dims) * STRIDE, STRIDE):
                t0, t1 = load(t, i), load(t, i + step)
                u = broadcast(factors, n)
                a0, a1 = multiply_add(t0, u, a0), multiply_add(t1, u, a1)
                u = broadcast(factors, n + 1)
                b0, b1 = multiply_add(t0, u, b0), multiply_add(t1, u, b1)
                u = broadcast(factors, n + 2)
                c0, c1 = multiply_add(t0, u, c0), multiply_add(t1, u, c1)
                u = broadcast(factors, n + 3)
                d0, d1 = multiply_add(t0, u, d0), multiply_add(t1, u, d1)
                n += 4
            total0 = multiply_add(a0, a0, multiply_add(b0, b0, total0))
            total1 = multiply_add(a1, a1, multiply_add(b1, b1, total1))
            total0 = multiply_add(c0, c0, multiply_add(d0, d0, total0))
            total1 = multiply_add(c1, c1, multiply_add(d1, d1, total1))
        constant, half = broadcast(constants, k), full_like(t, -0.5)
        store(joint, k * STRIDE + g, multiply_add(total0, half, constant))
        store(joint, k * STRIDE + g + step, multiply_add(total1, half, constant))


@njit(nogil=True, error_model="numpy")
def weigh(joint, k, t, blocks, padded, weighted, sums):
    """Compute weighted = r_k t, and sums = its sum over the rows, [blocks]."""
    step = lanes(t)
    for d in range(0, blocks, 4):
        a = b = c = e = full_like(t, 0.0)
        o = k * STRIDE
        for i in range(d * STRIDE, d * STRIDE + padded, step):
            r = load(joint, o)
            value = r * load(t, i)
            store(weighted, i, value)
            a = a + value
            value = r * load(t, i + STRIDE)
            store(weighted, i + STRIDE, value)
            b = b + value
            value = r * load(t, i + 2 * STRIDE)
            store(weighted, i + 2 * STRIDE, value)
            c = c + value
            value = r * load(t, i + 3 * STRIDE)
            store(weighted, i + 3 * STRIDE, value)
            e = e + value
            o += step
        store_sums(sums, d, (a, b, c, e))


def size_of_total(components: int, dims: int) -> int:
    """Return the length of `total`.

    It holds for each component [dims4] first moments and [4, 4] blocks of second ones; then the
    counts and the log-likelihood.
    """
    blocks = round_up(dims, 4) // 4
    return components * (4 * blocks + 16 * (blocks * (blocks + 1) // 2)) + components + 1


def span(
    X,
    first,
    last,
    sample_weight,
    hard,
    components,
    gaussian,  # columns, zero center, rounded means, factors, shifts
    constants,
    workspace,  # x, t, weighted, joint, weight, density, sums
    total,  # empty if no sums are wanted
    outputs,  # densities, labels, responsibilities
):
    """Run the E-step of the rows first:last.

    Returns MISSING if some rows hold NaN, which are left out, else 0.
    """
    columns, center, means, factors, shifts = gaussian
    x, t, weighted, joint, weight, density, sums = workspace
    dims = len(columns)
    status = 0
    blocks = round_up(dims, 4)
    for start in range(first, last, ROWS):
        rows = min(ROWS, last - start)
        padded = padded_rows(x, rows)
        without_weight = read_weights(sample_weight, start, rows, weight)
        if read(X, columns, start, rows, center, x):
            clear_incomplete_rows(x, dims, rows, means, weight)
            status = MISSING
        if without_weight:
            clear_rows_without_weight(x, dims, rows, means, weight)
        for k in range(components):
            _subtract(x, dims, padded, means, k * dims, t)
            _density(t, dims, padded, factors, k * blocks * dims, shifts, k, constants, joint)
        tile_responsibilities(joint, components, start, rows, hard, weight, density, outputs)
        if len(total) == 0:
            continue
        at = 0
        for k in range(components):
            size = blocks + 2 * blocks * (blocks // 4 + 1)
            sum_responsibilities(joint[k * STRIDE :], 1, padded, sums)
            if sums[0] > 0:
                total[len(total) - components - 1 + k] += sums[0]
                _subtract(x, dims, padded, means, k * dims, t)
                weigh(joint, k, t, blocks, padded, weighted, sums)
                add(total, at, sums, blocks)
                add_lower_products(weighted, t, dims, padded, sums, total, at + blocks)
            at += size
        total[len(total) - 1] += total_density(density, weight, rows)
    return status
