"""Relaxed samples in Triton: forward, backward, then their launchers. README.md has the rules.

The noise has the bits of reference.py, so hard samples are the same on every backend. A program of
the backward pass has all samples of its variables, in their order: no atomics, two runs give the
same bits. It reads relaxed samples; for hard ones they are written to temporary memory first.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.families.triton_gpu import logistic, words_of_block
from latent_kernels.kernels.gaussian.triton_gpu import _seed, load_seed
from latent_kernels.kernels.launch import (
    TILE,
    block_of,
    cdiv,
    launch,
    next_power_of_two,
    on_device_of,
)
from latent_kernels.kernels.noise.triton_gpu import (
    ln,
    ln_of_parts,
    parts,
    to_uniform,
    word_of_elements,
    words_of_groups,
)
from latent_kernels.kernels.relaxed.problem import (
    CategoricalProblem,
    Gradients,
    Outputs,
    Problem,
    inverse_of,
)
from latent_kernels.kernels.triton_math import compute_type, divide, exp_of_negative

Tensor = torch.Tensor


@triton.jit
def exponential(u):
    """Return -ln(1 - u); see reference.py."""
    k, f = parts(1.0 - u)
    return 0.0 - ln_of_parts(k, tl.where(k == 0, 0.0 - u, f))


@triton.jit
def as_number(bits, compute: tl.constexpr):
    """Return the number whose bits in float64 these are: arguments are float32 at most."""
    return bits.to(tl.float64, bitcast=True).to(compute)


@triton.jit(do_not_specialize=["seed", "offset", "blocks", "inverse"])
def bernoulli_kernel(
    y_ptr, logits_ptr, count, plane, seed, seed_stride, offset, blocks, inverse,
    hard: tl.constexpr, compute: tl.constexpr, one_group: tl.constexpr,
    seed_is_pointer: tl.constexpr, shift: tl.constexpr,
    wraps_once: tl.constexpr, aligned: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write y = sigmoid((l - x) / tau), or [x < l], of a block of one group's samples."""
    group, words, i, mask, position = words_of_block(
        count, plane, seed, seed_stride, offset, blocks,
        one_group, seed_is_pointer, shift, wraps_once, aligned, BLOCK,
    )  # fmt: skip
    logits = tl.load(logits_ptr + group * plane + position, mask=mask, other=0.0).to(compute)
    x = logistic(to_uniform(words)).to(compute)
    if hard:
        y = tl.where(logits != logits, logits, tl.where(x < logits, 1.0, 0.0).to(compute))
    else:
        v = (logits - x) * as_number(inverse, compute)
        e = exp_of_negative(0.0 - tl.abs(v))
        larger = divide(tl.full(e.shape, 1.0, compute), e + 1.0)
        y = tl.where(v < 0.0, e * larger, larger)
    tl.store(y_ptr + group * count + i, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["S", "blocks", "inverse"])
