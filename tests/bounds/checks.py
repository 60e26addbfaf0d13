"""The checks of the bounds on every backend: the same problems, with tolerances that follow from an
analysis of errors.
"""

from __future__ import annotations

from types import ModuleType

import mpmath
import torch

from latent_kernels.kernels.bounds import reference
from latent_kernels.kernels.bounds.problem import Gradients, Outputs, Problem
from latent_kernels.kernels.eager import row_dtype
from tests.backends import Backend

Tensor = torch.Tensor
Sizes = tuple[int, int, int]  # groups, samples, rows

# Few rows, which are folded, with samples that the fold does not divide; more than a part has; one
# sample; nothing.
SIZES: list[Sizes] = [
    (1, 50, 64),
    (1, 5, 1),
    (2, 7, 3),
    (1, 2, 63),
    (1, 1, 5),
    (1, 1, 700),
    (3, 17, 65),
    (1, 1000, 1),
    (1, 999, 7),
    (1, 33, 1100),
    (2, 3000, 70),
    (1, 3, 0),
    (0, 3, 4),
]


def problem(
    sizes: Sizes, dtype: torch.dtype, spread: float = 3.0, mean: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return log-weights of `sizes` and a gradient [groups, rows], with values that the dtypes hold
    exactly.
    """
    g = torch.Generator().manual_seed(sum(sizes))
    log_w = torch.randn(sizes, generator=g, dtype=torch.float64) * spread + mean
    gradient = torch.randn(sizes[0], sizes[2], generator=g, dtype=torch.float64)
    return log_w.to(dtype), gradient.to(row_dtype(dtype))


def run(
    kernels: ModuleType, log_w: Tensor, gradient: Tensor, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return everything that a backend computes, through its own interface, on the CPU."""
    groups, samples, rows = sizes = (log_w.size(0), log_w.size(1), log_w.size(2))
    log_w, gradient = log_w.to(device), gradient.to(device)
    bound, sums = (
        torch.full_like(gradient, torch.nan),
        gradient.new_full((groups, 2, rows), torch.nan),
    )
    asked = Problem(sizes, log_w)
    kernels.forward(asked, Outputs(bound, sums))
    weights, scaled, signal = (torch.full_like(log_w, torch.nan) for _ in range(3))
    kernels.backward(asked, Outputs(None, sums), Gradients(weights, None))
    kernels.backward(asked, Outputs(gradient, sums), Gradients(scaled, None))
    found = {"bound": bound, "weights": weights, "scaled": scaled}
    if samples > 1:
        kernels.backward(asked, Outputs(gradient, sums), Gradients(None, signal))
        found["signal"] = signal
    return {name: x.cpu() for name, x in found.items()}


def truth(log_w: Tensor, gradient: Tensor, seen: list[int]) -> dict[str, Tensor]:
    """Return the same results in float64 by torch, with each of VIMCO's sums over its own terms,
    for the samples `seen`.
    """
    log_w, gradient = log_w.double(), gradient.double().unsqueeze(1)
    whole = torch.logsumexp(log_w, 1, keepdim=True)
    weights = torch.exp(log_w - whole)
    bound = whole.squeeze(1) - torch.log(torch.tensor(float(log_w.size(1)), dtype=torch.float64))
    found = {"bound": bound, "weights": weights, "scaled": weights * gradient}
    if log_w.size(1) > 1:
        found["signal"] = gradient * torch.stack(
            [whole[:, 0] - reference.log_without(log_w, s) for s in seen], 1
        )
    return found


def check(backend: Backend, log_w: Tensor, gradient: Tensor) -> None:
    """Check that errors are below what the arithmetic allows; u is the unit in the last place of 1.

    A difference log_w - top is rounded to half a unit of itself, which is the relative error of its
    exponential (as log_w itself has, if it is the rounding of anything); exp adds one unit, and a
    sum of n positive terms at most n units of its value, of which sqrt n are allowed here: errors
    are of either sign. Half results round once more.
    """
    samples = log_w.size(1)
    seen = list(range(0, samples, max(samples // 40, 1)))
    ours = backend.run("bounds", lambda kernels, device: run(kernels, log_w, gradient, device))
    exact = truth(log_w, gradient, seen)
    assert ours.keys() == exact.keys()
    if samples > 1:
        assert not ours["signal"].isnan().any()
        ours["signal"] = ours["signal"][:, seen]
    unit = torch.finfo(gradient.dtype).eps
    span = (
        float((log_w.double().amax(1, keepdim=True) - log_w.double()).max())
        if log_w.numel()
        else 0.0
    )
    relative = unit * (4 + span + 2 * samples**0.5)
    for name, got in ours.items():
        want = exact[name]
        assert got.shape == want.shape, name
        assert not got.isnan().any(), f"{name}: an element was not written"
        if got.numel() == 0:
            continue
        allowed = relative * want.abs()
        if name == "bound":
            allowed = relative + unit * want.abs()
        if name == "signal":  # a logarithm of a ratio near 1 that is known to `relative`
            allowed = (relative + unit * span * samples**0.5) * gradient.double().abs().unsqueeze(
                1
            ) + 2 * allowed
        allowed = (
            allowed
            + torch.finfo(got.dtype).eps * want.abs()
            + torch.finfo(got.dtype).smallest_normal
        )
        error = (got.double() - want).abs()
        assert (error <= allowed).all(), (
            f"{name}: {float((error / allowed).max()):.3g} of what is allowed"
        )


def check_nearly_equal(kernels: ModuleType, mean: float, dtype: torch.dtype) -> None:
    """Check that VIMCO's signals keep their digits however close the weights are: they err by a few
    units of the row's largest.
    """
    for spread in (3.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-10):
        log_w, _ = problem((1, 7, 3), dtype, spread, mean)
        found = run(kernels, log_w, torch.ones(1, 3, dtype=dtype))["signal"][0]
        with mpmath.workdps(60):
            for got, column in zip(found.unbind(1), log_w[0].unbind(1), strict=True):
                w = [mpmath.mpf(x) for x in column.tolist()]
                whole, exact = mpmath.fsum(map(mpmath.exp, w)), []
                for s in range(len(w)):
                    others = w[:s] + w[s + 1 :]
                    geometric = mpmath.exp(mpmath.fsum(others) / len(others))
                    without = mpmath.fsum(map(mpmath.exp, others)) + geometric
                    exact.append(float(mpmath.log(whole / without)))
                want = torch.tensor(exact, dtype=torch.float64)
                error = (got.double() - want).abs().max()
                assert error <= 8 * torch.finfo(dtype).eps * want.abs().max(), spread
