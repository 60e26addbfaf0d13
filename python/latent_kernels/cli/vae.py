"""A variational autoencoder of 8x8 digits, the bounds that it maximizes, and its training.

The arithmetic comes in through `Ops`, so that the library and plain torch train one and the same
model. Everything is in nats per image.

Sources: Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 10 and appendix C;
Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

import latent_kernels as lk
from latent_kernels.cli import plain_torch as plain

Tensor = torch.Tensor

LIKELIHOODS = ("bernoulli", "gaussian")
ESTIMATORS = ("iwae", "stl", "dreg")  # gradient estimators of the importance-weighted bound
BOUNDS = ("elbo", *ESTIMATORS)
PIXELS = 64
LEARNING_RATE = 3e-3
# The digits have 17 grey levels. No standard deviation below that of the rounding, 1/16 / sqrt(12),
# means anything, and without a floor the border pixels, which are always 0, would drive the
# likelihood to infinity.
_LOGVAR_FLOOR = -2 * math.log(16 * math.sqrt(12))


class Ops(NamedTuple):
    """The arithmetic that the model uses: the library's ops or plain torch's."""

    name: str
    rsample_kl: Callable[..., tuple[Tensor, Tensor]]
    rsample_log_prob: Callable[..., tuple[Tensor, Tensor]]
    gaussian_log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]
    bernoulli_log_prob: Callable[[Tensor, Tensor], Tensor]
    standard_normal_log_prob: Callable[[Tensor], Tensor]
    importance_bound: Callable[..., Tensor]


def _standard_normal_log_prob(z: Tensor) -> Tensor:
    zero = z.new_zeros(z.size(-1))
    return lk.gaussian_log_prob(z, zero, zero)


FUSED = Ops(
    "latent-kernels",
    lk.rsample_kl,
    lk.rsample_log_prob,
    lk.gaussian_log_prob,
    lk.bernoulli_log_prob,
    _standard_normal_log_prob,
    lk.importance_bound,
)
PLAIN = Ops(
    "plain torch",
    plain.rsample_kl,
    plain.rsample_log_prob,
    plain.gaussian_log_prob,
    plain.bernoulli_log_prob,
    plain.standard_normal_log_prob,
    plain.importance_bound,
)


class VAE(nn.Module):
    """The model: q(z|x) = N(mean(x), e^logvar(x)), p(z) = N(0, I), and p(x|z) Bernoulli, or
    Gaussian with a learned variance.
    """

    def __init__(
        self, latent: int, likelihood: str = "bernoulli", hidden: int = 256, ops: Ops = FUSED
    ) -> None:
        super().__init__()
        self.latent, self.likelihood, self.ops = latent, likelihood, ops
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, PIXELS)
        )
        if likelihood == "gaussian":
            self.pixel_logvar = nn.Parameter(torch.full((PIXELS,), -3.0))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(z|x), [B, latent] each."""
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        return mean, logvar

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z), [..., B]."""
        out = self.decoder(z)
        if self.likelihood == "gaussian":
            return self.ops.gaussian_log_prob(x, out, self.logvar())
        return self.ops.bernoulli_log_prob(x, out)

    def logvar(self) -> Tensor:
        """Return the log-variance of each pixel under the Gaussian likelihood, [PIXELS]."""
        return torch.logaddexp(self.pixel_logvar, self.pixel_logvar.new_tensor(_LOGVAR_FLOOR))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean image E[x|z] in [0, 1], [..., PIXELS]."""
        out: Tensor = self.decoder(z)
        return out.sigmoid() if self.likelihood == "bernoulli" else out.clamp(0, 1)


# --- what is maximized ----------------------------------------------------------------------------


class Terms(NamedTuple):
    """The terms of a bound, in nats per image."""

    reconstruction: float
    kl: float
    bound: float

    @property
    def elbo(self) -> float:
        """Return the evidence lower bound; an importance-weighted bound is at least as large."""
        return self.reconstruction - self.kl


