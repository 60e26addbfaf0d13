"""Fitting a mixture by EM, over arrays, batches or processes, and online EM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data

from latent_kernels._data import as_array, warn
from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _em, _initialization
from latent_kernels.mixtures._em import Batch, Census
from latent_kernels.mixtures._fitted_mixture import CHECKS, FittedMixture
from latent_kernels.mixtures._initialization import Sample
from latent_kernels.mixtures._processes import Processes, check_agreed, spelled
from latent_kernels.mixtures.e_step import checked_sample_weight, e_step
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Self = TypeVar("Self", bound="MixtureEstimator")

# Exponent of the steps of online EM; between 1/2 and 1 it converges (Cappe & Moulines 2009).
_STEP_EXPONENT = 0.6
# A fit counts as at most so many batches, however small the weights of those that follow.
_MOST_BATCHES = 1e300
# Constructor arguments that the processes of a group need not agree on.
_OWN_SETTINGS = ("random_state", "verbose", "verbose_interval")


class MixtureEstimator(FittedMixture):
    """EM for one kind of mixture."""

    # --- fitting ----------------------------------------------------------------------------------

    def fit(
        self: Self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        group: Any | None = None,
    ) -> Self:
        """Fit by EM, `n_init` times, and keep the parameters of the greatest likelihood.

        Args:
            X: [N, D] array or tensor on the CPU, NaN where a value is missing. float32 and float64
                are used as they are, in any order and memory-mapped too, and not copied; other
                types become float64.
            y: ignored.
            sample_weight: [N], >= 0; None for 1. The unit does not matter. From the same start an
                integer weight is equivalent to so many equal rows, except where n_samples is
                counted.
            group: a torch.distributed process group (`torch.distributed.group.WORLD`, which is
                None, this process alone, before init_process_group) whose processes all call fit,
                each with its own rows, maybe none; the data are these in rank order. The result is
                that of one process with all rows up to rounding, and the same in all of them. The
                first process's random_state counts, and its parameters with warm_start; every other
                argument must be the same in all of them. Where the group has no backend for the CPU
                (NCCL alone), call torch.cuda.set_device first: sums go through the current device.

        Raises:
            ValueError: X is infinite somewhere or of a wrong shape, a constructor argument is
                wrong, there are fewer rows than components, or a covariance becomes singular (which
                a greater reg_covar prevents).

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> model = lk.GaussianMixture(2, random_state=0).fit(X, sample_weight=[1, 1, 2, 2])
            >>> model.weights_.round(3)[model.means_[:, 0].argsort()]
            array([0.333, 0.667])

        """

        def whole() -> list[Batch]:
            return [self._checked_batch(X, sample_weight, reset=True)]

        return self._fit(whole, Processes(group))

    def fit_batches(self: Self, make_batches: Any, *, group: Any | None = None) -> Self:
        """Fit by EM to data that need not fit in memory: exact, not stochastic.

        Every iteration is one pass. The result is that of `fit` on all rows at once, up to
        rounding: likelihoods and sums add over batches. One pass counts the rows, one more gathers
        those that the initialization uses.

        Args:
            make_batches: an iterable that can be iterated again (a list, an object whose __iter__
                starts anew), or a callable without arguments that returns an iterator: of X [n, D],
                or of (X,) or (X, sample_weight), as tuples or lists; a torch DataLoader without
                shuffling will do. Every pass must give the same rows in the same order.
            group: as in `fit`.

        Raises:
            TypeError: make_batches can be iterated only once, or is an array.
            ValueError: as in `fit`; a pass gives another number of rows than the first; a batch is
                none of these.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> batches = [np.array([[0.0], [9.0]]), np.array([[1.0], [10.0]])]
            >>> model = lk.GaussianMixture(2, random_state=0).fit_batches(batches)
            >>> sorted(model.means_[:, 0].round(3).tolist())
            [0.5, 9.5]

        """
        return self._fit(
            lambda: _em.Stream(make_batches, self._checked_stream_batch), Processes(group)
        )

    @contextmanager
    def _kept_on_error(self) -> Iterator[None]:
        """Restore the attributes if the body fails, so that a fitted model stays fitted."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self: Self, opened: Callable[[], Iterable[Batch]], processes: Processes) -> Self:
        with self._kept_on_error():
            warm = bool(self.warm_start) and hasattr(self, "converged_")

            def survey_data() -> tuple[Iterable[Batch], tuple[Census, dict[str, str]]]:
                self._check_settings()
                batches = opened()
                settings = {} if processes.group is None else self._agreement(warm)
                return batches, (self._survey(batches), settings)

            batches, report = processes.run_in_all(survey_data)
            reports = processes.gather(report)
            check_agreed([settings for _, settings in reports])
            self._finish(*self._best(batches, [census for census, _ in reports], warm, processes))
        if not self.converged_ and self.max_iter > 0:
            warn(
                f"EM did not converge in max_iter = {self.max_iter} iterations (the best of "
                f"n_init = {self.n_init}): raise max_iter or tol, or try another initialization"
            )
        self._warn_of_lost_components()
        return self

    def _survey(self, batches: Iterable[Batch]) -> Census:
        return _em.survey(batches, self._categorical, self._wants_missing())

    def _agreement(self, warm: bool) -> dict[str, str]:
        """Return the settings that must be the same in every process of a group."""
        settings = {
            k: spelled(v) for k, v in self.get_params(deep=False).items() if k not in _OWN_SETTINGS
        }
        settings["the class"] = type(self).__name__
        settings["being fitted already, with warm_start,"] = str(warm)
        if warm:
            settings.update(
                {
                    name: spelled(getattr(self, name, None))
                    for name in ("families_", "n_categories_")
                }
            )
        return settings

    def _best(
        self, batches: Iterable[Batch], censuses: list[Census], warm: bool, processes: Processes
    ) -> tuple[_em.Run, float]:
        """Return the likeliest of the runs of EM, and the unit of the weights in its statistics."""
        census = _em.merged(censuses)

        def prepare() -> tuple[Any, np.random.RandomState]:
            self._check_rows(census.rows)
            self.n_features_in_ = census.features
            self._prepare(census, warm)
            start = (
                self._last_parameters(census.features)
                if warm
                else self._given_parameters(census.features)
            )
            return start, check_random_state(self.random_state)

        start, generator = processes.run_in_all(prepare)
        sample = (
            None
            if start is not None
            else self._sample(batches, [c.rows for c in censuses], generator, processes)
        )
        inits = self.n_init if start is None else 1
        verbose = self.verbose if processes.rank == 0 else 0
        progress = _em.Progress(
            verbose,
            inits,
            self.max_iter,
            self._objective_name,
            getattr(self, "verbose_interval", 1),
        )
        self._observe(batches, census, processes, begins=True, online=False)

        def start_of_run() -> tuple[Any, float]:
            first = self._start(sample, generator) if sample is not None else start
            return first, self.lower_bound_ if warm else -np.inf

        def statistics(
            parameters: model.Parameters, error: Exception | None
        ) -> SufficientStatistics:
            return self._corrected(
                _em.total_statistics(batches, parameters, processes, error, census.unit), census
            )

        best: _em.Run | None = None
        for _ in range(inits):
            first, bound = processes.run_in_first(start_of_run)
            run = _em.run(
                first,
                self._kernel,
                statistics,
                self._advance,
                progress,
                processes,
                bound=bound,
                max_iter=self.max_iter,
                tol=self.tol,
            )
            if best is None or self.max_iter == 0 or run.lower_bounds[-1] > best.lower_bounds[-1]:
                best = run
        assert best is not None
        return best, census.unit

    def _last_parameters(self, features: int) -> Any:
        """Return the parameters of the last fit, for EM to continue from."""
        parameters, width = self._parameters(), self._width()
        if len(parameters.weights) != self.n_components or width != features:
            raise ValueError(
                f"the fitted model has {len(parameters.weights)} components and {width} columns, "
                f"which do not go with n_components = {self.n_components} and {features} columns "
                "of X"
            )
        return parameters

    def _check_rows(self, rows: int) -> None:
        if rows < max(2, self.n_components):
            raise ValueError(
                "there must be at least max(2, n_components) rows whose sample_weight is not zero; "
                f"got n_samples = {rows} with n_components = {self.n_components}"
            )

    def _sample(
        self,
        batches: Iterable[Batch],
        counts: list[int],
        generator: np.random.RandomState,
        processes: Processes,
    ) -> Sample:
        """Return the rows that the initialization uses, in every process."""
        size = _initialization.sample_size(self.init_size, self.n_components, sum(counts))
        indices = processes.run_in_first(
            lambda: _initialization.sample_indices(sum(counts), size, generator)
        )
        shape = (size, self.n_features_in_ + 1)
        begin = sum(counts[: processes.rank])
        # Every row comes from one process and is 0 in the others, so that the sum over processes is
        # the row itself.
        rows = processes.total(
            lambda out: _em.copy_rows(batches, indices, begin, out.reshape(shape)), size * shape[1]
        ).reshape(shape)
        weight = np.ascontiguousarray(rows[:, -1])
        X = np.ascontiguousarray(rows[:, :-1])
        if (weight == weight[0]).all():
            return Sample(X, None)
        weight /= weight.max()  # so that their sum is finite
        return Sample(X, weight / weight.mean())

    def _finish(self, run: _em.Run, unit: float) -> None:
        self._store(run.parameters)
        self.converged_ = run.converged
        self.n_iter_ = len(run.lower_bounds)
        self.lower_bounds_ = run.lower_bounds
        self.lower_bound_ = run.lower_bounds[-1] if run.lower_bounds else -np.inf
        # partial_fit continues from these, the mean over rows.
        self._statistics = (
            None if run.statistics is None else run.statistics * (1 / run.statistics.total_weight)
        )
        self._batches_seen = 0
        self._fit_weight = 0.0 if run.statistics is None else run.statistics.total_weight
        self._fit_unit = unit

    def _warn_of_lost_components(self) -> None:
        lost = np.flatnonzero(self.weights_ == 0)
        if len(lost) > 0:
            warn(
                f"components without any weight: {', '.join(map(str, lost))}. They keep the "
                "parameters that they had; use fewer components or another initialization"
            )

    def fit_predict(
        self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Fit, then return the labels [N] of the same rows.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> labels = lk.GaussianMixture(2, random_state=0).fit_predict(X)
            >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
            True

        """
        return self.fit(X, y, sample_weight).predict(X)

    def partial_fit(
        self: Self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        r"""Take one step of online EM on a batch: stochastic, not exact (`fit_batches` is exact).

        .. math::
            s \leftarrow (1 - \gamma_t) s + \gamma_t \bar s(X), \qquad \gamma_t = (t + 2)^{-0.6}

        Here s is the running mean of the sufficient statistics, the second term is their mean over
        the batch's rows under the present parameters, and t is the number of batches seen before.
        An M-step from s follows. The first batch initializes the model as `fit` does (it should be
        large enough for that) and is the first value of s. All batches count equally, however many
        rows they have: sample weights matter only within a batch. After `fit`, t starts at the
        weight of the fitted data over that of the first batch that follows, rounded up: a batch as
        large as the fitted data enters with a weight of 3^-0.6 = 0.52, one of a hundredth of their
        size with 0.06. On a stationary stream the parameters approach a maximum of the likelihood,
        but keep fluctuating. The batch's mean log-likelihood before the step is appended to
        ``lower_bounds_``. An error leaves the model as it was.

        Args:
            X: [N, D], as in `fit`.
            y: ignored.
            sample_weight: [N], >= 0; None for 1.

        Raises:
            ValueError: as in `fit`; the batch has no weight.

        Source:
            Cappe and Moulines, "On-line expectation-maximization algorithm for latent data models"
            (2009).

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> generator = np.random.default_rng(0)
            >>> model = lk.GaussianMixture(2, random_state=0)
            >>> for _ in range(10):
            ...     batch = np.concatenate([generator.normal(m, 1, size=(50, 2)) for m in (-5, 5)])
            ...     model = model.partial_fit(batch)
            ...
            >>> sorted(model.means_.round().tolist()), len(model.lower_bounds_)
            ([[-5.0, -5.0], [5.0, 5.0]], 10)

        """
        self._check_settings()
        with self._kept_on_error():
            self._step(X, sample_weight)
        self._warn_of_lost_components()
        return self

    def _step(self, X: Any, sample_weight: ArrayLike | None) -> None:
        has_begun = hasattr(self, "converged_")
        data, weight = self._checked_batch(X, sample_weight, reset=not has_begun)
        if has_begun:
            parameters = self._last_parameters(data.shape[1])
            if not len(data) or (weight is not None and not weight.any()):
                raise ValueError(
                    "the batch must have a row whose sample_weight is not zero; got n_samples = 0"
                )
            self._check_values(data, fitted=True)
        else:
            parameters = self._first_parameters(data, weight)
            self._statistics, self._batches_seen, self._fit_weight = None, 0, 0.0
            self.lower_bounds_, self.n_iter_ = [], 0
        census = self._survey([(data, weight)])
        if has_begun:
            batches = [(data, weight)]
            self._observe(batches, census, Processes(None), begins=False, online=True)
        weight = _em.in_unit(weight, len(data), census.unit)
        new = self._corrected(e_step(data, self._kernel(parameters), weight), census)
        bound, total = self._advance(new, parameters)[0], new.total_weight
        new = new * (1 / total)
        # Parameters of other shapes, set by hand, begin anew.
        if self._statistics is not None and self._statistics.has_shapes_of(new):
            if self._fit_weight > 0:
                ratio = self._fit_weight / total * (self._fit_unit / census.unit)
                self._batches_seen = math.ceil(min(ratio, _MOST_BATCHES) * (1 - 1e-12))
                self._fit_weight = 0.0
            step = (self._batches_seen + 2) ** -_STEP_EXPONENT
            new = self._statistics.about(new.anchor) * (1 - step) + new * step
        self._store(self._m_step(new, parameters))
        self._statistics = new
        self._batches_seen += 1
        self.converged_ = False
        self.lower_bounds_ = [*self.lower_bounds_, bound]
        self.lower_bound_, self.n_iter_ = bound, self.n_iter_ + 1

    def _first_parameters(self, data: NDArray[Any], weight: Floats | None) -> Any:
        """Return start parameters from the first batch of partial_fit."""
        batches: list[Batch] = [(data, weight)]
        census = self._survey(batches)
        self._check_rows(census.rows)
        self._prepare(census, False)
        self._observe(batches, census, Processes(None), begins=True, online=True)
        start = self._given_parameters(census.features)
        if start is not None:
            return start
        generator = check_random_state(self.random_state)
        return self._start(
            self._sample(batches, [census.rows], generator, Processes(None)), generator
        )

    # --- checked data -----------------------------------------------------------------------------

    def _checked_batch(self, X: Any, sample_weight: Any, *, reset: bool) -> Batch:
        with np.errstate(invalid="ignore"):  # scikit-learn's check may add inf and -inf
            data = validate_data(
                self,
                as_array(X),
                reset=reset,
                ensure_all_finite="allow-nan",
                ensure_min_samples=0,
                **CHECKS,
            )
        self._check_values(data, fitted=False)
        return self._counted_rows((data, checked_sample_weight(sample_weight, len(data))))

    def _checked_stream_batch(
        self, X: Any, sample_weight: Any, first_pass: bool, first_batch: bool
    ) -> Batch:
        if first_pass:
            return self._checked_batch(X, sample_weight, reset=first_batch)
        # The E-step finds infinite values itself; a check here would read the data twice in each
        # pass.
        data = check_array(as_array(X), ensure_all_finite=False, ensure_min_samples=0, **CHECKS)
        if data.shape[1] != self.n_features_in_:
            raise ValueError(
                f"every batch must have {self.n_features_in_} columns; got one with {data.shape[1]}"
            )
        data, weight = self._counted_rows((data, checked_sample_weight(sample_weight, len(data))))
        self._check_values(data, fitted=True)
        return data, weight
