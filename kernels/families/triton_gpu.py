"""Samples of discrete families in Triton: the rules of README.md, with the operations of
reference.py in the same order.

A program draws a block of one group's S * N * D elements, in memory order. The kernels are launched
without fp fusion, so that every bit equals the reference's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.families.problem import (
    Classes,
    Problem,
    Samples,
    classes_of,
    unit_weight,
)
from latent_kernels.kernels.launch import (
    block_of,
    cdiv,
    launch,
    on_device_of,
    tiles_of_classes,
)
from latent_kernels.kernels.noise.triton_gpu import ln, to_uniform, words_of_groups
from latent_kernels.kernels.triton_math import exp_of_negative

Tensor = torch.Tensor


@triton.jit
def logistic(u):
    """Return ln u - ln(1 - u): for u uniform on (0, 1), a standard logistic variable."""
    return ln(u) - ln(1.0 - u)


@triton.jit
def threshold(total, word):
    """Return floor(total word / 2^32) for a total below 2^62 and a word of 32 bits."""
    w = word.to(tl.int64)
    low = ((total & 0xFFFFFFFF).to(tl.uint64) * w.to(tl.uint64)) >> 32
    return (total >> 32) * w + low.to(tl.int64)


@triton.jit
def words_of_block(
    count, plane, seed, seed_stride, offset, blocks,
    one_group: tl.constexpr, seed_is_pointer: tl.constexpr, shift: tl.constexpr,
    wraps_once: tl.constexpr, aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the program's group, the words of its uniforms, their indices among the group's
    `count` elements with the mask, and the indices of their parameters within the group's `plane`.
    shift = offset % 4.
    """
    block = tl.program_id(0).to(tl.int64)
    group = block * 0
    if not one_group:
        group = block // blocks
        block = block % blocks
    key = tl.load(seed + group * seed_stride) if seed_is_pointer else seed
    first = offset.to(tl.int64) // 4 + block * (BLOCK // 4)
    words = words_of_groups(key.to(tl.int64), first + tl.arange(0, BLOCK // 4))
    i = block * BLOCK + tl.arange(0, BLOCK) - shift
    # One division of 64 bits for the block, not one for each element. It is below zero only where i
    # is, in block 0.
    position = (block * BLOCK - shift) % plane + tl.arange(0, BLOCK)
    if wraps_once:
        position -= tl.where(position < plane, 0, plane)
    else:
        position = position.to(tl.int32) % plane
    if aligned:
        position = tl.max_contiguous(tl.multiple_of(position, 4), 4)
    return group, words, i, (i >= 0) & (i < count), position


@triton.jit(do_not_specialize=["seed", "offset", "blocks"])
def bernoulli_kernel(
    z_ptr, logits_ptr, count, plane, seed, seed_stride, offset, blocks,
    antithetic: tl.constexpr, one_group: tl.constexpr, seed_is_pointer: tl.constexpr,
    shift: tl.constexpr, wraps_once: tl.constexpr, aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write z = 1 where ln u - ln(1 - u) < l; the antithetic twin is 1 where the same holds of 1 -
    u.
    """
    group, words, i, mask, position = words_of_block(
        count,
        plane,
        seed,
        seed_stride,
        offset,
        blocks,
        one_group,
        seed_is_pointer,
        shift,
        wraps_once,
        aligned,
        BLOCK,
    )
    logits = tl.load(logits_ptr + group * plane + position, mask=mask, other=0.0)
    if logits.dtype != tl.float64:
        logits = logits.to(tl.float32)
    x = logistic(to_uniform(words)).to(logits.dtype)
    first = group * 2 * count if antithetic else group * count
    z = tl.where(logits != logits, logits, tl.where(x < logits, 1.0, 0.0).to(logits.dtype))
    tl.store(z_ptr + first + i, z.to(z_ptr.dtype.element_ty), mask=mask)
    if antithetic:
        z = tl.where(
            logits != logits, logits, tl.where(0.0 - x < logits, 1.0, 0.0).to(logits.dtype)
        )
        tl.store(z_ptr + first + count + i, z.to(z_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["K", "unit"])
def cumulative_kernel(
    c_ptr, logits_ptr, count, K, unit, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Write cumulative weights [count, K] in fixed point, `unit` for the most probable class. Their
    sums are exact, in any order.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    at = i * K
    largest = tl.full((BLOCK, 1), float("-inf"), tl.float32)
    spoiled = tl.zeros((BLOCK, 1), tl.int32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(logits_ptr + at + k, mask=(i < count) & (k < K), other=float("-inf"))
        x = x.to(tl.float32)
        spoiled |= tl.max((x != x).to(tl.int32), 1, keep_dims=True)
        x = tl.where(x == x, x, float("-inf"))
        largest = tl.maximum(largest, tl.max(x, 1, keep_dims=True))
    proper = (spoiled == 0) & (tl.abs(largest) < float("inf"))
    shift = tl.where(proper, largest, 0.0)
    total = tl.zeros((BLOCK, 1), tl.int64)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        inside = (i < count) & (k < K)
        x = tl.load(logits_ptr + at + k, mask=inside, other=float("-inf")).to(tl.float32)
        x = tl.where(proper & inside, x - shift, float("-inf"))
        weight = (exp_of_negative(x) * unit).to(tl.int64)
        c = total + tl.cumsum(weight, 1)
        tl.store(c_ptr + at + k, tl.where(proper, c, 1), mask=inside)
        total += tl.sum(weight, 1, keep_dims=True)


@triton.jit(do_not_specialize=["seed", "offset", "blocks", "K"])
def categorical_kernel(
    z_ptr, c_ptr, count, plane, K, seed, seed_stride, offset, blocks,
    steps: tl.constexpr, one_group: tl.constexpr, seed_is_pointer: tl.constexpr,
    shift: tl.constexpr, wraps_once: tl.constexpr, aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write z = the number of k < K - 1 with c_k <= w 2^-32 c_(K-1). Since c ascends, bisection
    finds it; 2^steps >= K.
    """
    group, words, i, mask, position = words_of_block(
        count,
        plane,
        seed,
        seed_stride,
        offset,
        blocks,
        one_group,
        seed_is_pointer,
        shift,
        wraps_once,
        aligned,
        BLOCK,
    )
    c_row = c_ptr + (group * plane + position) * K
    t = threshold(tl.load(c_row + (K - 1), mask=mask, other=0), words)
    z = tl.zeros((BLOCK,), tl.int32)
    for step in tl.static_range(steps):
        more = z + (1 << (steps - 1 - step))
        inside = mask & (more < K)
        below = tl.load(c_row + (more - 1), mask=inside, other=0) <= t
        z = tl.where(inside & below, more, z)
    tl.store(z_ptr + group * count + i, z.to(tl.int64), mask=mask)


# --- launchers ------------------------------------------------------------------------------------


def cumulative(logits: Tensor) -> Tensor:
    """Return the cumulative weights of contiguous logits [..., K] in fixed point, int64."""
    c = torch.empty_like(logits, dtype=torch.int64)
    count, classes, block, block_k = tiles_of_classes(logits)
    with on_device_of(logits):
        launch(
            cumulative_kernel, cdiv(count, block),
            c, logits, count, classes, unit_weight(classes),
            BLOCK=block, BLOCK_K=block_k,
        )  # fmt: skip
    return c


def sample(problem: Problem, outputs: Samples | Classes) -> None:
    """Write samples into `z`; see reference.py. Logits and z are contiguous."""
    (groups, _, samples, rows, cols, _), logits, seed, offset, antithetic = problem
    classes, z = classes_of(problem, outputs), outputs.z
    plane = rows * cols
    count = samples * plane
    if groups * count == 0:
        return
    seed_stride = 1 if isinstance(seed, Tensor) and seed.numel() > 1 else 0
    shift = offset % 4
    block = block_of(groups * count)
    blocks = cdiv(count + shift, block)
    where = (seed, seed_stride, offset, blocks)
    options = {
        "one_group": groups == 1,
        "seed_is_pointer": isinstance(seed, Tensor),
        "shift": shift,
        "wraps_once": plane >= block,
        "aligned": shift == 0 and plane % 4 == 0,
        "BLOCK": block,
    }
    with on_device_of(logits):
        if classes:
            c = cumulative(logits)
            steps = (classes - 1).bit_length()
            launch(
                categorical_kernel, blocks * groups,
                z, c, count, plane, classes, *where, steps=steps, **options,
            )  # fmt: skip
        else:
            launch(
                bernoulli_kernel, blocks * groups,
                z, logits, count, plane, *where, antithetic=antithetic, **options,
            )  # fmt: skip
