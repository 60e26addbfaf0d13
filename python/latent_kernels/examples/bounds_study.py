"""VAEs trained on the importance-weighted bound of k samples, and the held-out log p(x) that they
come to.

The protocol of the paper's table 1, on images of 8x8: binarized by their grey values, anew in every
epoch, and once for those held out; one stochastic layer; log p(x) by the bound of 5000 samples.
Sizes, learning rate and epochs are the same for every k. They were chosen on 237 of the training
images, left out for it, whose bound did not fall again in the course of training for k = 1 and k =
50: there is neither weight decay nor early stopping. Four times the epochs raise the bounds of all
k alike.

Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), section 5 and
table 1.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

import latent_kernels as lk
from latent_kernels.examples.objectives import Objective, fused_log_prior
from latent_kernels.examples.vae import FUSED, VAE

Tensor = torch.Tensor
Report = Callable[[int, int], object]  # epochs that are done, and of how many

_ACTIVE = 0.01  # variance of a unit's posterior mean over images, above which it is in use
HELD_OUT_SEED = 2**33  # of what held-out images are binarized by: beyond those of training
_EVALUATION_SEED = 2**34
_DARKEST = 1e-3
_CHUNK = 50  # samples whose log-weights are computed together


@dataclass(frozen=True)
class Recipe:
    """Sizes of a model, of its training, and of what it is judged by."""

    latent: int = 20
    hidden: int = 200
    epochs: int = 300
    batch: int = 64
    learning_rate: float = 6e-3
    fall: float = (
        1.5  # decimal orders of magnitude that the learning rate falls by, at an even pace
    )
    samples: int = 5000
    curve_samples: int = 100
    points: int = 25  # of the held-out curve


@dataclass(frozen=True)
class Fit:
    """One model: its training, and how it does on the held-out images."""

    k: int
    seed: int
    seconds: float  # of training alone
    trained: list[float]  # L_k by epoch, on images as they came, while the weights moved
    held_out: dict[int, float]  # L_curve_samples by epochs
    by_samples: dict[int, float]  # L_S by S
    bounds: Tensor  # L_samples of each image
    effective: Tensor  # sample size of each image, of `samples`
    tails: Tensor  # Pareto k of each image
    active: int  # latent units

    @property
    def elbo(self) -> float:
        """L_1."""
        return self.by_samples[1]

    @property
    def log_likelihood(self) -> float:
        """Mean of `bounds`."""
        return float(self.bounds.mean())


def binarized(images: Tensor, seed: int) -> Tensor:
    """Each pixel 1 with the probability of its grey value; always the same for one seed."""
    return torch.bernoulli(images, generator=torch.Generator().manual_seed(seed))


def fit(
    recipe: Recipe,
    k: int,
    estimator: str,
    seed: int,
    images: Tensor,
    held_out: Tensor,
    report: Report,
) -> Fit:
    """Trains on grey images and judges by binarized ones.

    Weights, minibatches and binarized images are the same for every k.
    """
    torch.manual_seed(seed)
    model = VAE(recipe.latent, "bernoulli", recipe.hidden)
    _start_at_mean(model, images)
    objective = Objective(estimator, k)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 10 ** (-recipe.fall / steps))
    check_every = math.ceil(recipe.epochs / recipe.points)
    trained, curve, seconds = [], {}, 0.0
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        total = 0.0
        for x in torch.split(torch.bernoulli(images)[torch.randperm(len(images))], recipe.batch):
            loss, terms = objective.loss_and_terms(model, x, FUSED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(terms[2].detach())
        seconds += time.perf_counter() - start
        trained.append(total / len(images))
        if epoch % check_every == 0 or epoch in (1, recipe.epochs):
            curve[epoch] = float(
                held_out_bound(model, held_out, recipe.curve_samples, _EVALUATION_SEED).mean()
            )
        report(epoch, recipe.epochs)
    log_w = log_weights(model, held_out, recipe.samples, _EVALUATION_SEED)
    return Fit(
        k,
        seed,
        seconds,
        trained,
        curve,
        by_samples={s: mean_bound(log_w, s) for s in sample_sizes(recipe.samples, k)},
        bounds=lk.importance_bound(log_w),
        effective=lk.effective_sample_size(log_w),
        tails=lk.pareto_k(log_w),
        active=active_units(model, held_out),
    )


@torch.no_grad()
def _start_at_mean(model: VAE, images: Tensor) -> None:
    """The decoder begins with the images' mean: the dark border alone takes long to learn."""
    mean = images.mean(0).clamp(_DARKEST, 1 - _DARKEST)
    model.decoder[-1].bias.copy_(torch.logit(mean))  # type: ignore[operator]


