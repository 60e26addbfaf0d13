"""Mean-field exponential families: samples, densities, scores, and their exponential-family view.

A family holds its parameters [..., D] (Categorical: [..., D, K]); leading dimensions are a batch,
and everything is summed over D. With natural parameters eta, sufficient statistics phi and base
measure 1,

    log p(z) = sum_d <eta_d, phi(z_d)> - A(eta),  E phi(z) = grad A(eta),  score = phi(z) - grad A.
"""

from latent_kernels.variational.families.discrete import Bernoulli, Categorical
from latent_kernels.variational.families.family import Family
from latent_kernels.variational.families.gaussian import DiagonalGaussian

__all__ = ["Bernoulli", "Categorical", "DiagonalGaussian", "Family"]
