"""Helpers of the score-function tests: families whose expectations are finite sums.

A law is a finite one, states and their probabilities: all 2^D or K^D values of a discrete family,
or the nodes of a Gauss-Hermite rule that integrates every polynomial here exactly. Expectations
over S samples of it are then sums over all S-tuples of states, exact to rounding; larger S is
drawn, as many independent copies in one batch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributions as td

import latent_kernels as lk

Tensor = torch.Tensor
FAMILIES = ["gaussian", "bernoulli", "categorical"]
CONTROLS: list[tuple[str, int]] = [
    ("none", 1),
    ("baseline", 1),
    ("leave_one_out", 2),
    ("optimal 2", 2),
    ("optimal 3", 3),
]
every_family = pytest.mark.parametrize("name", FAMILIES)
elements = pytest.mark.parametrize("per_element", [False, True], ids=["rows", "elements"])

LOGITS = torch.tensor([-1.2, 0.4], dtype=torch.float64)
CLASS_LOGITS = torch.tensor([[0.3, -1.0, 0.7], [0.0, 1.5, -0.5]], dtype=torch.float64)
MEAN, LOGVAR = (
    torch.tensor([0.4, -0.7], dtype=torch.float64),
    torch.tensor([0.2, -0.8], dtype=torch.float64),
)
BASELINE = 1.7


def f(z: Tensor) -> Tensor:
    """Return a quadratic function of both dimensions with a mean far from 0."""
    z = z.double()
    return 3 + (z[..., 0] - 0.6) ** 2 - 1.3 * z[..., 0] * z[..., 1] + 0.8 * z[..., 1]


def f_elements(z: Tensor) -> Tensor:
    """Return a term for each dimension, which depends on that dimension alone."""
    z = z.double()
    return torch.stack([(z[..., 0] - 0.6) ** 2 + 2, 0.8 * z[..., 1] - 1], -1)


def family(name: str, *batch: int) -> Any:
    """Return one q, repeated over a batch."""
    if name == "gaussian":
        return lk.DiagonalGaussian(MEAN.expand(*batch, 2), LOGVAR.expand(*batch, 2))
    if name == "bernoulli":
        return lk.Bernoulli(LOGITS.expand(*batch, 2))
    return lk.Categorical(CLASS_LOGITS.expand(*batch, 2, 3))


def peer(name: str, parameters: tuple[Tensor, ...]) -> Any:
    """Return torch.distributions' own q, elementwise."""
    if name == "gaussian":
        return td.Normal(parameters[0], torch.exp(0.5 * parameters[1]))
    return (
        td.Bernoulli(logits=parameters[0])
        if name == "bernoulli"
        else td.Categorical(logits=parameters[0])
    )


def scores(name: str, z: Tensor) -> Tensor:
    """Return the gradient of log q(z_d) by each parameter of dimension d, by autograd: [M, 2,
    parameters of a dimension].
    """
    given = {"gaussian": (MEAN, LOGVAR), "bernoulli": (LOGITS,), "categorical": (CLASS_LOGITS,)}[
        name
    ]
    leaves = tuple(x.expand(len(z), *x.shape).clone().requires_grad_() for x in given)
    gradients = torch.autograd.grad(peer(name, leaves).log_prob(z).sum(), leaves)
    return torch.cat([g.reshape(len(z), 2, -1) for g in gradients], -1)


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """Return gradients of a batch [N] of q's in the layout of `scores`: [N, 2, parameters of a
    dimension].
    """
    return torch.cat([g.reshape(*g.shape[:2], -1) for g in gradients], -1)


@dataclass
class Law:
    """States z [M, 2] of q with their probabilities, and the moments from which variances
    follow.
    """

    z: Tensor
    weight: Tensor
    score: Tensor  # [M, 2, P]
    value: Tensor  # [M, 1, 1], or [M, 2, 1] with a value for each element

    def mean(self, x: Tensor) -> Tensor:
        return (self.weight.reshape(-1, *[1] * (x.dim() - 1)) * x).sum(0)

    @property
    def gradient(self) -> Tensor:
        return self.mean(self.value * self.score)

    def variance(self, control: str, samples: int) -> Tensor:
        """Return the variance of the estimator with S samples; for "optimal" that of the best
        coefficient, which it reaches for S to infinity.

        Leave-one-out is a sample covariance of x = f - E f and y = s, whose variance is
        mu22 / S - (S - 2) mu11^2 / (S (S - 1)) + mu20 mu02 / (S (S - 1)), mu_jk = E x^j y^k.
        """
        value, s = self.value, self.score
        if control == "leave_one_out":
            x = value - self.mean(value)
            mu22, mu11 = self.mean(x**2 * s**2), self.mean(x * s)
            mu20, mu02 = self.mean(x**2), self.mean(s**2)
            return mu22 / samples + (mu20 * mu02 - (samples - 2) * mu11**2) / (
                samples * (samples - 1)
            )
        if control == "baseline":
            value = value - BASELINE
        elif control.startswith("optimal"):
            value = value - self.mean(value * s**2) / self.mean(s**2)
        return (self.mean(value**2 * s**2) - self.mean(value * s) ** 2) / samples


def law(name: str, per_element: bool = False) -> Law:
    if name == "gaussian":
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)  # right to degree 17; f^2 s^2 has 8
        eps = torch.tensor(list(itertools.product(nodes, repeat=2)))
        z = MEAN + torch.exp(0.5 * LOGVAR) * eps
        weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=2))).prod(1)
    else:
        z = torch.tensor(list(itertools.product(range(2 if name == "bernoulli" else 3), repeat=2)))
        z = z.double() if name == "bernoulli" else z
        weight = family(name).log_prob(z).exp()
    value = f_elements(z).unsqueeze(-1) if per_element else f(z).reshape(-1, 1, 1)
    return Law(z, weight, scores(name, z), value)


def tuples(of: Law, samples: int) -> tuple[Tensor, Tensor]:
    """Return every S-tuple of states, z [S, M^S, 2], and its probability."""
    which = torch.tensor(list(itertools.product(range(len(of.z)), repeat=samples)))
    return of.z[which].transpose(0, 1), of.weight[which].prod(1)


def estimate(q: Any, values: Tensor, z: Tensor | None, control: str, **options: Any) -> Any:
    if control == "baseline":
        options["control_variate"] = torch.full_like(values[:1], BASELINE)
    elif control.startswith("optimal"):
        options |= {"control_variate": "optimal", "folds": int(control[-1])}
    else:
        options["control_variate"] = control
    return lk.score_function_gradient(q, values, z, **options)


def pairs_law() -> tuple[Tensor, Tensor]:
    """Return every state of an antithetic pair, z [M, 2, 2] as (pair, dimension), and its
    probability.
    """
    p = torch.sigmoid(LOGITS)
    both = torch.stack(
        [
            (1 - 2 * p).clamp(min=0),
            torch.minimum(p, 1 - p),
            torch.minimum(p, 1 - p),
            (2 * p - 1).clamp(0),
        ]
    )
    kinds = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    which = list(itertools.product(range(4), repeat=2))
    z = torch.stack([torch.stack([kinds[a], kinds[b]], -1) for a, b in which])
    return z, torch.stack([both[a, 0] * both[b, 1] for a, b in which])
