"""The log-densities in Triton: forward, backward, then their launchers.

A program handles a tile [BLOCK_N, BLOCK_D] of rows and columns, for a chunk of the samples; the
forward pass takes one sample a program where several would share no computation. A row longer than
a tile leaves partial sums; so do the gradients of inputs that samples or rows share, one for each
chunk of samples and each block of rows. torch adds them up in a fixed order. There are no atomics:
two runs give the same bits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.densities.problem import (
    GaussianProblem,
    Gradients,
    Outputs,
    Problem,
    Sizes,
    inputs_of,
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
)
from latent_kernels.kernels.triton_math import (
    LOG_TWO_PI,
    compute_type,
    divide,
    exp,
    exp_of_negative,
    in_fours,
    log1p,
    program,
)

Tensor = torch.Tensor

# How the gradient of an input is reduced:
UNWANTED = tl.constexpr(0)
WRITTEN = tl.constexpr(1)  # not reduced: an element for each row of each sample
OVER_SAMPLES = tl.constexpr(2)  # summed over samples
OVER_ROWS = tl.constexpr(3)  # summed over rows and samples

MOST_STEPS = 16  # tiles of a program of the forward pass: 64 elements a thread
LEAST_PROGRAMS = 256  # about two for each multiprocessor of a large GPU


@triton.jit
def load(
    ptr,
    group,
    sample,
    group_stride,
    sample_stride,
    row_stride,
    rows,
    cols,
    mask,
    compute: tl.constexpr,
    even: tl.constexpr,
    whole: tl.constexpr = False,
):
    """Return a tile of an input in the type of the computation; `even`: its strides are multiples
    of 4; `whole`: all of it is inside.
    """
    at = ptr + group * in_fours(group_stride, even) + sample * in_fours(sample_stride, even)
    at += rows * in_fours(row_stride, even) + cols
    x = tl.load(at) if whole else tl.load(at, mask=mask, other=0.0)
    return x.to(compute)


@triton.jit
def place(
    tiles, chunks, col_blocks, N, D,
    nest: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the group, chunk, blocks of rows and columns, rows [BLOCK_N, 1], columns [1, BLOCK_D]
    and mask of this program.
    """
    tile, chunk, group = program(tiles, chunks, nest)
    col_block = tile % col_blocks
    block = tile // col_blocks
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    cols = col_block * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    return group, chunk, block, col_block, rows, cols, (rows < N) & (cols < D)


@triton.jit
def store(ptr, at, value, mask):
    """Store the value in the output's type."""
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def gaussian_terms(z, mean, logvar, inverse):
    """Return -2 times the terms of the log-density, given e^(-logvar / 2)."""
    t = (z - mean) * inverse
    return tl.fma(t, t, logvar + LOG_TWO_PI)


@triton.jit
def bernoulli_terms(x, logits):
    """Return minus the terms of the log-density."""
    size = tl.abs(logits)
    weight = tl.where(logits > 0, 1.0 - x, x)
    rest = log1p(exp_of_negative(0.0 - size), positive=True)
    return tl.where(weight == 0, rest, tl.fma(weight, size, rest))


