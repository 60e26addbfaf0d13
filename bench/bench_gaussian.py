"""`lk.rsample_kl`, `lk.rsample_log_prob` and `lk.gaussian_kl` against plain torch, torch.compile
and distributions.

Forward rows run without gradients being recorded; the others call torch.autograd.grad with given
gradients of the outputs, the same for every contender, so that nothing accumulates. Every contender
draws fresh noise at every call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch

import cuda
import harness
import latent_kernels as lk
import peers
from harness import Contest, Group, close, groups, rows
from latent_kernels.cli import plain_torch
from latent_kernels.cli.timing import Call

Tensor = torch.Tensor
Function = Callable[[Tensor, Tensor], Any]
Shape = tuple[int, int, int]  # S, B, D; S = 0 stands for num_samples=None

FORWARD, BOTH = "forward", "forward+backward"
PATH = "forward+backward, path derivative"

SHAPES = ((0, 64, 20), (16, 64, 20), (0, 3277, 20), (0, 1024, 64), (0, 4096, 256), (0, 32768, 256))
GPU_SHAPES = ((0, 1024, 64), (0, 2**16, 256), (0, 2**18, 256))
# Compiled noise is a loop over single elements, which comes near to eager torch's only beyond the
# caches: two sizes show it, and each takes seconds to compile.
COMPILED = ((0, 1024, 64), (0, 32768, 256))
KL_SHAPES = ((0, 64, 20), (0, 1024, 64))
DEPENDENT_SHAPES = ((16, 64, 20), (16, 1024, 64))
RSAMPLE_LOG_PROB_SHAPES = ((50, 64, 20), (16, 1024, 64))

# Operations of an element: noise as bench_noise.py counts it, exp and expm1 as one each.
NOISE = 55


def _size(shape: Shape) -> tuple[int, ...]:
    return shape if shape[0] else shape[1:]


def _inputs(shape: Shape, device: str, grad: bool) -> list[Tensor]:
    """Return parameters [B, D] like those of a network in training: means near 0, log-variances
    near -1/2.
    """
    generator = torch.Generator().manual_seed(7)
    parameters = [torch.randn(shape[1:], generator=generator) for _ in range(2)]
    parameters[1] = parameters[1] * 0.5 - 0.5
    return [x.to(device).requires_grad_(grad) for x in parameters]


class Op(NamedTuple):
    """The contenders of an op, as functions of mean and logvar, and its outputs in float64."""

    functions: dict[str, Function]
    exact: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]  # of mean, logvar and eps
    tolerance: float  # of what is not drawn; of ours, a tenth where that is the KL
    tolerance_of_gradients: float
    draws: bool = True
    dependence: str = ""  # the option of dependent samples


def _exact_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + torch.expm1(logvar) - logvar).sum(-1)


def _rsample_kl_op(passes: str, samples: int | None, device: str) -> Op:
    plain = functools.partial(plain_torch.rsample_kl, num_samples=samples)
    functions: dict[str, Function] = {
        "ours": functools.partial(lk.rsample_kl, num_samples=samples),
        "eager": plain,
        "compile": torch.compile(plain),
        "distributions": functools.partial(
            peers.distributions_rsample_kl, samples=samples, prior=peers.standard_normal(device)
        ),
    }

    def exact(mean: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        return mean + torch.exp(0.5 * logvar) * eps, _exact_kl(mean, logvar)

    # the textbook sum in float32 is right to about 1e-6 per term
    return Op(functions, exact, 1e-5, 1e-5)


def _dependent_op(dependence: str, passes: str, samples: int | None, device: str) -> Op:
    plain = peers.antithetic_rsample_kl if dependence == "antithetic" else peers.sobol_rsample_kl
    assert samples is not None
    options: dict[str, Any] = {"num_samples": samples, dependence: True}
    functions: dict[str, Function] = {
        "ours": functools.partial(lk.rsample_kl, **options),
        "eager": functools.partial(plain, num_samples=samples),
    }
    exact = _rsample_kl_op(passes, samples, device).exact
    return Op(functions, exact, 1e-5, 1e-5, dependence=dependence)


def _kl_op(passes: str, samples: int | None, device: str) -> Op:
    functions: dict[str, Function] = {
        "ours": lk.gaussian_kl,
        "eager": plain_torch.gaussian_kl,
        "compile": torch.compile(plain_torch.gaussian_kl),
        "distributions": functools.partial(
            peers.distributions_kl, prior=peers.standard_normal(device)
        ),
    }
    return Op(functions, lambda mean, logvar, _: (_exact_kl(mean, logvar),), 1e-5, 1e-5, False)


def _rsample_log_prob_op(passes: str, samples: int | None, device: str) -> Op:
    assert samples is not None
    path = passes == PATH
    options: dict[str, Any] = {"num_samples": samples, "path_derivative": path}
    plain = functools.partial(plain_torch.rsample_log_prob, **options)
    functions: dict[str, Function] = {
        "ours": functools.partial(lk.rsample_log_prob, **options),
        "eager": plain,
        "compile": torch.compile(plain),
    }

    def exact(mean: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        z = mean + torch.exp(0.5 * logvar) * eps
        if path:
            return z, plain_torch.gaussian_log_prob(z, mean.detach(), logvar.detach())
        return z, -0.5 * (math.log(2 * math.pi) + logvar + eps * eps).sum(-1)

    return Op(functions, exact, 2e-6, 2e-5)


def _prepare(
    make: Callable[..., Op], passes: str, shape: Shape, contenders: Iterable[str], device: str
) -> Contest:
    """Make calls of the functions, alone or with their gradients, and check both; eps is computed
    back from z.
    """
    inputs = _inputs(shape, device, grad=passes != FORWARD)
    op = make(passes, shape[0] or None, device)
    generator = torch.Generator().manual_seed(8)
    upstream = [
        torch.randn(y.shape, generator=generator).to(device)
        for y in _tuple(op.functions["ours"](*inputs))
    ]

    def call(function: Function) -> tuple[Any, tuple[Tensor, ...]]:
        out = function(*inputs)
        return out, () if passes == FORWARD else torch.autograd.grad(out, inputs, upstream)

    def check(contender: str, result: tuple[Any, tuple[Tensor, ...]]) -> None:
        out, gradients = [y.detach() for y in _tuple(result[0])], result[1]
        wide = mean, logvar = [x.detach().double().requires_grad_() for x in inputs]
        eps = torch.zeros(())
        if op.draws:
            assert out[0].shape == _size(shape)
            eps = ((out[0].double() - mean) * torch.exp(-0.5 * logvar)).detach()
            harness.moments(eps, 0, 1, 3, "eps")
        expected = op.exact(mean, logvar, eps)
        exact_kl = contender == "ours" and make is not _rsample_log_prob_op
        close(
            out[-1],
            expected[-1].detach(),
            op.tolerance * (0.1 if exact_kl else 1),
            "the sums of rows",
        )
        if gradients:
            values = torch.autograd.grad(expected, wide, [g.double() for g in upstream])
            for got, value, name in zip(gradients, values, ("mean", "logvar"), strict=True):
                close(got, value, op.tolerance_of_gradients, f"{name}'s gradient")
        if contender == "ours" and op.draws:
            torch.manual_seed(0)
            seed = int(torch.randint(2**63 - 1, ()))
            torch.manual_seed(0)
            again = op.functions["ours"](*inputs)[0].detach()
            if op.dependence:
                zero = torch.zeros(shape[1:], device=device)
                options: dict[str, Any] = {op.dependence: True}
                noise = lk.rsample(zero, zero, shape[0], seed=seed, **options).double()
            else:
                noise = lk.normal(again.shape, seed=seed, device=device).double()
            close(again, op.exact(mean, logvar, noise)[0].detach(), 2e-6, "z")

    calls: dict[str, Call] = {
        name: functools.partial(call, function)
        for name, function in op.functions.items()
        if name in contenders
    }
    if "graph" in contenders:
        calls["graph"] = cuda.graphed(calls["eager"])
    return Contest(calls, check)


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _rsample_kl(passes: str, shape: Shape, threads: int, device: str) -> Group:
    s, b, d = max(shape[0], 1), *shape[1:]
    n, contenders = s * b * d, ["ours", "eager", "distributions"]
    if device == "cuda" or shape in COMPILED:
        contenders.append("compile")
    if device == "cuda":
        contenders.append("graph")
    # forward: mean and logvar read, z and kl written; backward: gz, gkl, mean and logvar read,
    # their gradients written
    count = 4 * (2 * b * d + n + b)
    # forward: noise and 2 a sample; exp 2, KL 6. Backward: noise and 3 a sample; exp 2, the KL's 6
    operations = n * (NOISE + 2) + b * d * 8
    if passes == BOTH:
        count += 4 * (n + b + 2 * b * d + 2 * b * d)
        operations += n * (NOISE + 3) + b * d * 8
    prepare = functools.partial(_prepare, _rsample_kl_op, passes, shape, contenders, device)
    name = f"rsample_kl {passes}"
    return Group(
        name, _size(shape), threads, device, tuple(contenders), n, count, operations, prepare
    )


def _dependent(dependence: str, passes: str, shape: Shape, threads: int, device: str) -> Group:
    s, b, d = shape
    n, contenders = s * b * d, ("ours", "eager")
    count = 4 * (2 * b * d + n + b) + (4 * (n + 5 * b * d + b) if passes == BOTH else 0)
    # noise for half of the samples; or a quantile, as much as Box-Muller, and an xor
    noise = NOISE // 2 if dependence == "antithetic" else NOISE
    operations = n * (noise + 2) + b * d * 8
    if passes == BOTH:
        operations += n * (noise + 3) + b * d * 8
    make = functools.partial(_dependent_op, dependence)
    prepare = functools.partial(_prepare, make, passes, shape, contenders, device)
    name = f"rsample_kl {dependence} {passes}"
    return Group(name, shape, threads, device, contenders, n, count, operations, prepare)


def _rsample_log_prob(passes: str, shape: Shape, threads: int, device: str) -> Group:
    s, b, d = shape
    n, contenders = s * b * d, ("ours", "eager", "compile")
    # forward: mean and logvar read, z and log q written; backward: their gradients and logvar read,
    # two written. The path derivative writes and reads a gradient of z on its own.
    count = 4 * (2 * b * d + n + s * b) + 4 * (n + s * b + 3 * b * d)
    # forward: noise, 2 for z and 3 for its density a sample, exp; backward: noise and 3 a sample,
    # exp
    operations = n * (NOISE + 5) + n * (NOISE + 3) + b * d * 2
    if passes == PATH:  # noise, 2 and a sum, exp
        count += 4 * (3 * n + b * d)
        operations += n * (NOISE + 3) + b * d
    prepare = functools.partial(_prepare, _rsample_log_prob_op, passes, shape, contenders, device)
    name = f"rsample_log_prob {passes}"
    return Group(name, shape, threads, device, contenders, n, count, operations, prepare)


def _kl(passes: str, shape: Shape, threads: int, device: str) -> Group:
    _, b, d = shape
    contenders = ("ours", "eager", "compile", "distributions")
    # forward: mean and logvar read, kl written; backward: gkl, mean and logvar read, their
    # gradients written
    count = 4 * (2 * b * d + b) + 4 * (b + 4 * b * d)
    n, operations = b * d, b * d * (6 + 4)
    prepare = functools.partial(_prepare, _kl_op, passes, shape, contenders, device)
    name = f"gaussian_kl {passes}"
    return Group(name, _size(shape), threads, device, contenders, n, count, operations, prepare)


GROUPS = [
    *groups(functools.partial(_rsample_kl, FORWARD), SHAPES, GPU_SHAPES),
    *groups(functools.partial(_rsample_kl, BOTH), SHAPES, GPU_SHAPES),
    *[
        group
        for dependence in ("antithetic", "qmc")
        for passes in (FORWARD, BOTH)
        for group in groups(
            functools.partial(_dependent, dependence, passes), DEPENDENT_SHAPES, DEPENDENT_SHAPES
        )
    ],
    *groups(functools.partial(_rsample_log_prob, BOTH), RSAMPLE_LOG_PROB_SHAPES),
    *groups(functools.partial(_rsample_log_prob, PATH), RSAMPLE_LOG_PROB_SHAPES),
    *groups(functools.partial(_kl, BOTH), KL_SHAPES, GPU_SHAPES[1:]),
]


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_gaussian(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time samples with their KL or log-densities, and the KL alone."""
    harness.run(benchmark, group, contender)
