"""EM around an E-step: batches that are read again and again, and the loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures._processes import Processes
from latent_kernels.mixtures.e_step import covariance_shape, e_step, weight_unit
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Batch = tuple[NDArray[Any], Floats | None]


# --- data -----------------------------------------------------------------------------------------


class Stream:
    """Batches that the caller creates again for each pass, checked as they arrive.

    Args:
        source: an iterable that can be iterated again, or a callable without arguments that returns
            an iterator; of X, (X,) or (X, sample_weight), as tuples or lists.
        check: (X, sample_weight, whether this is the first pass, whether the first batch) -> the
            checked batch.

    Raises:
        TypeError: the source can be iterated only once, or is itself an array.

    """

    def __init__(self, source: Any, check: Callable[[Any, Any, bool, bool], Batch]) -> None:
        if hasattr(source, "ndim"):
            raise TypeError(
                f"make_batches is itself an array ({type(source).__name__}), whose rows are not "
                "batches: wrap it in a list, [X]"
            )
        if not callable(source):
            if not isinstance(source, Iterable):
                raise TypeError(
                    "make_batches must be an iterable or a callable that returns one; "
                    f"got {type(source).__name__}"
                )
            if isinstance(source, Iterator):
                raise TypeError(
                    "make_batches is an iterator, which can be iterated only once, but EM reads "
                    "the data many times: pass a list, an object whose __iter__ starts anew, or a "
                    "function that returns an iterator"
                )
        self._source, self._check = source, check
        self._rows: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        rows, batches, first_pass = 0, 0, self._rows is None
        for item in self._source() if callable(self._source) else self._source:
            X, weight = _unpacked(item, batches)
            batch = self._check(X, weight, first_pass, batches == 0)
            rows, batches = rows + len(batch[0]), batches + 1
            yield batch
        if not first_pass and rows != self._rows:
            raise ValueError(
                f"make_batches gave {self._rows} rows in its first pass and {rows} in a later one"
            )
        self._rows = rows


def _dimensions(X: Any) -> int:
    """Return the dimensions of an array, a tensor or nested lists; -1 for anything else."""
    try:
        return int(X.ndim) if hasattr(X, "ndim") else np.ndim(X)
    except (TypeError, ValueError):  # lists of unequal lengths
        return -1


def _unpacked(item: Any, index: int) -> tuple[Any, Any]:
    """Return (X, sample_weight) of a batch."""
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2 and _dimensions(item[0]) == 2:
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, tuple) or _dimensions(item) != 2:
        shape = f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else ""
        shape = f" of length {len(item)}" if isinstance(item, (tuple, list)) else shape
        raise ValueError(
            "every batch of make_batches must be X [n, D], or (X,) or (X, sample_weight) as a "
            f"tuple or list; batch {index} is a {type(item).__name__}{shape}"
        )
    return item, None


# The census reads this many rows at a time, so that it makes no copy of X.
_BLOCK = 1 << 16


class Census(NamedTuple):
    """The facts about the data of a process that one pass collects."""

    rows: int  # rows of positive weight; the others do not count anywhere
    features: int  # 0 if there are no batches
    heaviest: float  # the greatest weight; the next fields are in its `weight_unit`
    weight: float  # their total
    missing: Floats  # [D], weight of the rows in which a column is missing; [0] if not asked for
    greatest: Floats  # values of the columns asked for; [0] without rows

    @property
    def unit(self) -> float:
        """The unit of the weights, in which their sums neither overflow nor vanish."""
        return weight_unit(self.heaviest)

    def with_heaviest(self, heaviest: float) -> Census:
        """Return the census in the unit of this weight, if it is the greatest by now."""
        if heaviest <= self.heaviest:
            return self
        factor = self.unit / weight_unit(heaviest) if self.heaviest > 0 else 1.0
        return self._replace(
            heaviest=heaviest, weight=self.weight * factor, missing=self.missing * factor
        )


def in_unit(weight: Floats | None, rows: int, unit: float) -> Floats | None:
    """Return the weights divided by their unit."""
    if unit == 1.0:
        return weight
    return np.full(rows, 1 / unit) if weight is None else weight / unit


def _counted_rows(weight: Floats | None, rows: int) -> NDArray[np.int64]:
    """Return the indices of the rows of positive weight."""
    return np.arange(rows) if weight is None else np.flatnonzero(weight > 0)


def survey(
    batches: Iterable[Batch], columns: Callable[[int], Sequence[int]], wants_missing: bool
) -> Census:
    """Return the census of this process's batches, in one pass.

    Args:
        batches: see above.
        columns: the number of columns -> the columns whose greatest value is needed.
        wants_missing: whether the weight of missing values is needed.

    """
    census = Census(0, 0, 0.0, 0.0, np.zeros(0), np.zeros(0))
    for X, weight in batches:
        census = census.with_heaviest(1.0 if weight is None else float(weight.max(initial=0.0)))
        weight = in_unit(weight, len(X), census.unit)
        rows = census.rows + (len(X) if weight is None else int(np.count_nonzero(weight > 0)))
        total = census.weight + (len(X) if weight is None else float(weight.sum()))
        features, most, missing = X.shape[1], census.greatest, census.missing
        looked_at = list(columns(features))
        most = most if len(most) else np.zeros(len(looked_at))
        missing = missing if len(missing) or not wants_missing else np.zeros(features)
        for start in range(0, len(X) if looked_at or wants_missing else 0, _BLOCK):
            block, w = (
                X[start : start + _BLOCK],
                None if weight is None else weight[start : start + _BLOCK],
            )
            if looked_at:
                counted = block[:, looked_at] if w is None else block[w > 0][:, looked_at]
                most = np.maximum(most, np.fmax.reduce(counted, axis=0, initial=0.0))
            if wants_missing:
                nan = np.isnan(block)
                missing = missing + (nan.sum(axis=0) if w is None else w @ nan)
        census = Census(rows, features, census.heaviest, total, missing, most)
    return census


def merged(censuses: Sequence[Census]) -> Census:
    """Return the census of all processes."""
    sizes = sorted({c.features for c in censuses if c.features > 0})
    if len(sizes) > 1:
        raise ValueError(f"X must have the same number of columns in every process; got {sizes}")
    heaviest = max(c.heaviest for c in censuses)
    censuses = [c.with_heaviest(heaviest) for c in censuses]
    filled = [c.greatest for c in censuses if len(c.greatest) > 0]
    most = np.maximum.reduce(filled) if filled else np.zeros(0)
    missing = sum((c.missing for c in censuses if len(c.missing) > 0), np.zeros(1))
    size = sizes[0] if sizes else 0
    rows, weight = sum(c.rows for c in censuses), sum(c.weight for c in censuses)
    return Census(rows, size, heaviest, weight, missing, most)


def copy_rows(
    batches: Iterable[Batch], indices: NDArray[np.int64], start: int, out: Floats
) -> None:
    """Copy the sampled rows of this process, and their weights, into out [n, D + 1].

    Other rows of out stay as they are, which is 0.

    Args:
        batches: of this process.
        indices: [n], ascending, among the rows of positive weight of all processes.
        start: the index of this process's first such row.
        out: columns of X, then the weight.

    """
    for X, weight in batches:
        counted = _counted_rows(weight, len(X))
        low, high = np.searchsorted(indices, [start, start + len(counted)])
        rows = counted[indices[low:high] - start]
        out[low:high, :-1] = X[rows]
        out[low:high, -1] = 1.0 if weight is None else weight[rows]
        start += len(counted)


# --- EM -------------------------------------------------------------------------------------------


def zero_statistics(parameters: model.Parameters) -> SufficientStatistics:
    """Return the statistics of no rows."""
    gaussian, canonical = parameters.gaussian, parameters.canonical
    components, size = gaussian.means.shape
    kind = gaussian.covariance_type
    second = (components, size) if kind == "spherical" else covariance_shape(kind, components, size)
    return SufficientStatistics(
        covariance_type=kind,
        log_likelihood=0.0,
        total_weight=0.0,
        counts=np.zeros(components),
        observed=np.zeros((components, size)),
        anchor=gaussian.means,
        first=np.zeros((components, size)),
        second=np.zeros(second),
        features=np.zeros(canonical.natural.shape),
        features_observed=np.zeros(canonical.log_partition.shape),
        feature_starts=canonical.starts,
    )


def total_statistics(
    batches: Iterable[Batch],
    parameters: model.Parameters,
    processes: Processes,
    error: Exception | None = None,
    unit: float = 1.0,
) -> SufficientStatistics:
    """Return the statistics of every batch of every process: one pass and one all-reduce.

    Args:
        batches: of this process.
        parameters: as in `e_step`.
        processes: those of the fit.
        error: an error in this process since the last all-reduce, to be raised in all of them.
        unit: of the weights.

    """
    if (
        processes.group is None
        and error is None
        and isinstance(batches, list)
        and len(batches) == 1
    ):
        X, weight = batches[0]
        return e_step(X, parameters, in_unit(weight, len(X), unit))
    nothing = zero_statistics(parameters)

    def add_to(sums: Floats) -> None:
        if error is not None:
            raise error
        for X, weight in batches:
            if len(X) > 0:
                sums += e_step(X, parameters, in_unit(weight, len(X), unit)).to_vector()

    return nothing.from_vector(processes.total(add_to, nothing.to_vector().size))


class Run(NamedTuple):
    """The result of one run of EM."""

    parameters: Any
    lower_bounds: list[float]  # the objective in each iteration
    converged: bool
    statistics: SufficientStatistics | None  # of the last E-step


class Progress:
    """Prints the progress of EM to stderr.

    Args:
        verbose: 0: nothing. 1: one line for each initialization, rewritten as it goes where stderr
            is a terminal. 2: also a line for every `interval`-th iteration.
        inits: number of initializations.
        max_iter: the maximum number of iterations of one of them.
        objective: the name of what increases.
        interval: see verbose.

    """

    _WIDTH = 24

    def __init__(
        self, verbose: int, inits: int, max_iter: int, objective: str, interval: int = 1
    ) -> None:
        self._verbose, self._inits, self._max_iter = int(verbose), inits, max_iter
        self._objective, self._interval = objective, interval
        self._init = 0
        self._line = ""

    def step(self, iteration: int, bound: float, change: float) -> None:
        """Print one iteration."""
        filled = self._WIDTH * iteration // max(self._max_iter, 1)
        bar = "#" * filled + "." * (self._WIDTH - filled)
        line = (
            f"init {self._init + 1}/{self._inits} [{bar}] {iteration}/{self._max_iter}, "
            f"{self._objective} {bound:.6f}, change {change:.1e}"
        )
        if self._verbose >= 2 and iteration % self._interval == 0:
            print(line, file=sys.stderr)
        elif self._verbose == 1 and sys.stderr.isatty():
            print("\r" + line.ljust(len(self._line)), end="", file=sys.stderr, flush=True)
        self._line = line

    def end(self, converged: bool) -> None:
        """Print the end of a run."""
        if self._verbose >= 1:
            line = self._line if self._verbose == 1 else f"init {self._init + 1}/{self._inits}"
            start = "\r" if self._verbose == 1 and sys.stderr.isatty() else ""
            print(
                f"{start}{line}: {'converged' if converged else 'did not converge'}",
                file=sys.stderr,
            )
        self._init += 1
        self._line = ""


def run(
    start: Any,
    kernel: Callable[[Any], model.Parameters],
    statistics: Callable[[model.Parameters, Exception | None], SufficientStatistics],
    advance: Callable[[SufficientStatistics, Any], tuple[float, Callable[[], Any]]],
    progress: Progress,
    processes: Processes,
    *,
    bound: float,
    max_iter: int,
    tol: float,
) -> Run:
    """Run EM from `start`, until the objective changes by less than tol.

    When to stop depends on sums that are the same in all processes. An error in one of them between
    two of these sums is handed on to the next sum, so that all of them stop there.

    Args:
        start: parameters of any kind.
        kernel: parameters -> the parameters of the E-step.
        statistics: the E-step of these, or of an error.
        advance: (statistics, previous parameters) -> the objective, and what returns new ones.
        progress: called for every iteration.
        processes: those of the fit.
        bound: the objective before the first iteration, -inf if unknown.
        max_iter: the maximum number of iterations.
        tol: see above; 0 goes on to max_iter.

    """
    parameters, sums, converged = start, None, False
    bounds: list[float] = []
    if max_iter == 0:
        return Run(parameters, bounds, converged, sums)
    mixture = processes.run_in_all(lambda: kernel(start))
    error: Exception | None = None
    for iteration in range(1, max_iter + 1):
        sums = statistics(mixture, error)
        previous, (bound, m_step) = bound, advance(sums, parameters)
        bounds.append(bound)
        converged = abs(bound - previous) < tol
        last = converged or iteration == max_iter
        try:
            parameters = m_step()
            progress.step(iteration, bound, bound - previous)
            mixture = mixture if last else kernel(parameters)
        except Exception as problem:
            if processes.group is None:
                raise
            error = problem
        if last:
            break

    def end() -> None:
        if error is not None:
            raise error
        progress.end(converged)

    processes.run_in_all(end)
    return Run(parameters, bounds, converged, sums)
