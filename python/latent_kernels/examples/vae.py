"""A variational autoencoder around `latent_kernels.rsample_kl`: the example of how the ops are
used.

The model's arithmetic comes in through `Ops`, so that the fused kernels and plain torch train one
and the same model. Everything is in nats per image.

Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 10 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import latent_kernels as lk
from latent_kernels.examples.objectives import ELBO, Objective, Ops

Tensor = torch.Tensor

LIKELIHOODS = ("bernoulli", "gaussian")
PIXELS = 64
# The digits have 17 grey levels. No standard deviation below that of the rounding, 1/16 / sqrt(12),
# means anything, and without a floor the border pixels, which are always 0, would drive the
# likelihood to infinity.
_LOGVAR_FLOOR = -2 * math.log(16 * math.sqrt(12))


def plain_rsample_kl(
    mean: Tensor, logvar: Tensor, num_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """`lk.rsample_kl` as one writes it in plain torch: the same distribution, other noise."""
    std = torch.exp(0.5 * logvar)
    eps = torch.randn_like(std if num_samples is None else std.expand(num_samples, *std.shape))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(-1)
    return mean + std * eps, kl


def plain_log_prob(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """`lk.gaussian_log_prob` as one writes it in plain torch."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 * torch.exp(-logvar)).sum(-1)


def plain_bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """`lk.bernoulli_log_prob` as one writes it in plain torch."""
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


FUSED = Ops("latent-kernels", lk.rsample_kl, lk.gaussian_log_prob, lk.bernoulli_log_prob)
PLAIN = Ops("plain torch", plain_rsample_kl, plain_log_prob, plain_bernoulli_log_prob)


class VAE(nn.Module):
    """q(z|x) = N(mean(x), e^logvar(x)), p(z) = N(0, I), and p(x|z) Bernoulli, or Gaussian with a
    learned variance.
    """

    def __init__(
        self, latent: int, likelihood: str = "bernoulli", hidden: int = 256, pixels: int = PIXELS
    ) -> None:
        super().__init__()
        self.latent, self.likelihood = latent, likelihood
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels)
        )
        if likelihood == "gaussian":
            self.pixel_logvar = nn.Parameter(torch.full((pixels,), -3.0))

    def elbo(
        self, x: Tensor, num_samples: int | None = None, ops: Ops = FUSED
    ) -> tuple[Tensor, Tensor]:
        """The two terms of the evidence lower bound, reconstruction - kl: log p(x|z) and KL(q(z|x)
        || p(z)).

        Args:
            x: images in [0, 1], [B, pixels].
            num_samples: S samples of z for each image, or None for one.
            ops: the fused kernels or plain torch.

        Returns:
            reconstruction of shape [S, B] or [B]; kl of shape [B].

        """
        mean, logvar = self.encode(x)
        z, kl = ops.rsample_kl(mean, logvar, num_samples)
        return self.log_likelihood(x, z, ops), kl

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), [B, latent] each."""
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        return mean, logvar

    def log_likelihood(self, x: Tensor, z: Tensor, ops: Ops = FUSED) -> Tensor:
        """The reconstruction term log p(x|z), [..., B]."""
        out = self.decoder(z)
        if self.likelihood == "gaussian":
            return ops.log_prob(x, out, self.logvar())
        return ops.bernoulli_log_prob(x, out)

    def logvar(self) -> Tensor:
        """Log-variance of each pixel under the Gaussian likelihood, [pixels]."""
        return torch.logaddexp(self.pixel_logvar, self.pixel_logvar.new_tensor(_LOGVAR_FLOOR))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean image E[x|z] in [0, 1], [..., pixels]."""
        out: Tensor = self.decoder(z)
        return out.sigmoid() if self.likelihood == "bernoulli" else out.clamp(0, 1)


class Terms(NamedTuple):
    """The terms of the ELBO, in nats per image, and the importance-weighted bound where one is
    maximized.
    """

    reconstruction: float
    kl: float
    bound: float | None = None

    @property
    def elbo(self) -> float:
        """The bound itself, reconstruction - kl."""
        return self.reconstruction - self.kl

    @property
    def maximized(self) -> float:
        """The bound that training maximizes."""
        return self.elbo if self.bound is None else self.bound


class Epoch(NamedTuple):
    """What one pass over the training images came to."""

    train: Terms  # mean over the minibatches, while the weights moved
    held_out: Terms  # after the last minibatch


def train(
    model: VAE,
    images: Tensor,
    held_out: Tensor,
    *,
    epochs: int,
    ops: Ops = FUSED,
    objective: Objective = ELBO,
    batch: int = 64,
    lr: float = 3e-3,
) -> Iterator[Epoch]:
    """Maximizes the objective with Adam; yields after every epoch.

    ``torch.manual_seed`` before the model is made fixes every number: weights, minibatches and
    noise.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for _ in range(epochs):
        sums = torch.zeros(3 if objective.weighted else 2)
        for rows in torch.split(torch.randperm(len(images)), batch):
            loss, terms = objective.loss_and_terms(model, images[rows], ops)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += terms.detach()
        found = evaluate(model, held_out, ops=ops, objective=objective)
        yield Epoch(Terms(*(sums / len(images)).tolist()), found)


@torch.no_grad()
def evaluate(
    model: VAE,
    images: Tensor,
    *,
    num_samples: int = 8,
    ops: Ops = FUSED,
    objective: Objective = ELBO,
) -> Terms:
    """The terms averaged over images and `num_samples` draws of z for each; at least as many as the
    bound has.
    """
    if objective.weighted:
        rounds = objective.rounds(num_samples)
        sums = torch.stack(
            [objective.loss_and_terms(model, images, ops)[1] for _ in range(rounds)]
        ).sum(0)
        return Terms(*(sums / (rounds * len(images))).tolist())
    reconstruction, kl = model.elbo(images, num_samples, ops)
    return Terms(float(reconstruction.mean()), float(kl.mean()))
