"""Samples of discrete families in Triton: the rules of README.md, with the operations of
reference.py in their order.

A program draws a block of one group's S * N * D elements, as they lie in memory. Launched without
fp fusion, so that every bit is the reference's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.families.problem import Classes, Problem, Samples, classes_of
from latent_kernels.kernels.launch import OPTIONS, TILE, on_device_of
from latent_kernels.kernels.noise.triton_gpu import ln, noise_of_groups, philox, to_uniform
from latent_kernels.kernels.triton_math import exp

Tensor = torch.Tensor

ROWS = 128  # parameter rows of one program of `cumulative_kernel`: one for each thread


@triton.jit
def logistic(u):
    """ln u - ln(1 - u): u uniform on (0, 1) gives a standard logistic variable."""
    return ln(u) - ln(1.0 - u)


@triton.jit
def uniform_of_elements(seed, element):
    """Single elements of the uniform stream, wherever they lie: four times the work of
    noise_of_groups.
    """
    w0, w1, w2, w3 = philox(seed, element >> 2, 1)
    second = (element & 2) != 0
    word = tl.where((element & 1) != 0, tl.where(second, w3, w1), tl.where(second, w2, w0))
    return to_uniform(word)


@triton.jit
def uniforms_of_block(
    count, plane, seed, seed_stride, offset, blocks,
    seed_is_pointer: tl.constexpr, shift: tl.constexpr, wraps_once: tl.constexpr,
    aligned: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The program's group, its uniforms, where they lie among the group's `count` elements, with
    the mask, and where their parameters lie among the `plane` of the group. shift = offset % 4.
    """
    pid = tl.program_id(0).to(tl.int64)
    block = pid % blocks
    group = pid // blocks
    key = tl.load(seed + group * seed_stride) if seed_is_pointer else seed
    first = offset.to(tl.int64) // 4 + block * (BLOCK // 4)
    u = noise_of_groups(key.to(tl.int64), first + tl.arange(0, BLOCK // 4), 1)
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
    return group, u, i, (i >= 0) & (i < count), position


@triton.jit(do_not_specialize=["seed", "offset", "blocks"])
def bernoulli_kernel(
    z_ptr, logits_ptr, count, plane, seed, seed_stride, offset, blocks,
    antithetic: tl.constexpr, seed_is_pointer: tl.constexpr, shift: tl.constexpr,
    wraps_once: tl.constexpr,
    aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z = 1 where ln u - ln(1 - u) < l; its twin where that of 1 - u is."""
    group, u, i, mask, position = uniforms_of_block(
        count,
        plane,
        seed,
        seed_stride,
        offset,
        blocks,
        seed_is_pointer,
        shift,
        wraps_once,
        aligned,
        BLOCK,
    )
    logits = tl.load(logits_ptr + group * plane + position, mask=mask, other=0.0)
    if logits.dtype != tl.float64:
        logits = logits.to(tl.float32)
    x = logistic(u).to(logits.dtype)
    first = group * 2 * count if antithetic else group * count
    z = tl.where(logits != logits, logits, tl.where(x < logits, 1.0, 0.0).to(logits.dtype))
    tl.store(z_ptr + first + i, z.to(z_ptr.dtype.element_ty), mask=mask)
    if antithetic:
        z = tl.where(
            logits != logits, logits, tl.where(0.0 - x < logits, 1.0, 0.0).to(logits.dtype)
        )
        tl.store(z_ptr + first + count + i, z.to(z_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["K"])
def cumulative_kernel(c_ptr, logits_ptr, count, K, BLOCK: tl.constexpr):
    """Cumulative [count, K]: c_k = c_(k-1) + e^(l_k - max l), in order of k; a scan would add in
    another.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    at = i * K
    largest = tl.load(logits_ptr + at, mask=mask, other=0.0).to(tl.float32)
    for k in range(1, K):
        largest = tl.maximum(
            largest, tl.load(logits_ptr + at + k, mask=mask, other=0.0).to(tl.float32)
        )
    c = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        c += exp(tl.load(logits_ptr + at + k, mask=mask, other=0.0).to(tl.float32) - largest)
        tl.store(c_ptr + at + k, c, mask=mask)


@triton.jit(do_not_specialize=["seed", "offset", "blocks", "K"])
def categorical_kernel(
    z_ptr, c_ptr, count, plane, K, seed, seed_stride, offset, blocks,
    steps: tl.constexpr, seed_is_pointer: tl.constexpr, shift: tl.constexpr,
    wraps_once: tl.constexpr,
    aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z = the number of k < K - 1 with c_k <= u c_(K-1), found by bisection since c ascends;
    2^steps >= K.
    """
    group, u, i, mask, position = uniforms_of_block(
        count,
        plane,
        seed,
        seed_stride,
        offset,
        blocks,
        seed_is_pointer,
        shift,
        wraps_once,
        aligned,
        BLOCK,
    )
    c_row = c_ptr + (group * plane + position) * K
    threshold = u * tl.load(c_row + (K - 1), mask=mask, other=0.0)
    z = tl.zeros((BLOCK,), tl.int32)
    for step in tl.static_range(steps):
        more = z + (1 << (steps - 1 - step))
        inside = mask & (more < K)
        below = tl.load(c_row + (more - 1), mask=inside, other=0.0) <= threshold  # no NaN is
        z = tl.where(inside & below, more, z)
    tl.store(z_ptr + group * count + i, z.to(tl.int64), mask=mask)


# --- launchers ------------------------------------------------------------------------------------


def cumulative(logits: Tensor) -> Tensor:
    """Unnormalized cumulative probabilities of contiguous logits [..., K], float32."""
    c = torch.empty_like(logits, dtype=torch.float32)
    classes = logits.size(-1)
    count = logits.numel() // classes
    with on_device_of(logits):
        cumulative_kernel[(triton.cdiv(count, ROWS),)](
            c, logits, count, classes, BLOCK=ROWS, **OPTIONS
        )
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
    blocks = triton.cdiv(count + shift, TILE)
    where = (seed, seed_stride, offset, blocks)
    options = {
        "seed_is_pointer": isinstance(seed, Tensor),
        "shift": shift,
        "wraps_once": plane >= TILE,
        "aligned": shift == 0 and plane % 4 == 0,
        "BLOCK": TILE,
        **OPTIONS,
    }
    with on_device_of(logits):
        if classes:
            c = cumulative(logits)
            steps = (classes - 1).bit_length()
            categorical_kernel[(blocks * groups,)](
                z, c, count, plane, classes, *where, steps=steps, **options
            )
        else:
            bernoulli_kernel[(blocks * groups,)](
                z, logits, count, plane, *where, antithetic=antithetic, **options
            )
