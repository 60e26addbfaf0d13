"""How good codes are by the layers of an encoder, by the iterations of a solver, and what either
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

import latent_kernels as lk
from latent_kernels.examples import measure
from latent_kernels.examples.sparse_problems import Photographs

Tensor = torch.Tensor
Score = Callable[[Tensor], float]  # of codes: less is better
Report = Callable[[int, int], object]  # what is done, and of how much

_ROUNDS = 3


def train_by_layer(
    encoder: lk.LISTA, data: Any, held_out: Tensor, score: Score, report: Report, **options: Any
) -> list[float]:
    """Trains an encoder in stages by `train_encoder(encoder, data, **options)`.

    Returns:
        The score of the codes of layer t when stage t was done, t = 1..n_layers. Later stages
        change what layers share, and the first layers of the final encoder do worse.

    """
    scores: dict[int, float] = {}

    def watch(done: int, total: int) -> None:
        depth, rest = divmod(done * encoder.n_layers, total)
        if rest == 0:  # the last call at the end of a stage comes when its best weights are back
            with torch.no_grad():
                scores[depth] = score(encoder(held_out, n_layers=depth))
        report(done, total)

    lk.train_encoder(encoder, data, progress=watch, **options)
    encoder.eval()
    return [scores[t] for t in range(1, encoder.n_layers + 1)]


class Solver:
    """The scores of codes after iterations of `sparse_encode` from 0, each computed once.

    Args:
        algorithm: "ista" or "fista".
        x: rows [N, n_features].
        dictionary: D [n_components, n_features].
        alpha: weight of the L1 norm.
        score: of codes [N, n_components].

    """

    def __init__(
        self,
        algorithm: Literal["ista", "fista"],
        x: Tensor,
        dictionary: Tensor,
        alpha: float,
        score: Score,
    ) -> None:
        self.algorithm, self.x, self.dictionary, self.alpha, self.score = (
            algorithm,
            x,
            dictionary,
            alpha,
            score,
        )
        self.known: dict[int, float] = {}

    def codes(self, iterations: int) -> Tensor:
        """[N, n_components]."""
        options: dict[str, Any] = {"alpha": self.alpha, "max_iter": iterations, "tol": 0.0}
        codes: Tensor = lk.sparse_encode(
            self.x, self.dictionary, algorithm=self.algorithm, **options
        )
        return codes

    def __call__(self, iterations: int) -> float:
        """The score."""
        if iterations not in self.known:
            self.known[iterations] = self.score(self.codes(iterations))
        return self.known[iterations]

    def fewest(self, target: float, most: int) -> int | None:
        """The least number of iterations whose score is at most `target`, of scores that fall; None
        beyond `most`.
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


class Worth(NamedTuple):
    """Iterations of a solver that come to an encoder's score."""

    iterations: int
    alpha: float
    seconds: float  # for a row


class Comparison(NamedTuple):
    """Median seconds of an encoder for a row, in one batch of all; and of a solver that is as good,
    if there is one.
    """

    seconds: float
    worth: Worth | None


def compare_with_solvers(
    encoder: lk.LISTA, score: float, solvers: Sequence[Solver], most: int, report: Report
) -> Comparison:
    """An encoder beside that solver which needs the fewest iterations, at most `most`, to come to
    its score.
    """
    best: tuple[int, Solver] | None = None
    for i, solver in enumerate(solvers):
        report(i, len(solvers))
        if best is not None and best[0] == 1:
            break
        found = solver.fewest(score, best[0] - 1 if best else most)
        if found is not None:
            best = found, solver
    report(len(solvers), len(solvers))
    x, (iterations, solver) = solvers[0].x, best or (1, solvers[0])

    def encode() -> None:
        encoder(x)

    def solve() -> None:
        solver.codes(iterations)

    with torch.no_grad():
        seconds = measure.interleaved(encode, solve, rounds=_ROUNDS)
    ours, theirs = (s / len(x) for s in seconds)
    return Comparison(ours, Worth(iterations, solver.alpha, theirs) if best else None)


@dataclass(frozen=True)
class Layers:
    """NMSE in dB of drawn codes; entry t - 1 of a curve is for t layers or iterations."""

    shape: tuple[int, int]  # of the dictionary
    samples: int
    curves: dict[str, list[float]]
    alphas: dict[str, list[float]]  # of ISTA and FISTA
    worth: dict[str, Comparison]  # of the encoders


@dataclass(frozen=True)
class Patches:
    """The Lasso objective of patches above its minimum."""

    sizes: Photographs
    dictionary: Tensor
    rows: int  # trained with
    zeros: float  # mean objective of codes of zeros, above the minimum as all below
    density: float  # share of non-zeros at the minimum
    curves: dict[str, list[float]]  # entry t - 1 for t layers or iterations
    fista: dict[int, float]  # by iterations, as far as the encoder goes
    layers_worth: list[
        int | None
    ]  # iterations of FISTA that come as far as t layers; None beyond MOST_ITERATIONS
    worth: Comparison
