"""What EM needs around an E-step: batches gone through again and again, processes that add their sums, the loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from latent_kernels.kernels.mixture import model
from latent_kernels.mixture import covariance_shape, e_step
from latent_kernels.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Batch = tuple[NDArray[Any], Floats | None]
T = TypeVar("T")


# --- processes --------------------------------------------------------------------------------------------------


def _attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return compute(), None
    except Exception as error:
        return None, error


class Processes:
    """The processes of a torch.distributed group, which fit one model together; group None: this one alone.

    A method is called by all of them or by none. An error in one is raised in every process, so that none waits for it.
    """

    def __init__(self, group: Any | None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group must hold this process")

    def gather(self, value: T) -> list[T]:
        """What every process gives, in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, compute: Callable[[], T]) -> T:
        """What compute gives here, where it raises in no process."""
        answer, error = _attempt(compute)
        messages = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f"process {rank} of the group failed: {message}")
        return answer  # type: ignore[return-value]

    def first(self, compute: Callable[[], T]) -> T:
        """What compute gives in process 0, everywhere."""
        if self.group is None:
            return compute()
        answer, error = _attempt(compute) if self.rank == 0 else (None, None)
        box: list[Any] = [answer, None if error is None else str(error)]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
        if error is not None:
            raise error
        if box[1] is not None:
            raise RuntimeError(f"process 0 of the group failed: {box[1]}")
        result: T = box[0]
        return result

    def total(self, add_to: Callable[[Floats], None], size: int) -> Floats:
        """The sum over processes of what add_to adds to `size` zeros: one all-reduce."""
        sums = np.zeros(size + 1)
        _, error = _attempt(lambda: add_to(sums[:-1]))
        if error is not None:
            sums[:] = 0.0
            sums[-1] = 1.0
        if self.group is not None:
            sums = self._all_reduced(sums)
        if error is not None:
            raise error
        if sums[-1] > 0:
            raise RuntimeError("another process of the group failed; its own error says why")
        return sums[:-1]

    def _all_reduced(self, sums: Floats) -> Floats:
        nccl = dist.get_backend(self.group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        tensor = torch.from_numpy(sums).to(device)
        dist.all_reduce(tensor, group=self.group)
        result: Floats = tensor.cpu().numpy()
        return result


# --- data -------------------------------------------------------------------------------------------------------


class Stream:
    """Batches that a caller makes anew for each pass, checked as they come.

    Args:
        source: an iterable that can be gone through again, or a callable without arguments that returns an iterator;
            of X or (X, sample_weight).
        check: (X, sample_weight, whether this is the first pass, whether the first batch) -> the checked batch.

    Raises:
        TypeError: the source can be gone through only once.

    """

    def __init__(self, source: Any, check: Callable[[Any, Any, bool, bool], Batch]) -> None:
        if not callable(source):
            if not isinstance(source, Iterable):
                raise TypeError(
                    f"make_batches must be an iterable or a callable that returns one; got {type(source).__name__}"
                )
            if isinstance(source, Iterator):
                raise TypeError(
                    "make_batches is an iterator, which can be gone through only once, and EM goes through the data "
                    "many times: give a list, an object whose __iter__ starts anew, or a function that returns an "
                    "iterator"
                )
        self._source, self._check = source, check
        self._rows: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        rows, batches, first_pass = 0, 0, self._rows is None
        for item in self._source() if callable(self._source) else self._source:
            X, weight = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            batch = self._check(X, weight, first_pass, batches == 0)
            rows, batches = rows + len(batch[0]), batches + 1
            yield batch
        if not first_pass and rows != self._rows:
            raise ValueError(f"make_batches gave {self._rows} rows in its first pass and {rows} in a later one")
        self._rows = rows


class Census(NamedTuple):
    """What one pass finds out about the data of a process."""

    rows: int  # those of positive weight: the others do not count anywhere
    features: int  # 0: it has no batches
    greatest: Floats  # of each column [D], where it is asked for, or [0]


def _counted(weight: Floats | None, rows: int) -> NDArray[np.int64]:
    """The rows of positive weight."""
    return np.arange(rows) if weight is None else np.flatnonzero(weight > 0)


def survey(batches: Iterable[Batch], greatest: bool) -> Census:
    """One pass over this process's batches."""
    rows, features, most = 0, 0, np.zeros(0)
    for X, weight in batches:
        rows += len(X) if weight is None else int(np.count_nonzero(weight > 0))
        features = X.shape[1]
        if greatest:
            here = np.fmax.reduce(X, axis=0, initial=0.0).astype(np.float64)
            most = here if len(most) == 0 else np.maximum(most, here)
    return Census(rows, features, most)


def merged(censuses: Sequence[Census]) -> Census:
    """The census of all processes."""
    sizes = sorted({c.features for c in censuses if c.features > 0})
    if len(sizes) > 1:
        raise ValueError(f"X must have the same number of columns in every process; got {sizes}")
    filled = [c.greatest for c in censuses if len(c.greatest) > 0]
    most = np.maximum.reduce(filled) if filled else np.zeros(0)
    return Census(sum(c.rows for c in censuses), sizes[0] if sizes else 0, most)


def copy_rows(batches: Iterable[Batch], indices: NDArray[np.int64], start: int, out: Floats) -> None:
    """Rows and weights of the sample that lie in this process, into out [n, D + 1], which is 0 elsewhere.

    Args:
        batches: of this process.
        indices: [n], ascending, among the rows of positive weight of all processes.
        start: the index of this process's first such row.
        out: columns of X, then the weight.

    """
    for X, weight in batches:
        counted = _counted(weight, len(X))
        low, high = np.searchsorted(indices, [start, start + len(counted)])
        rows = counted[indices[low:high] - start]
        out[low:high, :-1] = X[rows]
        out[low:high, -1] = 1.0 if weight is None else weight[rows]
        start += len(counted)


# --- EM ---------------------------------------------------------------------------------------------------------


def no_statistics(parameters: model.Parameters) -> SufficientStatistics:
    """The statistics of no rows."""
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


def all_statistics(
    batches: Iterable[Batch], parameters: model.Parameters, processes: Processes
) -> SufficientStatistics:
    """The statistics of every batch of every process: one pass and one all-reduce."""
    nothing = no_statistics(parameters)

    def add_to(sums: Floats) -> None:
        for X, weight in batches:
            if len(X) > 0:
                sums += e_step(X, parameters, weight).to_vector()

    return nothing.from_vector(processes.total(add_to, nothing.to_vector().size))


class Run(NamedTuple):
    """The end of one run of EM."""

    parameters: Any
    lower_bounds: list[float]  # the mean log-likelihood in the E-step of each iteration
    converged: bool
    statistics: SufficientStatistics | None  # of the last E-step


class Progress:
    """Prints how EM goes on to stderr.

    Args:
        verbose: 0: nothing. 1: one line for each initialization, rewritten as it goes where stderr is a terminal.
            2: a line for every `interval`-th iteration too.
        inits: number of initializations.
        max_iter: most iterations of one.
        interval: see verbose.

    """

    _WIDTH = 24

    def __init__(self, verbose: int, inits: int, max_iter: int, interval: int = 1) -> None:
        self._verbose, self._inits, self._max_iter, self._interval = int(verbose), inits, max_iter, interval
        self._init = 0
        self._line = ""

    def step(self, iteration: int, bound: float, change: float) -> None:
        """After each iteration."""
        filled = self._WIDTH * iteration // max(self._max_iter, 1)
        bar = "#" * filled + "." * (self._WIDTH - filled)
        line = (
            f"init {self._init + 1}/{self._inits} [{bar}] {iteration}/{self._max_iter}, "
            f"mean log-likelihood {bound:.6f}, change {change:.1e}"
        )
        if self._verbose >= 2 and iteration % self._interval == 0:
            print(line, file=sys.stderr)
        elif self._verbose == 1 and sys.stderr.isatty():
            print("\r" + line.ljust(len(self._line)), end="", file=sys.stderr, flush=True)
        self._line = line

    def end(self, converged: bool) -> None:
        """After each run."""
        if self._verbose >= 1:
            line = self._line if self._verbose == 1 else f"init {self._init + 1}/{self._inits}"
            start = "\r" if self._verbose == 1 and sys.stderr.isatty() else ""
            print(f"{start}{line}: {'converged' if converged else 'did not converge'}", file=sys.stderr)
        self._init += 1
        self._line = ""


def run(
    start: Any,
    statistics: Callable[[Any], SufficientStatistics],
    m_step: Callable[[SufficientStatistics, Any], Any],
    progress: Progress,
    *,
    bound: float,
    max_iter: int,
    tol: float,
) -> Run:
    """EM from `start`, until the mean log-likelihood changes by less than tol.

    Args:
        start: parameters of any kind.
        statistics: the E-step of parameters.
        m_step: (statistics, previous parameters) -> new ones.
        progress: told of every iteration.
        bound: the mean log-likelihood before the first iteration, -inf where it is not known.
        max_iter: most iterations.
        tol: see above; 0 goes on to max_iter.

    """
    parameters, sums, bounds, converged = start, None, [], False
    for iteration in range(1, max_iter + 1):
        previous = bound
        sums = statistics(parameters)
        parameters = m_step(sums, parameters)
        bound = sums.log_likelihood / sums.total_weight
        bounds.append(bound)
        progress.step(iteration, bound, bound - previous)
        if abs(bound - previous) < tol:
            converged = True
            break
    if max_iter > 0:
        progress.end(converged)
    return Run(parameters, bounds, converged, sums)
