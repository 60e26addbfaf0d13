"""What a score-function gradient is asked to compute: the shapes and choices that every backend is
handed.
"""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """S samples of q over a canonical [groups, samples, rows, cols], where each group has a seed of
    its own.

    family          parameters                                   z
    "gaussian"      mean, logvar [G, N, D]                       [G, S, N, D]
    "bernoulli"     logits [G, N, D]                             [G, S, N, D], 0 or 1
    "antithetic"    logits [G, N, D]                             [G, 2, S, N, D], 0 or 1: DisARM's pairs
    "categorical"   logits [G, N, D, K]                          [G, S, N, D], int64

    values are [G, S, N], or [G, S, N, D] where `per_element`; of pairs [G, 2, S, N] or [G, 2, S, N,
    D].
    """

    family: str
    groups: int
    samples: int
    rows: int
    cols: int
    classes: int  # K; 0 but for the categorical family
    per_element: bool
    control: str  # "none", "leave_one_out", "optimal"; a given baseline goes with "none"
    folds: int  # of "optimal"; fold k is samples [k S // folds, (k + 1) S // folds)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Groups, samples, rows, cols, classes."""
        return self.groups, self.samples, self.rows, self.cols, self.classes
