"""Vector quantization in Triton: the codes, sums over their rows, rows; then the launchers.

A program finds the codes of a block of rows: the scores of a block of codes stay in its registers,
each one chain of fma over the columns, like the CPU's, so that codes have the CPU's bits. Such is
the tl.dot of float32 with IEEE precision, which uses no tensor cores: their sums have another
order. Sums over a code's rows go row by row in float64, over
rows that are sorted by code. There are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.launch import (
    cdiv,
    launch,
    nest,
    next_power_of_two,
    on_device_of,
    tile_shape,
)
from latent_kernels.kernels.triton_math import compute_type, program
from latent_kernels.kernels.vector_quantize.problem import (
    Assigned,
    AssignProblem,
    Gradients,
    Outputs,
    Problem,
)

Tensor = torch.Tensor
_BLOCK = 64  # rows, and codes, of a program's scores


# Sizes that may be 1 are not specialized: Triton would make constants of them, without a `.to`.
@triton.jit(do_not_specialize=["tiles"])
def pack_kernel(packed_ptr, codebook_ptr, C, D, tiles, nest: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write packed [G, D + 1, C]: -|e_k|^2 / 2, then the codebook's columns."""
    tile, group, _ = program(tiles, 1, nest)
    codes = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = codes < C
    first = packed_ptr + group * (D + 1) * C + codes
    to = first
    square = tl.zeros((BLOCK_C,), packed_ptr.dtype.element_ty)
    for d in range(D):
        x = tl.load(codebook_ptr + (group * C + codes) * D + d, mask=mask, other=0.0)
        x = x.to(packed_ptr.dtype.element_ty)
        square = tl.fma(x, x, square)
        to += C
        tl.store(to, x, mask=mask)
    tl.store(first, square * -0.5, mask=mask)


@triton.jit(do_not_specialize=["N", "tiles"])
def assign_kernel(
    codes_ptr, z_ptr, packed_ptr, N, C, D, tiles,
    compute: tl.constexpr, nest: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the codes of a block of rows, -1 for none."""
    tile, group, _ = program(tiles, 1, nest)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_C)
    cols = tl.arange(0, BLOCK_D)
    of_rows = z_ptr + (group * N + rows) * D
    best = tl.full((BLOCK_N, BLOCK_C), float("-inf"), compute)
    at = tl.full((BLOCK_N, BLOCK_C), 0, tl.int32)
    for first in range(0, C, BLOCK_C):
        own = first + lanes
        mask = own < C
        column = packed_ptr + group * (D + 1) * C + own
        start = tl.load(column, mask=mask, other=float("-inf"))
        score = tl.zeros((BLOCK_N, BLOCK_C), compute) + start[None, :]
        if compute == tl.float32:
            for d in tl.range(0, D, BLOCK_D, num_stages=1):
                own_cols = d + cols < D
                z_at = of_rows[:, None] + (d + cols)[None, :]
                z = tl.load(z_at, mask=(rows < N)[:, None] & own_cols[None, :], other=0.0)
                e_at = column[None, :] + (d + cols + 1).to(tl.int64)[:, None] * C
                e = tl.load(e_at, mask=own_cols[:, None] & mask[None, :], other=0.0)
                score = tl.dot(z.to(tl.float32), e, score, input_precision="ieee")
        else:  # a float64 tl.dot would run on tensor cores
            for d in range(D):
                column += C
                e = tl.load(column, mask=mask, other=0.0)
                z = tl.load(of_rows + d, mask=rows < N, other=0.0)
                score = tl.fma(z[:, None], e[None, :], score)
        better = score > best  # NaN never is; the first of equals stays
        best = tl.where(better, score, best)
        at = tl.where(better, own[None, :], at)
    most = tl.max(best, axis=1)
    lowest = tl.min(tl.where(best == most[:, None], at, 0x7FFFFFFF), axis=1)
    code = tl.where(most > float("-inf"), lowest, -1).to(tl.int64)
    tl.store(codes_ptr + group * N + rows, code, mask=rows < N)


@triton.jit(do_not_specialize=["N", "tiles"])
def sums_kernel(
    out_ptr, z_ptr, codebook_ptr, g_ptr, order_ptr, ends_ptr, N, C, D, tiles,
    weighted: tl.constexpr, compute: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the sum of a code's rows; or, `weighted`, 2 sum g (e - z). `order` [G, N] has the rows
    sorted by code; those of code k are [ends[k], ends[k + 1]) of it.
    """
    tile, place, _ = program(tiles, 1, 1)
    group = place // C
    cols = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = cols < D
    begin = tl.load(ends_ptr + place + group)
    end = tl.load(ends_ptr + place + group + 1)
    total = tl.zeros((BLOCK_D,), tl.float64)
    if weighted:
        e = tl.load(codebook_ptr + place * D + cols, mask=mask, other=0.0).to(tl.float64)
    for i in range(begin, end):
        row = group * N + tl.load(order_ptr + group * N + i)
        x = tl.load(z_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float64)
        if weighted:
            g = tl.load(g_ptr + row).to(tl.float64)
            total = tl.fma(e - x, tl.zeros((BLOCK_D,), tl.float64) + g, total)
        else:
            total += x
    if weighted:
        total *= 2.0
    out = total.to(compute).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place * D + cols, out, mask=mask)


