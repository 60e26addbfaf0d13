"""Posteriors of the means and precisions of Gaussian components.

In component k the precision L has a Wishart posterior, W(W, nu), and given it the mean is Gaussian,
N(m, (beta L)^-1). The posterior is held as scikit-learn holds it: beta, m, nu, and the covariance
C = W^-1 / nu, which is the inverse of the expected precision.

| covariances | Wisharts | added to nu_0 | added to W_0^-1 |
| --- | --- | --- | --- |
| full | K, of D x D | N_k | T_k |
| diag | K D, of 1 x 1 | N_k | diagonal of T_k |
| tied | 1, of D x D | sum N_k | sum T_k |
| spherical | K, of 1 x 1 | D N_k | trace of T_k |

T_k = S_k + N_k beta_0 / beta_k (xbar_k - m_0)(xbar_k - m_0)^T, with the scatter matrix S_k of the
rows about their mean xbar_k, weighted by responsibilities. That is the exact posterior.
scikit-learn divides what is added for "tied" by K and for "spherical" by D, and takes the expected
log-determinant of a D x D Wishart for "diag" and "spherical", too.

Source: Bishop, "Pattern recognition and machine learning" (2006), section 10.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, multigammaln

from latent_kernels.mixtures.e_step import precisions_cholesky
from latent_kernels.mixtures.sufficient_statistics import LOST, SufficientStatistics

Floats = NDArray[np.float64]

_LOG_2, _LOG_2_PI = math.log(2.0), math.log(2 * math.pi)


class Prior(NamedTuple):
    """The prior of every component."""

    mean_precision: float  # beta_0
    mean: Floats  # m_0, [D]
    degrees_of_freedom: float  # nu_0
    covariance: Floats  # W_0^-1: [D, D] full and tied, [D] diag, [] spherical


class Posterior(NamedTuple):
    """The posteriors of all components."""

    mean_precision: Floats  # [K]
    means: Floats  # [K, D]
    degrees_of_freedom: Floats  # [K]; [] tied
    covariances: Floats  # C, in scikit-learn's shapes
    precisions_cholesky: Floats  # U, C^-1 = U U^T, likewise


class GaussianPosteriors:
    """Formulas for one type of covariances.

    Args:
        covariance_type: "full", "tied", "diag" or "spherical".
        components: K.
        size: D.
        exact: take the exact posterior, not scikit-learn's.

    """

    def __init__(self, covariance_type: str, components: int, size: int, exact: bool) -> None:
        self.kind, self.components, self.size, self.exact = covariance_type, components, size, exact
        self.matrices = covariance_type in ("full", "tied")

    # --- the posterior ----------------------------------------------------------------------------

    def update(
        self, prior: Prior, statistics: SufficientStatistics, reg_covar: float = 0.0
    ) -> Posterior:
        """Return the posterior given the statistics of the rows.

        reg_covar: added to the variances of each row.
        """
        counts, first = statistics.counts, statistics.first
        lost = counts < LOST
        delta = np.where(lost[:, None], 0.0, first / np.where(lost, 1.0, counts)[:, None])
        to_prior = prior.mean - statistics.anchor
        beta = prior.mean_precision + counts
        means = statistics.anchor + (prior.mean_precision * to_prior + first) / beta[:, None]
        gap, weight = delta - to_prior, counts * prior.mean_precision / beta
        if self.matrices:
            added = weight[:, None, None] * gap[:, :, None] * gap[:, None, :]
            added -= counts[:, None, None] * delta[:, :, None] * delta[:, None, :]
            added += reg_covar * counts[:, None, None] * np.eye(self.size)
            added = statistics.second + (added.sum(axis=0) if self.kind == "tied" else added)
        else:
            added = statistics.second + weight[:, None] * gap**2 - first * delta
            added = added + reg_covar * counts[:, None]
            added = added.sum(axis=1) if self.kind == "spherical" else added
        rows = {"tied": counts.sum(), "spherical": self.size * counts}.get(self.kind, counts)
        share = self._share()
        nu = np.asarray(prior.degrees_of_freedom + share * rows)
        each = nu.reshape(nu.shape + (1,) * (added.ndim - nu.ndim))
        covariances = (prior.covariance + share * added) / each
        return Posterior(beta, means, nu, covariances, precisions_cholesky(covariances, self.kind))

    def _share(self) -> float:
        """Return the factor of what the rows add."""
        if self.exact:
            return 1.0
        return {"tied": 1 / self.components, "spherical": 1 / self.size}.get(self.kind, 1.0)

    # --- expectations -----------------------------------------------------------------------------

    def log_weight_shift(self, q: Posterior, exact: bool | None = None) -> Floats:
        """Return the shift [K] with E ln N(x; mu_k, L_k^-1) = ln N(x; m_k, C_k) + shift_k, all x.

        exact: None for what the constructor was given.
        """
        nu = np.broadcast_to(q.degrees_of_freedom, self.components)
        exact = self.exact if exact is None else exact
        digammas = self._digammas(nu) if exact else _matrix_digammas(nu, self.size)
        scaled = digammas + self.size * (_LOG_2 - np.log(nu))
        result: Floats = 0.5 * scaled - 0.5 * self.size / q.mean_precision
        return result

    def _digammas(self, nu: Floats) -> Floats:
        """Return E ln |L| - ln |2 W|."""
        return _matrix_digammas(nu, self.size) if self.matrices else self.size * digamma(nu / 2)

    def _log_determinants(self, u: Floats) -> Floats:
        """Return ln |C^-1| of every component [K]."""
        if self.kind == "spherical":
            return 2 * self.size * np.log(u)
        diagonal = np.diagonal(u, axis1=-2, axis2=-1) if self.matrices else u
        sums = 2 * np.log(diagonal).sum(axis=-1)
        return np.broadcast_to(sums, self.components)

    def expected_log_density(
        self, q: Posterior, statistics: SufficientStatistics, shift: Floats
    ) -> float:
        """Return the sum of r_ik (ln N(x_i; m_k, C_k) + shift_k)."""
        moved = statistics.about(q.means)
        norms = 0.5 * self._log_determinants(q.precisions_cholesky) - 0.5 * self.size * _LOG_2_PI
        return float(moved.counts @ (norms + shift)) - 0.5 * self._product(q, moved.second)

    def _product(self, q: Posterior, second: Floats) -> float:
        """Return the sum over components of the trace of C^-1 times `second`."""
        u = q.precisions_cholesky
        if self.matrices:
            return float(np.sum((u @ u.swapaxes(-1, -2)) * second))
        return float(np.sum((u[:, None] if self.kind == "spherical" else u) ** 2 * second))

    def divergence(self, q: Posterior, prior: Prior) -> float:
        """Return the sum of KL(posterior || prior) in nats; inf if the prior is improper."""
        ratio = prior.mean_precision / q.mean_precision
        means = 0.5 * self.size * float((ratio - 1 - np.log(ratio)).sum())
        gaps = q.means - prior.mean
        squares = gaps[:, :, None] * gaps[:, None, :] if self.matrices else gaps**2
        squares = squares.sum(axis=0) if self.kind == "tied" else squares
        # What the prior expects of the precisions: of the means, and of the Wisharts. A spherical
        # one is a number for all columns.
        scale = prior.covariance / self.size if self.kind == "spherical" else prior.covariance
        means += 0.5 * self._product(q, prior.mean_precision * squares + scale)
        # Each Wishart of one number, or of a matrix; those of a diagonal together.
        nu, nu_0 = q.degrees_of_freedom, prior.degrees_of_freedom
        own = 1 if self.kind == "spherical" else self.size
        log_det = self._log_determinants(q.precisions_cholesky) / self.size * own
        log_det = log_det[0] if self.kind == "tied" else log_det
        digammas = self._digammas(nu) / self.size * own
        log_w = log_det - own * np.log(nu)
        expected = digammas + own * _LOG_2 + log_w
        with np.errstate(divide="ignore"):
            log_w_0 = -(
                np.linalg.slogdet(prior.covariance)[1]
                if self.matrices
                else np.log(prior.covariance).sum()
            )
        norms = self._log_norm(nu_0, log_w_0, own) - self._log_norm(nu, log_w, own)
        wisharts = norms + 0.5 * ((nu - nu_0) * expected - own * nu)
        return means + float(wisharts.sum())

    def _log_norm(self, nu: Floats | float, log_w: Floats | float, own: int) -> Floats:
        """Return the logarithm of the integral of a Wishart density without its constant."""
        gammas = (
            multigammaln(np.asarray(nu) / 2, own)
            if self.matrices
            else own * gammaln(np.asarray(nu) / 2)
        )
        result: Floats = 0.5 * np.asarray(nu) * (own * _LOG_2 + log_w) + gammas
        return result

    def log_norms_of_scikit_learn(self, q: Posterior) -> float:
        """Return the normalizing constants as scikit-learn's lower bound counts them."""
        nu = np.broadcast_to(q.degrees_of_freedom, self.components)
        log_det = self._log_determinants(q.precisions_cholesky) - self.size * np.log(nu)
        gammas = gammaln(0.5 * (nu - np.arange(self.size)[:, None])).sum(axis=0)
        wisharts = 0.5 * nu * (log_det + self.size * _LOG_2) + gammas
        return -float((wisharts - 0.5 * self.size * np.log(q.mean_precision)).sum())


def _matrix_digammas(nu: Floats, size: int) -> Floats:
    """Return sum_(j < D) digamma((nu - j) / 2), in the shape of nu."""
    j = np.arange(size).reshape(-1, *(1,) * np.ndim(nu))
    result: Floats = digamma(0.5 * (np.asarray(nu) - j)).sum(axis=0)
    return result
