"""Compiled kernels for latent-variable models, under a thin API: ``import latent_kernels as lk``.

Noise             `normal`, `uniform`
Gaussian          `rsample_kl`, `rsample`, `gaussian_kl`, `gaussian_log_prob`
torch.distributions   `FusedNormal`
"""

from __future__ import annotations

from importlib.metadata import version as _version

from latent_kernels.distributions import FusedNormal
from latent_kernels.gaussian import gaussian_kl, gaussian_log_prob, rsample, rsample_kl
from latent_kernels.noise import normal, uniform

__version__ = _version("latent-kernels")

__all__ = ["FusedNormal", "gaussian_kl", "gaussian_log_prob", "normal", "rsample", "rsample_kl", "uniform"]
