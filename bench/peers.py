"""The Gaussian ops as people write them without us: plain torch, and torch.distributions."""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal, kl_divergence

Tensor = torch.Tensor


def rsample_kl(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """One sample of each Gaussian and its KL to N(0, 1), in plain torch."""
    std = torch.exp(0.5 * logvar)
    z = mean + std * torch.randn_like(std)
    kl = -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), -1)
    return z, kl


def rsample_kl_many(mean: Tensor, logvar: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """As `rsample_kl`, `samples` of each."""
    std = torch.exp(0.5 * logvar)
    z = mean + std * torch.randn(samples, *std.shape, device=std.device)
    kl = -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), -1)
    return z, kl


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to N(0, 1), in plain torch."""
    return -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), -1)


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """The log-density log N(z; mean, e^logvar), in plain torch."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)


def distributions_rsample_kl(mean: Tensor, logvar: Tensor, samples: int | None, prior: Normal) -> tuple[Tensor, Tensor]:
    """`rsample_kl` through torch.distributions."""
    q = Normal(mean, torch.exp(0.5 * logvar))
    z = q.rsample() if samples is None else q.rsample((samples,))
    return z, kl_divergence(q, prior).sum(-1)


def distributions_kl(mean: Tensor, logvar: Tensor, prior: Normal) -> Tensor:
    """`gaussian_kl` through torch.distributions."""
    return kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), prior).sum(-1)


def distributions_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """`gaussian_log_prob` through torch.distributions."""
    return Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)


def standard_normal(device: str) -> Normal:
    """The prior of the distributions' peers."""
    return Normal(torch.zeros((), device=device), torch.ones((), device=device))
