"""`lk.gaussian_log_prob` and `lk.bernoulli_log_prob` against plain torch, torch.compile and
torch.distributions.

Rows are forward+backward by torch.autograd.grad with a given gradient of the output, one for all
contenders. Kinds of Gaussian: images x [B, D] under a decoder's means [S, B, D], with a learned
variance of each pixel [D] (`pixels`) or one that the decoder gives (`decoder`); samples z [S, B, D]
under the posterior [B, D] they come from (`posterior`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import harness
import latent_kernels as lk
import peers
from harness import Contest, Group, close, groups, rows
from latent_kernels.cli import plain_torch

Tensor = torch.Tensor
Shape = tuple[int, int, int]  # S, B, D; S = 0 stands for no sample dimension

CONTENDERS = ("ours", "eager", "compile", "distributions")
SHAPES = {
    "pixels": ((0, 64, 784), (50, 64, 784), (8, 64, 3072)),
    "decoder": ((50, 64, 784),),
    "posterior": ((0, 64, 20), (0, 1024, 64), (16, 64, 20), (50, 64, 784)),
    "bernoulli": ((0, 64, 784), (50, 64, 784)),
}
GPU_SHAPES = ((50, 512, 784),)


def _full(shape: Shape) -> tuple[int, ...]:
    return shape if shape[0] else shape[1:]


def _inputs(kind: str, shape: Shape, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return all inputs, and those of them that need a gradient."""
    generator = torch.Generator().manual_seed(7)
    full, batch, row = _full(shape), shape[1:], shape[2:]
    shapes = {
        "pixels": (batch, full, row),
        "decoder": (batch, full, full),
        "posterior": (full, batch, batch),
        "bernoulli": (batch, full),
    }[kind]
    inputs = [torch.randn(s, generator=generator) for s in shapes]
    if kind != "posterior":
        inputs[0] = torch.rand(batch, generator=generator)
    if kind != "bernoulli":
        inputs[2] = inputs[2] * 0.5 - 0.5
    inputs = [x.to(device) for x in inputs]
    leaves = inputs if kind == "posterior" else inputs[1:]
    for x in leaves:
        x.requires_grad_()
    return inputs, leaves


def _expected(kind: str, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the density and every input's gradient in float64, by the derivatives."""
    wide = [x.detach().double() for x in inputs]
    g = upstream.double()[..., None]
    if kind == "bernoulli":
        x, logits = wide
        out = (x * logits - torch.nn.functional.softplus(logits, threshold=700)).sum(-1)
        slopes = [logits, x - torch.sigmoid(logits)]
    else:
        z, m, v = wide
        scaled = (z - m) * torch.exp(-v)
        square = scaled * (z - m)
        out = -0.5 * (math.log(2 * math.pi) + v + square).sum(-1)
        slopes = [-scaled, scaled, 0.5 * (square - 1)]
    return out, [(g * slope).sum_to_size(x.shape) for slope, x in zip(slopes, wide, strict=True)]


def _prepare(kind: str, shape: Shape, device: str) -> Contest:
    inputs, leaves = _inputs(kind, shape, device)
    density = "bernoulli" if kind == "bernoulli" else "gaussian"
    plain = getattr(plain_torch, f"{density}_log_prob")
    through = (
        peers.distributions_bernoulli_log_prob
        if kind == "bernoulli"
        else peers.distributions_log_prob
    )
    functions = {
        "ours": getattr(lk, f"{density}_log_prob"),
        "eager": plain,
        "compile": torch.compile(plain),
        "distributions": through,
    }
    upstream = torch.randn(_full(shape)[:-1], generator=torch.Generator().manual_seed(8)).to(device)
    out, gradients = _expected(kind, inputs, upstream)
    expected = gradients[-len(leaves) :]

    def call(function: Callable[..., Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = function(*inputs)
        return value, torch.autograd.grad(value, leaves, upstream)

    def check(contender: str, result: tuple[Tensor, tuple[Tensor, ...]]) -> None:
        # relative to 1 + |value|; a gradient over all rows is a sum of thousands of terms that
        # cancel
        close(result[0].detach(), out, 1e-5, "the log-density")
        for got, value in zip(result[1], expected, strict=True):
            terms = out.numel() * shape[2] / value.numel()
            close(got, value, 2e-5 * max(1.0, terms**0.5 / 8), "a gradient")

    return Contest({name: functools.partial(call, functions[name]) for name in CONTENDERS}, check)


def _group(kind: str, shape: Shape, threads: int, device: str) -> Group:
    s, b, d = max(shape[0], 1), shape[1], shape[2]
    full, batch, row = s * b * d, b * d, d
    sizes = {
        "pixels": (batch, full, row),
        "decoder": (batch, full, full),
        "posterior": (full, batch, batch),
        "bernoulli": (batch, full),
    }[kind]
    # forward: inputs read, the density written; backward: both read, the gradients written
    written = sum(sizes) if kind == "posterior" else sum(sizes[1:])
    count = 4 * (2 * sum(sizes) + written + 2 * s * b)
    # Gaussian: 6 and an exp forward, 8 backward where the variance is an element's own; Bernoulli:
    # 7 and exp and log1p, 5 and exp and a division
    operations = full * 15 if kind == "bernoulli" else full * 14 + 2 * sizes[2]
    name = "bernoulli_log_prob" if kind == "bernoulli" else f"gaussian_log_prob {kind}"
    prepare = functools.partial(_prepare, kind, shape, device)
    return Group(
        f"{name} forward+backward",
        _full(shape),
        threads,
        device,
        CONTENDERS,
        full,
        count,
        operations,
        prepare,
    )


GROUPS = [
    group
    for kind, shapes in SHAPES.items()
    for group in groups(functools.partial(_group, kind), shapes, GPU_SHAPES)
]


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_densities(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time a density and its gradients."""
    harness.run(benchmark, group, contender)
