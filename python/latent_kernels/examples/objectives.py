"""What training of the `vae` maximizes: the ELBO, or an importance-weighted bound from S samples
for each image.

Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

import latent_kernels as lk

Tensor = torch.Tensor

ESTIMATORS = ("iwae", "stl", "dreg")  # of reparameterized samples
BOUNDS = ("elbo", *ESTIMATORS)


class Ops(NamedTuple):
    """Where the model takes its arithmetic from."""

    name: str
    rsample_kl: Callable[..., tuple[Tensor, Tensor]]
    log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]
    bernoulli_log_prob: Callable[[Tensor, Tensor], Tensor]


class Model(Protocol):
    """The methods of `vae.VAE` that the bounds are computed from."""

    def elbo(self, x: Tensor, num_samples: int | None, ops: Ops) -> tuple[Tensor, Tensor]: ...
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def log_likelihood(self, x: Tensor, z: Tensor, ops: Ops) -> Tensor: ...


class Objective(NamedTuple):
    """A bound of log p(x), and how many samples of z it takes for each image."""

    bound: str = (
        "elbo"  # of BOUNDS; all but "elbo" are one bound with several estimators of its gradient
    )
    samples: int = 1

    @property
    def weighted(self) -> bool:
        """Return whether it is an importance-weighted bound."""
        return self.bound != "elbo"

    @property
    def name(self) -> str:
        """For tables and axes."""
        return f"L_{self.samples}" if self.weighted else "ELBO"

    def rounds(self, num_samples: int) -> int:
        """Return how many of these bounds `num_samples` samples make, at least one."""
        return max(num_samples // self.samples, 1)

    def loss_and_terms(self, model: Model, x: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """The loss to minimize, and the terms [2] or [3] summed over the images: those of
        `vae.Terms`.

        An importance-weighted bound has no exact KL: its second term is the mean of log q(z) - log
        p(z) over the samples.
        """
        if not self.weighted:
            reconstruction, kl = model.elbo(x, None if self.samples == 1 else self.samples, ops)
            return (kl - reconstruction).mean(), torch.stack(
                (reconstruction.sum() / self.samples, kl.sum())
            )
        bound, reconstruction, kl = weighted_bound(model, x, self, ops)
        return -bound.mean(), torch.stack(
            (reconstruction.mean(0).sum(), kl.mean(0).sum(), bound.sum())
        )


ELBO = Objective()


class WeightedOps(NamedTuple):
    """Where the importance-weighted bounds take their ops from."""

    rsample_log_prob: Callable[..., tuple[Tensor, Tensor]]
    log_prior: Callable[[Tensor], Tensor]
    importance_bound: Callable[..., Tensor]


def weighted_bound(
    model: Model, x: Tensor, objective: Objective, ops: Ops, weighted: WeightedOps | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The bound [B], log p(x|z) [S, B], and log q(z|x) - log p(z) [S, B]; their difference is the
    log-weights.

    `weighted` stands for the ops that go with `ops`.
    """
    weighted = weighted or WEIGHTED_OPS[ops.name]
    path_derivative = objective.bound != "iwae"
    z, log_q = weighted.rsample_log_prob(
        *model.encode(x), objective.samples, path_derivative=path_derivative
    )
    reconstruction = model.log_likelihood(x, z, ops)
    kl = log_q - weighted.log_prior(z)
    along = z if objective.bound == "dreg" else None
    return (
        weighted.importance_bound(reconstruction - kl, estimator=objective.bound, z=along),
        reconstruction,
        kl,
    )


def fused_log_prior(z: Tensor) -> Tensor:
    """The density log N(z; 0, I) by the library."""
    zero = z.new_zeros(z.size(-1))
    return lk.gaussian_log_prob(z, zero, zero)


def plain_rsample_log_prob(
    mean: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    path_derivative: bool = False,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> tuple[Tensor, Tensor]:
    """Return samples and their log-densities in plain torch, as one writes it."""
    std = torch.exp(0.5 * logvar)
    z = mean + std * noise(std.expand(num_samples, *std.shape))
    if path_derivative:
        mean, logvar = mean.detach(), logvar.detach()
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)
    return z, log_q


def plain_log_prior(z: Tensor) -> Tensor:
    """Return the standard normal's log-density in plain torch, as one writes it."""
    return -0.5 * (z**2).sum(-1) - 0.5 * z.size(-1) * math.log(2 * math.pi)


def plain_importance_bound(log_w: Tensor, *, estimator: str, z: Tensor | None) -> Tensor:
    """`lk.importance_bound` for reparameterized samples, as one writes it in plain torch."""
    if estimator == "dreg" and z is not None and z.requires_grad:
        weights = torch.softmax(log_w.detach(), 0).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * weights)
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


# By the names of vae.FUSED and vae.PLAIN.
WEIGHTED_OPS = {
    "latent-kernels": WeightedOps(lk.rsample_log_prob, fused_log_prior, lk.importance_bound),
    "plain torch": WeightedOps(plain_rsample_log_prob, plain_log_prior, plain_importance_bound),
}
