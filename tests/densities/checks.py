"""The checks of the log-densities on every backend, as in tests/gaussian.

The truth is the plain formula in float64 with autograd's gradients, the yardstick the same at the
problem's own dtype.
"""

from __future__ import annotations

import functools
import itertools
import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from latent_kernels.kernels.densities.problem import (
    BernoulliGradients,
    BernoulliProblem,
    GaussianGradients,
    GaussianProblem,
    Outputs,
)
from latent_kernels.kernels.eager import row_dtype
from tests.backends import Backend
from tests.checks import Sizes, compare

Tensor = torch.Tensor
Sharing = tuple[
    str, ...
]  # of each input: "full", "samples" (shared by them) or "row" (one row for all)

PROBLEMS: dict[str, Any] = {
    "gaussian": (GaussianProblem, GaussianGradients),
    "bernoulli": (BernoulliProblem, BernoulliGradients),
}
INPUTS = {"gaussian": ("z", "mean", "logvar"), "bernoulli": ("x", "logits")}
# As they come: a decoder's output with a learned variance, a posterior's samples, a prior,
# everything its own.
USUAL: dict[str, list[Sharing]] = {
    "gaussian": [
        ("samples", "full", "row"),
        ("full", "samples", "samples"),
        ("full", "row", "row"),
        ("full", "full", "full"),
    ],
    "bernoulli": [("samples", "full"), ("full", "samples"), ("full", "row"), ("full", "full")],
}


def every_sharing(density: str) -> list[Sharing]:
    """Return the patterns of missing axes; some input always has all samples and all rows."""
    patterns = itertools.product(("full", "samples", "row"), repeat=len(INPUTS[density]))
    return [pattern for pattern in patterns if "full" in pattern]


def gaussian(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the density in plain torch."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return the density in plain torch, by logsigmoid, since torch's softplus(l) is l itself from
    20 on.
    """
    return (x * logits + F.logsigmoid(-logits)).sum(-1)


PLAIN = {"gaussian": gaussian, "bernoulli": bernoulli}


class DensityProblem:
    """Inputs in canonical shapes and an upstream gradient, drawn from a seed, with values that the
    dtype holds exactly.
    """

    def __init__(self, density: str, sizes: Sizes, dtype: torch.dtype, sharing: Sharing):
        g = torch.Generator().manual_seed(sum(sizes) + len(sharing))
        groups, _, rows, cols = sizes
        shapes = {"full": sizes, "samples": (groups, 1, rows, cols), "row": (groups, 1, 1, cols)}
        self.density, self.sizes, self.dtype, self.sharing = density, sizes, dtype, sharing
        self.inputs = tuple(
            torch.randn(shapes[s], generator=g, dtype=torch.float64).to(dtype) for s in sharing
        )
        if density == "bernoulli":
            grey = torch.rand(self.inputs[0].shape, generator=g, dtype=torch.float64)
            black_or_white = torch.rand(grey.shape, generator=g) < 0.5
            self.inputs = (
                torch.where(black_or_white, grey.round(), grey).to(dtype),
                3 * self.inputs[1],
            )
        self.upstream = torch.randn(sizes[:3], generator=g, dtype=torch.float64).to(
            row_dtype(dtype)
        )

    def run(
        self, kernels: ModuleType, device: str = "cpu", wanted: tuple[bool, ...] | None = None
    ) -> dict[str, Tensor]:
        """Return everything that a backend computes, through its own interface, on the CPU."""
        wanted = wanted or (True,) * len(self.inputs)
        inputs = [x.to(device) for x in self.inputs]
        problem, gradients = PROBLEMS[self.density]
        asked = problem(self.sizes, *inputs)
        out = torch.full(self.sizes[:3], torch.nan, dtype=row_dtype(self.dtype), device=device)
        kernels.forward(asked, Outputs(out))
        found = gradients(
            *[
                torch.full_like(x, torch.nan) if want else None
                for x, want in zip(inputs, wanted, strict=True)
            ]
        )
        kernels.backward(asked, Outputs(self.upstream.to(device)), found)
        found = {"log_prob": out, **found._asdict()}
        return {name: x.cpu() for name, x in found.items() if x is not None}

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the same results by the plain formula and autograd, computed in `dtype`."""
        leaves = [x.to(dtype).requires_grad_() for x in self.inputs]
        out = PLAIN[self.density](*leaves).expand(self.sizes[:3])
        gradients = torch.autograd.grad(out, leaves, self.upstream.to(dtype))
        return {"log_prob": out.detach(), **dict(zip(INPUTS[self.density], gradients, strict=True))}

    def terms(self, name: str) -> int:
        """Return how many numbers a result is the sum of."""
        _, samples, rows, cols = self.sizes
        if name == "log_prob":
            return cols
        return {"full": 1, "samples": samples, "row": samples * rows}[
            self.sharing[INPUTS[self.density].index(name)]
        ]


def check_density(
    backend: Backend, problem: DensityProblem, wanted: tuple[bool, ...] | None = None
) -> None:
    """Check that the error against float64 is at most twice that of torch in the same dtype, or
    within the possible rounding.

    An element of the Gaussian's gradients, the longest, passes through four roundings (eps / 2
    each) and has e^(-l/2) (0.9 eps) twice in it: below 4 eps of the largest value, times the root
    of the number of terms summed. Halves are computed in float32 and rounded once. Float64 results
    have no better truth here than float64 itself, which may be off by as much again.
    """
    ours = backend.run("densities", functools.partial(problem.run, wanted=wanted))
    truth, torchs = problem.formula(torch.float64), problem.formula(problem.dtype)
    assert len(ours) == 1 + sum(wanted or (True,) * len(problem.inputs))

    def floor(name: str, largest: float) -> float:
        dtype = ours[name].dtype
        roundings = {torch.float32: 4, torch.float64: 8}.get(dtype, 1)
        terms = max(problem.terms(name), 1)
        return torch.finfo(dtype).eps * roundings * terms**0.5 * (1 + largest)

    compare(ours, {name: truth[name] for name in ours}, torchs, floor)
