"""What the mixture estimators share: fitting by EM over arrays, batches or processes, online EM, prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from latent_kernels.estimators import em, initialization
from latent_kernels.estimators.em import Batch, Census, Processes
from latent_kernels.estimators.initialization import Sample
from latent_kernels.kernels.mixture import model
from latent_kernels.mixture import checked_sample_weight, e_step, posterior
from latent_kernels.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Self = TypeVar("Self", bound="MixtureEstimator")

_CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32], "order": None, "copy": False}
# Exponent of the steps of online EM; between 1/2 and 1 it converges (Cappe & Moulines 2009).
_STEP_EXPONENT = 0.6


def _as_array(X: Any) -> Any:
    """A tensor as an array over the same memory; anything else as it is."""
    if not isinstance(X, torch.Tensor):
        return X
    if X.device.type != "cpu" or X.layout is not torch.strided:
        raise TypeError(f"X must be a dense tensor on the CPU; got one on {X.device}, {X.layout}")
    X = X.detach().resolve_neg()
    return (X if X.dtype in (torch.float32, torch.float64) else X.double()).numpy()


class MixtureEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """EM for one kind of mixture; the parameters have any form that the subclass's hooks agree on."""

    # --- what a subclass says -----------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Raises where a constructor argument is wrong."""
        for name, least in (("n_components", 1), ("max_iter", 0), ("n_init", 1), ("verbose", 0)):
            value = getattr(self, name)
            if not isinstance(value, (Integral, np.bool_)) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
        for name in ("tol", "reg_covar"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < np.inf:
                raise ValueError(f"{name} must be a number >= 0; got {value!r}")
        if self.init_params not in initialization.INIT_PARAMS:
            known = ", ".join(map(repr, initialization.INIT_PARAMS))
            raise ValueError(f"init_params must be one of {known}; got {self.init_params!r}")
        size = self.init_size
        if size is not None and not (isinstance(size, Integral) and size >= self.n_components):
            raise ValueError(f"init_size must be None or an integer >= n_components; got {size!r}")

    def _check_values(self, X: NDArray[Any], fitted: bool) -> None:
        """Raises where X holds values that the model cannot; fitted: by what is known of the data since the census."""

    def _wants_greatest(self) -> bool:
        """Whether the census must say the greatest value of each column."""
        return False

    def _prepare(self, census: Census, warm: bool) -> None:
        """Called with the census before EM begins; warm: raises where fitted parameters do not go with it."""

    def _given(self, features: int) -> Any | None:
        """Start parameters, where the constructor's arguments say all of them."""
        raise NotImplementedError

    def _start(self, sample: Sample, generator: np.random.RandomState) -> Any:
        """Start parameters from a sample of the rows."""
        raise NotImplementedError

    def _parameters(self) -> Any:
        """The fitted parameters; raises where the constructor's arguments do not go with them."""
        raise NotImplementedError

    def _store(self, parameters: Any) -> None:
        """Sets the fitted attributes."""
        raise NotImplementedError

    def _kernel(self, parameters: Any) -> model.Parameters:
        """What the E-step takes."""
        raise NotImplementedError

    def _m_step(self, statistics: SufficientStatistics, previous: Any) -> Any:
        """New parameters."""
        raise NotImplementedError

    def _n_parameters(self) -> int:
        """The number of free parameters."""
        raise NotImplementedError

    def _draw(self, labels: NDArray[np.int64], generator: np.random.RandomState) -> Floats:
        """A row [D] of each of these components (ascending)."""
        raise NotImplementedError

    # --- fitting ------------------------------------------------------------------------------------------------

    def fit(
        self: Self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None, *, group: Any | None = None
    ) -> Self:
        """Fits by EM, `n_init` times, and keeps the parameters of the greatest likelihood.

        Args:
            X: [N, D] array or tensor on the CPU, NaN where a value is missing. float32 and float64 are taken as they
                are, in any order and memory-mapped too, and not copied; other types become float64.
            y: ignored.
            sample_weight: [N], >= 0; None for 1. An integer weight is as good as so many equal rows.
            group: a torch.distributed process group (`torch.distributed.group.WORLD`, which is None, this process
                alone, before init_process_group) whose processes all call fit, each with its own rows, maybe none; the
                data are these in rank order. The result is that of one process with all rows up to rounding, and the
                same in all of them. The first process's random_state counts.

        Raises:
            ValueError: X is infinite somewhere or of a wrong shape, a constructor argument is wrong, there are fewer
                rows than components, or a covariance becomes singular (a greater reg_covar mends it).

        """
        processes = Processes(group)

        def whole() -> list[Batch]:
            self._check_settings()
            return [self._checked_batch(X, sample_weight, reset=True)]

        return self._fit(processes.together(whole), processes)

    def fit_batches(self: Self, make_batches: Any, *, group: Any | None = None) -> Self:
        """Fits by EM to data that need not fit in memory: exact, not stochastic; every iteration is one pass.

        The result is that of `fit` on all rows at once, up to rounding: likelihoods and sums add over batches. One
        pass counts the rows, one more gathers those that the initialization looks at.

        Args:
            make_batches: an iterable that can be gone through again (a list, an object whose __iter__ starts anew), or
                a callable without arguments that returns an iterator: of X [n, D] or (X, sample_weight). Every
                pass must give the same rows in the same order.
            group: as in `fit`.

        Raises:
            TypeError: make_batches can be gone through only once.
            ValueError: as in `fit`; a pass gives another number of rows than the first.

        """
        processes = Processes(group)

        def stream() -> em.Stream:
            self._check_settings()
            return em.Stream(make_batches, self._checked_stream_batch)

        return self._fit(processes.together(stream), processes)

    def _fit(self: Self, batches: Iterable[Batch], processes: Processes) -> Self:
        counts = processes.gather(processes.together(lambda: em.survey(batches, self._wants_greatest())))
        census = em.merged(counts)
        self._check_rows(census.rows)
        self.n_features_in_ = census.features
        warm = self.warm_start and hasattr(self, "converged_")
        self._prepare(census, warm)
        start = self._parameters() if warm else self._given(census.features)
        generator = check_random_state(self.random_state)
        sample = None
        if start is None:
            sample = self._sample(batches, [c.rows for c in counts], generator, processes)
        inits = self.n_init if start is None else 1
        verbose = self.verbose if processes.rank == 0 else 0
        progress = em.Progress(verbose, inits, self.max_iter, getattr(self, "verbose_interval", 1))
        best: em.Run | None = None
        for _ in range(inits):
            first = start if sample is None else processes.first(lambda: self._start(sample, generator))
            run = em.run(
                first,
                lambda p: em.all_statistics(batches, self._kernel(p), processes),
                self._m_step,
                progress,
                bound=self.lower_bound_ if warm else -np.inf,
                max_iter=self.max_iter,
                tol=self.tol,
            )
            if best is None or self.max_iter == 0 or run.lower_bounds[-1] > best.lower_bounds[-1]:
                best = run
        assert best is not None
        self._finish(best)
        return self

    def _check_rows(self, rows: int) -> None:
        if rows < max(2, self.n_components):
            raise ValueError(
                "there must be at least max(2, n_components) rows whose sample_weight is not zero; "
                f"got n_samples = {rows} with n_components = {self.n_components}"
            )

    def _sample(
        self, batches: Iterable[Batch], counts: list[int], generator: np.random.RandomState, processes: Processes
    ) -> Sample:
        """The rows that the initialization looks at, in every process."""
        size = initialization.sample_size(self.init_size, self.n_components, sum(counts))
        indices = processes.first(lambda: initialization.sample_indices(sum(counts), size, generator))
        shape = (size, self.n_features_in_ + 1)
        begin = sum(counts[: processes.rank])
        # Every row comes from one process and is 0 in the others, so that the sum over processes is the row itself.
        rows = processes.total(
            lambda out: em.copy_rows(batches, indices, begin, out.reshape(shape)), size * shape[1]
        ).reshape(shape)
        weight = np.ascontiguousarray(rows[:, -1])
        return Sample(np.ascontiguousarray(rows[:, :-1]), None if (weight == 1).all() else weight)

    def _finish(self, run: em.Run) -> None:
        self._store(run.parameters)
        self.converged_ = run.converged
        self.n_iter_ = len(run.lower_bounds)
        self.lower_bounds_ = run.lower_bounds
        self.lower_bound_ = run.lower_bounds[-1] if run.lower_bounds else -np.inf
        # What partial_fit goes on from: the mean over rows.
        self._statistics = None if run.statistics is None else run.statistics * (1 / run.statistics.total_weight)
        self._batches_seen = 0 if run.statistics is None else 1
        if not run.converged and self.max_iter > 0:
            warnings.warn(
                f"EM did not converge in max_iter = {self.max_iter} iterations (the best of n_init = {self.n_init}): "
                "raise max_iter or tol, or try another initialization",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._warn_of_lost_components(stacklevel=5)

    def _warn_of_lost_components(self, stacklevel: int) -> None:
        lost = np.flatnonzero(self.weights_ == 0)
        if len(lost) > 0:
            warnings.warn(
                f"components without any weight: {', '.join(map(str, lost))}. They keep the parameters that they had; "
                "use fewer components or another initialization",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> NDArray[np.int64]:
        """`fit`, then `predict` for the same rows: labels [N]."""
        return self.fit(X, y, sample_weight).predict(X)

    def partial_fit(self: Self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        r"""One step of online EM on a batch: stochastic, not exact; `fit_batches` is exact.

        .. math::
            s \leftarrow (1 - \gamma_t) s + \gamma_t \bar s(X), \qquad \gamma_t = (t + 2)^{-0.6}

        with the mean statistics over the batch's rows under the present parameters, t batches seen before, and an
        M-step from s. The first batch initializes as `fit` does (it should be large enough for that) and gives s
        alone. After `fit` the fit counts as the first batch. Parameters approach a maximum of the likelihood on a
        stationary stream, and never rest. `lower_bounds_` gains the batch's mean log-likelihood before the step.

        Args:
            X: [N, D], as in `fit`.
            y: ignored.
            sample_weight: [N], >= 0; None for 1.

        Raises:
            ValueError: as in `fit`; the batch has no weight.

        Source: Cappe and Moulines, "On-line expectation-maximization algorithm for latent data models" (2009).

        """
        self._check_settings()
        begun = hasattr(self, "converged_")
        data, weight = self._checked_batch(X, sample_weight, reset=not begun)
        if begun:
            parameters = self._parameters()
            if not len(data) or (weight is not None and not weight.any()):
                raise ValueError("the batch must have a row whose sample_weight is not zero; got n_samples = 0")
            self._check_values(data, fitted=True)
        else:
            parameters = self._first_parameters(data, weight)
            self._statistics, self._batches_seen, self.lower_bounds_, self.n_iter_ = None, 0, [], 0
        new = e_step(data, self._kernel(parameters), weight)
        bound = new.log_likelihood / new.total_weight
        new = new * (1 / new.total_weight)
        if self._statistics is not None:
            step = (self._batches_seen + 2) ** -_STEP_EXPONENT
            new = self._statistics.about(new.anchor) * (1 - step) + new * step
        self._store(self._m_step(new, parameters))
        self._statistics = new
        self._batches_seen += 1
        self.converged_ = False
        self.lower_bounds_.append(bound)
        self.lower_bound_, self.n_iter_ = bound, self.n_iter_ + 1
        self._warn_of_lost_components(stacklevel=3)
        return self

    def _first_parameters(self, data: NDArray[Any], weight: Floats | None) -> Any:
        """Start parameters from the first batch of partial_fit."""
        batches: list[Batch] = [(data, weight)]
        census = em.survey(batches, self._wants_greatest())
        self._check_rows(census.rows)
        self._prepare(census, False)
        start = self._given(census.features)
        if start is not None:
            return start
        generator = check_random_state(self.random_state)
        return self._start(self._sample(batches, [census.rows], generator, Processes(None)), generator)

    # --- checked data -------------------------------------------------------------------------------------------

    def _checked_batch(self, X: Any, sample_weight: Any, *, reset: bool) -> Batch:
        data = validate_data(
            self, _as_array(X), reset=reset, ensure_all_finite="allow-nan", ensure_min_samples=0, **_CHECKS
        )
        self._check_values(data, fitted=False)
        return data, checked_sample_weight(sample_weight, len(data))

    def _checked_stream_batch(self, X: Any, sample_weight: Any, first_pass: bool, first_batch: bool) -> Batch:
        if first_pass:
            return self._checked_batch(X, sample_weight, reset=first_batch)
        # The E-step finds infinite values by itself; looking for them here would read the data twice in each pass.
        data = check_array(_as_array(X), ensure_all_finite=False, ensure_min_samples=0, **_CHECKS)
        if data.shape[1] != self.n_features_in_:
            raise ValueError(f"every batch must have {self.n_features_in_} columns; got one with {data.shape[1]}")
        self._check_values(data, fitted=True)
        return data, checked_sample_weight(sample_weight, len(data))

    def _fitted_data(self, X: Any) -> tuple[NDArray[Any], model.Parameters]:
        check_is_fitted(self, "weights_")
        data = validate_data(self, _as_array(X), reset=False, ensure_all_finite="allow-nan", **_CHECKS)
        self._check_values(data, fitted=True)
        return data, self._kernel(self._parameters())

    # --- with a fitted model ------------------------------------------------------------------------------------

    def score_samples(self, X: Any) -> Floats:
        """log p(x_i), [N] float64; of the values that are there, where some are missing."""
        density, _, _ = posterior(*self._fitted_data(X), log_density=True)
        assert density is not None
        return density

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of log p(x_i) over the rows of X."""
        return float(self.score_samples(X).mean())

    def predict(self, X: Any) -> NDArray[np.int64]:
        """The component of greatest responsibility for each row, [N]."""
        _, labels, _ = posterior(*self._fitted_data(X), labels=True)
        assert labels is not None
        return labels

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The responsibilities p(k | x_i), [N, n_components] in X's dtype."""
        _, _, responsibilities = posterior(*self._fitted_data(X), responsibilities=True)
        assert responsibilities is not None
        return responsibilities

    def sample(self, n_samples: int = 1) -> tuple[Floats, NDArray[np.int64]]:
        """Draws rows [n_samples, D], ordered by component, and their components [n_samples]."""
        check_is_fitted(self, "weights_")
        if n_samples < 1:
            raise ValueError(f"n_samples must be >= 1; got {n_samples}")
        generator = check_random_state(self.random_state)
        counts = generator.multinomial(n_samples, self.weights_)
        labels = np.repeat(np.arange(len(counts)), counts)
        return self._draw(labels, generator), labels

    def aic(self, X: Any) -> float:
        """Akaike's information criterion on X: -2 log-likelihood + 2 (number of free parameters); lower is better."""
        return -2 * float(self.score_samples(X).sum()) + 2 * self._n_parameters()

    def bic(self, X: Any) -> float:
        """The Bayesian information criterion on X: -2 log-likelihood + log(N) (number of free parameters)."""
        density = self.score_samples(X)
        return -2 * float(density.sum()) + self._n_parameters() * math.log(len(density))

    def __sklearn_tags__(self) -> Any:
        """scikit-learn's tags: NaN is allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
