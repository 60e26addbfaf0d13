"""The Gaussian op in plain torch, with the formulas of the paper; autograd gives its gradients.

q = N(mean, sigma^2), sigma^2 = e^logvar, prior N(m0, e^l0), all diagonal:

    z_s = mean + sigma eps_s                                       (Kingma & Welling 2014, eq. 4)
    KL  = 1/2 sum_d [ (mean - m0)^2 e^-l0 + psi(d) ],  d = logvar - l0,  psi(d) = e^d - 1 - d
    log q(z_s) = -1/2 sum_d [ ln 2 pi + logvar + eps_s^2 ]

Of antithetic samples the second half are the twins of the first: eps_{s + ceil(S/2)} = -eps_s. The
S samples of a row may be Sobol' points.

psi is computed by its series near 0, where e^d - 1 - d loses every digit. Tests hold the compiled
kernels against these functions; devices without a compiled kernel run them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from latent_kernels.kernels.gaussian import scale_kl
from latent_kernels.kernels.gaussian.problem import (
    INDEPENDENT,
    SOBOL,
    Gradients,
    Outputs,
    PathGradients,
    PathOutputs,
    PathProblem,
    Problem,
    Sizes,
    deviation,
    drawn,
)
from latent_kernels.kernels.gaussian.scale_kl import scale_kl_backward as scale_kl_backward
from latent_kernels.kernels.gaussian.scale_kl import scale_kl_forward as scale_kl_forward
from latent_kernels.kernels.library import call_fixed
from latent_kernels.kernels.noise import reference as noise

Tensor = torch.Tensor


def psi_near(d: Tensor) -> Tensor:
    """Return e^d - 1 - d = d^2 (1/2! + d/3! + d^2/4! + ...), the series for |d| < 1."""
    series = torch.full_like(d, 1 / math.factorial(19))
    for k in range(18, 1, -1):
        series = series * d + 1 / math.factorial(k)
    return d * d * series


def half_psi(d: Tensor) -> Tensor:
    """Return (e^d - 1 - d) / 2, by the series where |d| < 1; e^d alone would overflow before it."""
    near, large = d.abs() < 1, d > 80
    near_d, large_d = (torch.where(here, d, 0) for here in (near, large))
    half_expm1 = torch.where(
        large, torch.exp(large_d - 1) * (0.5 * math.e), 0.5 * torch.expm1(d.clamp(max=80))
    )
    return torch.where(near, 0.5 * psi_near(near_d), half_expm1 - 0.5 * d)


def log1p_less_x(x: Tensor) -> Tensor:
    """ln(1 + x) - x for -0.7 < x < 2: with r = x / (2 + x), 2 (r^3/3 + r^5/5 + ...) - r x, of which
    none cancels.
    """
    r = x / (2 + x)
    y = r * r
    series = torch.zeros_like(x)
    for k in range(19, 0, -1):
        series = (series + 1 / (2 * k + 1)) * y
    return 2 * r * series - r * x


def gaussian_kl(
    mean: Tensor, logvar: Tensor, prior_mean: Tensor | None, prior_logvar: Tensor | None
) -> Tensor:
    """Return KL(N(mean, e^logvar) || prior), summed over the last dimension; None stands for 0."""
    delta = mean if prior_mean is None else mean - prior_mean
    if prior_logvar is None:
        return (delta * (0.5 * delta) + half_psi(logvar)).sum(-1)
    # The root twice: the gradient of one would overflow before it is halved.
    ratio, again = (delta * torch.exp(-0.5 * prior_logvar) for _ in range(2))
    return ((0.5 * ratio) * again + half_psi(logvar - prior_logvar)).sum(-1)


def noise_like(
    mean: Tensor, sizes: Sizes, seed: int | Tensor, offset: int, dependence: int = INDEPENDENT
) -> Tensor:
    """Eps [groups, samples, rows, cols], float32 values in the dtype that mean is computed in."""
    if dependence == SOBOL:
        points = noise.sobol_of_groups(sizes, seed, offset)
        return torch.from_numpy(points).to(mean.device, mean.dtype)
    groups, samples, rows, cols = sizes
    count = drawn(samples, dependence)
    eps = noise.of_groups("normal", (groups, count, rows, cols), seed, offset)
    eps = np.concatenate([eps, -eps[:, : samples - count]], axis=1)
    return torch.from_numpy(eps).to(mean.device, mean.dtype)


def _compute(x: Tensor) -> Tensor:
    """Return x in the dtype of the computation: float32 for half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _noise(problem: Problem) -> Tensor:
    return noise_like(problem.mean, problem.sizes, problem.seed, problem.offset, problem.dependence)