@torch.no_grad()
def held_out_bound(
    model: VAE, x: Tensor, num_samples: int, seed: int, *, chunk: int = _CHUNK
) -> Tensor:
    """L_num_samples of each image, [B], with the log-weights of one chunk of samples at a time."""
    q = lk.DiagonalGaussian(*model.encode(x))
    return lk.streamed_bound(
        q, lambda z: _log_joint(model, x, z), num_samples, chunk=chunk, seed=seed
    )


@torch.no_grad()
def log_weights(model: VAE, x: Tensor, num_samples: int, seed: int) -> Tensor:
    """log p(x, z) - log q(z|x) of the samples that `held_out_bound` takes, [num_samples, B]."""
    q = lk.DiagonalGaussian(*model.encode(x))
    found = []
    for first in range(0, num_samples, _CHUNK):
        count = min(_CHUNK, num_samples - first)
        z, log_q = q.rsample_log_prob(count, seed=seed, offset=first * q.mean.numel())
        found.append(_log_joint(model, x, z) - log_q)
    return torch.cat(found)


def _log_joint(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    return model.log_likelihood(x, z) + fused_log_prior(z)


def sample_sizes(largest: int, k: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to the largest, which is one of them, and so is k where it is not
    beyond.
    """
    found = [first * 10**power for power in range(len(str(largest))) for first in (1, 2, 5)]
    return sorted({s for s in (*found, k, largest) if s <= largest})


def mean_bound(log_w: Tensor, samples: int) -> float:
    """L_samples, averaged over images and over as many groups of samples as there are in log_w [S,
    B].
    """
    groups = len(log_w) // samples
    grouped = log_w[: groups * samples].reshape(groups, samples, -1).transpose(0, 1)
    return float(lk.importance_bound(grouped).double().mean())


@torch.no_grad()
def active_units(model: VAE, x: Tensor) -> int:
    """Return how many latent units have a posterior mean that varies over images.

    Source: section 5.2 of the paper.
    """
    mean, _ = model.encode(x)
    return int((mean.double().var(0) > _ACTIVE).sum())


# --- studies of several models --------------------------------------------------------------------


@dataclass
class Study:
    """The models that are complete."""

    recipe: Recipe
    estimator: str
    fits: list[Fit] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """One for each k, from the seeds that every k has."""
        found: list[Row] = []
        for k in sorted({one.k for one in self.fits}):
            fits = [one for one in self.fits if one.k == k and one.seed in self.seeds()]
            found.append(Row(k, fits, found[-1].fits if found else None, self.usable))
        return found

    @property
    def usable(self) -> float:
        """Pareto k, above which so many samples are not dependable.

        Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling"
            (2024).
        """
        return min(1 - 1 / math.log10(self.recipe.samples), 0.7)

    def seeds(self) -> set[int]:
        """Return the seeds that every k has; the last seed may not be complete."""
        return set.intersection(*({x.seed for x in self.fits if x.k == one.k} for one in self.fits))


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds."""

    mean: float
    error: float  # standard error over images, of means over seeds
    spread: float | None  # standard deviation of the seeds' means; None for one seed
    seeds: int

    @classmethod
    def of(cls, values: torch.Tensor) -> Estimate:
        """Of values [seeds, images]."""
        values = values.double()
        over_seeds = values.mean(0)
        error = float(over_seeds.std()) / math.sqrt(len(over_seeds))
        spread = float(values.mean(1).std()) if len(values) > 1 else None
        return cls(float(over_seeds.mean()), error, spread, len(values))

    @property
    def z(self) -> float:
        """The mean in standard errors over images and seeds; for one seed over images, which says
        nothing of others.
        """
        error = math.hypot(self.error, (self.spread or 0.0) / math.sqrt(self.seeds))
        return self.mean / error if error else math.inf * self.mean if self.mean else 0.0


class Row:
    """What the models of one k come to."""

    def __init__(
        self, k: int, fits: Sequence[Fit], before: Sequence[Fit] | None, usable: float
    ) -> None:
        self.k, self.fits = k, fits
        bounds = torch.stack([one.bounds for one in fits])
        self.bound = Estimate.of(bounds)
        self.gain = (
            None
            if before is None
            else Estimate.of(bounds - torch.stack([one.bounds for one in before]))
        )
        self.elbo = statistics.mean(one.elbo for one in fits)
        self.active = statistics.mean(one.active for one in fits)
        self.effective = float(torch.stack([one.effective for one in fits]).mean())
        tails = torch.stack([one.tails for one in fits])
        self.tail, self.heavy = float(tails.median()), float((tails > usable).double().mean())
        self.seconds = statistics.mean(one.seconds for one in fits)
