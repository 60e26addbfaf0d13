"""Sparse encoders trained layer by layer, beside ISTA and FISTA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

import latent_kernels as lk
from latent_kernels.cli.frame import Report, named
from latent_kernels.cli.sparse import problems, solvers
from latent_kernels.cli.sparse.problems import Codes, Photographs
from latent_kernels.cli.sparse.results import Comparison, Curves, Layers, Patches, Worth
from latent_kernels.cli.sparse.solvers import Score, Solver
from latent_kernels.cli.timing import interleave

Tensor = torch.Tensor

PHOTOGRAPHS = Photographs()
QUICK = Photographs(patches=40_000, components=144, steps=100)
DEMO, DEMO_LAYERS = Photographs(patches=40_000, held_out=500, components=144, steps=200), 6


class Learned(NamedTuple):
    """An encoder for drawn codes, and its training."""

    options: dict[str, Any]  # of lk.LISTA
    steps: int  # at most, of each of the three phases of a stage
    learning_rate: float


# Shares of entries that pass unthresholded, as Chen et al. (2018) have them for codes that are 10%
# dense.
_SELECT = {"select": (0.012, 0.12)}
LEARNED = {
    "LISTA": Learned({"variant": "lista", "alpha": 0.2}, 250, 0.05),
    "LISTA-CP": Learned({"variant": "cp", "alpha": 0.1, **_SELECT}, 60, 0.03),
    "ALISTA": Learned({"variant": "alista", "alpha": 0.1, **_SELECT}, 40, 0.02),
}
_DRAWN_BATCH = 64
_VALIDATION = 500  # rows
_CHECKS = 3  # validations of a phase
_EXACT = 1e-8  # tolerance of what stands for the optimum


def compare_drawn(sizes: Codes, layers: int, seed: int, report: Report) -> Layers:
    """Train encoders on codes that are known, beside ISTA and FISTA, each at its best alpha."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = problems.draw_dictionary(sizes, generator)
    x, truth = problems.draw_codes(dictionary, sizes.samples, generator)
    validation = problems.draw_codes(dictionary, _VALIDATION, generator)
    score = partial(problems.nmse, truth=truth)
    ista = [Solver("ista", x, dictionary, alpha, score) for alpha in solvers.ALPHAS]
    fista = [Solver("fista", x, dictionary, alpha, score) for alpha in solvers.ALPHAS]
    curves, alphas = _solver_curves({"ISTA": ista, "FISTA": fista}, layers, report)
    worth = {}
    for name, learned in LEARNED.items():
        encoder = lk.LISTA.from_dictionary(dictionary, n_layers=layers, **learned.options)
        batches = torch.Generator().manual_seed(seed + 1)
        curves[name] = train_by_layer(
            encoder,
            partial(problems.draw_codes, dictionary, _DRAWN_BATCH, batches),
            x,
            score,
            named(report, name),
            max(int(learned.steps * sizes.steps), 1),
            learning_rate=learned.learning_rate,
            validation=validation,
            seed=seed,
        )
        searching = named(report, f"FISTA as good as {name}")
        worth[name] = compare_with_solvers(encoder, curves[name][-1], fista, searching)
    return Layers(sizes, curves, alphas, worth)


def compare_patches(sizes: Photographs, layers: int, seed: int, report: Report) -> Patches:
    """Train a LISTA to minimize the Lasso objective, without any target codes."""
    x = problems.patches(sizes.patches, seed)
    held_out, training = x[: sizes.held_out], x[sizes.held_out :]
    report("dictionary", 0, 1)
    dictionary = problems.learn_dictionary(training, sizes, seed)
    report("dictionary", 1, 1)
    exact = lk.sparse_encode(held_out, dictionary, algorithm="cd", alpha=sizes.alpha, tol=_EXACT)
    minimum = problems.lasso(held_out, exact, dictionary, sizes.alpha)

    def score(z: Tensor) -> float:
        return problems.lasso(held_out, z, dictionary, sizes.alpha) - minimum

    ista = Solver("ista", held_out, dictionary, sizes.alpha, score)
    fista = Solver("fista", held_out, dictionary, sizes.alpha, score)
    curves, _ = _solver_curves({"ISTA": [ista], "FISTA": [fista]}, layers, report)
    encoder = lk.LISTA.from_dictionary(dictionary, sizes.alpha, layers)
    learned = curves["LISTA"] = train_by_layer(
        encoder,
        training,
        held_out,
        score,
        named(report, "LISTA"),
        sizes.steps,
        learning_rate=sizes.learning_rate,
        loss="lasso",
        dictionary=dictionary,
        alpha=sizes.alpha,
        batch_size=sizes.batch_size,
        seed=seed,
    )
    layers_worth = [fista.fewest(value, solvers.MOST_ITERATIONS) for value in learned]
    searching = named(report, "FISTA as good")
    return Patches(
        sizes,
        dictionary,
        rows=len(training),
        zeros=score(torch.zeros_like(exact)),
        density=float((exact != 0).double().mean()),
        curves=curves,
        fista=dict(sorted(fista.known.items())),
        layers_worth=layers_worth,
        worth=compare_with_solvers(encoder, learned[-1], [fista], searching),
    )


def train_by_layer(
    encoder: lk.LISTA,
    data: Any,
    held_out: Tensor,
    score: Score,
    report: Callable[[int, int], object],
    steps: int,
    **options: Any,
) -> list[float]:
    """Train an encoder in stages, each with phases of at most so many steps.

    `options` are those of `train_encoder`.

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

    lk.train_encoder(
        encoder,
        data,
        max_steps=steps,
        check_every=-(-steps // _CHECKS),
        progress=watch,
        **options,
    )
    encoder.eval()
    return [scores[t] for t in range(1, encoder.n_layers + 1)]


def _solver_curves(
    families: dict[str, list[Solver]], iterations: int, report: Report
) -> tuple[Curves, Curves]:
    """Return the best scores of each family by iterations, and the alphas at which they are
    reached.
    """
    curves: Curves = {name: [] for name in families}
    alphas: Curves = {name: [] for name in families}
    for name, family in families.items():
        for k in range(1, iterations + 1):
            best = min(family, key=lambda solver: solver(k))
            curves[name].append(best(k))
            alphas[name].append(best.alpha)
            report(name, k, iterations)
    return curves, alphas


def compare_with_solvers(
    encoder: lk.LISTA,
    score: float,
    family: Sequence[Solver],
    report: Callable[[int, int], object],
) -> Comparison:
    """Time an encoder beside the solver that needs the fewest iterations to reach its score."""
    best, iterations, x = None, solvers.MOST_ITERATIONS + 1, family[0].x
    for i, solver in enumerate(family):
        report(i, len(family))
        fewer = solver.fewest(score, iterations - 1) if iterations > 1 else None
        if fewer is not None:
            best, iterations = solver, fewer
    report(len(family), len(family))
    calls = {"encoder": partial(encoder, x)}
    if best is not None:
        calls["solver"] = partial(best.codes, iterations)
    with torch.no_grad():
        seconds = {name: times.median / len(x) for name, times in interleave(calls).items()}
    worth = None if best is None else Worth(iterations, best.alpha, seconds["solver"])
    return Comparison(seconds["encoder"], worth)
