"""The Gaussian kernels in Triton: forward, backward, path derivative, then their launchers.

A program handles a tile [BLOCK_N, BLOCK_D] of rows and columns and a chunk of the samples. eps is
made from the seed where it is used. A row longer than a tile leaves partial sums, and samples dealt
to several programs leave partial gradients; torch adds either up in a fixed order. There are no
atomics, so two runs give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.gaussian.problem import (
    ANTITHETIC,
    SOBOL,
    Gradients,
    Outputs,
    PathGradients,
    PathOutputs,
    PathProblem,
    Problem,
    Sizes,
    deviation,
    drawn,
)
from latent_kernels.kernels.gaussian.scale_kl import scale_kl_backward as scale_kl_backward
from latent_kernels.kernels.gaussian.scale_kl import scale_kl_forward as scale_kl_forward
from latent_kernels.kernels.launch import (
    WANTED_PROGRAMS,
    cdiv,
    launch,
    nest,
    on_device_of,
    tile_shape,
)
from latent_kernels.kernels.noise.sobol import bits_of, directions
from latent_kernels.kernels.noise.triton_gpu import (
    noise_of_groups,
    normal_of_elements,
    normal_quantile,
    word_of_elements,
    words_of_groups,
)
from latent_kernels.kernels.triton_math import (
    LOG_TWO_PI,
    compute_type,
    exp,
    half_exp,
    half_psi_expm1,
    in_fours,
    program,
)

Tensor = torch.Tensor

# How the tile is aligned with the stream's groups of four elements:
ALIGNED = tl.constexpr(0)  # every row begins a group
SHIFTED = tl.constexpr(
    1
)  # rows begin anywhere, alike in every sample: the tile begins up to three columns early
SCATTERED = tl.constexpr(
    2
)  # where a row begins differs from sample to sample: one Philox for each element

MIRRORED, POINTS = tl.constexpr(ANTITHETIC), tl.constexpr(SOBOL)


@triton.jit
def half_psi_expm1_of_difference(logvar, prior):
    """Return half of psi and of expm1 of logvar - prior = d + lost. `lost` is the exact rounding
    error of d and is corrected to first order.
    """
    d = logvar - prior
    back = d - logvar
    lost = (logvar - (d - back)) - (prior + back)
    psi, expm1 = half_psi_expm1(d, half_exp(d))
    finite = expm1 < 5e37
    return tl.where(finite, tl.fma(lost, expm1, psi), psi), tl.where(
        finite, tl.fma(lost, expm1 + 0.5, expm1), expm1
    )


@triton.jit
def over_prior(delta, prior):
    """Return delta / sigma0^2 and half of (delta / sigma0)^2. One exp suffices; where it would
    overflow or lose digits, its square root is applied twice.
    """
    half = delta * half_exp(0.0 - prior)
    root = exp(prior * -0.5)
    ratio = delta * root
    direct = (prior > -80.0) & (prior < 80.0)
    scaled = tl.where(direct, half * 2.0, ratio * root)
    return scaled, tl.where(direct, delta * half, ratio * (ratio * 0.5))


@triton.jit
def load(
    ptr, group, group_stride, row_stride, rows, cols, mask,
    compute: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Return a tile of an input in the type of the computation; `even`: its strides are multiples
    of 4.
    """
    at = ptr + group * in_fours(group_stride, even) + rows * in_fours(row_stride, even) + cols
    return tl.load(at, mask=mask, other=0.0).to(compute)


