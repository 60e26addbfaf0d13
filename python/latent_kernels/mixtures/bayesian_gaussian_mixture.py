"""`BayesianGaussianMixture`: variational Bayes for Gaussian mixtures, at the cost of EM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _em, _initialization
from latent_kernels.mixtures._em import Batch, Census
from latent_kernels.mixtures._gaussian_estimator import GaussianEstimator
from latent_kernels.mixtures._gaussian_posteriors import GaussianPosteriors, Posterior, Prior
from latent_kernels.mixtures._initialization import Sample
from latent_kernels.mixtures._processes import Processes
from latent_kernels.mixtures._weight_posteriors import (
    WEIGHTS,
    Concentration,
    DirichletWeights,
    StickBreaking,
)
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics, positive_definite

Floats = NDArray[np.float64]


class _Parameters(NamedTuple):
    concentration: Concentration
    gaussian: Posterior
    lower_bound: float = -np.inf  # scikit-learn's, or with exact_updates the evidence's
    evidence_lower_bound: float = -np.inf

    @property
    def weights(self) -> Floats:
        """An array [K]."""
        return self.concentration[0]


class BayesianGaussianMixture(GaussianEstimator):
    r"""A Gaussian mixture by variational Bayes, as sklearn.mixture.BayesianGaussianMixture fits it.

    .. math::
        r_{ik} \propto \exp\bigl(\mathrm E \ln \pi_k
            + \mathrm E \ln \mathcal N(x_i; \mu_k, \Lambda_k^{-1})\bigr)

    The posterior is the prior plus the sufficient statistics of these responsibilities. The
    expected log-density is the density at the mean parameters and a constant for each component, so
    that an iteration is the E-step of `GaussianMixture` with other weights: one pass over the data
    that stores no [N, K] array. With a small concentration prior, components that the data do not
    need lose their weight. Arguments, attributes, start and stopping rule are scikit-learn's, which
    has no equivalent of sample_weight, missing values (NaN, at random), `partial_fit`,
    `fit_batches`, ``group=`` for torch.distributed, ``exact_updates`` and
    ``evidence_lower_bound_``.

    Args:
        n_components: K >= 1, the greatest number of components.
        covariance_type: "full", "tied" (one for all components), "diag" or "spherical".
        tol: the fit stops where ``lower_bound_`` changes by less than this. It is a sum over rows,
            as in scikit-learn.
        reg_covar: added to the variances of every row; >= 0. With 0 the bound never falls.
        max_iter: the maximum number of iterations of one run.
        n_init: number of runs; the one of the greatest lower bound is kept.
        init_params: "kmeans", "k-means++", "random_from_data" or "random", as in
            `GaussianMixture`.
        weight_concentration_prior_type: "dirichlet_process" (stick-breaking, with weights that
            fall) or "dirichlet_distribution".
        weight_concentration_prior: concentration of the prior of the weights, > 0; None for
            1 / n_components. The smaller, the fewer components keep their weight.
        mean_precision_prior: how many rows the prior of a mean counts as, > 0; None for 1.
        mean_prior: the mean of the prior of the means, [D]; None for the mean of the data.
        degrees_of_freedom_prior: of the prior Wishart distribution of the precisions, > D - 1 (> 0
            for "diag" and "spherical" with exact_updates); None for D.
        covariance_prior: the inverse of the Wishart's scale matrix: [D, D] "full" and "tied", [D]
            "diag", a number "spherical"; None for the covariance of the data.
        random_state: int, RandomState or None.
        warm_start: fit continues from the result of the last one, with one run.
        verbose: 1 shows progress on stderr, 2 a line for each iteration.
        verbose_interval: with verbose=2, a line only for every so many iterations.
        init_size: how many rows, drawn at random, the initialization uses; None: at most
            max(10_000, 100 n_components).
        total_samples: the weight of all rows that `partial_fit` will see, as if each of its batches
            were so many rows; None: what it has seen so far.
        exact_updates: take the exact posterior of "tied", "diag" and "spherical" models, where
            scikit-learn takes approximations: it divides what the rows add to a shared precision by
            K ("tied") or D ("spherical"), and takes the expected log-determinant of a D x D Wishart
            for "diag" and "spherical". "full" is exact in both.

    Attributes:
        weights_: the expected mixture weights [K], float64 like all attributes.
        means_: the means of the posteriors of the means [K, D].
        covariances_: the inverses of the expected precisions: "full" [K, D, D], "tied" [D, D],
            "diag" [K, D], "spherical" [K].
        precisions_: the expected precisions, of the same shapes.
        precisions_cholesky_: U, upper triangular, with precision U U^T.
        weight_concentration_: "dirichlet_process": (a, b), [K] each, of the Beta posteriors of the
            sticks; "dirichlet_distribution": [K].
        mean_precision_: beta [K]: the posterior of a mean has beta times its component's precision.
        degrees_of_freedom_: of the posterior Wisharts, [K]; a number for "tied".
        weight_concentration_prior_: the prior that was used, like the next four.
        mean_precision_prior_: a number.
        mean_prior_: [D].
        degrees_of_freedom_prior_: a number.
        covariance_prior_: in the shape of covariance_prior.
        lower_bound_: what scikit-learn's attribute of this name is, a bound without its constants;
            with exact_updates ``evidence_lower_bound_``.
        lower_bounds_: the list of these values for all iterations of the best run.
        evidence_lower_bound_: a lower bound of ln p(X) in nats, constants included, at the result;
            -inf if the prior is improper. It may be compared between models.
        converged_: whether the best run stopped by tol.
        n_iter_: the number of its iterations.
        n_features_in_: the number of columns, D.
        feature_names_in_: column names, where X has them.

    Missing values are further unknowns of the model, with Gaussian posteriors in each component. A
    sample weight of 2 is two rows; its unit matters here, since the prior counts as rows, too.
    Where values are missing, the covariance of the data that priors default to takes a column's
    mean and variance in their place.

    Source:
        Bishop, "Pattern recognition and machine learning" (2006), section 10.2; Blei and Jordan,
        "Variational inference for Dirichlet process mixtures" (2006); Hoffman, Blei, Wang and
        Paisley, "Stochastic variational inference" (2013).

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> generator = np.random.default_rng(0)
        >>> X = np.concatenate([generator.normal(m, 1, size=(500, 2)) for m in (-5, 5)])
        >>> model = lk.BayesianGaussianMixture(
        ...     10, weight_concentration_prior=0.01, max_iter=500, random_state=0
        ... ).fit(X)
        >>> int((model.weights_ > 0.01).sum())  # of the ten, two are needed
        2

    """

    _rows: float  # the weight of the rows that the statistics stand for

    _needed = ("weight_concentration_", "mean_precision_", "degrees_of_freedom_", "means_")
    _advice = "call fit"
    _objective_name = "lower bound"

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
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: ArrayLike | None = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        init_size: int | None = None,
        total_samples: float | None = None,
        exact_updates: bool = False,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.init_size = init_size
        self.total_samples = total_samples
        self.exact_updates = exact_updates

    # --- priors -----------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.weight_concentration_prior_type not in WEIGHTS:
            known = ", ".join(map(repr, WEIGHTS))
            raise ValueError(
                f"weight_concentration_prior_type must be one of {known}; "
                f"got {self.weight_concentration_prior_type!r}"
            )
        for name in (
            "weight_concentration_prior",
            "mean_precision_prior",
            "degrees_of_freedom_prior",
            "total_samples",
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < np.inf):
                raise ValueError(f"{name} must be None or a number > 0; got {value!r}")
        if not isinstance(self.exact_updates, (bool, np.bool_)):
            raise ValueError(f"exact_updates must be a bool; got {self.exact_updates!r}")

    def _prepare(self, census: Census, warm: bool) -> None:
        size = census.features
        concentration, precision = self.weight_concentration_prior, self.mean_precision_prior
        self.weight_concentration_prior_ = (
            1 / self.n_components if concentration is None else float(concentration)
        )
        self.mean_precision_prior_ = 1.0 if precision is None else float(precision)
        degrees = self.degrees_of_freedom_prior
        self.degrees_of_freedom_prior_ = float(size if degrees is None else degrees)
        numbers = self.exact_updates and self.covariance_type in ("diag", "spherical")
        if not numbers and self.degrees_of_freedom_prior_ <= size - 1:
            raise ValueError(
                f"degrees_of_freedom_prior must be greater than D - 1 = {size - 1}; "
                f"got {self.degrees_of_freedom_prior_}"
            )
        given = self._initial("mean_prior", (size,)), self._given_covariance_prior(size)
        # What is not given follows from the data, in `_observe`.
        self.mean_prior_, self.covariance_prior_ = (
            np.zeros(0) if prior is None else prior for prior in given
        )

    def _given_covariance_prior(self, size: int) -> Floats | None:
        shape = {"diag": (size,), "spherical": ()}.get(self.covariance_type, (size, size))
        prior = self._initial("covariance_prior", shape)
        if prior is None:
            return None
        if self.covariance_type in ("full", "tied"):
            symmetric = bool((abs(prior - prior.T) <= 1e-8 * abs(prior).max()).all())
            if not symmetric or not positive_definite(prior):
                raise ValueError("covariance_prior must be symmetric and positive definite")
        elif not (prior > 0).all():
            raise ValueError(f"covariance_prior must be > 0; got {self.covariance_prior!r}")
        return prior

    def _observe(
        self,
        batches: Iterable[Batch],
        census: Census,
        processes: Processes,
        *,
        begins: bool,
        online: bool,
    ) -> None:
        weight = census.weight * census.unit
        self._rows = weight if begins else self._rows + weight
        if online and self.total_samples is not None:
            self._rows = float(self.total_samples)
        if begins and (self.mean_prior is None or self.covariance_prior is None):
            mean, covariance = self._moments(batches, census, processes)
            self.mean_prior_ = mean if self.mean_prior is None else self.mean_prior_
            self.covariance_prior_ = (
                covariance if self.covariance_prior is None else self.covariance_prior_
            )

    def _moments(
        self, batches: Iterable[Batch], census: Census, processes: Processes
    ) -> tuple[Floats, Floats]:
        """Return the mean of the data, and their covariance in the form of covariance_prior.

        They come from E-steps of a single component: one about 0, and one about its result.
        """
        size, total = census.features, census.weight * census.unit
        mean, variances = np.zeros(size), np.ones(size)
        matrices = self.covariance_type in ("full", "tied")
        for kind in ("diag", "tied" if matrices else "diag"):
            deviations = np.sqrt(np.where(variances > 0, variances, 1.0))
            factors = np.diag(1 / deviations) if kind == "tied" else 1 / deviations[None]
            parameters = model.gaussian_mixture(np.zeros(1), kind, mean[None], factors)
            found = _em.total_statistics(batches, parameters, processes, None, census.unit)
            observed = np.where(found.observed[0] > 0, found.observed[0], 1.0)
            delta = found.first[0] / observed
            if kind == "tied":
                variances = found.second / found.counts[0] - np.outer(delta, delta)
            else:
                variances = found.second[0] / observed - delta**2
                variances = np.where(found.observed[0] > 0, variances, 1.0)
            mean = mean + delta
        covariance = variances * (total / (total - 1) if total > 1 else 1.0)
        return mean, covariance.mean() if self.covariance_type == "spherical" else covariance

    def _prior(self) -> Prior:
        return Prior(
            self.mean_precision_prior_,
            self.mean_prior_,
            self.degrees_of_freedom_prior_,
            self.covariance_prior_,
        )

    # --- hooks ------------------------------------------------------------------------------------

    def _given_parameters(self, features: int) -> None:
        return None

    def _start(self, sample: Sample, generator: np.random.RandomState) -> _Parameters:
        Z = _initialization.filled(sample.X, sample.weight)
        unknown = _initialization.without_values(sample.X)
        statistics = self._assigned(Z, sample.weight, unknown, generator)
        if self.init_params not in _initialization.SINGLE_ROWS:  # all rows are assigned
            statistics = statistics * (self._rows / statistics.total_weight)
        return self._updated(statistics)

    def _weights(self) -> type[StickBreaking] | type[DirichletWeights]:
        return WEIGHTS[self.weight_concentration_prior_type]

    def _formulas(self, means: Floats) -> GaussianPosteriors:
        components, size = means.shape
        return GaussianPosteriors(self.covariance_type, components, size, bool(self.exact_updates))

    def _updated(self, statistics: SufficientStatistics) -> _Parameters:
        """Return the posterior, which is the prior plus the statistics."""
        formulas = self._formulas(statistics.anchor)
        return _Parameters(
            self._weights().posterior(statistics.counts, self.weight_concentration_prior_),
            formulas.update(self._prior(), statistics, self.reg_covar),
        )

    def _m_step(self, statistics: SufficientStatistics, previous: _Parameters) -> _Parameters:
        complete = self._completed(statistics, previous) * (self._rows / statistics.total_weight)
        new, weights = self._updated(complete), self._weights()
        formulas = self._formulas(complete.anchor)
        # The entropy of the responsibilities and of the posteriors of missing values: for each row
        # ln sum_k rho_k = sum_k r_k (ln rho_k - ln r_k), and ln rho is linear in the statistics.
        shift = formulas.log_weight_shift(previous.gaussian)
        entropy = complete.log_likelihood
        entropy -= float(complete.counts @ weights.expected_logs(previous.concentration))
        entropy -= formulas.expected_log_density(previous.gaussian, complete, shift)
        shift = formulas.log_weight_shift(new.gaussian, exact=True)
        evidence = entropy + formulas.expected_log_density(new.gaussian, complete, shift)
        evidence += float(complete.counts @ weights.expected_logs(new.concentration))
        evidence -= weights.divergence(new.concentration, self.weight_concentration_prior_)
        evidence -= formulas.divergence(new.gaussian, self._prior())
        bound = evidence
        if not self.exact_updates:
            bound = entropy - weights.log_norm(new.concentration)
            bound -= formulas.log_norms_of_scikit_learn(new.gaussian)
        return new._replace(lower_bound=bound, evidence_lower_bound=evidence)

    def _completed(
        self, statistics: SufficientStatistics, previous: _Parameters
    ) -> SufficientStatistics:
        """Return the statistics completed by the expectations of missing values."""
        counts = statistics.counts[:, None]
        missing = counts - statistics.observed
        if self.covariance_type in ("full", "tied") or not missing.any():
            return statistics  # the E-step completes those of matrices
        variances = previous.gaussian.covariances
        variances = variances[:, None] if self.covariance_type == "spherical" else variances
        return replace(
            statistics,
            second=statistics.second + missing * variances,
            observed=counts + np.zeros_like(missing),
        )

    def _advance(
        self, statistics: SufficientStatistics, previous: _Parameters
    ) -> tuple[float, Callable[[], _Parameters]]:
        new = self._m_step(statistics, previous)
        return new.lower_bound, lambda: new

    def _kernel(self, parameters: _Parameters) -> model.Parameters:
        q = parameters.gaussian
        log_weights = self._weights().expected_logs(parameters.concentration)
        log_weights = log_weights + self._formulas(q.means).log_weight_shift(q)
        return model.gaussian_mixture(
            log_weights, self.covariance_type, q.means, q.precisions_cholesky
        )

    def _parameters(self) -> _Parameters:
        concentration = self.weight_concentration_
        arrays = concentration if isinstance(concentration, tuple) else (concentration,)
        sticks = self._weights() is StickBreaking
        if len(arrays) != (2 if sticks else 1):
            raise ValueError(
                f"the model was fitted with another weight_concentration_prior_type than "
                f"{self.weight_concentration_prior_type!r}: set it back, or fit again without "
                "warm_start"
            )
        return _Parameters(
            arrays,
            Posterior(
                self.mean_precision_,
                self._array("means_"),
                np.asarray(self.degrees_of_freedom_),
                self._array("covariances_"),
                self._factors(),
            ),
        )

    def _store(self, parameters: _Parameters) -> None:
        concentration, q, _, self.evidence_lower_bound_ = parameters
        self.weights_ = self._weights().means(concentration)
        self.weight_concentration_ = concentration if len(concentration) > 1 else concentration[0]
        self.mean_precision_, self.means_ = q.mean_precision, q.means
        nu = q.degrees_of_freedom
        self.degrees_of_freedom_ = float(nu) if nu.ndim == 0 else nu
        self.covariances_, self.precisions_cholesky_ = q.covariances, q.precisions_cholesky
        self.precisions_ = self._derived("precisions_")
        self._fitted_type = self.covariance_type
