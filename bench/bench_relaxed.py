"""`rsample_relaxed` of `lk.Bernoulli` and `lk.Categorical` against plain torch and torch.compile.

Rows are forward+backward by torch.autograd.grad with a given gradient of the samples. Every
contender draws its own noise; the check compares ours with the formula on the stream's noise, and
the others' gradient with the formula on the samples that they return. Plain torch is
`F.gumbel_softmax` for a Categorical; for a Bernoulli `RelaxedBernoulli` of torch.distributions, and
its formula from uniforms. Shapes are S, B, D, K, without K for a Bernoulli.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import harness
import latent_kernels as lk
from harness import Contest, Group, close, groups, rows

Tensor = torch.Tensor
Shape = tuple[int, ...]
Draw = Callable[[Tensor], Tensor]

TAU, SEED = 0.5, 5
BERNOULLI: tuple[Shape, ...] = ((1, 256, 200), (16, 64, 20))
CATEGORICAL: tuple[Shape, ...] = (
    (1, 64, 20, 10),
    (1, 256, 32, 64),
    (1, 1024, 8, 512),
    (16, 64, 20, 10),
)
GPU_SHAPES = {"bernoulli": ((16, 4096, 256),), "categorical": ((1, 4096, 32, 64),)}
# A uniform as bench_noise.py counts it; two logarithms of 17, an exponential of 12 and some ten
# sums, products and comparisons; six more backward.
OPERATIONS = 24 + 34 + 12 + 10 + 6


def _concrete(logits: Tensor, samples: int) -> Tensor:
    """Return relaxed samples of a Bernoulli by the formula."""
    u = torch.rand(samples, *logits.shape, device=logits.device).clamp(min=2.0**-33)
    return torch.sigmoid((logits + torch.log1p(-u) - torch.log(u)) / TAU)


def _gumbel(logits: Tensor, samples: int, hard: bool) -> Tensor:
    return F.gumbel_softmax(logits.expand(samples, *logits.shape), tau=TAU, hard=hard)


def _distribution(logits: Tensor, samples: int) -> Tensor:
    temperature = torch.tensor(TAU, device=logits.device)
    q = torch.distributions.RelaxedBernoulli(temperature, logits=logits, validate_args=False)
    return q.rsample((samples,))


def _prepare(family: str, hard: bool, shape: Shape, device: str) -> Contest:
    samples, *own = shape
    logits = torch.randn(own, generator=torch.Generator().manual_seed(7)).to(device)
    logits.requires_grad_()
    of_y = torch.randn(shape, generator=torch.Generator().manual_seed(8)).to(device)
    binary = family == "bernoulli"
    q: Any = lk.Bernoulli(logits) if binary else lk.Categorical(logits)

    def ours(logits: Tensor) -> Tensor:
        y: Tensor = q.rsample_relaxed(samples, tau=TAU, hard=hard, seed=SEED)
        return y

    draws: dict[str, Draw] = {"ours": ours}
    if binary:
        plain = functools.partial(_concrete, samples=samples)
        draws["distributions"] = functools.partial(_distribution, samples=samples)
    else:
        plain = functools.partial(_gumbel, samples=samples, hard=hard)
    draws |= {"eager": plain, "compile": torch.compile(plain)}
    u = lk.uniform(shape, seed=SEED).double().to(device)
    if binary:
        t = logits.detach().double() - torch.log(u) + torch.log1p(-u)
        relaxed = torch.sigmoid(t / TAU)
    else:
        t = logits.detach().double() - torch.log(-torch.log1p(-u))
        relaxed = torch.softmax(t / TAU, -1)
    discrete = F.one_hot(t.argmax(-1), t.size(-1)).double() if not binary else (t > 0).double()

    def slope(y: Tensor) -> Tensor:
        g = of_y.double()
        terms = g * y * (1 - y) if binary else y * (g - (g * y).sum(-1, keepdim=True))
        return terms.sum(0) / TAU

    def call(draw: Draw) -> tuple[Tensor, Tensor]:
        y = draw(logits)
        return y, torch.autograd.grad(y, logits, of_y)[0]

    def check(contender: str, result: tuple[Tensor, Tensor]) -> None:
        y, gradient = (x.detach().double() for x in result)
        if contender == "ours":
            close(y, discrete if hard else relaxed, 2e-5, "the samples")
            close(gradient, slope(relaxed), 1e-4, "the gradient")
        elif not hard:
            close(gradient, slope(y), 1e-4, "the gradient")

    return Contest({name: functools.partial(call, draw) for name, draw in draws.items()}, check)


def _group(family: str, hard: bool, shape: Shape, threads: int, device: str) -> Group:
    n, of_q = math.prod(shape), math.prod(shape[1:])
    # logits read and y written; y or the logits read again, its gradient read, the logits' written
    count = 4 * (3 * n + 3 * of_q)
    names = ("ours", "eager", "compile", *(["distributions"] if family == "bernoulli" else []))
    prepare = functools.partial(_prepare, family, hard, shape, device)
    name = f"relaxed {family}{' hard' if hard else ''} forward+backward"
    return Group(name, shape, threads, device, names, n, count, n * OPERATIONS, prepare)


GROUPS = [
    *groups(functools.partial(_group, "bernoulli", False), BERNOULLI, GPU_SHAPES["bernoulli"]),
    *(
        group
        for hard in (False, True)
        for group in groups(
            functools.partial(_group, "categorical", hard), CATEGORICAL, GPU_SHAPES["categorical"]
        )
    ),
]


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_relaxed(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time relaxed samples and the gradient of the logits."""
    harness.run(benchmark, group, contender)
