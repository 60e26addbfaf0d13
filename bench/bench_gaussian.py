"""`lk.rsample_kl`, `lk.rsample_log_prob` and `lk.gaussian_kl` against plain torch, torch.compile
and distributions.

Forward rows run without gradients being recorded; the others call torch.autograd.grad with given
gradients of the outputs, the same for every contender, so that nothing accumulates. Every contender
draws fresh noise at every call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cuda
import harness
import latent_kernels as lk
import peers
from harness import Contest, Group, close, places, rows

Tensor = torch.Tensor
Function = Callable[[], Any]

FORWARD, BOTH = "forward", "forward+backward"
PATH = "forward+backward, path derivative"

# (S, B, D); S = 0 stands for num_samples=None
SHAPES = ((0, 64, 20), (16, 64, 20), (0, 3277, 20), (0, 1024, 64), (0, 4096, 256), (0, 32768, 256))
GPU_SHAPES = ((0, 1024, 64), (0, 2**16, 256), (0, 2**18, 256))
KL_SHAPES = ((0, 64, 20), (0, 1024, 64))
RSAMPLE_LOG_PROB_SHAPES = ((50, 64, 20), (16, 1024, 64))

# Operations of an element: noise as bench_noise.py counts it, exp and expm1 as one each.
NOISE = 55


def _size(shape: tuple[int, int, int]) -> tuple[int, ...]:
    return shape if shape[0] else shape[1:]


def _threads(elements: int) -> tuple[int, ...]:
    """Below 64k elements neither side uses a second thread."""
    return (1, 2) if elements >= 2**16 else (1,)


def _inputs(shape: tuple[int, int, int], device: str, grad: bool) -> list[Tensor]:
    """Parameters [B, D]: means near 0, log-variances near -1/2, as of a network that trains."""
    generator = torch.Generator().manual_seed(7)
    parameters = [torch.randn(shape[1:], generator=generator) for _ in range(2)]
    parameters[1] = parameters[1] * 0.5 - 0.5
    return [x.to(device).requires_grad_(grad) for x in parameters]


def _contest(
    functions: dict[str, Function],
    inputs: list[Tensor],
    passes: str,
    check_outputs: Callable[..., None],
    check_gradients: Callable[..., None],
    outputs_like: Callable[[], tuple[Tensor, ...]],
) -> Contest:
    """Makes calls of functions: alone, or with their gradients."""
    if passes == FORWARD:
        return Contest(functions, check_outputs)
    generator = torch.Generator().manual_seed(8)
    upstream = tuple(torch.randn(y.shape, generator=generator).to(y.device) for y in outputs_like())

    def with_gradients(function: Function) -> Function:
        def call() -> tuple[Any, tuple[Tensor, ...]]:
            out = function()
            return out, torch.autograd.grad(out, inputs, upstream)

        return call

    def check(contender: str, result: Any) -> None:
        out, gradients = result
        check_outputs(contender, out)
        check_gradients(contender, out, upstream, gradients)

    calls = {
        name: with_gradients(function) for name, function in functions.items() if name != "graph"
    }
    if "graph" in functions:
        calls["graph"] = cuda.graphed(calls["eager"])
    return Contest(calls, check)


def _prepare_rsample_kl(
    passes: str, shape: tuple[int, int, int], contenders: tuple[str, ...], device: str
) -> Contest:
    samples = shape[0] or None
    inputs = mean, logvar = _inputs(shape, device, grad=passes == BOTH)
    plain = (
        peers.rsample_kl
        if samples is None
        else functools.partial(peers.rsample_kl_many, samples=samples)
    )
    prior = peers.standard_normal(device)
    compiled = torch.compile(plain)
    functions: dict[str, Function] = {
        "ours": lambda: lk.rsample_kl(mean, logvar, samples),
        "eager": lambda: plain(mean, logvar),
        "compile": lambda: compiled(mean, logvar),
        "distributions": lambda: peers.distributions_rsample_kl(mean, logvar, samples, prior),
    }
    if "graph" in contenders:
        functions["graph"] = (
            functions["eager"] if passes == BOTH else cuda.graphed(functions["eager"])
        )

    m, v = mean.detach().double(), logvar.detach().double()
    sigma = torch.exp(0.5 * v)

    def check_outputs(contender: str, out: tuple[Tensor, Tensor]) -> None:
        z, kl = out
        assert z.shape == _size(shape)
        # the textbook sum in float32 is right to about 1e-6 per term
        close(
            kl.detach(),
            0.5 * (m**2 + torch.expm1(v) - v).sum(-1),
            1e-6 if contender == "ours" else 1e-5,
            "kl",
        )
        harness.moments((z.detach().double() - m) / sigma, 0, 1, 3, "eps")
        if contender == "ours":
            torch.manual_seed(0)
            seed = int(torch.randint(2**63 - 1, ()))
            torch.manual_seed(0)
            again = lk.rsample_kl(mean, logvar, samples)[0].detach()
            close(
                again, m + sigma * lk.normal(z.shape, seed=seed, device=device).double(), 2e-6, "z"
            )

    def check_gradients(contender: str, out: Any, upstream: Any, gradients: Any) -> None:
        gz, gkl = (g.double() for g in upstream)
        weighted = gz * (out[0].detach().double() - m)  # gz sigma eps
        if samples is not None:
            gz, weighted = gz.sum(0), weighted.sum(0)
        close(gradients[0], gz + gkl[:, None] * m, 1e-5, "mean's gradient")
        close(
            gradients[1],
            0.5 * weighted + 0.5 * gkl[:, None] * torch.expm1(v),
            1e-5,
            "logvar's gradient",
        )

    like = functions["ours"]
    return _contest(
        {c: functions[c] for c in contenders}, inputs, passes, check_outputs, check_gradients, like
    )


def _prepare_kl(
    passes: str, shape: tuple[int, int, int], contenders: tuple[str, ...], device: str
) -> Contest:
    inputs = mean, logvar = _inputs(shape, device, grad=passes == BOTH)
    prior, compiled = peers.standard_normal(device), torch.compile(peers.gaussian_kl)
    functions: dict[str, Function] = {
        "ours": lambda: lk.gaussian_kl(mean, logvar),
        "eager": lambda: peers.gaussian_kl(mean, logvar),
        "compile": lambda: compiled(mean, logvar),
        "distributions": lambda: peers.distributions_kl(mean, logvar, prior),
    }
    m, v = mean.detach().double(), logvar.detach().double()

    def check_outputs(contender: str, kl: Tensor) -> None:
        close(
            kl.detach(),
            0.5 * (m**2 + torch.expm1(v) - v).sum(-1),
            1e-6 if contender == "ours" else 1e-5,
            "kl",
        )

    def check_gradients(contender: str, out: Any, upstream: Any, gradients: Any) -> None:
        g = upstream[0].double()[:, None]
        close(gradients[0], g * m, 1e-5, "mean's gradient")
        close(gradients[1], 0.5 * g * torch.expm1(v), 1e-5, "logvar's gradient")

    def like() -> tuple[Tensor, ...]:
        return (lk.gaussian_kl(mean, logvar),)

    return _contest(
        {c: functions[c] for c in contenders}, inputs, passes, check_outputs, check_gradients, like
    )


def _prepare_rsample_log_prob(
    passes: str, shape: tuple[int, int, int], contenders: tuple[str, ...], device: str
) -> Contest:
    inputs = mean, logvar = _inputs(shape, device, grad=True)
    samples, path = shape[0], passes == PATH
    plain = functools.partial(peers.rsample_log_prob, samples=samples, path=path)
    compiled = torch.compile(plain)
    functions: dict[str, Function] = {
        "ours": lambda: lk.rsample_log_prob(mean, logvar, samples, path_derivative=path),
        "eager": lambda: plain(mean, logvar),
        "compile": lambda: compiled(mean, logvar),
    }
    m, v = mean.detach().double(), logvar.detach().double()
    sigma = torch.exp(0.5 * v)

    def check_outputs(contender: str, out: tuple[Tensor, Tensor]) -> None:
        z, log_q = out
        eps = (z.detach().double() - m) / sigma  # off by a rounding of z over sigma
        harness.moments(eps, 0, 1, 3, "eps")
        close(log_q.detach(), -0.5 * (math.log(2 * math.pi) + v + eps * eps).sum(-1), 2e-6, "log q")

    def check_gradients(contender: str, out: Any, upstream: Any, gradients: Any) -> None:
        gz, gq = (g.double() for g in upstream)
        moved = out[0].detach().double() - m  # sigma eps
        if path:
            gz = gz - gq[..., None] * moved / sigma**2
        by_logvar = 0.5 * (gz * moved).sum(0)
        if not path:
            by_logvar = by_logvar - 0.5 * gq.sum(0)[:, None]
        close(gradients[0], gz.sum(0), 2e-5, "mean's gradient")
        close(gradients[1], by_logvar, 2e-5, "logvar's gradient")

    return _contest(
        {c: functions[c] for c in contenders},
        inputs,
        passes,
        check_outputs,
        check_gradients,
        functions["ours"],
    )


def _rsample_kl(passes: str, shape: tuple[int, int, int], threads: int, device: str) -> Group:
    s, b, d = max(shape[0], 1), shape[1], shape[2]
    contenders: tuple[str, ...] = ("ours", "eager", "compile", "distributions")
    if device == "cuda":
        contenders += ("graph",)
    # forward: mean and logvar read, z and kl written; backward: gz, gkl, mean and logvar read,
    # their gradients written
    count = 4 * (2 * b * d + s * b * d + b)
    # forward: noise and 2 a sample; exp 2, KL 6. Backward: noise and 3 a sample; exp 2, the KL's 6
    operations = s * b * d * (NOISE + 2) + b * d * 8
    if passes == BOTH:
        count += 4 * (s * b * d + b + 2 * b * d + 2 * b * d)
        operations += s * b * d * (NOISE + 3) + b * d * 8
    prepare = functools.partial(_prepare_rsample_kl, passes, shape, contenders, device)
    return Group(
        f"rsample_kl {passes}",
        _size(shape),
        threads,
        device,
        contenders,
        s * b * d,
        count,
        operations,
        prepare,
    )


def _rsample_log_prob(passes: str, shape: tuple[int, int, int], threads: int, device: str) -> Group:
    s, b, d = shape
    contenders = ("ours", "eager", "compile")
    # forward: mean and logvar read, z and log q written; backward: their gradients and logvar read,
    # two written. The path derivative writes and reads a gradient of z on its own.
    count = 4 * (2 * b * d + s * b * d + s * b) + 4 * (s * b * d + s * b + 3 * b * d)
    # forward: noise, 2 for z and 3 for its density a sample, exp; backward: noise and 3 a sample,
    # exp
    operations = s * b * d * (NOISE + 5) + s * b * d * (NOISE + 3) + b * d * 2
    if passes == PATH:  # noise, 2 and a sum, exp
        count += 4 * (3 * s * b * d + b * d)
        operations += s * b * d * (NOISE + 3) + b * d
    prepare = functools.partial(_prepare_rsample_log_prob, passes, shape, contenders, device)
    return Group(
        f"rsample_log_prob {passes}",
        shape,
        threads,
        device,
        contenders,
        s * b * d,
        count,
        operations,
        prepare,
    )


def _kl(passes: str, shape: tuple[int, int, int], threads: int, device: str) -> Group:
    _, b, d = shape
    contenders = ("ours", "eager", "compile", "distributions")
    # forward: mean and logvar read, kl written; backward: gkl, mean and logvar read, their
    # gradients written
    count = 4 * (2 * b * d + b) + 4 * (b + 4 * b * d)
    operations = b * d * (6 + 4)
    prepare = functools.partial(_prepare_kl, passes, shape, contenders, device)
    return Group(
        f"gaussian_kl {passes}",
        _size(shape),
        threads,
        device,
        contenders,
        b * d,
        count,
        operations,
        prepare,
    )


def _groups(
    make: Callable[..., Group], passes: tuple[str, ...], shapes: Any, gpu_shapes: Any
) -> list[Group]:
    groups = [
        make(p, shape, *place)
        for p in passes
        for shape in shapes
        for place in places(_threads(math.prod(_size(shape))))
    ]
    return groups + [make(p, shape, 1, "cuda") for p in passes for shape in gpu_shapes]


@pytest.mark.parametrize(
    ("group", "contender"), rows(_groups(_rsample_kl, (FORWARD, BOTH), SHAPES, GPU_SHAPES))
)
def test_rsample_kl(benchmark: Any, group: Group, contender: str) -> None:
    """A sample and its KL."""
    harness.run(benchmark, group, contender)


@pytest.mark.parametrize(
    ("group", "contender"),
    rows(_groups(_rsample_log_prob, (BOTH, PATH), RSAMPLE_LOG_PROB_SHAPES, ())),
)
def test_rsample_log_prob(benchmark: Any, group: Group, contender: str) -> None:
    """Samples and their log-densities, with either derivative."""
    harness.run(benchmark, group, contender)


@pytest.mark.parametrize(
    ("group", "contender"), rows(_groups(_kl, (BOTH,), KL_SHAPES, GPU_SHAPES[1:]))
)
def test_gaussian_kl(benchmark: Any, group: Group, contender: str) -> None:
    """The KL alone."""
    harness.run(benchmark, group, contender)
