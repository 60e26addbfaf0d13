"""The checks of the Gaussian op on every backend: the same problems, the same bounds.

A problem is [groups, samples, rows, cols] with a seed for each group. The truth is the formula in
float64 over the reference's noise; the yardstick is the same formula in plain torch at the
problem's own dtype.
"""

from __future__ import annotations

import math
from types import ModuleType

import mpmath
import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.gaussian import problem as gaussian
from latent_kernels.kernels.gaussian import reference
from latent_kernels.kernels.noise import sobol
from tests.backends import Backend
from tests.checks import Sizes, compare

Tensor = torch.Tensor


def gaussian_problem(
    sizes: Sizes,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    scale: bool,
    seed: int | Tensor,
    offset: int,
    dependence: int = gaussian.INDEPENDENT,
) -> gaussian.Problem:
    """Return the problem in which `spread` is the scale or the log-variance."""
    two = (None, spread) if scale else (spread, None)
    options = offset, dependence
    return gaussian.Problem(sizes, mean, *two, prior_mean, prior_logvar, seed, *options)


def gaussian_gradients(
    scale: bool,
    mean: Tensor | None,
    spread: Tensor | None,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
) -> gaussian.Gradients:
    """Return buffers for the gradients, with one for `spread` where the problem has it."""
    two = (None, spread) if scale else (spread, None)
    return gaussian.Gradients(mean, *two, prior_mean, prior_logvar)


def of_points(sizes: Sizes) -> Sizes:
    """Return the nearest smaller sizes that Sobol' points have: a power of two for the samples."""
    groups, samples, rows, cols = sizes
    points = 2 ** (samples.bit_length() - 1) if samples else 0
    return groups, points, rows, min(cols, sobol.LARGEST_COLS)


