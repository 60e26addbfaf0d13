"""ISTA and FISTA: the quality of their codes by the number of iterations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

import latent_kernels as lk

Tensor = torch.Tensor
Score = Callable[[Tensor], float]  # of codes: less is better

# For drawn codes, whose best alpha depends on the number of iterations.
ALPHAS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
MOST_ITERATIONS = 256  # the most iterations of FISTA to reach an encoder's score


@dataclass(eq=False)
class Solver:
    """The scores of codes after iterations of `sparse_encode` from 0, each computed once."""

    algorithm: Literal["ista", "fista"]
    x: Tensor  # rows [N, n_features]
    dictionary: Tensor  # [n_components, n_features]
    alpha: float  # weight of the L1 norm
    score: Score
    known: dict[int, float] = field(default_factory=dict)  # by iterations

    def codes(self, iterations: int) -> Tensor:
        """Return the codes [N, n_components]."""
        codes, _ = lk.sparse_encode(
            self.x,
            self.dictionary,
            algorithm=self.algorithm,
            alpha=self.alpha,
            max_iter=iterations,
            tol=0.0,
            return_gap=True,
        )
        return codes

    def __call__(self, iterations: int) -> float:
        """Return the score of the codes."""
        if iterations not in self.known:
            self.known[iterations] = self.score(self.codes(iterations))
        return self.known[iterations]

    def fewest(self, target: float, most: int) -> int | None:
        """Return the least number of iterations whose score is at most `target`, or None if more
        than `most` are needed.

        Scores fall with iterations.
        """
        low, high = 0, 1
        while self(high) > target:
            if high == most:
                return None
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) <= target else (middle, high)
        return high
