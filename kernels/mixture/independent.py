"""The E-step where columns are independent: diagonal Gaussians and other exponential families.

One function works on consecutive rows. Its sums go into one vector `total`, whose sections `layout`
lists, so that results merge by adding vectors. Densities, labels and responsibilities are written
into the arrays in `outputs` that are not empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latent_kernels.kernels.mixture.canonical import (
    add_products,
    read_features,
    read_observed,
)
from latent_kernels.kernels.mixture.diagonal import (
    densities,
    direct_densities,
    direct_moments,
    moments,
)
from latent_kernels.kernels.mixture.tiles import (
    INVALID,
    MISSING,
    ROWS,
    add,
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


class Layout(NamedTuple):
    """The offsets of the sections of `total`.

    There are K components, G Gaussian columns, F features and C other columns; K4 is K rounded up
    to a multiple of 4, G2 is G rounded up to a multiple of 2.
    """

    moments: int  # [K4 / 4, G2 / 2, 4, 2, 2] about the center
    direct: int  # [K, G, 4] about the rounded means
    features: int  # [K4 / 4, (F4 + C4) / 4, 4, 4]
    counts: int  # [K]
    centered: int  # [K], of the tiles whose moments are about the center
    complete: int  # [K], of the tiles with no value missing among the other columns
    log_likelihood: int
    size: int


def layout(components: int, gaussian: int, features: int, columns: int) -> Layout:
    """Return the offsets of the sections of `total`, and its size."""
    k4, g2 = round_up(components, 4), round_up(gaussian, 2)
    sizes = [k4 * g2 * 2, components * gaussian * 4]
    sizes += [k4 * (round_up(features, 4) + round_up(columns, 4))]
    sizes += [components, components, components, 1]
    return Layout(*np.cumsum([0, *sizes]).tolist())


def span(
    X,
    first,
    last,
    sample_weight,
    hard,
    components,
    gaussian,  # columns, center, zero center, factors, direct factors, whether to use the latter
    base,  # [3, K]: log weights; constants of the Gaussian columns, and of the others if complete
    canonical,  # None, or columns, kinds, starts, natural parameters, phi, log h
    workspace,  # x, joint, weight, density, constants, sums
    offsets,
    total,  # empty if no sums are wanted
    outputs,  # densities, labels, responsibilities
):
    """Run the E-step of the rows first:last.

    Returns INVALID if a value is outside its column's family, else 0.
    """
    columns, center, zero_center, factors, direct_factors, always_direct = gaussian
    x, joint, weight, density, constants, sums = workspace
    dims = len(columns)
    even = round_up(dims, 2)
    blocks = round_up(components, 4)
    for start in range(first, last, ROWS):
        rows = min(ROWS, last - start)
        padded = padded_rows(x, rows)
        direct = always_direct or read(X, columns, start, rows, center, x)
        if direct:
            read(X, columns, start, rows, zero_center, x)
        if read_weights(sample_weight, start, rows, weight):
            values = direct_factors[::4] if direct else zero_center  # the means of component 0
            clear_rows_without_weight(x, dims, rows, values, weight)
        complete = True
        if canonical is not None:
            others, kinds, starts, natural, phi, log_base = canonical
            found = read_features(X, others, kinds, starts, start, rows, padded, phi, log_base)
            if found & INVALID:
                return INVALID
            complete = not found & MISSING
        for k in range(components):
            constants[k] = base[0, k]
            if not direct:
                constants[k] += base[1, k]
            if complete:
                constants[k] += base[2, k]
        if direct:
            direct_densities(x, dims, padded, direct_factors, constants, components, joint)
        else:
            densities(x, dims, padded, factors, constants, components, joint)
        if canonical is not None:
            features = starts[-1]
            observed = round_up(features, 4)
            size = observed + round_up(len(others), 4)
            add_products(phi, features, padded, natural, 0, size, components, joint)
            if not complete:
                read_observed(X, others, start, rows, padded, phi, observed)
                add_products(phi, len(others), padded, natural, observed, size, components, joint)
        tile_responsibilities(joint, components, start, rows, hard, weight, density, outputs)
        if canonical is not None and len(outputs[0]) > 0:
            for r in range(rows):
                outputs[0][start + r] += log_base[r]
        if len(total) == 0:
            continue
        at_moments, at_direct, at_features, at_counts, at_centered, at_complete, at_likelihood = (
            offsets
        )
        total[at_likelihood] += total_density(density, weight, rows)
        sum_responsibilities(joint, components, padded, sums)
        add(total, at_counts, sums, components)
        if not direct:
            add(total, at_centered, sums, components)
        if complete:
            add(total, at_complete, sums, components)
        if direct:
            direct_moments(joint, components, x, dims, padded, direct_factors, sums)
            add(total, at_direct, sums, 4 * components * dims)
        else:
            moments(joint, components, x, even, padded, sums)
            add(total, at_moments, sums, 2 * blocks * even)
        if canonical is not None:
            total[at_likelihood] += total_density(log_base, weight, rows)
            used = observed if complete else size
            for k in range(0, components, 4):
                for f in range(0, used, 4):
                    outer_sums(joint, k, phi, f, padded, sums, 0)
                    add(total, at_features + k * size + 4 * f, sums, 16)
    return 0