class Values(NamedTuple):
    """Samples of z, and the terms of the bound at them, for each image."""

    z: Tensor  # [S, B, latent], or [B, latent] for the ELBO of one sample, and so on below
    reconstruction: Tensor  # log p(x|z), [S, B]
    kl: Tensor  # KL(q(z|x) || p(z)), [B]; in a weighted bound log q(z|x) - log p(z), [S, B]
    bound: Tensor  # [B]; for the ELBO [S, B]

    def means(self) -> Tensor:
        """Return the means of the last three fields, [3], without gradients."""
        return torch.stack([value.detach().mean() for value in self[1:]])


class Objective(NamedTuple):
    """A bound of log p(x), and how many samples of z it takes for each image."""

    bound: str = "elbo"  # one of BOUNDS; the others are one bound with three estimators
    samples: int = 1

    @property
    def weighted(self) -> bool:
        """Return whether it is an importance-weighted bound."""
        return self.bound != "elbo"

    @property
    def name(self) -> str:
        """Return the name of the objective for tables and axes."""
        return f"L_{self.samples}" if self.weighted else "ELBO"

    def repeated(self, num_samples: int) -> tuple[Objective, int]:
        """Return the objective to average and how often, for a mean over about `num_samples`
        samples.
        """
        if self.weighted:
            return self, max(num_samples // self.samples, 1)
        return self._replace(samples=num_samples), 1

    def of(self, model: VAE, x: Tensor) -> Values:
        """Return the bound of images x [B, PIXELS] in [0, 1]."""
        return self.values(model.ops, *model.encode(x), lambda z: model.log_likelihood(x, z))

    def values(
        self, ops: Ops, mean: Tensor, logvar: Tensor, log_likelihood: Callable[[Tensor], Tensor]
    ) -> Values:
        """Return the bound for q = N(mean, e^logvar) and the log-likelihood of each z."""
        if not self.weighted:
            z, kl = ops.rsample_kl(mean, logvar, None if self.samples == 1 else self.samples)
            reconstruction = log_likelihood(z)
            return Values(z, reconstruction, kl, reconstruction - kl)
        z, log_q = ops.rsample_log_prob(
            mean, logvar, self.samples, path_derivative=self.bound != "iwae"
        )
        reconstruction = log_likelihood(z)
        kl = log_q - ops.standard_normal_log_prob(z)
        along = z if self.bound == "dreg" else None
        bound = ops.importance_bound(reconstruction - kl, estimator=self.bound, z=along)
        return Values(z, reconstruction, kl, bound)


ELBO = Objective()


# --- training -------------------------------------------------------------------------------------


class Epoch(NamedTuple):
    """The results of one pass over the training images."""

    train: Terms  # mean over the minibatches, while the weights moved
    held_out: Terms  # after the last minibatch


def train(
    model: VAE, images: Tensor, held_out: Tensor, epochs: int, objective: Objective = ELBO
) -> Iterator[Epoch]:
    """Maximize the objective by Adam, and yield after every epoch.

    ``torch.manual_seed`` before the model is made fixes every number: weights, minibatches and
    noise.
    """
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    for _ in range(epochs):
        found = train_epoch(model, images, optimizer, objective)
        yield Epoch(found, evaluate(model, held_out, objective))


def train_epoch(
    model: VAE,
    images: Tensor,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: int = 64,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Terms:
    """Take a step on each minibatch of the images, in random order; return the mean terms."""
    sums = torch.zeros(3, dtype=torch.float64)
    for x in torch.split(images[torch.randperm(len(images))], batch):
        sums += len(x) * train_step(model, x, optimizer, objective)
        if schedule is not None:
            schedule.step()
    return Terms(*(sums / len(images)).tolist())


def train_step(
    model: VAE, x: Tensor, optimizer: torch.optim.Optimizer, objective: Objective
) -> Tensor:
    """Take one step on the images x; return the means of the terms before it, [3]."""
    values = objective.of(model, x)
    optimizer.zero_grad()
    (-values.bound.mean()).backward()
    optimizer.step()
    return values.means()


@torch.no_grad()
def evaluate(
    model: VAE, images: Tensor, objective: Objective = ELBO, num_samples: int = 8
) -> Terms:
    """Return the terms, averaged over images and about `num_samples` samples of z for each: as many
    as make whole bounds, and at least one bound.
    """
    objective, repeats = objective.repeated(num_samples)
    means = [objective.of(model, images).means() for _ in range(repeats)]
    return Terms(*torch.stack(means).mean(0).tolist())
