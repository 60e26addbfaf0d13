"""Compiled kernels for latent-variable models, under a thin API: ``import latent_kernels as lk``.

Noise             `normal`, `uniform`
Gaussian          `rsample_kl`, `rsample`, `gaussian_kl`, `gaussian_log_prob`
Families          `DiagonalGaussian`, `Bernoulli`, `Categorical`
Score function    `score_function_expectation`, `score_function_gradient`, `disarm`, `disarm_gradient`
Variance          `profile_variance`
Mixtures          `gaussian_e_step`, `exponential_family_e_step`, `SufficientStatistics`
torch.distributions   `FusedNormal`
"""

from __future__ import annotations

from importlib.metadata import version as _version

from latent_kernels.distributions import FusedNormal
from latent_kernels.families import Bernoulli, Categorical, DiagonalGaussian
from latent_kernels.gaussian import gaussian_kl, gaussian_log_prob, rsample, rsample_kl
from latent_kernels.mixture import exponential_family_e_step, gaussian_e_step
from latent_kernels.noise import normal, uniform
from latent_kernels.score import disarm, disarm_gradient, score_function_expectation, score_function_gradient
from latent_kernels.sufficient_statistics import SufficientStatistics
from latent_kernels.variance import profile_variance

__version__ = _version("latent-kernels")

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "FusedNormal",
    "SufficientStatistics",
    "disarm",
    "disarm_gradient",
    "exponential_family_e_step",
    "gaussian_e_step",
    "gaussian_kl",
    "gaussian_log_prob",
    "normal",
    "profile_variance",
    "rsample",
    "rsample_kl",
    "score_function_expectation",
    "score_function_gradient",
    "uniform",
]
