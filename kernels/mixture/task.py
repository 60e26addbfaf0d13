"""One E-step on several threads: what the tasks of every kind of mixture share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels.kernels.mixture.compiled import compiled
from latent_kernels.kernels.mixture.model import Floats, Integers, Sums
from latent_kernels.kernels.mixture.parts import in_order
from latent_kernels.kernels.mixture.tiles import INVALID, ROWS

PART = (
    2**22
)  # of rows * components * features in a part: about half a millisecond; a part costs 30 us beside
MOST_PARTS = 256

# What a common center may cost in a variance, relative: (m - c)^2 / sigma^2 * epsilon / 2, by the
# working dtype.
ALLOWED = {np.dtype(np.float32): 2.0**-14, np.dtype(np.float64): 2.0**-32}

Data = NDArray[Any]
Outputs = tuple[Floats, Integers, Data]


def most_distance(dtype: np.dtype[Any]) -> float:
    """The greatest (m - c)^2 / sigma^2 for which a common center is near enough."""
    return 2 * ALLOWED[dtype] / float(np.finfo(dtype).eps)


def _deal(rows: int, work: int) -> tuple[int, int]:
    """(parts, rows in each): by the shape alone, so that the sums have the same bits for any number
    of threads.
    """
    tiles = max(1, -(-rows // ROWS))
    in_part = max(1, PART // (ROWS * work), -(-tiles // MOST_PARTS))
    return -(-tiles // in_part), in_part * ROWS


@dataclass
class _State:
    """A thread's own."""

    total: Floats
    arguments: tuple[Any, ...]
    status: int = 0


class Task:
    """One E-step: `span` does a span of rows, with `buffers` of a thread's own."""

    span: ClassVar[Callable[..., int]]
    X: Data
    work_per_row: int
    size: int  # of `total`
    total: Floats
    status: int

    def buffers(self) -> Any:
        """Of one thread."""
        raise NotImplementedError

    def arguments(
        self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs
    ) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        raise NotImplementedError

    def sums(self) -> Sums:
        """What `run` has left in `total`, in shape and about the means."""
        raise NotImplementedError

    def lost_digits(self, sums: Sums) -> bool:
        """Whether the common center has cost more digits of a variance than it may."""
        return False

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """The E-step into `self.total`, or into `outputs`; returns what the kernel reported, 0 if
        nothing.
        """
        rows = len(self.X)
        weight = np.empty(0) if sample_weight is None else sample_weight
        out = outputs or (np.empty(0), np.empty(0, np.int64), np.empty((0, 0), self.X.dtype))
        self.total = np.zeros(self.size if outputs is None else 0)
        self.status = 0
        parts, step = _deal(rows, self.work_per_row)

        def make() -> _State:
            total = np.zeros_like(self.total)
            return _State(total, self.arguments(weight, hard, self.buffers(), total, out))

        spare = [
            make()
        ]  # its types choose the compiled function, and the first thread works with it
        function = compiled(type(self).span, self.X, 0, 0, *spare[0].arguments)

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
            with np.errstate(over="ignore", invalid="ignore"):  # belongs to the thread
                np.add(self.total, state.total, out=self.total)

        if parts == 1:  # without threads there is nothing to order
            state = take()
            work(0, state)
            merge(state)
        else:
            in_order(parts, torch.get_num_threads(), take, work, merge)
        return self.status