class Problem:
    """Inputs and upstream gradients, drawn from a seed, with values that the dtype holds
    exactly.
    """

    def __init__(
        self,
        sizes: Sizes,
        dtype: torch.dtype,
        *,
        prior: bool = True,
        scale: bool = False,
        offset: int = 0,
        dependence: int = gaussian.INDEPENDENT,
    ):
        g = torch.Generator().manual_seed(sum(sizes) + offset)

        def draw(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(as_dtype)

        groups, samples, rows, cols = sizes
        self.sizes, self.dtype, self.scale = sizes, dtype, scale
        self.options = offset, dependence
        self.mean, self.spread = draw(groups, rows, cols), draw(groups, rows, cols)
        if scale:
            self.spread = self.spread.abs() + 0.1
        self.prior_mean = draw(groups, rows, cols) if prior else None
        self.prior_logvar = draw(groups, rows, cols) if prior else None
        self.seeds = torch.arange(groups) * 2**33 + 5
        self.gz = draw(*sizes)
        self.gkl = draw(groups, rows, as_dtype=row_dtype(dtype))
        self.gq = draw(groups, samples, rows, as_dtype=row_dtype(dtype))

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.mean, self.spread, self.prior_mean, self.prior_logvar

    def noise(self, seeds: int | Tensor) -> Tensor:
        """Return eps, float32 [groups, samples, rows, cols]."""
        return reference.noise_like(self.mean.float(), self.sizes, seeds, *self.options)

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """Return everything that a backend computes, through its own interface, on the CPU."""
        groups, samples, rows, _ = self.sizes

        def there(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        def room(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.full(shape, torch.nan, dtype=dtype, device=device)

        of_rows = row_dtype(self.dtype)
        parameters = [there(x) for x in self.parameters]
        seeds = self.seeds.to(device)
        z = room(*self.sizes)
        kl = None if self.scale else room(groups, rows, dtype=of_rows)
        log_q = None if self.scale else room(groups, samples, rows, dtype=of_rows)
        asked = gaussian_problem(self.sizes, *parameters, self.scale, seeds, *self.options)
        kernels.forward(asked, gaussian.Outputs(z, kl, log_q))
        gradients = tuple(None if x is None else room(*x.shape) for x in parameters)
        upstream = [
            there(self.gz),
            *(None if self.scale else there(x) for x in (self.gkl, self.gq)),
        ]
        kernels.backward(
            asked, gaussian.Outputs(*upstream), gaussian_gradients(self.scale, *gradients)
        )
        found = {"z": z, "kl": kl, "log_q": log_q, **dict(zip(NAMES, gradients, strict=True))}
        if not self.scale:
            found["path"] = room(*self.sizes)
            kernels.path_backward(
                gaussian.PathProblem(self.sizes, z, log_q, parameters[1], seeds, *self.options),
                gaussian.PathOutputs(upstream[2]),
                gaussian.PathGradients(found["path"]),
            )
        return {name: x.cpu() for name, x in found.items() if x is not None}

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the same results by the plain formula and autograd, computed in `dtype`."""

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(dtype).requires_grad_()

        leaves = [leaf(x) for x in self.parameters]
        mean, spread, prior_mean, prior_logvar = leaves
        assert mean is not None
        assert spread is not None
        eps = self.noise(self.seeds).to(dtype)
        sigma = spread if self.scale else torch.exp(0.5 * spread)
        z = mean.unsqueeze(1) + sigma.unsqueeze(1) * eps
        outputs, upstream = [z], [self.gz.to(dtype)]
        found = {"z": z}
        if not self.scale:
            found["kl"] = reference.gaussian_kl(mean, spread, prior_mean, prior_logvar)
            found["log_q"] = -0.5 * (eps * eps + spread.unsqueeze(1) + math.log(2 * math.pi)).sum(
                -1
            )
            outputs += [found["kl"], found["log_q"]]
            upstream += [self.gkl.to(dtype), self.gq.to(dtype)]
            found["path"] = -self.gq.to(dtype).unsqueeze(-1) * eps / sigma.unsqueeze(1)
        wanted = [x for x in leaves if x is not None]
        gradients = iter(torch.autograd.grad(outputs, wanted, upstream, allow_unused=True))
        for name, x in zip(NAMES, leaves, strict=True):
            if x is not None:
                g = next(gradients)
                found[name] = torch.zeros_like(x) if g is None else g
        return {name: x.detach() for name, x in found.items()}


NAMES = ("d_mean", "d_spread", "d_prior_mean", "d_prior_logvar")


def check(backend: Backend, problem: Problem, *, roundings: int = 1) -> None:
    """Check that the error against float64 is at most twice that of torch in the same dtype.

    Where torch happens to be exact (a handful of elements), twice its error is nothing; so the
    bound never falls below `roundings` of the largest value, times the root of the number of terms
    summed: one, or four for problems so small that torch's error is a matter of luck (no value here
    passes through more than four). Float64 results have no better truth here than float64 itself,
    which may be off by as much again: eight such roundings.
    """
    ours, truth, torchs = (
        backend.run("gaussian", problem.run),
        problem.formula(torch.float64),
        problem.formula(problem.dtype),
    )

    def floor(name: str, largest: float) -> float:
        units = 8 if problem.dtype == torch.float64 else roundings
        terms = max(problem.sizes[3], problem.sizes[1])
        return torch.finfo(ours[name].dtype).eps * units * terms**0.5 * (1 + largest)

    compare(ours, truth, torchs, floor)


class LogQProblem(Problem):
    """log q with z but no KL, and its gradients, with those of z or alone: what `rsample_log_prob`
    asks for.
    """

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """Return what the other problems' `run` returns."""
        mean, logvar, gz, gq, seeds = (
            x.to(device) for x in (self.mean, self.spread, self.gz, self.gq, self.seeds)
        )
        z, log_q = torch.full_like(gz, torch.nan), torch.full_like(gq, torch.nan)
        given = (self.sizes, mean, logvar, None, None, False, seeds, *self.options)
        asked = gaussian_problem(*given)
        kernels.forward(asked, gaussian.Outputs(z, None, log_q))
        found = {"z": z, "log_q": log_q}
        for name, upstream in (("", (gz, None, gq)), ("alone_", (None, None, gq))):
            gradients = [torch.full_like(mean, torch.nan) for _ in range(2)]
            kernels.backward(
                asked, gaussian.Outputs(*upstream), gaussian_gradients(False, *gradients)
            )
            found |= {f"{name}d_mean": gradients[0], f"{name}d_logvar": gradients[1]}
        return {name: x.cpu() for name, x in found.items()}

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what the other problems' `formula` returns, by autograd through z."""
        mean, logvar = (x.to(dtype).requires_grad_() for x in (self.mean, self.spread))
        eps = self.noise(self.seeds).to(dtype)
        z, log_q = log_q_formula(mean.unsqueeze(1), logvar.unsqueeze(1), eps, path=False)
        gz, gq = self.gz.to(dtype), self.gq.to(dtype)
        found = {"z": z, "log_q": log_q}
        found["d_mean"], found["d_logvar"] = torch.autograd.grad(
            (z, log_q), (mean, logvar), (gz, gq)
        )
        found["alone_d_mean"] = torch.zeros_like(
            mean
        )  # exactly, where autograd's two parts cancel to rounding
        found["alone_d_logvar"] = (-0.5 * gq.sum(1)).unsqueeze(-1).expand(mean.shape)
        return {name: x.detach() for name, x in found.items()}


def log_q_formula(
    mean: Tensor, logvar: Tensor, eps: Tensor, *, path: bool
) -> tuple[Tensor, Tensor]:
    """Return z by plain torch, and its log-density with the parameters held fixed or not."""
    z = mean + torch.exp(0.5 * logvar) * eps
    if path:
        mean, logvar = mean.detach(), logvar.detach()
    return z, -0.5 * (
        math.log(2 * math.pi) + logvar + ((z - mean) * torch.exp(-0.5 * logvar)) ** 2
    ).sum(-1)


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return mean and logvar, drawn from a seed."""
    g = torch.Generator().manual_seed(sum(shape))
    mean, logvar = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return mean.to(dtype).requires_grad_(), logvar.to(dtype).requires_grad_()


def check_near_overflow(kernels: ModuleType, dtype: torch.dtype) -> None:
    """Check a KL that the dtype holds although twice its value would be infinite, and its
    gradients.

    Rows of one column: mean, logvar, and those of the prior.
    """
    high, low = (89.25, -80.0) if dtype == torch.float32 else (710.25, -700.0)
    far = 1.25 * torch.finfo(dtype).max ** 0.5
    rows = [
        (far, 0.0, 0.0, 0.0),
        (0.0, high, 0.0, 0.0),
        (far * math.exp(low / 2), low, 0.0, low),
        (0.0, high + low, 0.0, low),
        (1e10, 100.0, 0.0, 100.0),  # e^-l0 alone would be subnormal
    ]
    for with_prior in (True, False):
        given = torch.tensor(rows if with_prior else rows[:2], dtype=dtype).unbind(1)
        sizes = (1, 0, len(given[0]), 1)
        mean, logvar, m0, l0 = (x.reshape(1, -1, 1) for x in given)
        priors = (m0, l0) if with_prior else (None, None)
        asked = gaussian_problem(sizes, mean, logvar, *priors, False, 0, 0)
        kl = torch.full(sizes[:1] + sizes[2:3], torch.nan, dtype=dtype)
        kernels.forward(asked, gaussian.Outputs(None, kl, None))
        found = [
            torch.full_like(x, torch.nan) for x in ((mean, logvar, *priors)[: 2 + 2 * with_prior])
        ]
        wanted = found if with_prior else [*found, None, None]
        upstream = gaussian.Outputs(None, torch.ones_like(kl), None)
        kernels.backward(asked, upstream, gaussian_gradients(False, *wanted))
        with mpmath.workdps(50):
            for i, row in enumerate(zip(*(x.tolist() for x in given), strict=True)):
                m, l, m0_, l0_ = map(mpmath.mpf, row)
                slope, quadratic = (m - m0_) * mpmath.exp(-l0_), (m - m0_) ** 2 * mpmath.exp(-l0_)
                expm1 = mpmath.expm1(l - l0_)
                exact = [
                    (quadratic + expm1 - (l - l0_)) / 2,
                    slope,
                    expm1 / 2,
                    -slope,
                    -(expm1 + quadratic) / 2,
                ]
                for got, want in zip((kl, *found), exact, strict=False):
                    value = got.flatten()[i].item()
                    assert math.isfinite(value)
                    assert abs(value - want) <= 16 * torch.finfo(dtype).eps * abs(want), row
