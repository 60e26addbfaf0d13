"""The bounds in Triton: the sums over chunks of samples, their merging, the weights and VIMCO's
signal; then the launchers.

A program handles a block of rows and a chunk of samples, in tiles [BLOCK_S, BLOCK_N]. Chunks leave
partial sums that `merge_kernel` adds up in their order: there are no atomics, so two runs give the
same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.bounds.problem import Gradients, Outputs, Problem
from latent_kernels.kernels.launch import (
    TILE,
    WANTED_PROGRAMS,
    cdiv,
    launch,
    nest,
    next_power_of_two,
    on_device_of,
)
from latent_kernels.kernels.triton_math import (
    compute_type,
    divide,
    exp,
    exp_of_negative,
    expm1,
    in_fours,
    log1p,
    program,
)

Sizes = tuple[int, int, int]  # groups, samples, rows

LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
LARGEST_DOUBLE = tl.constexpr(1.7976931348623157e308)


@triton.jit
def nothing_yet(like, compute: tl.constexpr):
    """Return a finite number below every finite log-weight."""
    return tl.zeros_like(like) - (LARGEST_DOUBLE if compute == tl.float64 else LARGEST_FLOAT)


@triton.jit
def relative(x, top):
    """Return e^(x - top) for x <= top, which is 1 where they are equal, also where both are
    infinite.
    """
    return tl.where(x == top, 1.0, exp_of_negative(x - top))


@triton.jit
def load_samples(ptr, group, first, last, rows, S, N, compute: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return log-weights [BLOCK_S, BLOCK_N] from sample `first` on (-inf beyond `last` and N),
    their offsets and their mask.
    """
    samples = first + tl.arange(0, BLOCK_S)[:, None].to(tl.int64)
    mask = (samples < last) & (rows < N)[None, :]
    at = (group * S + samples) * N + rows[None, :]
    return tl.load(ptr + at, mask=mask, other=-float("inf")).to(compute), at, mask


