"""A fitted mixture: the hooks that each kind of mixture defines, prediction, scores and samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from latent_kernels._data import as_array
from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _initialization
from latent_kernels.mixtures._em import Batch, Census
from latent_kernels.mixtures._initialization import Sample
from latent_kernels.mixtures._processes import Processes
from latent_kernels.mixtures.e_step import checked_sample_weight, posterior, weight_unit
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]

CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32], "order": None, "copy": False}


class FittedMixture(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """The base of all mixtures; parameters have any form that the hooks of a subclass agree on."""

    # --- hooks of a subclass ----------------------------------------------------------------------

    _needed: ClassVar[tuple[str, ...]]  # attributes of a fitted model that may be set by hand
    _advice: ClassVar[str]  # what to do where one of them is missing

    def _check_settings(self) -> None:
        """Raise if a constructor argument is wrong."""
        for name, least in (("n_components", 1), ("max_iter", 0), ("n_init", 1), ("verbose", 0)):
            value = getattr(self, name)
            if not isinstance(value, (Integral, np.bool_)) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
        if not isinstance(self.warm_start, (bool, np.bool_)):
            raise ValueError(f"warm_start must be a bool; got {self.warm_start!r}")
        for name in ("tol", "reg_covar"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < np.inf:
                raise ValueError(f"{name} must be a number >= 0; got {value!r}")
        if self.init_params not in _initialization.INIT_PARAMS:
            known = ", ".join(map(repr, _initialization.INIT_PARAMS))
            raise ValueError(f"init_params must be one of {known}; got {self.init_params!r}")
        size = self.init_size
        if size is not None and not (isinstance(size, Integral) and size >= self.n_components):
            raise ValueError(f"init_size must be None or an integer >= n_components; got {size!r}")

    def _check_values(self, X: NDArray[Any], fitted: bool) -> None:
        """Raise if X holds values that the model does not allow.

        fitted: whether to check against what the census has found.
        """

    def _categorical(self, features: int) -> Sequence[int]:
        """Return the columns whose greatest value the census must find."""
        return ()

    def _wants_missing(self) -> bool:
        """Return whether the census must sum the weight of missing values in each column."""
        return False

    def _corrected(self, statistics: SufficientStatistics, census: Census) -> SufficientStatistics:
        """Return the statistics for the M-step. The census is of the same rows."""
        return statistics

    def _observe(
        self,
        batches: Iterable[Batch],
        census: Census,
        processes: Processes,
        *,
        begins: bool,
        online: bool,
    ) -> None:
        """Look at the data before the E-step.

        begins: whether these are the data of a fit, or the first batch of `partial_fit`.
        online: whether it is a batch of `partial_fit`.
        """

    _objective_name: ClassVar[str] = "mean log-likelihood"

    def _advance(
        self, statistics: SufficientStatistics, previous: Any
    ) -> tuple[float, Callable[[], Any]]:
        """Return what a fit increases, and a function that returns the new parameters.

        The former is the same in all processes, or raises in all.

        previous: the parameters of the E-step.
        """
        bound = statistics.log_likelihood / statistics.total_weight
        return bound, functools.partial(self._m_step, statistics, previous)

    def _counted_rows(self, batch: Batch) -> Batch:
        """Return the batch that EM uses, which may leave out rows of weight 0."""
        return batch

    def _prepare(self, census: Census, warm: bool) -> None:
        """Use the census before EM begins.

        warm: raise if the fitted parameters do not agree with it.
        """

    def _given_parameters(self, features: int) -> Any | None:
        """Return start parameters if the constructor's arguments give all of them, else None."""
        raise NotImplementedError

    def _start(self, sample: Sample, generator: np.random.RandomState) -> Any:
        """Return start parameters from a sample of the rows."""
        raise NotImplementedError

    def _parameters(self) -> Any:
        """Return the fitted parameters, or those set by hand; raise if they disagree."""
        raise NotImplementedError

    def _width(self) -> int:
        """Return the number of columns that the parameters are for."""
        raise NotImplementedError

    def _store(self, parameters: Any) -> None:
        """Set the fitted attributes."""
        raise NotImplementedError

    def _kernel(self, parameters: Any) -> model.Parameters:
        """Return the parameters of the E-step."""
        raise NotImplementedError

    def _m_step(self, statistics: SufficientStatistics, previous: Any) -> Any:
        """Return new parameters."""
        raise NotImplementedError

    def _draw(self, labels: NDArray[np.int64], generator: np.random.RandomState) -> Floats:
        """Return a random row [D] for each of these components, which are in ascending order."""
        raise NotImplementedError

    # --- with a fitted model ----------------------------------------------------------------------

    def _check_fitted(self) -> None:
        check_is_fitted(self, self._needed, msg=f"this %(name)s is not fitted yet: {self._advice}")

    def _fitted_data(self, X: Any) -> tuple[NDArray[Any], model.Parameters]:
        self._check_fitted()
        with np.errstate(invalid="ignore"):  # scikit-learn's check may add inf and -inf
            data = validate_data(
                self, as_array(X), reset=False, ensure_all_finite="allow-nan", **CHECKS
            )
        parameters = self._parameters()
        if data.shape[1] != self._width():
            raise ValueError(
                f"X must have {self._width()} columns, as the model has; got {data.shape[1]}"
            )
        self._check_values(data, fitted=True)
        return data, self._kernel(parameters)

    def score_samples(self, X: Any) -> Floats:
        """Return log p(x_i), [N] float64; where values are missing, that of the others.

        It is -inf for rows so far from every component that their squares overflow float64.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> model.score_samples(X).shape
            (4,)

        """
        density, _, _ = posterior(*self._fitted_data(X), log_density=True)
        assert density is not None
        return density

    def _total(self, X: Any, sample_weight: ArrayLike | None) -> tuple[float, float, float]:
        """Return the sum of w_i log p(x_i) and the sum of w_i, and the unit that both are in."""
        density = self.score_samples(X)
        weight = checked_sample_weight(sample_weight, len(density))
        if weight is None:
            return float(density.sum()), float(len(density)), 1.0
        if not weight.any():
            raise ValueError("sample_weight must not be 0 for every row")
        unit = weight_unit(float(weight.max()))
        weight = weight if unit == 1.0 else weight / unit
        with np.errstate(invalid="ignore"):  # 0 times -inf
            total = float(weight @ density)
        if np.isneginf(density).any():
            total = float(weight[weight > 0] @ density[weight > 0])
        return total, float(weight.sum()), unit

    def score(self, X: Any, y: Any = None, *, sample_weight: ArrayLike | None = None) -> float:
        """Return the mean of log p(x_i) over the rows of X, with their weights.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> bool(np.isclose(model.score(X), model.score_samples(X).mean()))
            True

        """
        log_likelihood, weight, _ = self._total(X, sample_weight)
        return log_likelihood / weight

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the component of greatest responsibility for each row, [N].

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> labels = model.predict(X)
            >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
            True

        """
        _, labels, _ = posterior(*self._fitted_data(X), labels=True)
        assert labels is not None
        return labels

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the responsibilities p(k | x_i), [N, n_components] in X's dtype.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> model.predict_proba(X).sum(1)
            array([1., 1., 1., 1.])

        """
        _, _, responsibilities = posterior(*self._fitted_data(X), responsibilities=True)
        assert responsibilities is not None
        return responsibilities

    def sample(self, n_samples: int = 1) -> tuple[Floats, NDArray[np.int64]]:
        """Return random rows [n_samples, D], ordered by component, and their components.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> rows, components = model.sample(5)
            >>> rows.shape, components.shape
            ((5, 1), (5,))

        """
        self._check_fitted()
        if n_samples < 1:
            raise ValueError(f"n_samples must be >= 1; got {n_samples}")
        generator = check_random_state(self.random_state)
        counts = generator.multinomial(n_samples, self.weights_)
        labels = np.repeat(np.arange(len(counts)), counts)
        return self._draw(labels, generator), labels

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: NaN is allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class InformationCriteria(FittedMixture):
    """What a mixture fitted by maximum likelihood is compared by."""

    def _n_parameters(self) -> int:
        """Return the number of free parameters."""
        raise NotImplementedError

    def aic(self, X: Any, *, sample_weight: ArrayLike | None = None) -> float:
        """Return Akaike's information criterion on X; lower is better.

        It is -2 log-likelihood + 2 (number of free parameters).

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> parameters = 5  # two means, two variances and one free weight
            >>> bool(np.isclose(model.aic(X), -2 * len(X) * model.score(X) + 2 * parameters))
            True

        """
        log_likelihood, _, unit = self._total(X, sample_weight)
        return -2 * log_likelihood * unit + 2 * self._n_parameters()

    def bic(self, X: Any, *, sample_weight: ArrayLike | None = None) -> float:
        """Return the Bayesian information criterion on X; lower is better.

        It is -2 log-likelihood + log(N) (number of free parameters). With sample_weight, N is the
        sum of the weights.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X)
            >>> bool(np.isclose(model.bic(X), -8 * model.score(X) + 5 * np.log(4)))  # N = 4
            True

        """
        log_likelihood, weight, unit = self._total(X, sample_weight)
        size = math.log(weight) + math.log(unit)
        return -2 * log_likelihood * unit + self._n_parameters() * size
