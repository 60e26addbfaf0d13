"""Bayesian logistic regression by black-box variational inference: the score function finds the
posterior.

p(y_i = 1 | w) = sigmoid(<x_i, w>), w ~ N(0, I), on scikit-learn's breast-cancer data; q(w) =
N(mean, e^logvar). Nothing but values of the log joint enters the score-function fits. Because a
margin <x_i, w> is Gaussian under q, the ELBO is also a sum of one-dimensional integrals, so that
the truth is known: quadrature gives it, and its gradient.

Source: Ranganath, Gerrish and Blei, "Black box variational inference" (2014).
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
        """log p(y, w): [..., D] -> [...], differentiable."""
        prior = -0.5 * (w * w).sum(-1) - 0.5 * w.size(-1) * math.log(2 * math.pi)
        return prior + F.logsigmoid(w @ self.signed.T).sum(-1)

    def elbo(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """The ELBO by Gauss-Hermite quadrature in float64; differentiable."""
        mean, logvar, rows = mean.double(), logvar.double(), self.signed.double()
        variance = logvar.exp()
        nodes, weights = _hermite()
        margins = (rows @ mean)[:, None] + (rows**2 @ variance).sqrt()[:, None] * nodes
        likelihood = (F.logsigmoid(margins) @ weights).sum()
        negative_kl = 0.5 * (1 + logvar - variance - mean * mean).sum()
        return likelihood + negative_kl

    def elbo_gradient(self, q: lk.DiagonalGaussian) -> tuple[Tensor, ...]:
        """The exact gradient of the ELBO by mean and logvar."""
        leaves = tuple(x.detach().double().requires_grad_() for x in q.parameters)
        return torch.autograd.grad(self.elbo(*leaves), leaves)

    def start(self) -> lk.DiagonalGaussian:
        """Where every fit starts: mean 0, standard deviation 0.22."""
        mean = torch.zeros(self.signed.size(1))
        return lk.DiagonalGaussian(mean, torch.full_like(mean, _START_LOGVAR))


@functools.cache
def _hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights for E f(eps), eps ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@functools.cache
def load() -> Model:
    """569 tumours, 30 measurements each, standardized, and an intercept: D = 31.

    Source: Wolberg, Mangasarian, Street and Street, "Breast cancer Wisconsin (diagnostic)", UCI
    repository (1993).
    """
    from sklearn.datasets import load_breast_cancer

    data, classes = load_breast_cancer(return_X_y=True)
    x = torch.as_tensor(data)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    x = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1)
    return Model(((2 * torch.as_tensor(classes)[:, None] - 1) * x).float())


class Fit(NamedTuple):
    """The end of a fit."""

    q: lk.DiagonalGaussian  # parameters averaged over the last half of the steps
    elbo: float  # of q, in nats, exact


def fit(
    estimator: str = "leave_one_out",
    num_samples: int = 64,
    steps: int = 2000,
    *,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Fit:
    """Maximizes the ELBO with Adam from gradients of `estimator` with `num_samples` samples.

    The learning rate falls to nothing along a cosine, and the parameters of the last half of the
    steps are averaged.

    Args:
        estimator: a control variate of `lk.score_function_expectation`, or "reparameterized".
        num_samples: S for each step.
        steps: of Adam.
        learning_rate: its first value.
        seed: fixes every number.

    Returns:
        The averaged q and its exact ELBO.

    Raises:
        ValueError: naming the argument that is wrong.

    """
    model = load()
    mean, logvar = (x.clone().requires_grad_() for x in model.start().parameters)
    optimizer = torch.optim.Adam((mean, logvar), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kept, sums = 0, [torch.zeros_like(mean), torch.zeros_like(mean)]
    for step in range(steps):
        q = lk.DiagonalGaussian(mean, logvar)
        offset = step * num_samples * q.cols  # each step's own part of the seed's noise
        optimizer.zero_grad()
        (-_elbo(q, model, estimator, num_samples, seed, offset)).backward()
        optimizer.step()
        schedule.step()
        if 2 * step >= steps:
            kept += 1
            for total, x in zip(sums, (mean, logvar), strict=True):
                total += x.detach()
    q = lk.DiagonalGaussian(*(total / kept for total in sums))
    return Fit(q, float(model.elbo(*q.parameters)))


def _elbo(
    q: lk.DiagonalGaussian, model: Model, estimator: str, samples: int, seed: int, offset: int
) -> Tensor:
    """A sample estimate of the ELBO; its gradient is the estimator's."""
    if estimator == "reparameterized":
        return model.log_joint(q.rsample(samples, seed=seed, offset=offset)).mean() + q.entropy()
    with torch.no_grad():
        z = q.sample(samples, seed=seed, offset=offset)
        values = model.log_joint(z) - q.log_prob(z)
    return lk.score_function_expectation(q, values, z, control_variate=estimator)


def optimum(steps: int = 200) -> Fit:
    """The mean-field optimum itself, by L-BFGS on the exact ELBO, which is concave in mean and
    standard deviation.
    """
    model = load()
    mean, logvar = (x.double().requires_grad_() for x in model.start().parameters)
    optimizer = torch.optim.LBFGS(
        (mean, logvar), max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -model.elbo(mean, logvar)
        loss.backward()
        return loss

    optimizer.step(closure)
    return Fit(
        lk.DiagonalGaussian(mean.detach(), logvar.detach()),
        float(model.elbo(mean.detach(), logvar.detach())),
    )
