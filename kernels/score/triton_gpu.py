"""Score-function gradients in Triton: one pass over the samples into weighted sums, then the
estimator computed from the sums.

A program handles a tile of the elements and a part of the samples (a fold, or a chunk of one); z is
read once, or drawn where it is used. Where one program has all samples of its tile it writes the
result; else it leaves its sums, and `finish_kernel` (triton_sums.py) adds the parts up in their
order. There are no atomics, so two runs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.families.triton_gpu import cumulative, logistic, threshold
from latent_kernels.kernels.gaussian.triton_gpu import (
    ALIGNED,
    SCATTERED,
    SHIFTED,
    _layout,
    _seed,
    eps_tile,
    load_seed,
    locate,
)
from latent_kernels.kernels.launch import (
    TILE,
    WANTED_PROGRAMS,
    cdiv,
    launch,
    nest,
    next_power_of_two,
    on_device_of,
    tile_shape,
    tiles_of_classes,
)
from latent_kernels.kernels.noise.triton_gpu import (
    to_uniform,
    word_of_elements,
    words_of_groups,
)
from latent_kernels.kernels.score.problem import (
    Estimate,
    Problem,
    gradients_of,
    variances_of,
)
from latent_kernels.kernels.score.triton_sums import (
    BINARY,
    ELEMENTS,
    OPTIMAL,
    PAIRS,
    PLAIN,
    ROWS,
    SCORES,
    count_of_sums,
    finish_binary,
    finish_kernel,
    load_weight,
    mean_of_first,
    mean_of_terms,
    probabilities,
    put_result,
    put_sums,
    samples_of_part,
)
from latent_kernels.kernels.triton_math import compute_type, divide, exp, in_fours, program

Tensor = torch.Tensor

MOST_CHUNKS = 32  # of one fold: each costs its sums in memory
LEAST_CHUNK = 16  # samples of a chunk, so that its sums move less than its samples
MOST_CLASSES = 32  # of one program's tile
FINISH_TILE = 512


@triton.jit
def word_tile(key, element, layout: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return words [BLOCK_N, BLOCK_D] of the uniforms, each row from its `element` [BLOCK_N, 1] of
    the stream on.
    """
    if layout == SCATTERED:
        words = word_of_elements(key, element + tl.arange(0, BLOCK_D)[None, :])
    else:
        words = words_of_groups(key, (element >> 2) + tl.arange(0, BLOCK_D // 4)[None, :])
    return words


@triton.jit
def logistic_tile(key, element, layout: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return ln u - ln(1 - u) of the uniforms [BLOCK_N, BLOCK_D] from `element` on."""
    return logistic(to_uniform(word_tile(key, element, layout, BLOCK_D)))


# Sizes that may be 1 are not specialized: Triton would make constants of them, without a `.to`.
@triton.jit(
    do_not_specialize=[
        "S",
        "N",
        "seed",
        "offset",
        "folds",
        "chunks",
        "tiles",
        "groups",
        "baseline_group",
        "baseline_sample",
    ]
)
def gaussian_kernel(
    d_mean_ptr, d_logvar_ptr, v_mean_ptr, v_logvar_ptr, partial_ptr,
    z_ptr, mean_ptr, logvar_ptr, values_ptr, baseline_ptr, upstream_ptr,
    S, N, D, seed, seed_stride, offset, folds, chunks, tiles, col_blocks, groups, baseline_group,
    baseline_sample,
    mode: tl.constexpr, per_element: tl.constexpr, has_baseline: tl.constexpr,
    has_upstream: tl.constexpr,
    with_variance: tl.constexpr, finish: tl.constexpr, from_seed: tl.constexpr,
    seed_is_pointer: tl.constexpr,
    compute: tl.constexpr, layout: tl.constexpr, nest: tl.constexpr, even: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute sums over t = (z - mean) / sigma, the score of the mean times sigma, and over u = t^2
    - 1, twice the score of logvar.
    """
    D = in_fours(D, even)
    tile, part, group = program(tiles, folds * chunks, nest)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    plane = N.to(tl.int64) * D
    in_plane = rows * D + cols
    at = group * plane + in_plane
    width = plane if per_element else N.to(tl.int64)
    of_value = in_plane if per_element else rows
    value_mask = mask if per_element else rows < N
    values_ptr += group * S * width
    baseline_at = baseline_ptr + group * baseline_group + of_value
    more: tl.constexpr = mode >= ELEMENTS

    inverse = exp(tl.load(logvar_ptr + at, mask=mask, other=0.0).to(compute) * -0.5)
    if from_seed:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
    else:
        mean = tl.load(mean_ptr + at, mask=mask, other=0.0).to(compute)
    if more and per_element:
        shift = mean_of_first(values_ptr + of_value, width, value_mask, S, compute)

    zero = tl.zeros((BLOCK_N, BLOCK_D), compute)
    A_t, B_t, C_t, D_t, E_t = zero, zero, zero, zero, zero
    A_u, B_u, C_u, D_u, E_u = zero, zero, zero, zero, zero
    F = tl.zeros((BLOCK_N, BLOCK_D if per_element else 1), compute)
    begin, end = samples_of_part(part, S, folds, chunks)
    for s in tl.range(begin, end, loop_unroll_factor=1 if from_seed else 2):
        f = load_weight(
            values_ptr + s * width + of_value,
            baseline_at + s * baseline_sample,
            value_mask,
            has_baseline,
            compute,
        )
        if more and per_element:
            f -= shift
        if from_seed:
            t = eps_tile(key, element + s * plane, layout, BLOCK_D).to(compute)
        else:
            z = tl.load(z_ptr + (group * S + s) * plane + in_plane, mask=mask, other=0.0).to(
                compute
            )
            t = (z - mean) * inverse
        u = tl.fma(t, t, -1.0)
        ft = f * t
        fu = f * u
        A_t = tl.fma(f, t, A_t)
        A_u = tl.fma(f, u, A_u)
        if more:
            B_t += t
            B_u += u
            C_t = tl.fma(ft, t, C_t)
            C_u = tl.fma(fu, u, C_u)
            D_t = tl.fma(t, t, D_t)
            D_u = tl.fma(u, u, D_u)
            F += f
        if with_variance:
            E_t = tl.fma(ft, ft, E_t)
            E_u = tl.fma(fu, fu, E_u)

    if finish:
        of_upstream = group * width + of_value
        G, E = mean_of_terms(A_t, B_t, C_t, D_t, E_t, F, S, mode, with_variance)
        put_result(
            d_mean_ptr, v_mean_ptr, at, mask, G, E, inverse, S, upstream_ptr, of_upstream,
            value_mask, mode, has_upstream, with_variance,
        )  # fmt: skip
        G, E = mean_of_terms(A_u, B_u, C_u, D_u, E_u, F, S, mode, with_variance)
        put_result(
            d_logvar_ptr, v_logvar_ptr, at, mask, G, E, 0.5, S, upstream_ptr, of_upstream,
            value_mask, mode, has_upstream, with_variance,
        )  # fmt: skip
    else:
        sums: tl.constexpr = (10 if more else 2) + (2 if with_variance else 0)
        size = groups * plane
        partial_ptr += part * sums * size
        put_sums(partial_ptr, at, mask, size, 0, A_t, A_u)
        if more:
            put_sums(partial_ptr, at, mask, size, 2, B_t, B_u)
            put_sums(partial_ptr, at, mask, size, 4, C_t, C_u)
            put_sums(partial_ptr, at, mask, size, 6, D_t, D_u)
            put_sums(partial_ptr, at, mask, size, 8, zero + F, zero + F)
        if with_variance:
            put_sums(partial_ptr, at, mask, size, sums - 2, E_t, E_u)


@triton.jit(
    do_not_specialize=[
        "S",
        "N",
        "seed",
        "offset",
        "folds",
        "chunks",
        "tiles",
        "groups",
        "baseline_group",
        "baseline_sample",
    ]
)
def bernoulli_kernel(
    d_logits_ptr, v_logits_ptr, partial_ptr, z_ptr, logits_ptr, values_ptr, baseline_ptr,
    upstream_ptr,
    S, N, D, seed, seed_stride, offset, folds, chunks, tiles, col_blocks, groups, baseline_group,
    baseline_sample,
    mode: tl.constexpr, per_element: tl.constexpr, has_baseline: tl.constexpr,
    has_upstream: tl.constexpr,
    with_variance: tl.constexpr, finish: tl.constexpr, from_seed: tl.constexpr,
    seed_is_pointer: tl.constexpr,
    compute: tl.constexpr, layout: tl.constexpr, nest: tl.constexpr, even: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute sums over the samples where z is 1, and over those where it is 0."""
    D = in_fours(D, even)
    tile, part, group = program(tiles, folds * chunks, nest)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    plane = N.to(tl.int64) * D
    in_plane = rows * D + cols
    at = group * plane + in_plane
    width = plane if per_element else N.to(tl.int64)
    of_value = in_plane if per_element else rows
    value_mask = mask if per_element else rows < N
    values_ptr += group * S * width
    baseline_at = baseline_ptr + group * baseline_group + of_value
    more: tl.constexpr = mode >= ELEMENTS

    logits = tl.load(logits_ptr + at, mask=mask, other=0.0).to(compute)
    if from_seed:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
    if more and per_element:
        shift = mean_of_first(values_ptr + of_value, width, value_mask, S, compute)

    F1 = tl.zeros((BLOCK_N, BLOCK_D), compute)
    F0, H1, H0 = F1, F1, F1
    n1 = tl.zeros((BLOCK_N, BLOCK_D), tl.int32)
    begin, end = samples_of_part(part, S, folds, chunks)
    for s in tl.range(begin, end, loop_unroll_factor=1 if from_seed else 2):
        f = load_weight(
            values_ptr + s * width + of_value,
            baseline_at + s * baseline_sample,
            value_mask,
            has_baseline,
            compute,
        )
        if more and per_element:
            f -= shift
        if from_seed:
            on = logistic_tile(key, element + s * plane, layout, BLOCK_D).to(compute) < logits
            F0 += tl.where(on, 0.0, f)
        else:
            z = tl.load(z_ptr + (group * S + s) * plane + in_plane, mask=mask, other=0.0).to(
                compute
            )
            on = z == 1.0
            F0 += tl.where(z == 0.0, f, tl.where(on, 0.0, float("nan")))
        F1 += tl.where(on, f, 0.0)
        if more:
            n1 += on.to(tl.int32)
        if with_variance:
            H1 += tl.where(on, f * f, 0.0)
            H0 += tl.where(on, 0.0, f * f)

    p, q = probabilities(logits)
    finish_binary(
        d_logits_ptr, v_logits_ptr, partial_ptr, at, mask, p, q, F1, F0, n1, H1, H0,
        part, (end - begin).to(tl.int32), S, groups * plane, upstream_ptr, group * width + of_value,
        value_mask,
        mode, has_upstream, with_variance, finish,
    )  # fmt: skip


@triton.jit(do_not_specialize=["S", "N", "seed", "offset", "folds", "chunks", "tiles", "groups"])
def antithetic_kernel(
    d_logits_ptr, v_logits_ptr, partial_ptr, z_ptr, logits_ptr, values_ptr, upstream_ptr,
    S, N, D, seed, seed_stride, offset, folds, chunks, tiles, col_blocks, groups,
    per_element: tl.constexpr, has_upstream: tl.constexpr, with_variance: tl.constexpr,
    finish: tl.constexpr,
    from_seed: tl.constexpr, seed_is_pointer: tl.constexpr,
    compute: tl.constexpr, layout: tl.constexpr, nest: tl.constexpr, even: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the sums of (f - f') (z - z') / 2 over pairs, and of its square."""
    D = in_fours(D, even)
    tile, part, group = program(tiles, folds * chunks, nest)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    plane = N.to(tl.int64) * D
    in_plane = rows * D + cols
    at = group * plane + in_plane
    width = plane if per_element else N.to(tl.int64)
    of_value = in_plane if per_element else rows
    value_mask = mask if per_element else rows < N
    values_ptr += group * 2 * S * width + of_value

    logits = tl.load(logits_ptr + at, mask=mask, other=0.0).to(compute)
    if from_seed:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
    A = tl.zeros((BLOCK_N, BLOCK_D), compute)
    E = A
    begin, end = samples_of_part(part, S, folds, chunks)
    for s in tl.range(begin, end, loop_unroll_factor=1 if from_seed else 2):
        twin = tl.load(values_ptr + (S + s) * width, mask=value_mask, other=0.0)
        w = ((tl.load(values_ptr + s * width, mask=value_mask, other=0.0) - twin) * 0.5).to(compute)
        if from_seed:
            x = logistic_tile(key, element + s * plane, layout, BLOCK_D).to(compute)
            d = (x < logits).to(compute) - (0.0 - x < logits).to(compute)
        else:
            z_at = z_ptr + (group * 2 * S + s) * plane + in_plane
            z = tl.load(z_at, mask=mask, other=0.0).to(compute)
            other = tl.load(z_at + S * plane, mask=mask, other=0.0).to(compute)
            inside = ((z == 0.0) | (z == 1.0)) & ((other == 0.0) | (other == 1.0))
            d = tl.where(inside, z - other, float("nan"))
        term = w * d
        A += term
        if with_variance:
            E = tl.fma(term, term, E)

    if finish:
        p, q = probabilities(logits)
        G, E = mean_of_terms(A, A, A, A, E, A, S, PLAIN, with_variance)
        put_result(
            d_logits_ptr, v_logits_ptr, at, mask, G, E, tl.maximum(p, q), S,
            upstream_ptr, group * width + of_value, value_mask, PLAIN, has_upstream, with_variance,
        )  # fmt: skip
    else:
        size = groups * plane
        put_sums(partial_ptr + part * 2 * size, at, mask, size, 0, A, E)


@triton.jit(
    do_not_specialize=[
        "S", "N", "seed", "offset", "folds", "chunks", "tiles", "groups", "baseline_group",
        "baseline_sample",
    ]
)  # fmt: skip
def categorical_kernel(
    d_logits_ptr, v_logits_ptr, partial_ptr, z_ptr, p_ptr, q_ptr, c_ptr, values_ptr, baseline_ptr,
    upstream_ptr,
    S, N, D, K, seed, seed_stride, offset, folds, chunks, tiles, class_blocks, groups,
    baseline_group, baseline_sample,
    mode: tl.constexpr, per_element: tl.constexpr, has_baseline: tl.constexpr,
    has_upstream: tl.constexpr,
    with_variance: tl.constexpr, finish: tl.constexpr, from_seed: tl.constexpr,
    seed_is_pointer: tl.constexpr,
    compute: tl.constexpr, layout: tl.constexpr, nest: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Compute sums over the samples of each class, on a tile [BLOCK_K, BLOCK_E] of classes and
    elements n D + d.
    """
    tile, part, group = program(tiles, folds * chunks, nest)
    plane = N.to(tl.int64) * D
    k = (tile % class_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    # The elements as one row [1, N D].
    _, e, valid, element = locate(
        tile // class_blocks, 1, plane, offset, tiles // class_blocks, layout, 1, BLOCK_E
    )
    mask = valid & (k < K)
    at = (group * plane + e) * K + k
    width = plane if per_element else N.to(tl.int64)
    of_value = e if per_element else e // D
    values_ptr += group * S * width
    baseline_at = baseline_ptr + group * baseline_group + of_value
    more: tl.constexpr = mode >= ELEMENTS

    if from_seed:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
        total = tl.load(c_ptr + (group * plane + e) * K + (K - 1), mask=valid, other=0)
        c = tl.load(c_ptr + at, mask=mask, other=0)
        c_before = tl.load(c_ptr + at - 1, mask=mask & (k > 0), other=0)
    if more and per_element:
        shift = mean_of_first(values_ptr + of_value, width, valid, S, compute)

    F1 = tl.zeros((BLOCK_K, BLOCK_E), compute)
    H1 = F1
    F = tl.zeros((1, BLOCK_E), compute)
    H = F
    n1 = tl.zeros((BLOCK_K, BLOCK_E), tl.int32)
    begin, end = samples_of_part(part, S, folds, chunks)
    for s in tl.range(begin, end, loop_unroll_factor=1 if from_seed else 2):
        f = load_weight(
            values_ptr + s * width + of_value,
            baseline_at + s * baseline_sample,
            valid,
            has_baseline,
            compute,
        )
        if more and per_element:
            f -= shift
        if from_seed:  # z = k where c_(k-1) <= w 2^-32 c_(K-1) < c_k
            t = threshold(total, word_tile(key, element + s * plane, layout, BLOCK_E))
            on = (c_before <= t) & (t < c)
            F += f
        else:
            z = tl.load(z_ptr + (group * S + s) * plane + e, mask=valid, other=0)
            on = z == k
            F += tl.where((z >= 0) & (z < K), f, float("nan"))
        F1 += tl.where(on, f, 0.0)
        if more:
            n1 += on.to(tl.int32)
        if with_variance:
            H += f * f
            H1 += tl.where(on, f * f, 0.0)

    p = tl.load(p_ptr + at, mask=mask, other=0.0)
    q = tl.load(q_ptr + at, mask=mask, other=0.0)
    finish_binary(
        d_logits_ptr, v_logits_ptr, partial_ptr, at, mask, p, q, F1, F - F1, n1, H1, H - H1,
        part, (end - begin).to(tl.int32), S, groups * plane * K, upstream_ptr,
        group * width + of_value, valid,
        mode, has_upstream, with_variance, finish,
    )  # fmt: skip


@triton.jit(do_not_specialize=["K"])
def softmax_kernel(
    p_ptr, q_ptr, logits_ptr, count, K,
    compute: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write p = softmax(logits) [count, K] and q = 1 - p; for the most probable class, q is the sum
    of the other p, which avoids cancellation.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    at = i * K
    largest = tl.full((BLOCK, 1), float("-inf"), compute)
    likeliest = tl.zeros((BLOCK, 1), tl.int32)  # the first of several
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(logits_ptr + at + k, mask=(i < count) & (k < K), other=float("-inf"))
        x = x.to(compute)
        here = tl.max(x, 1, keep_dims=True)
        place = tl.min(tl.where(x == here, k, K), 1, keep_dims=True)
        likeliest = tl.where(here > largest, place, likeliest)
        largest = tl.maximum(largest, here)
    others = tl.zeros((BLOCK, 1), compute)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        inside = (i < count) & (k < K)
        x = tl.load(logits_ptr + at + k, mask=inside, other=float("-inf")).to(compute)
        weight = tl.where(inside & (k != likeliest), exp(x - largest), 0.0)
        others += tl.sum(weight, 1, keep_dims=True)
    # For the most probable class itself this is 1, or NaN if a logit is infinite or NaN.
    total = others + exp(largest - largest)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        inside = (i < count) & (k < K)
        x = tl.load(logits_ptr + at + k, mask=inside, other=0.0).to(compute)
        p = divide(exp(x - largest), total)
        q = tl.where(k == likeliest, divide(others, total), 1.0 - p)
        tl.store(p_ptr + at + k, p, mask=inside)
        tl.store(q_ptr + at + k, q, mask=inside)


# --- launchers ------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The division of the work into programs. It depends on the shape alone, so that bits do not
    change.
    """

    layout: int
    tiles: int
    blocks: int  # of columns, or of classes
    chunks: int
    block: tuple[int, int]


def plan(problem: Problem, many_sums: bool, dtype: torch.dtype) -> Plan:
    """Return the plan: tiles of rows and columns, or of classes and elements; chunks of the samples
    where there are few tiles.
    """
    groups, samples, rows, cols, classes = problem.counts
    if classes:
        rows, cols = 1, rows * cols
    layout = int(ALIGNED)
    if problem.z is None:
        layout = _layout((groups, samples, rows, cols), problem.offset)
    reach = cols + (3 if layout == int(SHIFTED) else 0)
    if classes:
        block_k = min(MOST_CLASSES, next_power_of_two(classes))
        tile = TILE // 4 if dtype == torch.float64 else TILE // 2  # many registers an element
        block = block_k, min(tile // block_k, max(4, next_power_of_two(reach)))
        blocks = cdiv(classes, block_k)
        tiles = blocks * cdiv(reach, block[1])
    else:
        block = tile_shape(rows, reach, dtype, small=many_sums or layout == int(SCATTERED))
        blocks = cdiv(reach, block[1])
        tiles = cdiv(rows, block[0]) * blocks
    wanted = WANTED_PROGRAMS // 2 // (tiles * groups * problem.folds)
    chunks = max(1, min(MOST_CHUNKS, wanted, samples // problem.folds // LEAST_CHUNK))
    return Plan(layout, tiles, blocks, chunks, block)


def class_probabilities(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return p = softmax(logits) and 1 - p, of contiguous logits [..., K]."""
    p, q = (torch.empty_like(logits, dtype=dtype) for _ in range(2))
    count, classes, block, block_k = tiles_of_classes(logits)
    with on_device_of(logits):
        launch(
            softmax_kernel, cdiv(count, block),
            p, q, logits, count, classes, compute=compute_type(dtype), BLOCK=block, BLOCK_K=block_k,
        )  # fmt: skip
    return p, q


def gradient(problem: Problem, upstream: Tensor | None, estimate: Estimate) -> bool:
    """Write gradients and variances; return True: samples outside the support give NaN,
    unchecked.
    """
    parameters, z, seed = problem.parameters, problem.z, problem.seed
    values, baseline = problem.values, problem.baseline
    gradients, variances = gradients_of(estimate), variances_of(estimate)
    groups, samples, rows, cols, classes = problem.counts
    offset = problem.offset if z is None else 0
    size = parameters[0].numel()
    if size == 0:
        return True
    if samples == 0:
        for out in (*gradients, *(variances or ())):
            out.fill_(torch.nan)
        return True
    pairs = problem.family == "antithetic"
    kind = int(SCORES if problem.family == "gaussian" else PAIRS if pairs else BINARY)
    mode = int(PLAIN)
    if problem.control == "optimal":
        mode = int(OPTIMAL)
    elif problem.control == "leave_one_out":
        mode = int(ELEMENTS if problem.per_element else ROWS)
    dtype = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
    many_sums = mode >= int(ELEMENTS) or variances is not None
    cut = plan(problem, many_sums, dtype)
    finish = problem.folds * cut.chunks == 1 and mode != int(OPTIMAL)
    sums = count_of_sums(kind, mode, variances is not None)
    partial = None
    if not finish:
        partial = parameters[0].new_empty((problem.folds * cut.chunks, sums, size), dtype=dtype)

    width = rows * cols if problem.per_element else rows
    if mode != int(PLAIN) and not problem.per_element:
        baseline = values.reshape(groups, samples, width).mean(1, dtype=torch.float64)
    centred = {"mode": mode, "has_baseline": baseline is not None}
    if baseline is None:
        baseline = values  # not read
    sampled = baseline.numel() == values.numel() and samples > 1
    table = None
    if classes:
        first, second = class_probabilities(parameters[0], dtype)
        table = cumulative(parameters[0]) if z is None else None
    else:
        first, second = parameters[0], parameters[-1]

    results: tuple[Tensor | None, ...] = (gradients[0], gradients[-1], None, None)
    if variances is not None:
        results = (gradients[0], gradients[-1], variances[0], variances[-1])
    place = (
        *_seed(seed),
        offset,
        problem.folds,
        cut.chunks,
        cut.tiles,
        cut.blocks,
        groups,
    )
    steps = (width * (samples if sampled else 1), width if sampled else 0)
    options = {
        "per_element": problem.per_element,
        "has_upstream": upstream is not None,
        "with_variance": variances is not None,
        "finish": finish,
        "from_seed": z is None,
        "seed_is_pointer": isinstance(seed, Tensor),
        "compute": compute_type(dtype),
        "layout": cut.layout,
        "nest": nest(problem.folds * cut.chunks, groups),
    }
    shape = {"even": cols % 4 == 0, "BLOCK_N": cut.block[0], "BLOCK_D": cut.block[1]}
    programs = cut.tiles * problem.folds * cut.chunks * groups
    one = (results[0], results[2], partial, z)
    with on_device_of(first):
        if kind == int(SCORES):
            launch(
                gaussian_kernel, programs,
                *results, partial, z, first, second, values, baseline, upstream,
                samples, rows, cols, *place, *steps, **centred, **options, **shape,
            )  # fmt: skip
        elif pairs:
            launch(
                antithetic_kernel, programs,
                *one, first, values, upstream, samples, rows, cols, *place, **options, **shape,
            )  # fmt: skip
        elif classes:
            launch(
                categorical_kernel, programs,
                *one, first, second, table, values, baseline, upstream,
                samples, rows, cols, classes, *place, *steps,
                **centred, **options, BLOCK_K=cut.block[0], BLOCK_E=cut.block[1],
            )  # fmt: skip
        else:
            launch(
                bernoulli_kernel, programs,
                *one, first, values, baseline, upstream,
                samples, rows, cols, *place, *steps, **centred, **options, **shape,
            )  # fmt: skip
        if not finish:
            launch(
                finish_kernel, cdiv(size, FINISH_TILE),
                *results, partial, first, second, upstream, samples, problem.folds, cut.chunks,
                size,
                max(classes, 1) * (1 if problem.per_element else cols),
                sums=sums, kind=kind, classes=classes > 0, mode=mode,
                has_upstream=upstream is not None,
                with_variance=variances is not None, compute=compute_type(dtype), BLOCK=FINISH_TILE,
            )  # fmt: skip
    return True
