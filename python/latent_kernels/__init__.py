"""Compiled kernels for latent-variable models, under a thin API: ``import latent_kernels as lk``.

=================== ==============================================================================
Noise               `normal`, `uniform`
Gaussian            `rsample_kl`, `rsample_log_prob`, `rsample`, `gaussian_kl`
Log-densities       `gaussian_log_prob`, `bernoulli_log_prob`
Families            `DiagonalGaussian`, `Bernoulli`, `Categorical`
Score function      `score_function_expectation`, `score_function_gradient`, `disarm`,
                    `disarm_gradient`
Bounds              `importance_bound`, `streamed_bound`, `elbo`
Weights             `normalized_weights`, `effective_sample_size`, `pareto_k`
Variance            `profile_variance`, `GradientVarianceMonitor`
Sparse codes        `sparse_encode`, `orthogonal_matching_pursuit`, `SparseCoder`,
                    `DictionaryLearning`, `MiniBatchDictionaryLearning`
Sparse encoders     `LISTA`, `LCoD`, `PSDEncoder`, `train_encoder`, `lista_encode`,
                    `coupled_lista_encode`
Mixtures            `GaussianMixture`, `BayesianGaussianMixture`, `MixtureModel`
E-steps             `gaussian_e_step`, `exponential_family_e_step`, `SufficientStatistics`
Quantization        `vector_quantize`, `VectorQuantizer`
torch.distributions `FusedNormal`, `FamilyDistribution`
=================== ==============================================================================
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from latent_kernels.mixtures.e_step import exponential_family_e_step, gaussian_e_step
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics
from latent_kernels.noise import normal, uniform
from latent_kernels.quantization.vector_quantize import vector_quantize
from latent_kernels.quantization.vector_quantizer import VectorQuantizer
from latent_kernels.sparse.encoders import LISTA, LCoD, PSDEncoder, train_encoder
from latent_kernels.sparse.lasso import sparse_encode
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode
from latent_kernels.sparse.pursuit import orthogonal_matching_pursuit
from latent_kernels.variational.bounds import elbo, importance_bound
from latent_kernels.variational.densities import bernoulli_log_prob, gaussian_log_prob
from latent_kernels.variational.diagnostics import (
    effective_sample_size,
    normalized_weights,
    pareto_k,
)
from latent_kernels.variational.distributions import FamilyDistribution, FusedNormal
from latent_kernels.variational.families import Bernoulli, Categorical, DiagonalGaussian
from latent_kernels.variational.gaussian import gaussian_kl, rsample, rsample_kl, rsample_log_prob
from latent_kernels.variational.monitor import GradientVarianceMonitor
from latent_kernels.variational.score import (
    disarm,
    disarm_gradient,
    score_function_expectation,
    score_function_gradient,
)
from latent_kernels.variational.streaming import streamed_bound
from latent_kernels.variational.variance import profile_variance

if _TYPE_CHECKING:
    from latent_kernels.mixtures.bayesian_gaussian_mixture import BayesianGaussianMixture
    from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
    from latent_kernels.mixtures.mixture_model import MixtureModel
    from latent_kernels.sparse.dictionary_learning import DictionaryLearning
    from latent_kernels.sparse.mini_batch_dictionary_learning import MiniBatchDictionaryLearning
    from latent_kernels.sparse.sparse_coder import SparseCoder

__version__ = _version("latent-kernels")

# The estimators import scikit-learn, which takes longer than everything else, so they are imported
# only when they are used.
_LATER = {
    "BayesianGaussianMixture": "mixtures.bayesian_gaussian_mixture",
    "DictionaryLearning": "sparse.dictionary_learning",
    "GaussianMixture": "mixtures.gaussian_mixture",
    "MiniBatchDictionaryLearning": "sparse.mini_batch_dictionary_learning",
    "MixtureModel": "mixtures.mixture_model",
    "SparseCoder": "sparse.sparse_coder",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        value: object = getattr(_import_module(f"latent_kernels.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'latent_kernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "BayesianGaussianMixture",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "DictionaryLearning",
    "FamilyDistribution",
    "FusedNormal",
    "GaussianMixture",
    "GradientVarianceMonitor",
    "LCoD",
    "LISTA",
    "MiniBatchDictionaryLearning",
    "MixtureModel",
    "PSDEncoder",
    "SparseCoder",
    "SufficientStatistics",
    "VectorQuantizer",
    "bernoulli_log_prob",
    "coupled_lista_encode",
    "disarm",
    "disarm_gradient",
    "effective_sample_size",
    "elbo",
    "exponential_family_e_step",
    "gaussian_e_step",
    "gaussian_kl",
    "gaussian_log_prob",
    "importance_bound",
    "lista_encode",
    "normal",
    "normalized_weights",
    "orthogonal_matching_pursuit",
    "pareto_k",
    "profile_variance",
    "rsample",
    "rsample_kl",
    "rsample_log_prob",
    "score_function_expectation",
    "score_function_gradient",
    "sparse_encode",
    "streamed_bound",
    "train_encoder",
    "uniform",
    "vector_quantize",
]