# Sizes that may be 1 are not specialized: Triton would make constants of them, without a `.to`.
@triton.jit(do_not_specialize=["S", "N", "tiles", "chunks"])
def forward_kernel(
    out_ptr, a_ptr, b_ptr, c_ptr, S, N, D, tiles, chunks, col_blocks,
    a_group, a_sample, a_row, b_group, b_sample, b_row, c_group, c_sample, c_row,
    is_gaussian: tl.constexpr, compute: tl.constexpr, even: tl.constexpr, nest: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Write out [G, S, N, col_blocks], the sums over STEPS tiles beside each other, of which the
    first WHOLE have no column beyond D. Inputs a, b, c are z, mean and logvar, or x and logits.
    """
    D = in_fours(D, even)
    group, s, _, col_block, rows, cols, _mask = place(
        tiles, chunks, col_blocks, N, D, nest, BLOCK_N, BLOCK_D
    )
    cols += col_block * (STEPS * BLOCK_D - BLOCK_D)
    inside = tl.minimum(rows, N - 1)  # rows beyond the last do as it does, and need no mask
    total = tl.zeros((BLOCK_N, BLOCK_D), compute)
    for step in tl.static_range(STEPS):
        at = cols + step * BLOCK_D
        mask = at < D
        a = load(
            a_ptr, group, s, a_group, a_sample, a_row, inside, at, mask, compute, even, step < WHOLE
        )
        b = load(
            b_ptr, group, s, b_group, b_sample, b_row, inside, at, mask, compute, even, step < WHOLE
        )
        if is_gaussian:
            c = load(
                c_ptr, group, s, c_group, c_sample, c_row, inside, at, mask, compute, even,
                step < WHOLE,
            )  # fmt: skip
            terms = gaussian_terms(a, b, c, exp(c * -0.5))
        else:
            terms = bernoulli_terms(a, b)
        total += terms if step < WHOLE else tl.where(mask, terms, 0.0)
    log_prob = tl.sum(total, axis=1) * (-0.5 if is_gaussian else -1.0)
    out_at = out_ptr + ((group * S + s) * N + rows) * col_blocks + col_block
    tl.store(out_at, log_prob[:, None], mask=rows < N)


@triton.jit(do_not_specialize=["S", "N", "tiles", "chunks", "samples_per_program"])
def shared_logvar_kernel(
    out_ptr, z_ptr, mean_ptr, logvar_ptr, S, N, D, tiles, chunks, samples_per_program, col_blocks,
    z_group, z_sample, z_row, mean_group, mean_sample, mean_row, logvar_group, logvar_row,
    compute: tl.constexpr, even: tl.constexpr, nest: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write out [G, S, N, col_blocks] of the Gaussian where samples share the log-variance: its
    exponential is computed once for all of a program's samples.
    """
    D = in_fours(D, even)
    group, chunk, _, col_block, rows, cols, mask = place(
        tiles, chunks, col_blocks, N, D, nest, BLOCK_N, BLOCK_D
    )
    logvar = load(
        logvar_ptr, group, 0, logvar_group, 0, logvar_row, rows, cols, mask, compute, even
    )
    inverse = exp(logvar * -0.5)
    first = chunk * samples_per_program
    for s in range(first, tl.minimum(first + samples_per_program, S)):
        z = load(z_ptr, group, s, z_group, z_sample, z_row, rows, cols, mask, compute, even)
        mean = load(
            mean_ptr, group, s, mean_group, mean_sample, mean_row, rows, cols, mask, compute, even
        )
        terms = tl.where(mask, gaussian_terms(z, mean, logvar, inverse), 0.0)
        at = out_ptr + ((group * S + s) * N + rows) * col_blocks + col_block
        tl.store(at, (tl.sum(terms, axis=1) * -0.5)[:, None], mask=rows < N)


@triton.jit(
    do_not_specialize=["S", "N", "tiles", "chunks", "samples_per_program", "blocks", "groups"]
)
def backward_kernel(
    d_a_ptr, d_b_ptr, d_c_ptr, g_ptr, a_ptr, b_ptr, c_ptr,
    S, N, D, tiles, chunks, samples_per_program, blocks, col_blocks, groups,
    a_group, a_sample, a_row, b_group, b_sample, b_row, c_group, c_sample, c_row,
    fate_a: tl.constexpr, fate_b: tl.constexpr, fate_c: tl.constexpr,
    is_gaussian: tl.constexpr, compute: tl.constexpr, even: tl.constexpr,
    nest: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write gradients [G, S, N, D]; of inputs that samples share [chunks, G, N, D]; of inputs that
    have a single row [chunks, blocks, G, D].
    """
    D = in_fours(D, even)
    group, chunk, block, _, rows, cols, mask = place(
        tiles, chunks, col_blocks, N, D, nest, BLOCK_N, BLOCK_D
    )
    plane = N.to(tl.int64) * D
    sum_a = tl.zeros((BLOCK_N, BLOCK_D), compute)
    sum_b = tl.zeros((BLOCK_N, BLOCK_D), compute)
    sum_c = tl.zeros((BLOCK_N, BLOCK_D), compute)
    first = chunk * samples_per_program
    for s in range(first, tl.minimum(first + samples_per_program, S)):
        g = tl.load(g_ptr + (group * S + s) * N + rows, mask=rows < N, other=0.0).to(compute)
        a = load(a_ptr, group, s, a_group, a_sample, a_row, rows, cols, mask, compute, even)
        b = load(b_ptr, group, s, b_group, b_sample, b_row, rows, cols, mask, compute, even)
        at = (group * S + s) * plane + rows * D + cols
        if is_gaussian:
            inverse = exp(
                load(c_ptr, group, s, c_group, c_sample, c_row, rows, cols, mask, compute, even)
                * -0.5
            )
            t = (a - b) * inverse
            slope = t * inverse
            sum_a = give(d_a_ptr, at, sum_a, 0.0 - g, slope, mask, fate_a)
            sum_b = give(d_b_ptr, at, sum_b, g, slope, mask, fate_b)
            sum_c = give(d_c_ptr, at, sum_c, g * 0.5, tl.fma(t, t, -1.0), mask, fate_c)
        else:
            e = exp_of_negative(0.0 - tl.abs(b))
            tail = divide(e, e + 1.0)
            slope = tl.where(b > 0, tail - (1.0 - a), a - tail)
            sum_a = give(d_a_ptr, at, sum_a, g, b, mask, fate_a)
            sum_b = give(d_b_ptr, at, sum_b, g, slope, mask, fate_b)
    finish(d_a_ptr, sum_a, fate_a, chunk, block, blocks, groups, group, N, D, rows, cols, mask)
    finish(d_b_ptr, sum_b, fate_b, chunk, block, blocks, groups, group, N, D, rows, cols, mask)
    finish(d_c_ptr, sum_c, fate_c, chunk, block, blocks, groups, group, N, D, rows, cols, mask)


@triton.jit
def give(ptr, at, total, g, slope, mask, fate: tl.constexpr):
    """Store a gradient, g slope, or return `total` with it added."""
    if fate == WRITTEN:
        store(ptr, at, g * slope, mask)
    elif fate != UNWANTED:
        total = tl.fma(g, slope, total)
    return total


@triton.jit
def finish(
    ptr, total, fate: tl.constexpr, chunk, block, blocks, groups, group, N, D, rows, cols, mask
):
    """Store this program's part of a sum."""
    if fate == OVER_SAMPLES:
        store(ptr, ((chunk * groups + group) * N + rows) * D + cols, total, mask)
    elif fate == OVER_ROWS:
        over_rows = tl.sum(total, axis=0)[
            None, :
        ]  # rows beyond the last have gradients of 0, as g is there
        store(ptr, ((chunk * blocks + block) * groups + group) * D + cols, over_rows, cols < D)


# --- launchers ------------------------------------------------------------------------------------


def _places(inputs: tuple[Tensor, ...]) -> tuple[list[Tensor | None], list[int]]:
    """Return three inputs and their strides of groups, samples and rows, which are 0 where an input
    is shared.
    """
    strides: list[int] = []
    for x in inputs:
        group, sample, row, _ = x.stride()
        strides += [group, sample if x.size(1) != 1 else 0, row if x.size(2) != 1 else 0]
    missing = 3 - len(inputs)
    return [*inputs, *([None] * missing)], strides + [0, 0, 0] * missing


def _even(cols: int, strides: list[int]) -> bool:
    """Return whether all rows begin at multiples of four elements."""
    return cols % 4 == 0 and all(stride % 4 == 0 for stride in strides)


def _fate(x: Tensor, out: Tensor | None, sizes: Sizes) -> int:
    fate = WRITTEN if x.size(1) == sizes[1] else OVER_SAMPLES
    if out is None:
        fate = UNWANTED
    elif x.size(2) != sizes[2]:
        fate = OVER_ROWS
    return int(fate.value)


@functools.lru_cache(1024)
def _cut(sizes: Sizes, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the rows and columns of a tile and the tiles of a program, beside each other.

    A tile has 16 bytes for each thread. Of the shapes that leave enough programs, that with the
    fewest idle columns is taken.
    """
    groups, samples, rows, cols = sizes
    lines = groups * samples * rows
    tile = 2 * TILE // dtype.itemsize
    most = MOST_STEPS if dtype.itemsize >= 4 else MOST_STEPS // 2
    widest = (
        tile,
        1,
        max(1, min(most, cdiv(cols, tile), cdiv(cols, tile) * lines // LEAST_PROGRAMS)),
    )
    found, idle = widest, cdiv(cols, tile) * tile
    block_d = tile // 2
    while block_d >= 8 and tile // block_d <= next_power_of_two(rows):
        steps, block_n = max(cdiv(cols, block_d), 1), tile // block_d
        programs = groups * samples * cdiv(rows, block_n)
        if steps <= most and programs >= LEAST_PROGRAMS and steps * block_d < idle:
            found, idle = (block_d, block_n, steps), steps * block_d
        block_d //= 2
    block_d, block_n, steps = found
    return block_n, block_d, steps


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the log-density of each row; reference.py has the formulas."""
    sizes, out = problem.sizes, outputs.log_prob
    groups, samples, rows, cols = sizes
    inputs = inputs_of(problem)
    if 0 in (groups, samples, rows):
        return
    dtype = inputs[0].dtype
    places, strides = _places(inputs)
    is_gaussian = isinstance(problem, GaussianProblem)
    per_program, steps = 1, 1
    block_n, block_d = tile_shape(rows, cols, dtype)
    if is_gaussian and samples > 1 and strides[-2] == 0:  # logvar is shared
        tiles = cdiv(rows, block_n) * max(cdiv(cols, block_d), 1)
        per_program = cdiv(samples, min(samples, cdiv(WANTED_PROGRAMS, tiles * groups)))
    if per_program == 1:
        block_n, block_d, steps = _cut(sizes, dtype)
    col_blocks = max(cdiv(cols, steps * block_d), 1)
    tiles = cdiv(rows, block_n) * col_blocks
    chunks = cdiv(samples, per_program)
    partial = out if col_blocks == 1 else out.new_empty((groups, samples, rows, col_blocks))
    constants = {
        "compute": compute_type(dtype),
        "even": _even(cols, strides),
        "nest": nest(chunks, groups),
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
    }
    with on_device_of(out):
        if per_program > 1:
            launch(
                shared_logvar_kernel, tiles * chunks * groups,
                partial, *places, samples, rows, cols, tiles, chunks, per_program, col_blocks,
                *strides[:-2], strides[-1], **constants,
            )  # fmt: skip
        else:
            whole = cols // block_d if col_blocks == 1 else 0
            launch(
                forward_kernel, tiles * chunks * groups,
                partial, *places, samples, rows, cols, tiles, chunks, col_blocks, *strides,
                is_gaussian=is_gaussian, **constants, STEPS=steps, WHOLE=whole,
            )  # fmt: skip
    if partial is not out:
        torch.sum(partial, -1, out=out.view(partial.shape[:-1]))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of the inputs, summed over the axes along which they are shared."""
    sizes, inputs, gradient = problem.sizes, inputs_of(problem), upstream.log_prob
    groups, samples, rows, cols = sizes
    if 0 in sizes:
        for out in gradients:
            if out is not None:
                out.zero_()
        return
    dtype = inputs[0].dtype
    block_n, block_d = tile_shape(rows, cols, dtype)
    col_blocks, blocks = cdiv(cols, block_d), cdiv(rows, block_n)
    tiles = blocks * col_blocks
    # A quarter of the programs wanted where partial sums cost memory.
    fates = [_fate(x, out, sizes) for x, out in zip(inputs, gradients, strict=True)]
    wanted = max(WANTED_PROGRAMS // (4 if max(fates) > WRITTEN.value else 1), 1)
    per_program = cdiv(samples, min(samples, cdiv(wanted, tiles * groups)))
    chunks = cdiv(samples, per_program)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    targets = list(gradients)
    for j, fate in enumerate(fates):
        if fate == OVER_ROWS.value and chunks * blocks > 1:
            targets[j] = gradient.new_empty((chunks * blocks, groups, cols), dtype=compute)
        elif fate == OVER_SAMPLES.value and chunks > 1:
            targets[j] = gradient.new_empty((chunks, groups, rows, cols), dtype=compute)
    missing = [None] * (3 - len(inputs))
    places, strides = _places(inputs)
    with on_device_of(gradient):
        launch(
            backward_kernel, tiles * chunks * groups,
            *targets, *missing, gradient, *places,
            samples, rows, cols, tiles, chunks, per_program, blocks, col_blocks, groups, *strides,
            fate_a=fates[0], fate_b=fates[1],
            fate_c=fates[2] if len(fates) == 3 else UNWANTED.value,
            is_gaussian=isinstance(problem, GaussianProblem), compute=compute_type(dtype),
            even=_even(cols, strides), nest=nest(chunks, groups),
            BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
    for out, target in zip(gradients, targets, strict=True):
        if out is not None and target is not None and target is not out:
            out.copy_(target.sum(0).reshape(out.shape))