@triton.jit
def kl_terms(
    mean, logvar, sigma, prior_mean_ptr, prior_mean_group, prior_mean_row,
    prior_logvar_ptr, prior_logvar_group, prior_logvar_row, group, rows, cols, mask,
    has_sigma: tl.constexpr, has_prior_mean: tl.constexpr, has_prior_logvar: tl.constexpr,
    compute: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Return (mean - m0) / sigma0^2, and halves of the quadratic term, of psi and of expm1 of
    logvar - l0; this needs one exp fewer where sigma is known.
    """
    delta = mean
    if has_prior_mean:
        delta -= load(
            prior_mean_ptr, group, prior_mean_group, prior_mean_row, rows, cols, mask, compute, even
        )
    if has_prior_logvar:
        prior = load(
            prior_logvar_ptr,
            group,
            prior_logvar_group,
            prior_logvar_row,
            rows,
            cols,
            mask,
            compute,
            even,
        )
        scaled, half_quadratic = over_prior(delta, prior)
        half_psi, half_expm1 = half_psi_expm1_of_difference(logvar, prior)
    else:
        scaled = delta
        half_quadratic = delta * (delta * 0.5)
        half_of_exp = sigma * (sigma * 0.5) if has_sigma else half_exp(logvar)
        half_psi, half_expm1 = half_psi_expm1(logvar, half_of_exp)
    return scaled, half_quadratic, half_psi, half_expm1


@triton.jit
def load_seed(seed, seed_stride, group, seed_is_pointer: tl.constexpr):
    """Return the seed of the program's group."""
    key = tl.load(seed + group * seed_stride) if seed_is_pointer else seed
    return key.to(tl.int64)


@triton.jit
def locate(
    tile,
    N,
    D,
    offset,
    col_blocks,
    layout: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return rows [BLOCK_N, 1], columns [BLOCK_N, BLOCK_D] and mask of a tile, and the stream's
    index of the tile's first column in sample 0 of each row.
    """
    rows = (tile // col_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    begin = (tile % col_blocks) * BLOCK_D
    element = offset.to(tl.int64) + rows * D + begin
    if layout == SHIFTED:
        shift = element & 3
        element -= shift
        cols = begin + tl.arange(0, BLOCK_D)[None, :] - shift
        mask = (rows < N) & (cols >= 0) & (cols < D)
    else:
        cols = begin + tl.arange(0, BLOCK_D)[None, :]
        mask = (rows < N) & (cols < D)
    return rows, cols, mask, element


@triton.jit
def eps_tile(key, element, layout: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return eps [BLOCK_N, BLOCK_D] whose first column is `element` [BLOCK_N, 1] of the stream."""
    if layout == SCATTERED:
        eps = normal_of_elements(key, element + tl.arange(0, BLOCK_D)[None, :])
    else:
        eps = noise_of_groups(key, (element >> 2) + tl.arange(0, BLOCK_D // 4)[None, :], 0)
    return eps


@triton.jit
def words_tile(key, element, layout: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the words that scramble Sobol' points, as `eps_tile` does eps."""
    if layout == SCATTERED:
        words = word_of_elements(key, element + tl.arange(0, BLOCK_D)[None, :], 2)
    else:
        words = words_of_groups(key, (element >> 2) + tl.arange(0, BLOCK_D // 4)[None, :], 2)
    return words


@triton.jit(do_not_specialize=["N", "seed", "offset", "tiles", "planes"])
def scramble_kernel(
    points_ptr, directions_ptr, N, D, seed, seed_stride, offset, tiles, planes, col_blocks,
    seed_is_pointer: tl.constexpr, layout: tl.constexpr, nest: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write what Sobol' points are made of, [G, planes, N, D]: each element's shift, then its
    scrambled direction numbers.
    """
    tile, j, group = program(tiles, planes, nest)
    D = in_fours(D, layout == ALIGNED)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    key = load_seed(seed, seed_stride, group, seed_is_pointer)
    plane = N.to(tl.int64) * D
    word = words_tile(key, element, layout, BLOCK_D)
    found = tl.where(j == 0, word, tl.zeros_like(word))
    of_column = tl.load(directions_ptr + (j - 1) * D + cols, mask=mask & (j > 0), other=0)
    for k in range(j):
        shift = tl.cast(k, tl.uint32)
        random = words_tile(key, element + (k + 1) * plane, layout, BLOCK_D)
        column = (tl.full((), 0x80000000, tl.uint32) >> shift) | (random >> (shift + 1))
        found ^= tl.where(((of_column >> (31 - k)) & 1) != 0, column, tl.zeros_like(column))
    at = points_ptr + (group * planes + j) * plane + rows * D + cols
    tl.store(at, found.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def point_of(of_tile, plane, s, bits, mask):
    """Return the words of sample s from a tile's shift and scrambled direction numbers."""
    word = tl.load(of_tile, mask=mask, other=0)
    gray = s ^ (s >> 1)
    for k in range(bits):
        used = ((gray >> k) & 1) != 0
        word ^= tl.load(of_tile + (k + 1) * plane, mask=mask & used, other=0)
    return word


@triton.jit
def eps_of_sample(
    key, element, s, points_ptr, group, rows, cols, plane, D, bits, mask,
    dependence: tl.constexpr, layout: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return eps [BLOCK_N, BLOCK_D] of a drawn sample."""
    if dependence == POINTS:
        of_tile = points_ptr + group * (bits + 1) * plane + rows * D + cols
        eps = normal_quantile(point_of(of_tile, plane, s, bits, mask))
    else:
        eps = eps_tile(key, element + s * plane, layout, BLOCK_D)
    return eps


@triton.jit
def drawn_of(S, dependence: tl.constexpr):
    """Return the number of samples whose noise is drawn; sample s + this number is the twin of s,
    where there is one.
    """
    return S - S // 2 if dependence == MIRRORED else S


# Sizes that may be 1 are not specialized: Triton would make constants of them, without a `.to`.
@triton.jit(
    do_not_specialize=["S", "N", "seed", "offset", "samples_per_program", "tiles", "chunks", "bits"]
)
def forward_kernel(
    z_ptr, kl_ptr, log_q_ptr, mean_ptr, deviation_ptr, prior_mean_ptr, prior_logvar_ptr,
    S, N, D, seed, seed_stride, offset, samples_per_program, tiles, chunks, col_blocks,
    mean_group, mean_row, deviation_group, deviation_row,
    prior_mean_group, prior_mean_row, prior_logvar_group, prior_logvar_row,
    points_ptr, bits,
    with_z: tl.constexpr, with_kl: tl.constexpr, with_log_q: tl.constexpr,
    has_prior_mean: tl.constexpr, has_prior_logvar: tl.constexpr,
    is_scale: tl.constexpr, seed_is_pointer: tl.constexpr, compute: tl.constexpr,
    layout: tl.constexpr, even: tl.constexpr, nest: tl.constexpr, dependence: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write samples z [G, S, N, D]; and the sums over this tile's columns: kl [G, N, col_blocks]
    and log q [G, S, N, col_blocks].
    """
    tile, chunk, group = program(tiles, chunks, nest)
    D = in_fours(D, layout == ALIGNED)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    mean = load(mean_ptr, group, mean_group, mean_row, rows, cols, mask, compute, even)
    deviation = load(
        deviation_ptr, group, deviation_group, deviation_row, rows, cols, mask, compute, even
    )
    sigma = deviation

    if with_z:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
        sigma = deviation if is_scale else exp(deviation * 0.5)
        plane = N.to(tl.int64) * D
        first = chunk * samples_per_program
        drawn = drawn_of(S, dependence)
        for s in range(first, tl.minimum(first + samples_per_program, drawn)):
            eps = eps_of_sample(
                key, element, s, points_ptr, group, rows, cols, plane, D, bits, mask,
                dependence, layout, BLOCK_D,
            ).to(compute)  # fmt: skip
            z = tl.fma(sigma, eps, mean)
            at = z_ptr + (group * S + s) * plane + rows * D + cols
            tl.store(at, z.to(z_ptr.dtype.element_ty), mask=mask)
            if dependence == MIRRORED:
                twin = tl.fma(sigma, eps * -1.0, mean).to(z_ptr.dtype.element_ty)
                tl.store(at + drawn * plane, twin, mask=mask & (s + drawn < S))
            if with_log_q:
                terms = tl.where(mask, tl.fma(eps, eps, deviation + LOG_TWO_PI), 0.0)
                log_q = (tl.sum(terms, axis=1) * -0.5)[:, None]
                at = log_q_ptr + ((group * S + s) * N + rows) * col_blocks + tile % col_blocks
                tl.store(at, log_q, mask=rows < N)
                if dependence == MIRRORED:
                    at += drawn.to(tl.int64) * N * col_blocks
                    tl.store(at, log_q, mask=(rows < N) & (s + drawn < S))

    if with_kl:
        if chunk == 0:
            _, half_quadratic, half_psi, _ = kl_terms(
                mean, deviation, sigma, prior_mean_ptr, prior_mean_group, prior_mean_row,
                prior_logvar_ptr, prior_logvar_group, prior_logvar_row, group, rows, cols, mask,
                with_z, has_prior_mean, has_prior_logvar, compute, even,
            )  # fmt: skip
            terms = tl.where(mask, half_quadratic + half_psi, 0.0)
            at = kl_ptr + (group * N + rows) * col_blocks + tile % col_blocks
            tl.store(at, tl.sum(terms, axis=1)[:, None], mask=rows < N)


@triton.jit(
    do_not_specialize=["S", "N", "seed", "offset", "samples_per_program", "tiles", "chunks", "bits"]
)
def backward_kernel(
    d_mean_ptr, d_deviation_ptr, d_prior_mean_ptr, d_prior_logvar_ptr, gz_ptr, gkl_ptr, gq_ptr,
    mean_ptr, deviation_ptr, prior_mean_ptr, prior_logvar_ptr,
    S, N, D, seed, seed_stride, offset, samples_per_program, tiles, chunks, col_blocks,
    chunk_stride,
    mean_group, mean_row, deviation_group, deviation_row,
    prior_mean_group, prior_mean_row, prior_logvar_group, prior_logvar_row,
    points_ptr, bits,
    with_z: tl.constexpr, with_kl: tl.constexpr, with_log_q: tl.constexpr,
    has_prior_mean: tl.constexpr, has_prior_logvar: tl.constexpr,
    need_mean: tl.constexpr, need_deviation: tl.constexpr,
    need_prior_mean: tl.constexpr, need_prior_logvar: tl.constexpr,
    is_scale: tl.constexpr, seed_is_pointer: tl.constexpr, compute: tl.constexpr,
    layout: tl.constexpr, even: tl.constexpr, nest: tl.constexpr, dependence: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write gradients [chunks, G, N, D]: the sums over this program's samples; chunk 0 adds the
    gradient of the KL.
    """
    tile, chunk, group = program(tiles, chunks, nest)
    D = in_fours(D, layout == ALIGNED)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    plane = N.to(tl.int64) * D
    at = chunk * in_fours(chunk_stride, layout == ALIGNED) + group * plane + rows * D + cols
    d_mean = tl.zeros((BLOCK_N, BLOCK_D), compute)
    d_deviation = tl.zeros((BLOCK_N, BLOCK_D), compute)
    sigma = d_deviation

    if with_z:
        key = load_seed(seed, seed_stride, group, seed_is_pointer)
        first = chunk * samples_per_program
        drawn = drawn_of(S, dependence)
        for s in range(first, tl.minimum(first + samples_per_program, drawn)):
            of_z = gz_ptr + (group * S + s) * plane + rows * D + cols
            gz = tl.load(of_z, mask=mask, other=0.0).to(compute)
            d_mean += gz
            if dependence == MIRRORED:
                of_twin = tl.load(of_z + drawn * plane, mask=mask & (s + drawn < S), other=0.0).to(
                    compute
                )
                d_mean += of_twin
                gz -= of_twin
            if need_deviation:
                eps = eps_of_sample(
                    key, element, s, points_ptr, group, rows, cols, plane, D, bits, mask,
                    dependence, layout, BLOCK_D,
                ).to(compute)  # fmt: skip
                d_deviation = tl.fma(gz, eps, d_deviation)
        if need_deviation:
            if not is_scale:
                deviation = load(
                    deviation_ptr,
                    group,
                    deviation_group,
                    deviation_row,
                    rows,
                    cols,
                    mask,
                    compute,
                    even,
                )
                sigma = exp(deviation * 0.5)
                d_deviation *= sigma * 0.5

    if with_log_q:  # log q depends on the standard deviation through -1/2 sum_d logvar alone
        if need_deviation:
            sum_q = tl.zeros((BLOCK_N, 1), compute)
            first = chunk * samples_per_program
            drawn = drawn_of(S, dependence)
            for s in range(first, tl.minimum(first + samples_per_program, drawn)):
                at_row = gq_ptr + (group * S + s) * N + rows
                sum_q += tl.load(at_row, mask=rows < N, other=0.0).to(compute)
                if dependence == MIRRORED:
                    has_twin = (rows < N) & (s + drawn < S)
                    at_row += drawn.to(tl.int64) * N
                    sum_q += tl.load(at_row, mask=has_twin, other=0.0).to(compute)
            d_deviation = tl.fma(sum_q, -0.5, d_deviation)

    if with_kl:
        if chunk == 0:
            gkl = tl.load(gkl_ptr + group * N + rows, mask=rows < N, other=0.0).to(compute)
            mean = load(mean_ptr, group, mean_group, mean_row, rows, cols, mask, compute, even)
            logvar = load(
                deviation_ptr,
                group,
                deviation_group,
                deviation_row,
                rows,
                cols,
                mask,
                compute,
                even,
            )
            scaled, half_quadratic, _, half_expm1 = kl_terms(
                mean, logvar, sigma, prior_mean_ptr, prior_mean_group, prior_mean_row,
                prior_logvar_ptr, prior_logvar_group, prior_logvar_row, group, rows, cols, mask,
                with_z and need_deviation, has_prior_mean, has_prior_logvar, compute, even,
            )  # fmt: skip
            d_mean = tl.fma(gkl, scaled, d_mean)
            d_deviation = tl.fma(gkl, half_expm1, d_deviation)
            if need_prior_mean:
                value = (gkl * -1.0) * scaled
                tl.store(
                    d_prior_mean_ptr + at, value.to(d_prior_mean_ptr.dtype.element_ty), mask=mask
                )
            if need_prior_logvar:
                value = (gkl * -1.0) * (half_expm1 + half_quadratic)
                tl.store(
                    d_prior_logvar_ptr + at,
                    value.to(d_prior_logvar_ptr.dtype.element_ty),
                    mask=mask,
                )

    if need_mean:
        tl.store(d_mean_ptr + at, d_mean.to(d_mean_ptr.dtype.element_ty), mask=mask)
    if need_deviation:
        tl.store(d_deviation_ptr + at, d_deviation.to(d_deviation_ptr.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["S", "N", "seed", "offset", "samples_per_program", "tiles", "chunks", "bits"]
)
def path_backward_kernel(
    gz_ptr, gq_ptr, logvar_ptr,
    S, N, D, seed, seed_stride, offset, samples_per_program, tiles, chunks, col_blocks,
    logvar_group, logvar_row, points_ptr, bits,
    seed_is_pointer: tl.constexpr, compute: tl.constexpr, layout: tl.constexpr,
    even: tl.constexpr, nest: tl.constexpr, dependence: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradient of z [G, S, N, D] where log q depends on z alone: -g eps / sigma."""
    tile, chunk, group = program(tiles, chunks, nest)
    D = in_fours(D, layout == ALIGNED)
    rows, cols, mask, element = locate(tile, N, D, offset, col_blocks, layout, BLOCK_N, BLOCK_D)
    inverse = exp(
        load(logvar_ptr, group, logvar_group, logvar_row, rows, cols, mask, compute, even) * -0.5
    )
    key = load_seed(seed, seed_stride, group, seed_is_pointer)
    plane = N.to(tl.int64) * D
    first = chunk * samples_per_program
    drawn = drawn_of(S, dependence)
    for s in range(first, tl.minimum(first + samples_per_program, drawn)):
        eps = eps_of_sample(
            key, element, s, points_ptr, group, rows, cols, plane, D, bits, mask,
            dependence, layout, BLOCK_D,
        ).to(compute)  # fmt: skip
        slope = eps * inverse
        of_log_q = gq_ptr + (group * S + s) * N + rows
        g = tl.load(of_log_q, mask=rows < N, other=0.0).to(compute)
        at = gz_ptr + (group * S + s) * plane + rows * D + cols
        tl.store(at, (0.0 - g * slope).to(gz_ptr.dtype.element_ty), mask=mask)
        if dependence == MIRRORED:
            has_twin = s + drawn < S
            of_twin = of_log_q + drawn.to(tl.int64) * N
            g = tl.load(of_twin, mask=(rows < N) & has_twin, other=0.0).to(compute)
            twin = (g * slope).to(gz_ptr.dtype.element_ty)
            tl.store(at + drawn * plane, twin, mask=mask & has_twin)


# --- launchers ------------------------------------------------------------------------------------


def _strides(x: Tensor | None, sizes: Sizes) -> tuple[int, int]:
    """Return the group and row strides of an input whose columns are contiguous."""
    if x is None:
        return 0, 0
    if x.is_contiguous():
        return sizes[2] * sizes[3], sizes[3]
    return x.stride(0) if x.dim() == 3 else 0, x.stride(-2)


def _layout(sizes: Sizes, offset: int) -> int:
    _, samples, rows, cols = sizes
    if cols % 4 == 0 and offset % 4 == 0:
        return int(ALIGNED)
    return int(SHIFTED) if samples <= 1 or rows * cols % 4 == 0 else int(SCATTERED)


def _even(layout: int, strides: Iterable[int]) -> bool:
    """Return whether rows begin at multiples of four elements, in the inputs as well."""
    return layout == int(ALIGNED) and all(stride % 4 == 0 for stride in strides)


@functools.lru_cache(1024)
def _grid(
    sizes: Sizes, layout: int, dtype: torch.dtype, programs: int
) -> tuple[int, int, int, int, int, int]:
    """Return the number of tiles, the chunks of samples, the samples of a chunk, the blocks of
    columns, and the rows and columns of a tile.
    """
    groups, samples, rows, cols = sizes
    early = 3 if layout == int(SHIFTED) else 0
    block_n, block_d = tile_shape(rows, cols + early, dtype, small=layout == int(SCATTERED))
    col_blocks = max(cdiv(cols + early, block_d), 1)
    tiles = cdiv(rows, block_n) * col_blocks
    chunks = max(1, min(samples, programs // max(tiles * groups, 1)))
    per_chunk = cdiv(max(samples, 1), chunks)
    return tiles, cdiv(max(samples, 1), per_chunk), per_chunk, col_blocks, block_n, block_d


def _seed(seed: int | Tensor) -> tuple[int | Tensor, int]:
    if isinstance(seed, int):
        return seed, 0
    return seed, 1 if seed.numel() > 1 else 0


def _drawn_sizes(sizes: Sizes, dependence: int) -> Sizes:
    """Return the sizes of the noise that is drawn."""
    groups, samples, rows, cols = sizes
    return groups, drawn(samples, dependence), rows, cols


def _points(problem: Problem | PathProblem, like: Tensor) -> tuple[Tensor | None, int]:
    """Return the shift and the scrambled direction numbers of Sobol' points, and how many of these
    there are.
    """
    if problem.dependence != SOBOL:
        return None, 0
    sizes, seed, offset = problem.sizes, problem.seed, problem.offset
    groups, samples, rows, cols = own = sizes
    planes = bits_of(samples) + 1
    layout = _layout(own, offset)
    tiles, _, _, col_blocks, block_n, block_d = _grid(own, layout, torch.float32, 1)
    points = like.new_empty((groups, planes, rows, cols), dtype=torch.int32)
    with on_device_of(like):
        launch(
            scramble_kernel, tiles * planes * groups,
            points, directions(cols, like.device), rows, cols, *_seed(seed), offset,
            tiles, planes, col_blocks,
            seed_is_pointer=isinstance(seed, Tensor), layout=layout, nest=nest(planes, groups),
            BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
    return points, planes - 1


def _parameters(problem: Problem) -> tuple[Tensor | None, ...]:
    """Return mean, log-variance or scale, and the prior's parameters."""
    return problem.mean, deviation(problem), problem.prior_mean, problem.prior_logvar


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write z = mean + sigma eps, KL and log q(z)."""
    sizes, mean, seed = problem.sizes, problem.mean, problem.seed
    offset, dependence = problem.offset, problem.dependence
    if 0 in (sizes[0], sizes[2]):
        return
    groups, samples, rows, cols = sizes
    own = _drawn_sizes(sizes, dependence)
    z, *sums = outputs
    layout = _layout(own, offset)
    tiles, chunks, per_chunk, col_blocks, block_n, block_d = _grid(
        own, layout, mean.dtype, WANTED_PROGRAMS
    )
    partial = [
        x if x is None or col_blocks == 1 else x.new_empty((*x.shape, col_blocks)) for x in sums
    ]
    parameters = _parameters(problem)
    strides = [stride for x in parameters for stride in _strides(x, sizes)]
    points = _points(problem, mean) if z is not None else (None, 0)
    with on_device_of(mean):
        launch(
            forward_kernel, tiles * chunks * groups,
            z, *partial, *parameters,
            samples, rows, cols, *_seed(seed), offset, per_chunk, tiles, chunks, col_blocks,
            *strides, *points,
            with_z=z is not None, with_kl=sums[0] is not None, with_log_q=sums[1] is not None,
            has_prior_mean=problem.prior_mean is not None,
            has_prior_logvar=problem.prior_logvar is not None,
            is_scale=problem.scale is not None, seed_is_pointer=isinstance(seed, Tensor),
            compute=compute_type(mean.dtype), layout=layout, even=_even(layout, strides),
            nest=nest(chunks, groups), dependence=dependence,
            BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
    for out, of_blocks in zip(sums, partial, strict=True):
        if out is not None and of_blocks is not None and of_blocks is not out:
            torch.sum(of_blocks, -1, out=out)


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of the inputs."""
    sizes, mean, seed = problem.sizes, problem.mean, problem.seed
    offset, dependence = problem.offset, problem.dependence
    if 0 in (sizes[0], sizes[2]):
        return
    groups, samples, rows, cols = sizes
    own = _drawn_sizes(sizes, dependence)
    outputs = (
        gradients.mean,
        deviation(gradients),
        gradients.prior_mean,
        gradients.prior_logvar,
    )
    layout = _layout(own, offset)
    # A quarter of the forward's programs: each further chunk of samples costs a partial gradient in
    # memory.
    tiles, chunks, per_chunk, col_blocks, block_n, block_d = _grid(
        own, layout, mean.dtype, WANTED_PROGRAMS // 4
    )
    compute = torch.float64 if mean.dtype == torch.float64 else torch.float32
    targets = list(outputs)
    if chunks > 1:  # KL's gradients need no samples: only those of mean and sigma are partial sums
        for j in (0, 1):
            if outputs[j] is not None:
                targets[j] = mean.new_empty((chunks, groups, rows, cols), dtype=compute)
    parameters = _parameters(problem)
    strides = [stride for x in parameters for stride in _strides(x, sizes)]
    needs_noise = upstream.z is not None and outputs[1] is not None
    points = _points(problem, mean) if needs_noise else (None, 0)
    with on_device_of(mean):
        launch(
            backward_kernel, tiles * chunks * groups,
            *targets, *upstream, *parameters,
            samples, rows, cols, *_seed(seed), offset, per_chunk, tiles, chunks, col_blocks,
            groups * rows * cols,
            *strides, *points,
            with_z=upstream.z is not None and samples > 0, with_kl=upstream.kl is not None,
            with_log_q=upstream.log_q is not None,
            has_prior_mean=problem.prior_mean is not None,
            has_prior_logvar=problem.prior_logvar is not None,
            need_mean=outputs[0] is not None, need_deviation=outputs[1] is not None,
            need_prior_mean=outputs[2] is not None, need_prior_logvar=outputs[3] is not None,
            is_scale=problem.scale is not None, seed_is_pointer=isinstance(seed, Tensor),
            compute=compute_type(mean.dtype), layout=layout, even=_even(layout, strides),
            nest=nest(chunks, groups), dependence=dependence,
            BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
    for out, target in zip(outputs, targets, strict=True):
        if out is not None and target is not None and target is not out:
            out.copy_(target.sum(0).reshape(out.shape))
    if upstream.kl is None:
        for out in outputs[2:]:
            if out is not None:
                out.zero_()


def path_backward(problem: PathProblem, upstream: PathOutputs, gradients: PathGradients) -> None:
    """Write the gradient of z where log q depends on z alone: -eps / sigma times the gradient of
    log q.
    """
    sizes, logvar, seed = problem.sizes, problem.logvar, problem.seed
    offset, dependence = problem.offset, problem.dependence
    if 0 in sizes:
        return
    groups, samples, rows, cols = sizes
    own = _drawn_sizes(sizes, dependence)
    layout = _layout(own, offset)
    tiles, chunks, per_chunk, col_blocks, block_n, block_d = _grid(
        own, layout, logvar.dtype, WANTED_PROGRAMS
    )
    strides = _strides(logvar, sizes)
    points = _points(problem, logvar)
    with on_device_of(logvar):
        launch(
            path_backward_kernel, tiles * chunks * groups,
            gradients.z, upstream.log_q, logvar,
            samples, rows, cols, *_seed(seed), offset, per_chunk, tiles, chunks, col_blocks,
            *strides, *points, seed_is_pointer=isinstance(seed, Tensor),
            compute=compute_type(logvar.dtype), layout=layout, even=_even(layout, strides),
            nest=nest(chunks, groups), dependence=dependence,
            BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