def bernoulli_backward_kernel(
    d_logits_ptr, y_ptr, g_ptr, S, plane, blocks, inverse,
    compute: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sum over samples of g y (1 - y) / tau."""
    pid = tl.program_id(0).to(tl.int64)
    group = pid // blocks
    i = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = i < plane
    total = tl.zeros((BLOCK,), compute)
    at = group * S * plane + i
    for _ in range(S):
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(compute)
        g = tl.load(g_ptr + at, mask=mask, other=0.0).to(compute)
        total = tl.fma(g, y * (1.0 - y), total)
        at += plane
    total *= as_number(inverse, compute)
    to = d_logits_ptr + group * plane + i
    tl.store(to, total.to(d_logits_ptr.dtype.element_ty), mask=mask)


@triton.jit
def perturbed(
    logits_at, key, first, k, inside, compute: tl.constexpr, aligned: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return l + g [BLOCK, BLOCK_K] of classes k [1, BLOCK_K], whose first one is element `first`
    [BLOCK, 1] of the stream; -inf outside.
    """
    if aligned:
        words = words_of_groups(key, (first >> 2) + tl.arange(0, BLOCK_K // 4)[None, :])
    else:
        words = word_of_elements(key, first + tl.arange(0, BLOCK_K)[None, :])
    logits = tl.load(logits_at + k, mask=inside, other=float("-inf")).to(compute)
    return logits - ln(exponential(to_uniform(words))).to(compute)


@triton.jit
def likeliest(t, k, K):
    """Return the largest t of each row [BLOCK, 1], its first class, and whether one is NaN."""
    spoiled = tl.max((t != t).to(tl.int32), 1, keep_dims=True)
    largest = tl.max(tl.where(t == t, t, float("-inf")), 1, keep_dims=True)
    return largest, tl.min(tl.where(t == largest, k, K), 1, keep_dims=True), spoiled


@triton.jit
def put(y_at, y, largest, spoiled, mask):
    """Store samples, NaN in a variable that has no probabilities."""
    y = tl.where((spoiled == 0) & (tl.abs(largest) < float("inf")), y, float("nan"))
    tl.store(y_at, y.to(y_at.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed", "offset", "blocks", "K", "inverse"])
def categorical_kernel(
    y_ptr, logits_ptr, count, plane, K, seed, seed_stride, offset, blocks, inverse,
    hard: tl.constexpr, compute: tl.constexpr, seed_is_pointer: tl.constexpr,
    aligned: tl.constexpr, whole: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write y = softmax((l + g) / tau), or the one-hot vector of the largest l + g, of a block of
    one group's `count` variables in all samples. `whole`: all classes are in one tile; else l + g
    is made again for each pass over the classes.
    """
    pid = tl.program_id(0).to(tl.int64)
    group = pid // blocks
    i = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)[:, None]
    key = load_seed(seed, seed_stride, group, seed_is_pointer)
    element = offset.to(tl.int64) + i * K
    logits_at = logits_ptr + (group * plane + i % plane) * K
    y_at = y_ptr + (group * count + i) * K
    scale = as_number(inverse, compute)
    one = tl.full((BLOCK, 1), 1.0, compute)
    if whole:
        k = tl.arange(0, BLOCK_K)[None, :]
        mask = (i < count) & (k < K)
        t = perturbed(logits_at, key, element, k, mask, compute, aligned, BLOCK_K)
        largest, place, spoiled = likeliest(t, k, K)
        if hard:
            y = tl.where(k == place, 1.0, 0.0).to(compute)
        else:
            y = tl.where(k < K, exp_of_negative((t - largest) * scale), 0.0)
            y = y * divide(one, tl.sum(y, 1, keep_dims=True))
        put(y_at + k, y, largest, spoiled, mask)
    else:
        largest = tl.full((BLOCK, 1), float("-inf"), compute)
        place = tl.zeros((BLOCK, 1), tl.int32)
        spoiled = tl.zeros((BLOCK, 1), tl.int32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)[None, :]
            mask = (i < count) & (k < K)
            t = perturbed(logits_at, key, element + first, k, mask, compute, aligned, BLOCK_K)
            here, found, nan = likeliest(t, k, K)
            place = tl.where(here > largest, found, place)
            largest = tl.maximum(largest, here)
            spoiled |= nan
        total = tl.zeros((BLOCK, 1), compute)
        if not hard:
            for first in range(0, K, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)[None, :]
                mask = (i < count) & (k < K)
                t = perturbed(logits_at, key, element + first, k, mask, compute, aligned, BLOCK_K)
                y = tl.where(k < K, exp_of_negative((t - largest) * scale), 0.0)
                total += tl.sum(y, 1, keep_dims=True)
        share = divide(one, total)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)[None, :]
            mask = (i < count) & (k < K)
            if hard:
                y = tl.where(k == place, 1.0, 0.0).to(compute)
            else:
                t = perturbed(logits_at, key, element + first, k, mask, compute, aligned, BLOCK_K)
                y = exp_of_negative((t - largest) * scale) * share
            put(y_at + k, y, largest, spoiled, mask)


@triton.jit(do_not_specialize=["S", "K", "blocks", "inverse"])
def categorical_backward_kernel(
    d_logits_ptr, y_ptr, g_ptr, S, plane, K, blocks, class_blocks, inverse,
    compute: tl.constexpr, whole: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the sum over samples of y_k (g_k - <g, y>) / tau, of a block of variables and one of
    classes.
    """
    pid = tl.program_id(0).to(tl.int64)
    own = (pid % class_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    block = pid // class_blocks
    group = block // blocks
    i = (block % blocks) * BLOCK + tl.arange(0, BLOCK)[:, None]
    total = tl.zeros((BLOCK, BLOCK_K), compute)
    mask = (i < plane) & (own < K)
    at = (group * S * plane + i) * K
    for _ in range(S):
        y = tl.load(y_ptr + at + own, mask=mask, other=0.0).to(compute)
        g = tl.load(g_ptr + at + own, mask=mask, other=0.0).to(compute)
        if whole:
            dot = tl.sum(g * y, 1, keep_dims=True)
        else:
            dot = tl.zeros((BLOCK, 1), compute)
            for first in range(0, K, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)[None, :]
                inside = (i < plane) & (k < K)
                other = tl.load(y_ptr + at + k, mask=inside, other=0.0).to(compute)
                of_other = tl.load(g_ptr + at + k, mask=inside, other=0.0).to(compute)
                dot += tl.sum(of_other * other, 1, keep_dims=True)
        total = tl.fma(y, g - dot, total)
        at += plane * K
    total *= as_number(inverse, compute)
    to = d_logits_ptr + (group * plane + i) * K + own
    tl.store(to, total.to(d_logits_ptr.dtype.element_ty), mask=mask)


# --- launchers ------------------------------------------------------------------------------------


def _inverse(problem: Problem) -> int:
    """Return 1 / tau as the bits of a float64."""
    bits: int
    (bits,) = struct.unpack("<q", struct.pack("<d", inverse_of(problem)))
    return bits


def _class_tile(dtype: torch.dtype, classes: int) -> tuple[int, int]:
    """Return the variables and the classes of one program's tile."""
    tile = TILE // 2 if dtype == torch.float64 else TILE
    block_k = min(tile, max(4, next_power_of_two(classes)))
    return tile // block_k, block_k


def _draw(problem: Problem, y: Tensor, *, hard: bool) -> None:
    """Write the samples into y, of any floating type."""
    (groups, samples, rows, cols, *_), logits = problem.sizes, problem.logits
    (seed, seed_stride), offset = _seed(problem.seed), problem.offset
    plane = rows * cols
    count = samples * plane
    if y.numel() == 0:
        return
    options: dict[str, Any] = {
        "hard": hard,
        "compute": compute_type(logits.dtype),
        "seed_is_pointer": isinstance(seed, Tensor),
    }
    with on_device_of(logits):
        if isinstance(problem, CategoricalProblem):
            classes = problem.sizes[-1]
            block, block_k = _class_tile(logits.dtype, classes)
            blocks = cdiv(count, block)
            launch(
                categorical_kernel, blocks * groups,
                y, logits, count, plane, classes, seed, seed_stride, offset, blocks,
                _inverse(problem),
                **options, aligned=classes % 4 == 0 and offset % 4 == 0, whole=block_k >= classes,
                BLOCK=block, BLOCK_K=block_k,
            )  # fmt: skip
            return
        shift = offset % 4
        block = block_of(groups * count)
        blocks = cdiv(count + shift, block)
        launch(
            bernoulli_kernel, blocks * groups,
            y, logits, count, plane, seed, seed_stride, offset, blocks, _inverse(problem),
            **options, one_group=groups == 1, shift=shift, wraps_once=plane >= block,
            aligned=shift == 0 and plane % 4 == 0, BLOCK=block,
        )  # fmt: skip


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the samples; see reference.py. Logits and y are contiguous."""
    _draw(problem, outputs.y, hard=problem.hard)


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradient of the logits."""
    (groups, samples, rows, cols, *_), logits = problem.sizes, problem.logits
    to, g, y = gradients.logits, upstream.y, upstream.kept_y
    assert to is not None
    if to.numel() == 0:
        return
    if problem.hard:
        y = torch.empty_like(g, dtype=torch.float64 if g.dtype == torch.float64 else torch.float32)
        _draw(problem, y, hard=False)
    plane, compute = rows * cols, compute_type(logits.dtype)
    with on_device_of(logits):
        if isinstance(problem, CategoricalProblem):
            classes = problem.sizes[-1]
            block, block_k = _class_tile(logits.dtype, classes)
            blocks, class_blocks = cdiv(plane, block), cdiv(classes, block_k)
            launch(
                categorical_backward_kernel, blocks * class_blocks * groups,
                to, y, g, samples, plane, classes, blocks, class_blocks, _inverse(problem),
                compute=compute, whole=class_blocks == 1, BLOCK=block, BLOCK_K=block_k,
            )  # fmt: skip
            return
        blocks = cdiv(plane, TILE)
        launch(
            bernoulli_backward_kernel, blocks * groups,
            to, y, g, samples, plane, blocks, _inverse(problem), compute=compute, BLOCK=TILE,
        )  # fmt: skip
