"""`MixtureModel`: EM for columns of several exponential families, such as latent class analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _families, _initialization
from latent_kernels.mixtures._em import Batch, Census
from latent_kernels.mixtures._fitted_mixture import InformationCriteria
from latent_kernels.mixtures._initialization import Assignment, Sample
from latent_kernels.mixtures._mixture_estimator import MixtureEstimator
from latent_kernels.mixtures.e_step import mixed_parameters
from latent_kernels.mixtures.gaussian_mixture import initial_weights
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]

_VALUES = {"bernoulli": "0 and 1", "poisson": "0, 1, 2, ...", "categorical": "0, 1, 2, ..."}
# A column may have this many categories, or as many as there are rows; more must be a mistake.
_MOST_CATEGORIES = 1000
# Values are checked in blocks of this many rows, so that no copy of X is made.
_BLOCK = 1 << 16


class _Parameters(NamedTuple):
    weights: Floats
    columns: tuple[Any, ...]  # for each column as in `parameters_`


class MixtureModel(InformationCriteria, MixtureEstimator):
    r"""A mixture with columns of several families, independent within a component, fitted by EM.

    .. math::
        p(x) = \sum_k \pi_k \prod_d p_d(x_d; \theta_{dk})

    With categorical columns this is latent class analysis. An iteration is one pass over the data
    (`exponential_family_e_step`) that stores no [N, K] array; the M-step is the mean of each
    column's sufficient statistic. Missing values (NaN) are at random and contribute nothing.

    ============= ============= ===========================
    family        values        entry of ``parameters_``
    ============= ============= ===========================
    "gaussian"    any           (means [K], variances [K])
    "bernoulli"   0, 1          p [K]
    "poisson"     0, 1, 2, ...  rates [K]
    "categorical" 0, ..., C - 1 p [K, C]
    ============= ============= ===========================

    Args:
        n_components: K >= 1.
        families: one name for each column, or one for all; None: "gaussian".
        min_categories: least C of categorical columns, an int or one for each column of X. C is the
            greatest value in the data of `fit` (or the first batch of `partial_fit`) + 1, where
            that is more; rows of weight 0 do not count. It may be at most max(1000, rows), or this.
        tol: EM stops where the mean log-likelihood changes by less than this.
        reg_covar: added to every variance of a Gaussian column; >= 0.
        max_iter: the maximum number of iterations of one run.
        n_init: number of runs; the one of greatest likelihood is kept.
        init_params: "kmeans", "k-means++", "random_from_data" or "random", as in `GaussianMixture`.
            Distances are those of columns made comparable: Gaussian ones and square roots of
            Poisson ones standardized, categories one-hot.
        weights_init: [K], in place of those of init_params.
        parameters_init: in the form of ``parameters_``, likewise. With both nothing is drawn.
        random_state: int, RandomState or None.
        warm_start: fit continues from the result of the last one, with one run.
        verbose: 1 shows progress on stderr, 2 a line for each iteration.
        init_size: how many rows, drawn at random, the initialization uses; None: at most
            max(10_000, 100 n_components).

    Attributes:
        weights_: the mixture weights [K], float64 like all attributes.
        parameters_: list with an entry for each column, as in the table; what
            `exponential_family_e_step` takes. Probabilities and rates on the boundary are kept
            1e-12 inside of it.
        families_: tuple with the name of each column's family.
        n_categories_: [D], C of categorical columns and 0 of others.
        converged_: whether the best run stopped by tol.
        n_iter_: the number of its iterations.
        lower_bound_: mean log-likelihood in its last E-step.
        lower_bounds_: the list of these values for all its iterations.
        n_features_in_: the number of columns, D.
        feature_names_in_: column names, where X has them.

    A component that loses all its weight keeps its parameters with weight 0, and a
    ConvergenceWarning names it. A value outside its column's family raises a ValueError.

    Without `fit`, or after it, ``weights_`` and ``parameters_`` may be assigned, for any number of
    components and categories; the families are those of the constructor.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> generator = np.random.default_rng(0)
        >>> classes = generator.integers(2, size=1000)
        >>> counts = generator.poisson(np.where(classes == 0, 2, 20))
        >>> X = np.stack([counts, classes], axis=1).astype(float)
        >>> model = lk.MixtureModel(2, families=["poisson", "bernoulli"], random_state=0).fit(X)
        >>> np.sort(model.parameters_[0]).round()  # the rates
        array([ 2., 20.])
        >>> labels = model.predict(X)
        >>> np.array_equal(labels == labels[0], classes == classes[0])
        True

    """

    weights_: Floats
    parameters_: list[Any]
    families_: tuple[str, ...]
    n_categories_: NDArray[np.int64]

    _needed = ("weights_", "parameters_")
    _advice = "call fit, or set weights_ and parameters_"

    def __init__(
        self,
        n_components: int = 1,
        *,
        families: str | Sequence[str] | None = None,
        min_categories: int | ArrayLike | None = None,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        parameters_init: Sequence[Any] | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        init_size: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.families = families
        self.min_categories = min_categories
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.parameters_init = parameters_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.init_size = init_size

    # --- columns ----------------------------------------------------------------------------------

    def _families(self, features: int) -> tuple[str, ...]:
        """Return a family for each column."""
        if self.families is None or isinstance(self.families, str):
            families: tuple[str, ...] = (self.families or "gaussian",) * features
        else:
            families = tuple(self.families)
        if len(families) != features:
            raise ValueError(
                f"families must name one for each of the {features} columns of X; "
                f"got {len(families)}"
            )
        for i, family in enumerate(families):
            if family not in _families.FAMILIES:
                known = ", ".join(map(repr, _families.FAMILIES))
                raise ValueError(f"families must be among {known}; got {family!r} for column {i}")
        return families

    def _least_categories(self, features: int) -> NDArray[np.int64]:
        """Return min_categories for each column."""
        least = np.asarray(1 if self.min_categories is None else self.min_categories)
        if (
            least.shape not in ((), (features,))
            or not np.issubdtype(least.dtype, np.integer)
            or (least < 0).any()
        ):
            raise ValueError(
                "min_categories must be None, an integer or one for each of the "
                f"{features} columns; got {self.min_categories!r}"
            )
        return np.broadcast_to(np.maximum(least, 1), (features,)).astype(np.int64)

    def _categorical(self, features: int) -> Sequence[int]:
        return [i for i, family in enumerate(self._families(features)) if family == "categorical"]

    def _counted_rows(self, batch: Batch) -> Batch:
        # A row without weight may be of a category that no other row has, and that has no column
        # among the features.
        X, weight = batch
        if weight is None or weight.all() or not self._categorical(X.shape[1]):
            return batch
        return X[weight > 0], weight[weight > 0]

    def _prepare(self, census: Census, warm: bool) -> None:
        families = self._families(census.features)
        categories = np.zeros(census.features, np.int64)
        categorical = np.array([family == "categorical" for family in families])
        if categorical.any():
            least = self._least_categories(census.features)[categorical]
            most = max(_MOST_CATEGORIES, census.rows, *least)
            for i, greatest in zip(np.flatnonzero(categorical), census.greatest, strict=True):
                if greatest >= most:
                    raise ValueError(
                        f"column {i} of X is 'categorical' with values up to {greatest:.0f} in "
                        f"{census.rows} rows: recode its values as 0, 1, 2, ..., without gaps"
                    )
            categories[categorical] = np.maximum(least, census.greatest.astype(np.int64) + 1)
        if not warm:
            self.families_, self.n_categories_ = families, categories
        elif families != self.families_ or (categories > self.n_categories_).any():
            raise ValueError(
                f"warm_start goes on with {self.families_} and {self.n_categories_} categories, "
                f"which do not go with {families} and {categories}"
            )

    def _check_values(self, X: NDArray[Any], fitted: bool) -> None:
        families = self.families_ if fitted else self._families(X.shape[1])
        for family in _VALUES:
            columns = np.array([i for i, name in enumerate(families) if name == family], np.int64)
            if len(columns) == 0:
                continue
            bound = self.n_categories_[columns] if fitted and family == "categorical" else None
            for start in range(0, len(X), _BLOCK):
                _check_block(family, X[start : start + _BLOCK, columns], columns, bound)

    def _columns_of(self, *families: str) -> list[int]:
        """Return the columns of these families."""
        return [i for i, family in enumerate(self.families_) if family in families]

    # --- hooks ------------------------------------------------------------------------------------

    def _checked_initials(self) -> tuple[Floats | None, tuple[Any, ...] | None]:
        """Return the initial (weights, parameters of the columns), each None where it was not
        given.
        """
        weights = initial_weights(self.weights_init, self.n_components)
        if self.parameters_init is None:
            return weights, None
        any_weights = np.full(self.n_components, 1 / self.n_components)
        try:
            mixed_parameters(any_weights, self.families_, self.parameters_init, len(self.families_))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"parameters_init does not go with X and the families: {error}"
            ) from error
        columns: list[Any] = []
        for i, (family, given) in enumerate(zip(self.families_, self.parameters_init, strict=True)):
            if family == "gaussian":
                columns.append(tuple(np.array(x, np.float64) for x in given))
                continue
            mean = np.array(given, np.float64)
            if family == "categorical" and mean.shape[1] != self.n_categories_[i]:
                raise ValueError(
                    f"parameters_init[{i}] must have a probability for each of the "
                    f"{self.n_categories_[i]} categories of column {i}; got {mean.shape[1]}"
                )
            columns.append(_families.clipped(family, mean))
        return weights, tuple(columns)

    def _given_parameters(self, features: int) -> _Parameters | None:
        weights, columns = self._checked_initials()
        return None if weights is None or columns is None else _Parameters(weights, columns)

    def _start(self, sample: Sample, generator: np.random.RandomState) -> _Parameters:
        weights, columns = self._checked_initials()
        Z = np.empty((len(sample.X), 0))
        if self.init_params in ("kmeans", "k-means++"):  # the others use no distances
            Z = np.concatenate(
                [self._encoded(i, sample) for i in range(len(self.families_))], axis=1
            )
        assignment = _initialization.assign(
            self.init_params, Z, sample.weight, self.n_components, generator
        )
        counts = assignment.counts
        if columns is None:
            columns = tuple(
                self._first_column(i, sample, assignment) for i in range(len(self.families_))
            )
        return _Parameters(counts / counts.sum() if weights is None else weights, columns)

    def _encoded(self, i: int, sample: Sample) -> Floats:
        """Return column i as columns [n, E] with meaningful distances."""
        x, family = sample.X[:, i : i + 1], self.families_[i]
        if family == "categorical":
            return _initialization.filled(_initialization.one_hot(x[:, 0]), sample.weight)
        x = _initialization.filled(np.sqrt(x) if family == "poisson" else x, sample.weight)
        return x if family == "bernoulli" else _initialization.standardized(x, sample.weight)

    def _first_column(self, i: int, sample: Sample, assignment: Assignment) -> Any:
        """Return start parameters of column i."""
        x, family = sample.X[:, i : i + 1], self.families_[i]
        if family == "categorical":
            counts = _initialization.category_counts(
                x[:, 0], sample.weight, assignment, int(self.n_categories_[i])
            )
            return _families.clipped(family, counts)
        unknown = _initialization.without_values(x)
        x = _initialization.filled(x, sample.weight)
        if family == "gaussian":
            statistics = _initialization.gaussian_statistics(
                x, sample.weight, assignment, "diag", False, unknown
            )
            components = len(assignment.counts)
            whole = _initialization.sample_covariances(
                x, sample.weight, "diag", components, self.reg_covar, unknown
            )
            _, means, variances = statistics.m_step(reg_covar=self.reg_covar, covariances=whole)
            return means[:, 0], variances[:, 0]
        # The whole sample's mean counts as one more row of every component: a probability of 0
        # would stay 0 for ever.
        whole = np.average(x, axis=0, weights=sample.weight)
        mean = (assignment.sums(x) + whole) / (assignment.counts[:, None] + 1)
        return _families.clipped(family, mean[:, 0])

    def _parameters(self) -> _Parameters:
        # Parameters that were set by hand may have other columns and categories than the data had.
        families = getattr(self, "families_", ())
        if len(families) != self._width():
            families = self._families(self._width())
        categories = [
            np.shape(p)[-1] if f == "categorical" and np.ndim(p) > 0 else 0
            for f, p in zip(families, self.parameters_, strict=True)
        ]
        if categories != list(getattr(self, "n_categories_", ())):
            self.families_, self.n_categories_ = families, np.array(categories, np.int64)
        return _Parameters(self.weights_, tuple(self.parameters_))

    def _width(self) -> int:
        return len(self.parameters_)

    def _store(self, parameters: _Parameters) -> None:
        self.weights_, self.parameters_ = parameters.weights, list(parameters.columns)

    def _kernel(self, parameters: _Parameters) -> model.Parameters:
        return mixed_parameters(
            parameters.weights, self.families_, parameters.columns, len(self.families_)
        )

    def _m_step(self, statistics: SufficientStatistics, previous: _Parameters) -> _Parameters:
        columns = list(previous.columns)
        gaussian = self._columns_of("gaussian")
        if gaussian:
            variances = np.stack([previous.columns[i][1] for i in gaussian], axis=1)
            _, means, variances = statistics.m_step(reg_covar=self.reg_covar, covariances=variances)
            for at, i in enumerate(gaussian):
                columns[i] = (means[:, at].copy(), variances[:, at].copy())
        mean_parameters, starts = statistics.mean_parameters(), statistics.feature_starts
        for at, i in enumerate(self._columns_of(*_VALUES)):
            mean = mean_parameters[:, starts[at] : starts[at + 1]]
            if self.families_[i] != "categorical":
                mean = mean[:, 0]
            # NaN: no row of the component has the column.
            columns[i] = _families.clipped(
                self.families_[i], np.where(np.isnan(mean), previous.columns[i], mean)
            )
        return _Parameters(statistics.counts / statistics.counts.sum(), tuple(columns))

    def _n_parameters(self) -> int:
        sizes = {"gaussian": 2, "bernoulli": 1, "poisson": 1}
        each = sum(
            sizes.get(f, int(c) - 1)
            for f, c in zip(self.families_, self.n_categories_, strict=True)
        )
        return len(self.weights_) * (each + 1) - 1

    def _draw(self, labels: NDArray[np.int64], generator: np.random.RandomState) -> Floats:
        parameters = self._parameters()
        self._kernel(parameters)  # which checks them
        result = np.empty((len(labels), len(parameters.columns)))
        for i, (family, column) in enumerate(zip(self.families_, parameters.columns, strict=True)):
            if family == "gaussian":
                mean, variance = np.asarray(column)
                result[:, i] = mean[labels] + np.sqrt(variance[labels]) * generator.standard_normal(
                    len(labels)
                )
            else:
                result[:, i] = _families.sample(family, np.asarray(column)[labels], generator)
        return result


def _check_block(
    family: str, x: NDArray[Any], columns: NDArray[np.int64], bound: NDArray[np.int64] | None
) -> None:
    """Raise if a value [n, C] is not one of the family's, or not below its column's bound."""
    whole = (x >= 0) & (x == np.floor(x)) & np.isfinite(x)
    bad = ~(whole & (x <= 1)) if family == "bernoulli" else ~whole
    if bound is not None:
        bad |= x >= bound
    bad &= ~np.isnan(x)
    if not bad.any():
        return
    row, c = (int(i) for i in np.argwhere(bad)[0])
    values = _VALUES[family]
    if bound is not None:
        values = f"0, ..., {bound[c] - 1} in the data of fit (min_categories makes room for more)"
    raise ValueError(
        f"column {columns[c]} of X is {family!r}, with values {values}; got {x[row, c]}"
    )
