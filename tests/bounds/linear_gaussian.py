"""A linear-Gaussian model, for which every property of importance-weighted bounds is known or a
short quadrature.

p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), and q = N(mean, e^logvar) diagonal and wrong on purpose.
Parameters may have batch dimensions, so that autograd gives a gradient for each of many repeats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

import latent_kernels as lk

Tensor = torch.Tensor


class Parameters(NamedTuple):
    """The parameters of q and then those of the model, each with any leading batch dimensions."""

    mean: Tensor  # [..., D]
    logvar: Tensor  # [..., D]
    weight: Tensor  # [..., N, D]
    bias: Tensor  # [..., N]
    log_noise: Tensor  # [...], log s^2

    def repeated(self, *batch: int) -> Parameters:
        """Return a separate leaf for each repeat."""
        return Parameters(*(p.expand(*batch, *p.shape).clone().requires_grad_() for p in self))

    def tracked(self) -> Parameters:
        return Parameters(*(p.detach().clone().requires_grad_() for p in self))

    @property
    def q(self) -> lk.DiagonalGaussian:
        return lk.DiagonalGaussian(self.mean, self.logvar)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x, z) for z [S, ..., D]."""
        rest = x - self.bias - (self.weight @ z.unsqueeze(-1)).squeeze(-1)
        likelihood = -0.5 * (
            rest**2 / torch.exp(self.log_noise)[..., None] + self.log_noise[..., None]
        ).sum(-1)
        return (
            likelihood
            - 0.5 * (z * z).sum(-1)
            - 0.5 * (z.size(-1) + x.size(-1)) * math.log(2 * math.pi)
        )

    def log_q(self, z: Tensor) -> Tensor:
        """Return log q(z) by torch.distributions, for comparison with the library's."""
        return (
            torch.distributions.Normal(self.mean, torch.exp(0.5 * self.logvar)).log_prob(z).sum(-1)
        )

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) = log N(x; b, W W^T + s^2 I)."""
        covariance = self.weight @ self.weight.mT + torch.exp(self.log_noise) * torch.eye(
            len(x), dtype=x.dtype
        )
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the covariance of p(z|x)."""
        noise, eye = torch.exp(self.log_noise), torch.eye(self.mean.size(-1), dtype=x.dtype)
        covariance = torch.linalg.inv(eye + self.weight.mT @ self.weight / noise)
        return covariance @ self.weight.mT @ (x - self.bias) / noise, covariance

    def elbo(self, x: Tensor) -> Tensor:
        """Return E_q log p(x|z) - KL(q || p) in closed form."""
        noise, variance = torch.exp(self.log_noise), torch.exp(self.logvar)
        square = ((x - self.bias - self.weight @ self.mean) ** 2).sum() + (
            self.weight**2 * variance
        ).sum()
        likelihood = -0.5 * (square / noise + len(x) * (self.log_noise + math.log(2 * math.pi)))
        return likelihood - 0.5 * (self.mean**2 + variance - 1 - self.logvar).sum()

    def weight_variance(self, x: Tensor) -> Tensor:
        """Return Var_q[w] / p(x)^2 = E_q[(p(z|x) / q(z))^2] - 1, an integral of Gaussians."""
        centre, covariance = self.posterior(x)
        precision, own = torch.linalg.inv(covariance), torch.exp(-self.logvar)
        left = 2 * precision - torch.diag(own)  # of p^2 / q, which has to be positive definite
        shift = 2 * precision @ centre - own * self.mean
        exponent = (
            shift @ torch.linalg.solve(left, shift)
            - 2 * centre @ precision @ centre
            + (own * self.mean**2).sum()
        )
        logs = 2 * torch.logdet(precision) + self.logvar.sum() - torch.logdet(left)
        return torch.exp(0.5 * (logs + exponent)) - 1


def hermite(nodes: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return every S-tuple of nodes of a Gauss-Hermite rule, eps [S, nodes^S, 1], with its weight
    under N(0, I).
    """
    at, weight = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(nodes))
    which = torch.cartesian_prod(*[torch.arange(nodes)] * samples).reshape(-1, samples)
    return at[which].T.unsqueeze(-1), (weight / weight.sum())[which].prod(1)


def flat(gradients: tuple[Tensor, ...], batch: int = 0) -> Tensor:
    """Return the gradients concatenated: [P], or [R, P] after one batch dimension."""
    return torch.cat([g.reshape(*g.shape[:batch], -1) for g in gradients], -1)


def z_scores(gradients: Tensor, truth: Tensor) -> Tensor:
    """Return by how many standard errors the mean over repeats [R, P] is off, [P]."""
    return (gradients.mean(0) - truth) / (gradients.std(0) / math.sqrt(len(gradients)))


def critical(count: int, level: float = 1e-3) -> float:
    """Return the value that the largest of `count` normal z-scores exceeds in absolute value with a
    probability below `level` (Bonferroni).
    """
    return -float(torch.special.ndtri(torch.tensor(0.5 * level / count, dtype=torch.float64)))