@triton.jit
def load_pair(z_ptr, codebook_ptr, codes_ptr, rows, cols, all_rows, N, C, D, compute: tl.constexpr):
    """Return z and e, NaN where a row has no code, of rows [BLOCK_N, 1] of all groups and columns
    [1, BLOCK_D]; and e in the codebook's type.
    """
    mask = (rows < all_rows) & (cols < D)
    code = tl.load(codes_ptr + rows, mask=rows < all_rows, other=-1)
    known = (code >= 0) & (code < C)
    e = tl.load(
        codebook_ptr + (rows // N * C + code) * D + cols, mask=mask & known, other=float("nan")
    )
    z = tl.load(z_ptr + rows * D + cols, mask=mask, other=0.0).to(compute)
    return z, e.to(compute), e


@triton.jit(do_not_specialize=["all_rows", "N"])
def forward_kernel(
    quantized_ptr, commitment_ptr, codebook_loss_ptr, z_ptr, codebook_ptr, codes_ptr,
    all_rows, N, C, D,
    with_quantized: tl.constexpr, with_commitment: tl.constexpr, with_codebook_loss: tl.constexpr,
    compute: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the codes' rows of the codebook, and the squared distances to them."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    code = tl.load(codes_ptr + rows, mask=rows < all_rows, other=-1)
    total = tl.where((code >= 0) & (code < C), 0.0, float("nan")).to(compute)  # where D = 0, too
    terms = tl.zeros((BLOCK_N, BLOCK_D), compute)
    for col in range(0, D, BLOCK_D):
        cols = col + tl.arange(0, BLOCK_D)[None, :]
        z, e, as_it_is = load_pair(
            z_ptr, codebook_ptr, codes_ptr, rows, cols, all_rows, N, C, D, compute
        )
        mask = (rows < all_rows) & (cols < D)
        t = tl.where(mask, z - e, 0.0)
        terms = tl.fma(t, t, terms)
        if with_quantized:
            tl.store(quantized_ptr + rows * D + cols, as_it_is, mask=mask)
    total += tl.sum(terms, axis=1)[:, None]
    if with_commitment:
        tl.store(commitment_ptr + rows, total, mask=rows < all_rows)
    if with_codebook_loss:
        tl.store(codebook_loss_ptr + rows, total, mask=rows < all_rows)


@triton.jit(do_not_specialize=["all_rows", "N", "tiles"])
def row_gradients_kernel(
    out_ptr, g_quantized_ptr, g_commitment_ptr, z_ptr, codebook_ptr, codes_ptr,
    all_rows, N, C, D, tiles, with_quantized: tl.constexpr, with_commitment: tl.constexpr,
    compute: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write g_quantized + 2 g_commitment (z - e)."""
    col_block, block, _ = program(tiles, 1, 1)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    cols = col_block * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (rows < all_rows) & (cols < D)
    g = tl.zeros((BLOCK_N, BLOCK_D), compute)
    if with_quantized:
        g = tl.load(g_quantized_ptr + rows * D + cols, mask=mask, other=0.0).to(compute)
    if with_commitment:
        z, e, _ = load_pair(z_ptr, codebook_ptr, codes_ptr, rows, cols, all_rows, N, C, D, compute)
        twice = tl.load(g_commitment_ptr + rows, mask=rows < all_rows, other=0.0) * 2.0
        g = tl.fma(z - e, twice, g)
    tl.store(out_ptr + rows * D + cols, g.to(out_ptr.dtype.element_ty), mask=mask)


# --- launchers ------------------------------------------------------------------------------------


def _block(count: int, dtype: torch.dtype) -> int:
    """Return how many of `count` rows or codes a program has."""
    return min(_BLOCK // (2 if dtype == torch.float64 else 1), max(next_power_of_two(count), 16))


def _sorted(codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows [G, N] sorted by code, in ascending order within one; and where the rows of
    each code begin and end: [G, count + 1].
    """
    ordered, order = codes.sort(dim=-1, stable=True)
    bounds = torch.arange(count + 1, device=codes.device).expand(len(codes), -1).contiguous()
    return order, torch.searchsorted(ordered, bounds)


def _add_rows(
    problem: AssignProblem | Problem, g: Tensor | None, order: Tensor, ends: Tensor, out: Tensor
) -> None:
    groups, rows, codes, cols = problem.sizes
    block = min(256, next_power_of_two(cols))
    tiles = cdiv(cols, block)
    launch(
        sums_kernel, tiles * groups * codes,
        out, problem.z, problem.codebook, g, order, ends, rows, codes, cols, tiles,
        weighted=g is not None, compute=compute_type(problem.z.dtype), BLOCK_D=block,
    )  # fmt: skip


def assign(problem: AssignProblem, outputs: Assigned) -> None:
    """Write the codes, their counts and their sums."""
    (groups, rows, codes, cols), z, codebook = problem
    if groups == 0:
        return
    assigned = outputs.codes.view(groups, rows)
    packed = z.new_empty((groups, cols + 1, codes), dtype=row_dtype(z.dtype))
    block_n, block_c = _block(rows, z.dtype), _block(codes, z.dtype)
    with on_device_of(z):
        if rows > 0:
            tiles = cdiv(codes, block_c)
            launch(
                pack_kernel, tiles * groups, packed, codebook, codes, cols, tiles,
                nest=nest(groups, 1), BLOCK_C=block_c,
            )  # fmt: skip
            tiles = cdiv(rows, block_n)
            launch(
                assign_kernel, tiles * groups, assigned, z, packed, rows, codes, cols, tiles,
                compute=compute_type(z.dtype), nest=nest(groups, 1),
                BLOCK_N=block_n, BLOCK_C=block_c, BLOCK_D=16,
            )  # fmt: skip
        order, ends = _sorted(assigned, codes)
        outputs.counts.copy_(ends.diff(dim=-1).reshape(outputs.counts.shape))
        if cols > 0:
            _add_rows(problem, None, order, ends, outputs.sums)


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the codes' rows of the codebook and the squared distances to them."""
    (groups, rows, codes, cols), z, codebook, assigned = problem
    if groups * rows == 0:
        return
    block_n, block_d = tile_shape(groups * rows, cols, z.dtype)
    with on_device_of(z):
        launch(
            forward_kernel, cdiv(groups * rows, block_n), *outputs, z, codebook, assigned,
            groups * rows, rows, codes, cols,
            with_quantized=outputs.quantized is not None,
            with_commitment=outputs.commitment is not None,
            with_codebook_loss=outputs.codebook_loss is not None,
            compute=compute_type(z.dtype), BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of z and of the codebook."""
    (groups, rows, codes, cols), z, codebook, assigned = problem
    with on_device_of(z):
        if gradients.z is not None and gradients.z.numel() > 0:
            block_n, block_d = tile_shape(groups * rows, cols, z.dtype)
            tiles = cdiv(cols, block_d)
            launch(
                row_gradients_kernel, tiles * cdiv(groups * rows, block_n),
                gradients.z, upstream.quantized, upstream.commitment, z, codebook, assigned,
                groups * rows, rows, codes, cols, tiles,
                with_quantized=upstream.quantized is not None,
                with_commitment=upstream.commitment is not None,
                compute=compute_type(z.dtype), BLOCK_N=block_n, BLOCK_D=block_d,
            )  # fmt: skip
        if gradients.codebook is not None and gradients.codebook.numel() > 0:
            if upstream.codebook_loss is None:
                gradients.codebook.zero_()
                return
            order, ends = _sorted(assigned.view(groups, rows), codes)
            _add_rows(problem, upstream.codebook_loss, order, ends, gradients.codebook)
