"""`lk.importance_bound` forward and backward against torch eager and torch.compile: log-mean-exp,
and VIMCO's signals.

Gradients come from torch.autograd.grad with a given gradient of the bound, the same for every
contender, so that nothing accumulates.
"""

from __future__ import annotations

import functools
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
Shape = tuple[int, int]

CONTENDERS = ("ours", "eager", "compile")
# (S, B): sizes of a training step, of many images, of an evaluation, of one image, and beyond the
# caches.
SHAPES: tuple[Shape, ...] = ((50, 64), (50, 4096), (5000, 256), (5000, 1), (256, 65536))
VIMCO_SHAPES: tuple[Shape, ...] = ((50, 64), (50, 4096))
GPU_SHAPES: tuple[Shape, ...] = ((50, 4096), (5000, 256), (256, 65536))
# The rival has S x S x B elements, in float64 for the check: 8.6 GB at the larger size.
GPU_VIMCO_SHAPES: tuple[Shape, ...] = ((50, 4096), (256, 4096))


def _contest(
    functions: dict[str, Callable[[], Tensor]],
    inputs: list[Tensor],
    expected: tuple[Tensor, ...],
    upstream: Tensor,
) -> Contest:
    """Make calls of functions with their gradients, checked against float64."""

    def with_gradients(function: Callable[[], Tensor]) -> Callable[[], Any]:
        def call() -> tuple[Tensor, ...]:
            out = function()
            return (out, *torch.autograd.grad(out, inputs, upstream))

        return call

    def check(contender: str, found: tuple[Tensor, ...]) -> None:
        for name, got, value in zip(
            ("bound", "log_w's gradient", "log_q's gradient"), found, expected, strict=False
        ):
            close(got.detach(), value, 2e-5, name)

    return Contest({name: with_gradients(function) for name, function in functions.items()}, check)


def _log_weights(shape: Shape, device: str, count: int) -> list[Tensor]:
    """Draw log-weights that differ by a few nats, like those of a model after some training."""
    generator = torch.Generator().manual_seed(9)
    return [
        (3 * torch.randn(shape, generator=generator)).to(device).requires_grad_()
        for _ in range(count)
    ]


def _upstream(shape: Shape, device: str) -> Tensor:
    return torch.randn(shape[1], generator=torch.Generator().manual_seed(10)).to(device)


def _prepare(shape: Shape, device: str) -> Contest:
    inputs = (log_w,) = _log_weights(shape, device, 1)
    compiled = torch.compile(plain_torch.importance_bound)
    upstream = _upstream(shape, device)
    functions = {
        "ours": lambda: lk.importance_bound(log_w),
        "eager": lambda: plain_torch.importance_bound(log_w),
        "compile": lambda: compiled(log_w),
    }
    wide = log_w.detach().double()
    expected = (plain_torch.importance_bound(wide), torch.softmax(wide, 0) * upstream)
    return _contest(functions, inputs, expected, upstream)


def _prepare_vimco(shape: Shape, device: str) -> Contest:
    inputs = log_w, log_q = _log_weights(shape, device, 2)
    compiled = torch.compile(peers.vimco)
    upstream = _upstream(shape, device)
    functions = {
        "ours": lambda: lk.importance_bound(log_w, estimator="vimco", log_q=log_q),
        "eager": lambda: peers.vimco(log_w, log_q),
        "compile": lambda: compiled(log_w, log_q),
    }
    wide = [x.detach().double().requires_grad_() for x in inputs]
    bound = peers.vimco(*wide)
    expected = (bound.detach(), *torch.autograd.grad(bound, wide, upstream.double()))
    return _contest(functions, inputs, expected, upstream)


def _bound(shape: Shape, threads: int, device: str) -> Group:
    samples, batch = shape
    n, name = samples * batch, "importance_bound forward+backward"
    # log_w read twice, its gradient written; exp as one operation, of which each pass has one and
    # two more
    count, operations = 4 * (3 * n + 6 * batch), 6 * n
    prepare = functools.partial(_prepare, shape, device)
    return Group(name, shape, threads, device, CONTENDERS, n, count, operations, prepare)


def _vimco(shape: Shape, threads: int, device: str) -> Group:
    samples, batch = shape
    n, name = samples * batch, "importance_bound vimco forward+backward"
    # log_w read three times, two gradients written; 3 exps and log1p among some 25 operations
    count, operations = 4 * (5 * n + 6 * batch), 25 * n
    prepare = functools.partial(_prepare_vimco, shape, device)
    return Group(name, shape, threads, device, CONTENDERS, n, count, operations, prepare)


GROUPS = groups(_bound, SHAPES, GPU_SHAPES) + groups(_vimco, VIMCO_SHAPES, GPU_VIMCO_SHAPES)


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_bounds(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time log-mean-exp over samples with its gradient, and VIMCO's signals."""
    harness.run(benchmark, group, contender)
