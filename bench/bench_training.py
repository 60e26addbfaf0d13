"""Whole training steps of a VAE against the same model in plain torch: forward, backward, and fused
Adam.

The encoder and the decoder have one hidden layer each, so most of the time goes into the same
matrix products on both sides: the ratios say what a user of the kernels gains in the end. Shapes:
B x pixels x D for the ELBO of one sample, B x pixels x D x S for that of S samples and for the
importance-weighted bound.

`compile` and `ours compile` compile the loss, and with it the backward pass; Adam stays eager. They
are compiled with `fallback_random`: noise is then torch.randn's, several times as fast as the
compiler's own, and every contender's noise follows from torch.manual_seed, as the check needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import harness
import latent_kernels as lk
from harness import Contest, Group, close, groups, rows
from latent_kernels.cli.vae import FUSED, PLAIN, Ops

Tensor = torch.Tensor
Shape = tuple[int, ...]  # B, pixels, D, and S where there are several samples

CONTENDERS = ("ours", "ours compile", "eager", "compile")
ELBO_SHAPES = ((64, 64, 10), (1024, 784, 64), (256, 784, 64, 16))
IWAE_SHAPES = ((64, 784, 20, 50),)


def _samples(shape: Shape) -> int | None:
    return shape[3] if len(shape) == 4 else None


def _hidden(pixels: int) -> int:
    return 256 if pixels == 64 else 400


class VAE(nn.Module):
    """The networks of q(z|x), a diagonal Gaussian, and of p(x|z), Bernoulli pixels."""

    def __init__(self, pixels: int, latent: int) -> None:
        super().__init__()
        hidden = _hidden(pixels)
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels)
        )


def elbo(ops: Ops, model: VAE, x: Tensor, samples: int | None) -> Tensor:
    """Return minus the mean ELBO."""
    mean, logvar = model.encoder(x).chunk(2, dim=-1)
    z, kl = ops.rsample_kl(mean, logvar, samples)
    log_p = ops.bernoulli_log_prob(x, model.decoder(z))
    return (kl - (log_p if samples is None else log_p.mean(0))).mean()


def iwae(ops: Ops, model: VAE, x: Tensor, samples: int | None) -> Tensor:
    """Return minus the mean importance-weighted bound."""
    mean, logvar = model.encoder(x).chunk(2, dim=-1)
    z, log_q = ops.rsample_log_prob(mean, logvar, samples)
    log_p = ops.bernoulli_log_prob(x, model.decoder(z)) + ops.standard_normal_log_prob(z)
    return -ops.importance_bound(log_p - log_q).mean()


def _step(loss: Callable[[], Tensor], model: VAE) -> Callable[[], Tensor]:
    # A rate of 0 makes every step the same work from the same weights, for all contenders.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return step


def _prepare(function: Callable[..., Tensor], shape: Shape, device: str) -> Contest:
    batch, pixels, latent = shape[:3]
    samples = _samples(shape)
    torch.manual_seed(11)
    x = torch.rand(batch, pixels).to(device)
    model = VAE(pixels, latent).to(device)
    compiled = torch.compile(function, options={"fallback_random": True})
    kinds = {"ours": FUSED, "eager": PLAIN, "ours compile": FUSED, "compile": PLAIN}
    calls = {}
    for name in CONTENDERS:
        loss = compiled if name.endswith("compile") else function
        calls[name] = _step(functools.partial(loss, kinds[name], model, x, samples), model)

    def noise(contender: str) -> Tensor:
        """Return the noise that a contender draws after torch.manual_seed(0)."""
        size = (batch, latent) if samples is None else (samples, batch, latent)
        torch.manual_seed(0)
        if kinds[contender] is PLAIN:
            return torch.randn(size, device=device)
        return lk.normal(size, seed=int(torch.randint(2**63 - 1, ())), device=device)

    def check(contender: str, _: Any) -> None:
        torch.manual_seed(0)
        value = calls[contender]().detach()
        gradients = [p.grad for p in model.parameters()]
        eps = noise(contender).double()
        wide = VAE(pixels, latent).to(device).double()
        wide.load_state_dict(model.state_dict())
        given = _with_noise(eps)
        expected = function(given, wide, x.double(), samples)
        values = torch.autograd.grad(expected, list(wide.parameters()))
        close(value, expected.detach(), 1e-5, "the loss")
        for (name, _p), got, exact in zip(model.named_parameters(), gradients, values, strict=True):
            assert got is not None
            close(got, exact, 1e-4, f"{name}'s gradient")

    return Contest(calls, check)


def _with_noise(eps: Tensor) -> Ops:
    """Return the ops in plain torch, with the given noise."""

    def rsample_kl(mean: Tensor, logvar: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        return mean + torch.exp(0.5 * logvar) * eps, PLAIN.rsample_kl(mean, logvar)[1]

    def rsample_log_prob(mean: Tensor, logvar: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        z = mean + torch.exp(0.5 * logvar) * eps
        return z, PLAIN.gaussian_log_prob(z, mean, logvar)

    return PLAIN._replace(rsample_kl=rsample_kl, rsample_log_prob=rsample_log_prob)


def _group(function: Callable[..., Tensor], shape: Shape, threads: int, device: str) -> Group:
    batch, pixels, latent = shape[:3]
    decoded, hidden = batch * (_samples(shape) or 1), _hidden(pixels)
    encoder, decoder = hidden * (pixels + 2 * latent), hidden * (pixels + latent)
    # weights read forward and backward, their gradients written; Adam reads these, the weights and
    # two moments, and writes three of them; images read twice
    count = 4 * (10 * (encoder + decoder) + 2 * batch * pixels)
    # a product forward and two backward, each of them a multiplication and an addition
    operations = 6 * (batch * encoder + decoded * decoder)
    prepare = functools.partial(_prepare, function, shape, device)
    name = f"training step {function.__name__}"
    return Group(
        name,
        shape,
        threads,
        device,
        CONTENDERS,
        decoded * pixels,
        count,
        operations,
        prepare,
        ("ours", "ours compile"),
    )


GROUPS = [
    *groups(functools.partial(_group, elbo), ELBO_SHAPES),
    *groups(functools.partial(_group, iwae), IWAE_SHAPES),
]


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_training(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time a training step."""
    harness.run(benchmark, group, contender)
