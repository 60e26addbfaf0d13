"""The interface of relaxed samples: problem, outputs and gradients, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.description import KEPT, Same
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class BernoulliProblem(NamedTuple):
    """S relaxed samples of each of N x D binary variables, in G groups; README.md has the rules."""

    sizes: tuple[int, int, int, int]  # G, S, N, D
    logits: Annotated[Tensor, "GND"]
    seed: int | Tensor
    offset: int
    tau: float
    hard: bool


class CategoricalProblem(NamedTuple):
    """S relaxed samples of each of N x D variables with K classes, in G groups."""

    sizes: tuple[int, int, int, int, int]  # G, S, N, D, K
    logits: Annotated[Tensor, "GNDK"]
    seed: int | Tensor
    offset: int
    tau: float
    hard: bool


Problem = BernoulliProblem | CategoricalProblem


class BernoulliOutputs(NamedTuple):
    """Samples in (0, 1), or 0 and 1 where they are hard; backward reads those that are not."""

    y: Annotated[Tensor, "GSND"]
    kept_y: Annotated[Tensor, "GSND", KEPT, Same("y")]


class CategoricalOutputs(NamedTuple):
    """Samples in the simplex, or one-hot where they are hard; backward reads those that are not."""

    y: Annotated[Tensor, "GSNDK"]
    kept_y: Annotated[Tensor, "GSNDK", KEPT, Same("y")]


Outputs = BernoulliOutputs | CategoricalOutputs


class Gradients(NamedTuple):
    """The gradient of the logits, summed over samples."""

    logits: Tensor | None


BERNOULLI = Op(
    "bernoulli_relaxed",
    "relaxed",
    "GSND",
    BernoulliProblem,
    BernoulliOutputs,
    Gradients,
    formula="formula",
)
CATEGORICAL = Op(
    "categorical_relaxed",
    "relaxed",
    "GSNDK",
    CategoricalProblem,
    CategoricalOutputs,
    Gradients,
    formula="formula",
    absent=lambda offset, tau, hard: "PE",
)


def classes_of(problem: Problem) -> int | None:
    """Return the number of classes, None for a Bernoulli."""
    return problem.sizes[-1] if isinstance(problem, CategoricalProblem) else None


def inverse_of(problem: Problem) -> float:
    """Return 1 / tau, at most the largest number of the type that the problem is computed in: 0
    times it must be 0.
    """
    double = problem.logits.dtype == torch.float64
    largest = torch.finfo(torch.float64 if double else torch.float32).max
    return largest if problem.tau * largest < 1 else 1 / problem.tau
