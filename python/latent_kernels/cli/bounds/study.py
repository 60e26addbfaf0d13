"""VAEs trained on the importance-weighted bound of k samples, and the held-out log p(x) that they
reach.

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
import time
from collections.abc import Callable, Iterator, Sequence

import torch

import latent_kernels as lk
from latent_kernels.cli import digits
from latent_kernels.cli.bounds.results import Fit, Recipe
from latent_kernels.cli.frame import Report, named
from latent_kernels.cli.vae import VAE, Objective, train_epoch

Tensor = torch.Tensor

_ACTIVE = 0.01  # variance of a unit's posterior mean over images above which the unit is active
HELD_OUT_SEED = 2**33  # of what held-out images are binarized by: beyond those of training
_EVALUATION_SEED = 2**34
_DARKEST = 1e-3
_CHUNK = 50  # samples whose log-weights are computed together


def binarized(images: Tensor, seed: int) -> Tensor:
    """Return pixels that are 1 with the probability of their grey value; a seed fixes them."""
    return torch.bernoulli(images, generator=torch.Generator().manual_seed(seed))


def fits(
    recipe: Recipe, ks: Sequence[int], seeds: Sequence[int], estimator: str, report: Report
) -> Iterator[Fit]:
    """Yield the models of each k, one seed after another."""
    images = digits.load()
    held_out = binarized(images.held_out, HELD_OUT_SEED)
    for seed in seeds:
        for k in ks:
            told = named(report, f"k = {k}, seed {seed}")
            yield fit(recipe, k, estimator, seed, images.train, held_out, told)


def fit(
    recipe: Recipe,
    k: int,
    estimator: str,
    seed: int,
    images: Tensor,
    held_out: Tensor,
    report: Callable[[int, int], object],
) -> Fit:
    """Train on grey images, evaluate on binarized ones, and report the completed epochs.

    Weights, minibatches and binarized images are the same for every k.
    """
    torch.manual_seed(seed)
    model, objective = VAE(recipe.latent, "bernoulli", recipe.hidden), Objective(estimator, k)
    _start_at_mean(model, images)
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, fused=True)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 10 ** (-recipe.fall / steps))
    check_every = math.ceil(recipe.epochs / recipe.points)
    trained, curve, seconds = [], {}, 0.0
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        x = torch.bernoulli(images)
        terms = train_epoch(model, x, optimizer, objective, recipe.batch, schedule)
        seconds += time.perf_counter() - start
        trained.append(terms.bound)
        if epoch % check_every == 0 or epoch in (1, recipe.epochs):
            found = held_out_bound(model, held_out, recipe.curve_samples, _EVALUATION_SEED)
            curve[epoch] = float(found.mean())
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
        active_units=active_units(model, held_out),
    )


@torch.no_grad()
def _start_at_mean(model: VAE, images: Tensor) -> None:
    """Initialize the decoder's bias with the images' mean: the dark border alone takes long to
    learn.
    """
    mean = images.mean(0).clamp(_DARKEST, 1 - _DARKEST)
    model.decoder[-1].bias.copy_(torch.logit(mean))  # type: ignore[operator]


@torch.no_grad()
def held_out_bound(
    model: VAE, x: Tensor, num_samples: int, seed: int, *, chunk: int = _CHUNK
) -> Tensor:
    """Return L_num_samples of each image, [B], computed from one chunk of log-weights at a time."""
    q = lk.DiagonalGaussian(*model.encode(x))
    return lk.streamed_bound(
        q, lambda z: _log_joint(model, x, z), num_samples, chunk=chunk, seed=seed
    )


@torch.no_grad()
def log_weights(model: VAE, x: Tensor, num_samples: int, seed: int) -> Tensor:
    """Return log p(x, z) - log q(z|x) of the samples of `held_out_bound`, [num_samples, B]."""
    q = lk.DiagonalGaussian(*model.encode(x))
    found = []
    for first in range(0, num_samples, _CHUNK):
        count = min(_CHUNK, num_samples - first)
        z, log_q = q.rsample_log_prob(count, seed=seed, offset=first * q.mean.numel())
        found.append(_log_joint(model, x, z) - log_q)
    return torch.cat(found)


def _log_joint(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    return model.log_likelihood(x, z) + model.ops.standard_normal_log_prob(z)


def sample_sizes(largest: int, k: int) -> list[int]:
    """Return sample sizes 1, 2, 5, 10, 20, 50, ... up to the largest, including it and a smaller
    k.
    """
    found = [first * 10**power for power in range(len(str(largest))) for first in (1, 2, 5)]
    return sorted({s for s in (*found, k, largest) if s <= largest})


def mean_bound(log_w: Tensor, samples: int) -> float:
    """Return L_samples, averaged over images and over the groups of samples in log_w [S, B]."""
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