def _outputs(
    problem: Problem, wanted: Outputs, draw: Callable[[Problem], Tensor] = _noise
) -> Outputs:
    """Return the outputs that `wanted` has; `draw` makes the noise, where it is needed."""
    (groups, _, rows, cols), mean, scale = problem.sizes, problem.mean, problem.scale
    shape = (groups, 1, rows, cols)
    z = kl = log_q = None
    if wanted.z is not None or wanted.log_q is not None:
        eps = draw(problem)
    if wanted.z is not None:
        sigma = torch.exp(0.5 * deviation(problem)) if scale is None else scale
        z = mean.reshape(shape) + sigma.reshape(shape) * eps
    if wanted.kl is not None:
        kl = gaussian_kl(mean, deviation(problem), problem.prior_mean, problem.prior_logvar)
    if wanted.log_q is not None:
        logvar = deviation(problem).reshape(shape)
        log_q = -0.5 * (eps * eps + (logvar + math.log(2 * math.pi))).sum(-1)
    return Outputs(z, kl, log_q)


def formula(problem: Problem, wanted: Outputs) -> Outputs:
    """Return the outputs that `wanted` has, to be differentiated."""
    return _outputs(problem, wanted, lambda own: _noise_by_dispatcher(own, own.mean))


def path_formula(problem: PathProblem, wanted: PathOutputs) -> PathOutputs:
    """Return log q as a function of z alone, with the density's parameters held fixed.

    By its expansion around z, which is exact and does not lose what z's rounding has lost.
    """
    groups, _, rows, cols = problem.sizes
    logvar = problem.logvar.reshape(groups, 1, rows, cols)
    moved = (problem.z - problem.z.detach()) * torch.exp(-0.5 * logvar)
    t = _noise_by_dispatcher(problem, logvar) + moved
    return PathOutputs(-0.5 * (t * t + (logvar + math.log(2 * math.pi))).sum(-1))


def scale_kl_formula(problem: scale_kl.Problem, wanted: scale_kl.Outputs) -> scale_kl.Outputs:
    """Return the KL by scales, to be differentiated; ln r = asinh((r - 1/r) / 2) is smooth at r = 1
    and keeps its digits everywhere.
    """
    _, loc, scale, q_loc, q_scale = problem
    t = (loc - q_loc) / q_scale
    log_ratio = torch.asinh(0.5 * ((scale - q_scale) / q_scale) * (1 + q_scale / scale))
    return scale_kl.Outputs(t * (0.5 * t) + half_psi(2 * log_ratio))


def _noise_by_dispatcher(problem: Problem | PathProblem, like: Tensor) -> Tensor:
    """Return the noise of a problem with a tensor of seeds, whoever watches the dispatcher: the
    samples of N(0, 1).
    """
    groups, samples, rows, cols = problem.sizes
    zeros, ones = (make((groups, rows, cols)) for make in (like.new_zeros, like.new_ones))
    arguments = zeros, None, ones, None, None, problem.seed, samples
    options = problem.offset, problem.dependence
    eps: Tensor = call_fixed("gaussian", *arguments, *options, [True, False, False])[0]
    return eps


def _computed(problem: Problem) -> Problem:
    """Return the problem in the dtype that it is computed in."""
    tensors: dict[str, Any] = {name: getattr(problem, name) for name in Gradients._fields}
    computed: dict[str, Any] = {
        name: None if x is None else _compute(x) for name, x in tensors.items()
    }
    return problem._replace(**computed)


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write z, KL and log q by the formulas above."""
    results = _outputs(_computed(problem), outputs)
    for out, got in zip(outputs, results, strict=True):
        if out is not None and got is not None:
            out.copy_(got.reshape(out.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of the inputs, by torch.func through the formulas above: an opaque op,
    which may call this, has switched autograd off.
    """
    problem = _computed(problem)
    eps: Any = None
    if upstream.z is not None or upstream.log_q is not None:
        eps = _noise(problem)  # outside of torch.func, whose tensors have no memory
    outs = {name: out for name, out in gradients._asdict().items() if out is not None}

    def results(*leaves: Tensor) -> tuple[Tensor, ...]:
        own: dict[str, Any] = dict(zip(outs, leaves, strict=True))
        found = zip(
            _outputs(problem._replace(**own), upstream, lambda _: eps), upstream, strict=True
        )
        return tuple(y for y, g in found if y is not None and g is not None)

    above = [g for g in upstream if g is not None]
    if not above or not outs:
        for out in outs.values():
            out.zero_()
        return
    found, pull, *_ = torch.func.vjp(results, *[getattr(problem, name) for name in outs])
    pairs = zip(above, found, strict=True)
    of_inputs = pull(tuple(g.reshape(y.shape).to(y.dtype) for g, y in pairs))
    for out, gradient in zip(outs.values(), of_inputs, strict=True):
        out.copy_(gradient.reshape(out.shape))


def path_backward(problem: PathProblem, upstream: PathOutputs, gradients: PathGradients) -> None:
    """Write the gradient of z where log q depends on z alone, d log q / dz = -eps / sigma."""
    assert gradients.z is not None
    groups, samples, rows, cols = problem.sizes
    logvar = _compute(problem.logvar).reshape(groups, 1, rows, cols)
    eps = noise_like(logvar, problem.sizes, problem.seed, problem.offset, problem.dependence)
    slope = eps * torch.exp(-0.5 * logvar)
    above = upstream.log_q.reshape(groups, samples, rows, 1).to(slope.dtype)
    gradients.z.copy_((-above * slope).reshape(gradients.z.shape))