@triton.jit(do_not_specialize=["S", "N", "per_chunk", "tiles", "chunks"])
def sums_kernel(
    log_w_ptr, top_ptr, total_ptr, S, N, per_chunk, tiles, chunks,
    compute: tl.constexpr, nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the largest log-weight and the sum of e^(log_w - largest) of each chunk: [G, chunks,
    N].
    """
    tile, chunk, group = program(tiles, chunks, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    top = nothing_yet(tl.zeros([BLOCK_N], compute), compute)
    total = tl.zeros([BLOCK_N], compute)
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, S)
    for begin in range(first, last, BLOCK_S):
        x, _at, _mask = load_samples(log_w_ptr, group, begin, last, rows, S, N, compute, BLOCK_S)
        most = tl.maximum(top, tl.max(x, 0))
        total = tl.fma(total, relative(top, most), tl.sum(relative(x, most[None, :]), 0))
        top = most
    at = (group * chunks + chunk) * N + rows
    tl.store(top_ptr + at, top, mask=rows < N)
    tl.store(total_ptr + at, total, mask=rows < N)


@triton.jit(do_not_specialize=["S", "N", "tiles", "chunks"])
def merge_kernel(
    tops_ptr, totals_ptr, out_ptr, sums_ptr, S, N, tiles, chunks,
    compute: tl.constexpr, nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the bound [G, N], and the sums over all chunks [G, 2, N]."""
    tile, group, _only = program(tiles, 1, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = rows < N
    top = nothing_yet(tl.zeros([BLOCK_N], compute), compute)
    for begin in range(0, chunks, BLOCK_S):
        part, _at, _mask = load_samples(
            tops_ptr, group, begin, chunks, rows, chunks, N, compute, BLOCK_S
        )
        top = tl.maximum(top, tl.max(part, 0))
    total = tl.zeros([BLOCK_N], compute)
    for begin in range(0, chunks, BLOCK_S):
        part, at, inside = load_samples(
            tops_ptr, group, begin, chunks, rows, chunks, N, compute, BLOCK_S
        )
        more = tl.load(totals_ptr + at, mask=inside, other=0.0)
        total += tl.sum(more * relative(part, top[None, :]), 0)
    mean = tl.log(total.to(tl.float64)) - tl.log(S.to(tl.float64))
    tl.store(out_ptr + group * N + rows, (top.to(tl.float64) + mean).to(compute), mask=mask)
    to = sums_ptr + 2 * group * N + rows
    tl.store(to, top, mask=mask)
    # The weights are undefined where one of them is infinite.
    tl.store(to + N, tl.where(top == float("inf"), float("nan"), total), mask=mask)


@triton.jit(do_not_specialize=["S", "N", "per_chunk", "tiles", "chunks"])
def weights_kernel(
    log_w_ptr, sums_ptr, gradient_ptr, out_ptr, S, N, per_chunk, tiles, chunks,
    has_gradient: tl.constexpr, compute: tl.constexpr, even: tl.constexpr,
    nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the normalised weights [G, S, N], times the gradient; `even`: N is a multiple of 4.

    The kernels that only add up read one element at a time, so that one thread holds all samples of
    a row's tile. Reading four rows at once would share them with other warps, and every tile would
    need barriers.
    """
    N = in_fours(N, even)
    tile, chunk, group = program(tiles, chunks, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = sums_ptr + 2 * group * N + rows
    top = tl.load(sums, mask=rows < N, other=0.0)
    total = tl.load(sums + N, mask=rows < N, other=1.0)
    factor = tl.full([BLOCK_N], 1.0, compute)
    if has_gradient:
        factor = tl.load(gradient_ptr + group * N + rows, mask=rows < N, other=0.0)
    factor = divide(factor, total)
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, S)
    for begin in range(first, last, BLOCK_S):
        x, at, mask = load_samples(log_w_ptr, group, begin, last, rows, S, N, compute, BLOCK_S)
        found = exp_of_negative(x - top[None, :]) * factor[None, :]
        tl.store(out_ptr + at, found.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["S", "N", "per_chunk", "tiles", "chunks"])
def others_kernel(
    log_w_ptr, sums_ptr, ties_ptr, zeros_ptr, distances_ptr, seconds_ptr, totals_ptr,
    S, N, per_chunk, tiles, chunks,
    compute: tl.constexpr, nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write what VIMCO's signal needs of each chunk [G, chunks, N]: how many weights equal the
    largest and how many are zero, the sum of the others' distances from the largest, the second
    largest, and the sum of e^(log_w - second) of those below the largest.
    """
    tile, chunk, group = program(tiles, chunks, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.load(sums_ptr + 2 * group * N + rows, mask=rows < N, other=0.0)
    lowest = nothing_yet(top, compute)
    second = lowest
    ties = tl.zeros([BLOCK_N], compute)
    zeros = tl.zeros([BLOCK_N], compute)
    distance = tl.zeros([BLOCK_N], compute)
    total = tl.zeros([BLOCK_N], compute)
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, S)
    for begin in range(first, last, BLOCK_S):
        x, _at, mask = load_samples(log_w_ptr, group, begin, last, rows, S, N, compute, BLOCK_S)
        is_top, is_zero = x == top[None, :], x < lowest[None, :]
        ties += tl.sum(is_top.to(compute), 0)
        zeros += tl.sum((is_zero & mask).to(compute), 0)
        distance += tl.sum(tl.where(is_zero, 0.0, x - top[None, :]), 0)
        other = tl.where(is_top, -float("inf"), x)
        most = tl.maximum(second, tl.max(other, 0))
        total = tl.fma(
            total, relative(second, most), tl.sum(exp_of_negative(other - most[None, :]), 0)
        )
        second = most
    at = (group * chunks + chunk) * N + rows
    tl.store(ties_ptr + at, ties, mask=rows < N)
    tl.store(zeros_ptr + at, zeros, mask=rows < N)
    tl.store(distances_ptr + at, distance, mask=rows < N)
    tl.store(seconds_ptr + at, second, mask=rows < N)
    tl.store(totals_ptr + at, total, mask=rows < N)


@triton.jit(do_not_specialize=["S", "N", "tiles", "chunks"])
def merge_others_kernel(
    sums_ptr, ties_ptr, zeros_ptr, distances_ptr, seconds_ptr, totals_ptr, merged_ptr,
    S, N, tiles, chunks,
    compute: tl.constexpr, nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write what the signals of all chunks share [G, 4, N]: the number of zeros, the distance, the
    signal of the largest weight, and its part in the sum; csrc/bounds/kernel.hpp explains them.
    """
    tile, group, _only = program(tiles, 1, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.load(sums_ptr + 2 * group * N + rows, mask=rows < N, other=0.0)
    second = nothing_yet(top, compute)
    ties = tl.zeros([BLOCK_N], compute)
    zeros = tl.zeros([BLOCK_N], compute)
    distance = tl.zeros([BLOCK_N], compute)
    for begin in range(0, chunks, BLOCK_S):
        part, at, inside = load_samples(
            seconds_ptr, group, begin, chunks, rows, chunks, N, compute, BLOCK_S
        )
        second = tl.maximum(second, tl.max(part, 0))
        ties += tl.sum(tl.load(ties_ptr + at, mask=inside, other=0.0), 0)
        zeros += tl.sum(tl.load(zeros_ptr + at, mask=inside, other=0.0), 0)
        distance += tl.sum(tl.load(distances_ptr + at, mask=inside, other=0.0), 0)
    second = tl.where(ties > 1.5, top, second)
    rest = ties - 1.0
    for begin in range(0, chunks, BLOCK_S):
        part, at, inside = load_samples(
            seconds_ptr, group, begin, chunks, rows, chunks, N, compute, BLOCK_S
        )
        more = tl.load(totals_ptr + at, mask=inside, other=0.0)
        rest += tl.sum(more * relative(part, second[None, :]), 0)

    wide, gap = rest.to(tl.float64), top.to(tl.float64) - second.to(tl.float64)
    left = wide * tl.exp(0.0 - gap)
    others = S.to(tl.float64) - 1.0
    mean = tl.where(zeros > 0.5, -float("inf"), distance.to(tl.float64) / others)
    change_of_top = expm1(mean) / (1.0 + left)
    of_top = gap + tl.log(1.0 + left) - tl.log(wide + tl.exp(mean + gap))
    of_top = tl.where(change_of_top > -0.5, 0.0 - log1p(change_of_top), of_top)
    none = zeros.to(tl.float64) > others + 0.5
    to = merged_ptr + 4 * group * N + rows
    tl.store(to, zeros, mask=rows < N)
    tl.store(to + N, distance, mask=rows < N)
    tl.store(to + 2 * N, tl.where(none, float("nan"), of_top).to(compute), mask=rows < N)
    inverse = tl.where(none, float("nan"), 1.0 / (1.0 + left))
    tl.store(to + 3 * N, inverse.to(compute), mask=rows < N)


@triton.jit(do_not_specialize=["S", "N", "per_chunk", "tiles", "chunks"])
def signal_kernel(
    log_w_ptr, sums_ptr, merged_ptr, gradient_ptr, out_ptr, S, N, per_chunk, tiles, chunks,
    compute: tl.constexpr, even: tl.constexpr,
    nest: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write VIMCO's signal [G, S, N], times the gradient; `even`: N is a multiple of 4."""
    N = in_fours(N, even)
    tile, chunk, group = program(tiles, chunks, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.load(sums_ptr + 2 * group * N + rows, mask=rows < N, other=0.0)
    merged = merged_ptr + 4 * group * N + rows
    zeros = tl.load(merged, mask=rows < N, other=0.0)
    distance = tl.load(merged + N, mask=rows < N, other=0.0)
    of_top = tl.load(merged + 2 * N, mask=rows < N, other=0.0)
    inverse = tl.load(merged + 3 * N, mask=rows < N, other=0.0)
    gradient = tl.load(gradient_ptr + group * N + rows, mask=rows < N, other=0.0)
    lowest = nothing_yet(top, compute)
    share = (1.0 / (S.to(tl.float64) - 1.0)).to(compute)
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, S)
    for begin in range(first, last, BLOCK_S):
        x, at, mask = load_samples(log_w_ptr, group, begin, last, rows, S, N, compute, BLOCK_S)
        d, is_zero = x - top[None, :], x < lowest[None, :]
        left_out = tl.where(is_zero, distance[None, :], distance[None, :] - d)
        some_zero = zeros[None, :] - is_zero.to(compute) > 0.5
        mean_left = tl.where(some_zero, lowest[None, :], left_out * share)
        apart = mean_left - d
        ratio = expm1(0.0 - tl.abs(apart))  # less 1, of the smaller to the larger of the two
        change = exp(tl.maximum(mean_left, d)) * tl.where(apart > 0.0, 0.0 - ratio, ratio)
        change *= inverse[None, :]
        found = (
            tl.where(x == top[None, :], of_top[None, :], 0.0 - log1p(change)) * gradient[None, :]
        )
        tl.store(out_ptr + at, found.to(out_ptr.dtype.element_ty), mask=mask)


# --- launchers ------------------------------------------------------------------------------------


def _blocks(sizes: Sizes, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the number of blocks of rows, and the samples and rows of a tile."""
    _, samples, rows = sizes
    tile = TILE // 2 if dtype == torch.float64 else TILE
    block_n = min(128, next_power_of_two(rows))
    return cdiv(rows, block_n), min(tile // block_n, next_power_of_two(samples)), block_n


def _chunks(sizes: Sizes, tiles: int, block_s: int) -> tuple[int, int]:
    """Return the number of chunks and the samples of each, which depend on the shape alone."""
    groups, samples, _ = sizes
    wanted = max(1, min(cdiv(samples, block_s), WANTED_PROGRAMS // max(tiles * groups, 1)))
    per_chunk = cdiv(cdiv(samples, wanted), block_s) * block_s
    return cdiv(samples, per_chunk), per_chunk


def _blocks_of_merger(chunks: int, rows: int) -> tuple[int, int, int]:
    """Return the number of blocks of rows, and the chunks and rows of a tile. A tile has many
    chunks, since a program that reads one after the other waits for memory each time.
    """
    block_s = min(64, next_power_of_two(chunks))
    block_n = min(TILE // block_s, next_power_of_two(rows))
    return cdiv(rows, block_n), block_s, block_n


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the bound of each row and the sums behind it."""
    (groups, samples, rows), log_w = problem.sizes, problem.log_w
    if groups * rows == 0:
        return
    tiles, block_s, block_n = _blocks(problem.sizes, log_w.dtype)
    chunks, per_chunk = _chunks(problem.sizes, tiles, block_s)
    tops, totals = outputs.sums.new_empty((2, groups, chunks, rows))
    compute = compute_type(log_w.dtype)
    with on_device_of(log_w):
        launch(
            sums_kernel, tiles * chunks * groups,
            log_w, tops, totals, samples, rows, per_chunk, tiles, chunks,
            compute=compute, nest=nest(chunks, groups), BLOCK_S=block_s, BLOCK_N=block_n,
        )  # fmt: skip
        tiles, block_s, block_n = _blocks_of_merger(chunks, rows)
        launch(
            merge_kernel, tiles * groups,
            tops, totals, *outputs, samples, rows, tiles, chunks,
            compute=compute, nest=nest(groups, 1), BLOCK_S=block_s, BLOCK_N=block_n,
        )  # fmt: skip


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the normalised weights and VIMCO's signal, times the bound's gradient."""
    (groups, samples, rows), log_w = problem.sizes, problem.log_w
    if groups * rows == 0:
        return
    tiles, block_s, block_n = _blocks(problem.sizes, log_w.dtype)
    chunks, per_chunk = _chunks(problem.sizes, tiles, block_s)
    cut = (samples, rows, per_chunk, tiles, chunks)
    compute = compute_type(log_w.dtype)
    options = {"nest": nest(chunks, groups), "BLOCK_S": block_s, "BLOCK_N": block_n}
    even = rows % 4 == 0
    with on_device_of(log_w):
        if gradients.log_w is not None:
            launch(
                weights_kernel, tiles * chunks * groups,
                log_w, upstream.sums, upstream.bound, gradients.log_w, *cut,
                has_gradient=upstream.bound is not None, compute=compute, even=even, **options,
            )  # fmt: skip
        if gradients.log_q is not None:
            parts = upstream.sums.new_empty((5, groups, chunks, rows))
            merged = upstream.sums.new_empty((groups, 4, rows))
            launch(
                others_kernel, tiles * chunks * groups,
                log_w, upstream.sums, *parts, *cut, compute=compute, **options,
            )  # fmt: skip
            blocks, merged_s, merged_n = _blocks_of_merger(chunks, rows)
            launch(
                merge_others_kernel, blocks * groups,
                upstream.sums, *parts, merged, samples, rows, blocks, chunks,
                compute=compute, nest=nest(groups, 1), BLOCK_S=merged_s, BLOCK_N=merged_n,
            )  # fmt: skip
            launch(
                signal_kernel, tiles * chunks * groups,
                log_w, upstream.sums, merged, upstream.bound, gradients.log_q, *cut,
                compute=compute, even=even, **options,
            )  # fmt: skip
