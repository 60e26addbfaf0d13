"""The ops as one writes them in plain torch: the commands and the benchmarks compare with them.

Every function computes what the function of the same name in `latent_kernels` does, with torch's
own noise.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

Tensor = torch.Tensor

_LOG_2PI = math.log(2 * math.pi)


def rsample(mean: Tensor, logvar: Tensor, num_samples: int | None = None) -> Tensor:
    """Return samples mean + sigma eps, [..., D] or [S, ..., D]."""
    std = torch.exp(0.5 * logvar)
    return mean + std * _normal(std, num_samples)


def rsample_kl(
    mean: Tensor, logvar: Tensor, num_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return samples and the KL divergence to N(0, I)."""
    return rsample(mean, logvar, num_samples), gaussian_kl(mean, logvar)


def rsample_log_prob(
    mean: Tensor, logvar: Tensor, num_samples: int | None = None, *, path_derivative: bool = False
) -> tuple[Tensor, Tensor]:
    """Return samples and their log-densities; the path derivative detaches the parameters."""
    std = torch.exp(0.5 * logvar)
    eps = _normal(std, num_samples)
    z = mean + std * eps
    if path_derivative:
        return z, gaussian_log_prob(z, mean.detach(), logvar.detach())
    return z, -0.5 * (_LOG_2PI + logvar + eps * eps).sum(-1)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the KL divergence to N(0, I)."""
    return -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), -1)


def gaussian_log_prob(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the log-density log N(x; mean, e^logvar) of each row."""
    return -0.5 * (_LOG_2PI + logvar + (x - mean) ** 2 * torch.exp(-logvar)).sum(-1)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-probability of each row x in [0, 1]."""
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Return the log-density log N(z; 0, I) of each row."""
    return -0.5 * (z**2).sum(-1) - 0.5 * z.size(-1) * _LOG_2PI


def importance_bound(log_w: Tensor, *, estimator: str = "iwae", z: Tensor | None = None) -> Tensor:
    """Return the bound of reparameterized samples; for DReG, a hook on z weights its gradient."""
    if estimator == "dreg" and z is not None and z.requires_grad:
        weights = torch.softmax(log_w.detach(), 0).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * weights)
    return torch.logsumexp(log_w, 0) - math.log(log_w.size(0))


def _normal(std: Tensor, num_samples: int | None) -> Tensor:
    lead = () if num_samples is None else (num_samples,)
    return torch.randn(*lead, *std.shape, dtype=std.dtype, device=std.device)
