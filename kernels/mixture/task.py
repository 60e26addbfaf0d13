"""One E-step on several threads, for every kind of mixture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels.kernels.mixture.compiled import compiled
from latent_kernels.kernels.mixture.model import Floats, Integers, Parameters, Sums
from latent_kernels.kernels.mixture.parts import in_order
from latent_kernels.kernels.mixture.tiles import INVALID, ROWS

# Multiply-adds in a part, about half a millisecond; a part costs 30 us. Its sums are cleared, go
# through the caches and are merged under a lock: for each of them a part does this much.
WORK_PER_PART = 2**24
WORK_PER_SUM = 2**10
WORK_OF_EXP = 32  # multiply-adds that take as long
MAX_PARTS = 256
CACHE_LINE = 64  # bytes, and the widest register

# The greatest relative error of a variance by a common center, (m - c)^2 / sigma^2 * epsilon / 2,
# for each dtype that is computed in.
MAX_RELATIVE_ERROR = {np.dtype(np.float32): 2.0**-14, np.dtype(np.float64): 2.0**-32}

Data = NDArray[Any]
Outputs = tuple[Floats, Integers, Data]


@functools.cache
def max_distance(dtype: np.dtype[Any]) -> float:
    """Return the greatest (m - c)^2 / sigma^2 for which a common center is accurate enough."""
    return 2 * MAX_RELATIVE_ERROR[dtype] / float(np.finfo(dtype).eps)


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Data:
    """Return zeros that begin at a cache line: NumPy's begin anywhere in one.

    Tiles are read a register at a time, and one of 64 bytes would lie in two lines every time.
    """
    spare = CACHE_LINE // dtype.itemsize
    buffer = np.zeros(size + spare, dtype)
    start = -buffer.ctypes.data % CACHE_LINE // dtype.itemsize
    return buffer[start : start + size]


def _split(rows: int, work: int, size: int) -> tuple[int, int]:
    """Return (number of parts, rows in each).

    They depend on the shape alone, so that the sums have the same bits for any number of threads.
    """
    tiles = max(1, -(-rows // ROWS))
    enough = max(WORK_PER_PART, WORK_PER_SUM * size)
    in_part = max(1, enough // (ROWS * work), -(-tiles // MAX_PARTS))
    return -(-tiles // in_part), in_part * ROWS


@dataclass
class _State:
    """The sums and arguments of one worker thread."""

    total: Floats
    arguments: tuple[Any, ...]
    status: int = 0


class Task:
    """One E-step: `span` works on consecutive rows, in the `workspace` of one worker thread."""

    span: ClassVar[Callable[..., int]]
    X: Data
    parameters: Parameters
    dtype: np.dtype[Any]  # that is computed in
    common_center: bool  # whether one center is subtracted from the rows for all components
    work_per_row: int  # multiply-adds
    size: int  # of `total`
    total: Floats
    status: int

    def workspace(self) -> Any:
        """Return the workspace of one worker thread."""
        raise NotImplementedError

    def arguments(
        self, weight: Floats, hard: bool, workspace: Any, total: Floats, out: Outputs
    ) -> tuple[Any, ...]:
        """Return the arguments of `span` after (X, first, last)."""
        raise NotImplementedError

    def sums(self) -> Sums:
        """Return the sums that `run` has left in `total`, as arrays and about the means."""
        raise NotImplementedError

    def distance(self, means: Floats) -> Floats:
        """Return the distances of means [K, G] from the values that the kernel subtracts from X."""
        raise NotImplementedError

    def about(self, means: Floats) -> Task:
        """Return the same E-step, in which each component subtracts its own one of these means."""
        raise NotImplementedError

    def statistics(self, sample_weight: Floats | None, hard: bool) -> tuple[Sums, bool]:
        """Return the sums, and whether rows were left out; repeat sums that have lost precision."""
        incomplete = self.run(sample_weight, hard, None) != 0
        sums = self.sums()
        means = self._means_with_lost_digits(sums)
        if means is not None:
            again = self.about(means)
            again.run(sample_weight, hard, None)
            sums = again.sums()
        return sums, incomplete

    def _means_with_lost_digits(self, sums: Sums) -> Floats | None:
        """Return the new means if a variance has lost too much precision, else None.

        That happens where the value subtracted from the rows is far from their new mean, relative
        to their new standard deviation. Variances below the resolution of the data are rounding
        errors and do not count. In float64 the sums are moved to the old means without a gain.
        """
        gaussian = self.parameters.gaussian
        if gaussian.means.size == 0 or not (self.common_center or self.dtype == np.float32):
            return None
        observed = np.maximum(sums.observed, 1e-300)
        delta = sums.first / observed
        if gaussian.covariance_type == "tied":
            second = sums.second.diagonal() - (sums.first * delta).sum(axis=0)
            variance = second / max(float(sums.counts.sum()), 1e-300)
        else:
            full = gaussian.covariance_type == "full"
            second = sums.second.diagonal(axis1=1, axis2=2) if full else sums.second
            variance = second / observed - delta * delta
        means = gaussian.means + delta
        distance, bound = self.distance(means), max_distance(self.dtype)
        if not (distance * distance > bound * variance).any():
            return None
        least = variance + (float(np.finfo(self.dtype).eps) * means) ** 2
        lost = (distance * distance > bound * least) & (sums.observed > 0)
        return means if lost.any() else None

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """Run the E-step into `self.total`, or into `outputs`; return the kernels' reports.

        A report is a sum of MISSING and INVALID, 0 if there is nothing to report.
        """
        rows = len(self.X)
        weight = np.empty(0) if sample_weight is None else sample_weight
        out = outputs or (np.empty(0), np.empty(0, np.int64), np.empty((0, 0), self.X.dtype))
        self.total = np.zeros(self.size if outputs is None else 0)
        self.status = 0
        parts, step = _split(rows, self.work_per_row, self.size)

        def make() -> _State:
            total = np.zeros_like(self.total)
            return _State(total, self.arguments(weight, hard, self.workspace(), total, out))

        # The types of the first state choose the compiled function; the first thread uses it.
        spare = [make()]
        function = compiled(type(self).span, self.dtype, self.X, 0, 0, *spare[0].arguments)

        def take() -> _State:
            try:
                return spare.pop()
            except IndexError:
                return make()

        def work(part: int, state: _State) -> None:
            state.total[:] = 0
            last = min((part + 1) * step, rows)
            state.status = (
                0
                if self.status & INVALID
                else function(self.X, part * step, last, *state.arguments)
            )

        def merge(state: _State) -> None:  # under a lock
            self.status |= state.status
            with np.errstate(over="ignore", invalid="ignore"):  # the setting is each thread's own
                np.add(self.total, state.total, out=self.total)

        if parts == 1:  # without threads there is nothing to order
            state = take()
            work(0, state)
            merge(state)
        else:
            in_order(parts, torch.get_num_threads(), take, work, merge)
        return self.status
