"""`GaussianMixture`: scikit-learn's estimator, with missing values, weights, batches, processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _initialization
from latent_kernels.mixtures._em import Census
from latent_kernels.mixtures._fitted_mixture import InformationCriteria
from latent_kernels.mixtures._gaussian_estimator import GaussianEstimator
from latent_kernels.mixtures._initialization import Sample
from latent_kernels.mixtures.e_step import covariance_shape, precisions_cholesky
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]


class _Parameters(NamedTuple):
    weights: Floats
    means: Floats
    covariances: Floats
    precisions_cholesky: Floats


class GaussianMixture(InformationCriteria, GaussianEstimator):
    r"""A mixture of Gaussians fitted by EM, in place of sklearn.mixture.GaussianMixture.

    .. math::
        p(x) = \sum_k \pi_k \mathcal N(x; m_k, \Sigma_k)

    An iteration is one pass over the data (`gaussian_e_step`) that stores no [N, K] array.
    Arguments, attributes and the stream of random numbers are scikit-learn's: with the same
    random_state both start alike (as long as the data have no more rows than the initialization
    uses) and end alike. scikit-learn has no equivalent of sample_weight, missing values (NaN, at
    random), `partial_fit`, `fit_batches` and ``group=`` for torch.distributed.

    Args:
        n_components: K >= 1.
        covariance_type: "full", "tied" (one for all components), "diag" or "spherical".
        tol: EM stops where the mean log-likelihood changes by less than this.
        reg_covar: added to every variance; >= 0. With 0 the likelihood never falls; with more it
            may, slightly. With missing values, "full" and "tied" covariances gain reg_covar times
            the share of rows (of all components together) that have the column, since the
            conditional expectations that complete the sums contain it already.
        max_iter: the maximum number of iterations of one run.
        n_init: number of runs; the one of greatest likelihood is kept.
        init_params: "kmeans", "k-means++" (rows far apart as means), "random_from_data" (any rows
            as means) or "random" (responsibilities).
        weights_init: [K], in place of those of init_params.
        means_init: [K, D], likewise.
        precisions_init: inverse covariances, in the shape of ``precisions_``, likewise. With all
            three nothing is drawn.
        random_state: int, RandomState or None.
        warm_start: fit continues from the result of the last one, with one run.
        verbose: 1 shows progress on stderr, 2 a line for each iteration.
        verbose_interval: with verbose=2, a line only for every so many iterations.
        init_size: how many rows, drawn at random, the initialization uses; None: at most
            max(10_000, 100 n_components). Missing values count there as their column's mean, and a
            column without any value has mean 0 and variance 1.

    Attributes:
        weights_: the mixture weights [K], float64 like all attributes.
        means_: the means [K, D].
        covariances_: "full" [K, D, D], "tied" [D, D], "diag" [K, D], "spherical" [K].
        precisions_: their inverses, of the same shapes.
        precisions_cholesky_: U, upper triangular, with precision U U^T; 1/sigma for "diag" and
            "spherical".
        converged_: whether the best run stopped by tol.
        n_iter_: the number of its iterations.
        lower_bound_: mean log-likelihood in its last E-step.
        lower_bounds_: the list of these values for all its iterations.
        n_features_in_: the number of columns, D.
        feature_names_in_: column names, where X has them.

    A component that loses all its weight keeps its mean and covariance with weight 0, and a
    ConvergenceWarning names it; a singular covariance raises a ValueError.

    Without `fit`, ``weights_``, ``means_`` and either ``covariances_`` or ``precisions_cholesky_``
    may be assigned, for any number of components: the other forms are derived from them.
    ``precisions_cholesky_`` may be any triangular U, lower ones too. (Where only ``covariances_``
    is assigned, it is computed at each call: assign both to save that.) Assigned after a fit,
    either of them replaces the fitted ones.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> generator = np.random.default_rng(0)
        >>> X = np.concatenate([generator.normal(m, 1, size=(500, 2)) for m in (-5, 5)])
        >>> X[::10, 0] = np.nan  # missing values
        >>> model = lk.GaussianMixture(2, covariance_type="diag", random_state=0).fit(X)
        >>> model.converged_, sorted(model.means_.round().tolist())
        (True, [[-5.0, -5.0], [5.0, 5.0]])
        >>> labels = model.predict(X)
        >>> bool((labels[:500] == labels[0]).all()), model.predict_proba(X).shape
        (True, (1000, 2))

    """

    _needed = ("weights_", "means_")
    _advice = "call fit, or set weights_, means_ and covariances_ (or precisions_cholesky_)"

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 1,
        init_size: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.init_size = init_size

    def _initials(self, features: int) -> tuple[Floats | None, Floats | None, Floats | None]:
        """Return the initial (weights, means, covariances), each None where it was not given."""
        weights = initial_weights(self.weights_init, self.n_components)
        means = self._initial("means_init", (self.n_components, features))
        shape = covariance_shape(self.covariance_type, self.n_components, features)
        precisions = self._initial("precisions_init", shape)
        return (
            weights,
            means,
            None if precisions is None else _inverses(precisions, self.covariance_type),
        )

    def _given_parameters(self, features: int) -> _Parameters | None:
        weights, means, covariances = self._initials(features)
        if weights is None or means is None or covariances is None:
            return None
        return self._complete(weights, means, covariances)

    def _start(self, sample: Sample, generator: np.random.RandomState) -> _Parameters:
        weights, means, covariances = self._initials(sample.X.shape[1])
        Z = _initialization.filled(sample.X, sample.weight)
        unknown = _initialization.without_values(sample.X)
        statistics = self._assigned(Z, sample.weight, unknown, generator)
        if weights is None:
            weights = statistics.counts / statistics.counts.sum()
        if covariances is None:
            whole = _initialization.sample_covariances(
                Z, sample.weight, self.covariance_type, self.n_components, self.reg_covar, unknown
            )
            covariances = statistics.m_step(reg_covar=self.reg_covar, covariances=whole).covariances
        return self._complete(weights, statistics.anchor if means is None else means, covariances)

    def _complete(self, weights: Floats, means: Floats, covariances: Floats) -> _Parameters:
        return _Parameters(
            weights, means, covariances, precisions_cholesky(covariances, self.covariance_type)
        )

    def _m_step(self, statistics: SufficientStatistics, previous: _Parameters) -> _Parameters:
        return self._complete(
            *statistics.m_step(reg_covar=self.reg_covar, covariances=previous.covariances)
        )

    def _parameters(self) -> _Parameters:
        weights, means, covariances = map(self._array, ("weights_", "means_", "covariances_"))
        return _Parameters(weights, means, covariances, self._factors())

    def _wants_missing(self) -> bool:
        return self.covariance_type in ("full", "tied") and self.reg_covar > 0

    def _corrected(self, statistics: SufficientStatistics, census: Census) -> SufficientStatistics:
        # What completes a missing value has a variance that holds reg_covar already, which the
        # M-step adds to all rows. In "full" covariances the share of rows is taken to be that of
        # all components together.
        if not self._wants_missing() or not census.missing.any():
            return statistics
        twice = self.reg_covar * np.diag(census.missing / census.weight)
        counts = statistics.counts
        second = (
            statistics.second
            - (counts.sum() if self.covariance_type == "tied" else counts[:, None, None]) * twice
        )
        return replace(statistics, second=second)

    def _store(self, parameters: _Parameters) -> None:
        self.weights_, self.means_, self.covariances_, u = parameters
        self.precisions_cholesky_ = u
        self.precisions_ = self._derived("precisions_")
        self._fitted_type = self.covariance_type

    def _kernel(self, parameters: _Parameters) -> model.Parameters:
        with np.errstate(divide="ignore"):
            log_weights = np.log(parameters.weights)
        return model.gaussian_mixture(
            log_weights, self.covariance_type, parameters.means, parameters.precisions_cholesky
        )

    def _n_parameters(self) -> int:
        components, size = np.shape(self.means_)
        covariances = {
            "full": components * size * (size + 1) // 2,
            "tied": size * (size + 1) // 2,
            "diag": components * size,
            "spherical": components,
        }[self.covariance_type]
        return int(covariances + components * size + components - 1)


def initial_weights(weights_init: ArrayLike | None, components: int) -> Floats | None:
    """Return the constructor's weights_init [K], checked."""
    if weights_init is None:
        return None
    weights: Floats = np.array(weights_init, np.float64)
    fits = (
        weights.shape == (components,)
        and bool((weights >= 0).all())
        and abs(float(weights.sum()) - 1) <= 1e-6
    )
    if not fits:
        raise ValueError(
            f"weights_init must have shape ({components},), be >= 0 and have sum 1; got {weights}"
        )
    normalized: Floats = weights / weights.sum()
    return normalized


def _inverses(precisions: Floats, covariance_type: str) -> Floats:
    """Return the covariances of precisions_init."""
    try:
        u = precisions_cholesky(precisions, covariance_type)
    except ValueError:
        what = "symmetric and positive definite" if covariance_type in ("full", "tied") else "> 0"
        raise ValueError(f"precisions_init must be {what} for {covariance_type!r}") from None
    result: Floats = u @ np.swapaxes(u, -1, -2) if covariance_type in ("full", "tied") else u**2
    return result
