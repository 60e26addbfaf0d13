"""Bayesian logistic regression on scikit-learn's breast-cancer data, with its exact ELBO.

p(y_i = 1 | w) = sigmoid(<x_i, w>), w ~ N(0, I); q(w) = N(mean, e^logvar). Because a margin <x_i, w>
is Gaussian under q, the ELBO is a sum of one-dimensional integrals: quadrature gives it, and its
gradient.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import latent_kernels as lk

Tensor = torch.Tensor

_NODES = 64
_START_LOGVAR = -3.0


class Model(NamedTuple):
    """The data: rows (2 y_i - 1) x_i, whose products with w are the margins."""

    signed: Tensor  # [N, D]

    def log_joint(self, w: Tensor) -> Tensor:
        """Return log p(y, w), [..., D] -> [...]; differentiable."""
        prior = -0.5 * (w * w).sum(-1) - 0.5 * w.size(-1) * math.log(2 * math.pi)
        return prior + F.logsigmoid(w @ self.signed.T).sum(-1)

    def elbo(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """Return the ELBO by Gauss-Hermite quadrature in float64; differentiable."""
        mean, logvar, rows = mean.double(), logvar.double(), self.signed.double()
        variance = logvar.exp()
        nodes, weights = _hermite()
        margins = (rows @ mean)[:, None] + (rows**2 @ variance).sqrt()[:, None] * nodes
        likelihood = (F.logsigmoid(margins) @ weights).sum()
        negative_kl = 0.5 * (1 + logvar - variance - mean * mean).sum()
        return likelihood + negative_kl

    def elbo_gradient(self, q: lk.DiagonalGaussian) -> tuple[Tensor, ...]:
        """Return the exact gradient of the ELBO by mean and logvar."""
        leaves = tuple(x.detach().double().requires_grad_() for x in q.parameters)
        return torch.autograd.grad(self.elbo(*leaves), leaves)

    def start(self) -> lk.DiagonalGaussian:
        """Return the q that a fit starts from: mean 0, standard deviation 0.22."""
        mean = torch.zeros(self.signed.size(1))
        return lk.DiagonalGaussian(mean, torch.full_like(mean, _START_LOGVAR))


@functools.cache
def _hermite() -> tuple[Tensor, Tensor]:
    """Return nodes and weights for E f(eps), eps ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@functools.cache
def load() -> Model:
    """Load 569 tumours, 30 measurements each, standardized, and an intercept: D = 31.

    Source: Wolberg, Mangasarian, Street and Street, "Breast cancer Wisconsin (diagnostic)", UCI
    repository (1993).
    """
    from sklearn.datasets import load_breast_cancer

    data, classes = load_breast_cancer(return_X_y=True)
    x = torch.as_tensor(data)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    x = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1)
    return Model(((2 * torch.as_tensor(classes)[:, None] - 1) * x).float())
