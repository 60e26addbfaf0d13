"""`latent-kernels sparse`: sparse encoders that learn, by layer, beside ISTA and FISTA: drawn
codes, photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import latent_kernels as lk
from latent_kernels.examples import sparse_pictures, sparse_problems
from latent_kernels.examples.sparse_curves import (
    Comparison,
    Layers,
    Patches,
    Solver,
    compare_with_solvers,
    train_by_layer,
)
from latent_kernels.examples.sparse_problems import Photographs
from latent_kernels.examples.variance_command import check_writable

Tensor = torch.Tensor
Report = Callable[[str, int, int], object]  # what is under way, how much of it is done, of how much
Score = Callable[[Tensor], float]

FIGURES = ("sparse_layers.png", "sparse_patches.png")
# Of ISTA and FISTA for drawn codes, whose best alpha depends on the number of iterations.
ALPHAS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
MOST_ITERATIONS = 256  # of FISTA, to come to what an encoder does
_EXACT = 1e-8  # tolerance of what stands for the optimum


@dataclass(frozen=True)
class Learned:
    """An encoder for drawn codes, and its training."""

    name: str
    options: dict[str, Any]  # of lk.LISTA
    steps: int  # at most, of each of the three phases of a stage
    learning_rate: float


# Shares of entries that pass unthresholded, as Chen et al. (2018) have them for codes that are 10%
# dense.
_SELECT = {"select": (0.012, 0.12)}
LEARNED = (
    Learned("LISTA", {"variant": "lista", "alpha": 0.2}, 250, 0.05),
    Learned("LISTA-CP", {"variant": "cp", "alpha": 0.1, **_SELECT}, 60, 0.03),
    Learned("ALISTA", {"variant": "alista", "alpha": 0.1, **_SELECT}, 40, 0.02),
)
_DRAWN_BATCH, _VALIDATION, _CHECKS = (
    64,
    500,
    3,
)  # rows of a batch and to validate with; validations of a phase
_QUICK = 4  # so many times fewer steps


PHOTOGRAPHS = Photographs()
QUICK = Photographs(patches=40_000, components=144, steps=100)
DEMO, DEMO_LAYERS = Photographs(patches=40_000, held_out=500, components=144, steps=200), 8


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    layers: int
    features: int
    components: int
    samples: int
    seed: int
    out: Path  # a folder, made if it is not there
    quick: bool

    def check(self) -> None:
        """Raises OSError for files that could not be written, before there is any work to lose."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            error.filename = str(self.out)
            raise
        for name in FIGURES:
            check_writable(self.out / name)


# --- drawn codes ----------------------------------------------------------------------------------


def compare_drawn(request: Request, report: Report) -> Layers:
    """Encoders trained on codes that are known, beside ISTA and FISTA, each at its best alpha."""
    generator = torch.Generator().manual_seed(request.seed)
    problem = sparse_problems.drawn(request.features, request.components, generator)
    x, truth = problem.draw(request.samples, generator)
    validation = problem.draw(_VALIDATION, generator)

    def score(z: Tensor) -> float:
        return sparse_problems.nmse(z, truth)

    solvers = {
        "ISTA": [Solver("ista", x, problem.dictionary, alpha, score) for alpha in ALPHAS],
        "FISTA": [Solver("fista", x, problem.dictionary, alpha, score) for alpha in ALPHAS],
    }
    curves, alphas = _solver_curves(solvers, request.layers, report)
    found: dict[str, Comparison] = {}
    for learned in LEARNED:
        name, encoder = (
            learned.name,
            lk.LISTA.from_dictionary(
                problem.dictionary, n_layers=request.layers, **learned.options
            ),
        )
        batches = _batches(problem, request.seed + 1)
        steps = max(learned.steps // (_QUICK if request.quick else 1), 1)
        options = {**_recipe(steps, learned.learning_rate, request.seed), "validation": validation}
        curves[name] = train_by_layer(encoder, batches, x, score, _named(report, name), **options)
        searching = _named(report, f"FISTA as good as {name}")
        found[name] = compare_with_solvers(
            encoder, curves[name][-1], solvers["FISTA"], MOST_ITERATIONS, searching
        )
    return Layers((request.components, request.features), request.samples, curves, alphas, found)


def _batches(problem: sparse_problems.Drawn, seed: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """New rows and codes at each call, without end."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: problem.draw(_DRAWN_BATCH, generator)


def _recipe(steps: int, learning_rate: float, seed: int) -> dict[str, Any]:
    check_every = -(-steps // _CHECKS)
    return {
        "max_steps": steps,
        "check_every": check_every,
        "learning_rate": learning_rate,
        "seed": seed,
    }


def _solver_curves(
    solvers: dict[str, list[Solver]], iterations: int, report: Report
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The best scores by iterations, and the alphas that they are for."""
    curves: dict[str, list[float]] = {}
    alphas: dict[str, list[float]] = {}
    for name, family in solvers.items():
        best = []
        for k in range(1, iterations + 1):
            best.append(min((solver(k), solver.alpha) for solver in family))
            report(name, k, iterations)
        curves[name], alphas[name] = [b[0] for b in best], [b[1] for b in best]
    return curves, alphas


def _named(report: Report, what: str) -> Callable[[int, int], object]:
    return lambda done, total: report(what, done, total)


# --- photographs ----------------------------------------------------------------------------------


def compare_patches(sizes: Photographs, layers: int, seed: int, report: Report) -> Patches:
    """A LISTA that learns to make the Lasso objective small, without any codes to learn from,
    beside ISTA and FISTA.
    """
    x = sparse_problems.patches(sizes.patches, seed)
    held_out, training = x[: sizes.held_out], x[sizes.held_out :]
    report("dictionary", 0, 1)
    dictionary = sparse_problems.learn_dictionary(
        training, sizes.components, sizes.alpha, sizes.passes, seed
    )
    report("dictionary", 1, 1)
    exact = lk.sparse_encode(held_out, dictionary, algorithm="cd", alpha=sizes.alpha, tol=_EXACT)
    minimum = sparse_problems.lasso(held_out, exact, dictionary, sizes.alpha)

    def score(z: Tensor) -> float:
        return sparse_problems.lasso(held_out, z, dictionary, sizes.alpha) - minimum

    fista = Solver("fista", held_out, dictionary, sizes.alpha, score)
    solvers = {"ISTA": [Solver("ista", held_out, dictionary, sizes.alpha, score)], "FISTA": [fista]}
    curves, _ = _solver_curves(solvers, layers, report)
    encoder = lk.LISTA.from_dictionary(dictionary, sizes.alpha, layers)
    objective = {
        "loss": "lasso",
        "dictionary": dictionary,
        "alpha": sizes.alpha,
        "batch_size": sizes.batch_size,
    }
    options = {**_recipe(sizes.steps, sizes.learning_rate, seed), **objective}
    curves["LISTA"] = train_by_layer(
        encoder, training, held_out, score, _named(report, "LISTA"), **options
    )
    layers_worth = [fista.fewest(value, MOST_ITERATIONS) for value in curves["LISTA"]]
    searching = _named(report, "FISTA as good")
    return Patches(
        sizes,
        dictionary,
        rows=len(training),
        zeros=score(torch.zeros_like(exact)),
        density=float((exact != 0).double().mean()),
        curves=curves,
        layers_worth=layers_worth,
        worth=compare_with_solvers(
            encoder, curves["LISTA"][-1], [fista], MOST_ITERATIONS, searching
        ),
        fista=dict(sorted(fista.known.items())),
    )


def demonstrate(sizes: Photographs, layers: int, seed: int) -> Patches:
    """Compares on photographs without a word."""
    return compare_patches(sizes, layers, seed, lambda what, done, total: None)


# --- the command ----------------------------------------------------------------------------------


def run(request: Request, console: Console) -> bool:
    """Compares, draws and prints; returns whether it was interrupted after the first figure."""
    request.check()
    layers_path, patches_path = (request.out / name for name in FIGURES)
    with _progress(console) as report:
        layers = compare_drawn(request, report)
    sparse_pictures.draw_layers(layers, layers_path)
    _print(console, about_drawn(layers), layers_table(layers))
    try:
        with _progress(console) as report:
            patches = compare_patches(
                QUICK if request.quick else PHOTOGRAPHS, request.layers, request.seed, report
            )
        sparse_pictures.draw_patches(patches, patches_path)
    except KeyboardInterrupt:
        return True
    _print(console, about_patches(patches), patches_table(patches), worth_table(layers, patches))
    _print(console, *summary(layers, patches), f"In {layers_path}, {patches_path}.")
    return False


def _print(console: Console, *parts: str | Table) -> None:
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, soft_wrap=True)
        else:
            console.print(part)


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """A bar for what is under way."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total
        )


def layers_table(outcome: Layers) -> Table:
    """NMSE by layer."""
    table = Table(title="Drawn codes: NMSE in dB", caption="by layers, or iterations", box=SIMPLE)
    _columns(table, "layers", *outcome.curves)
    for t, row in enumerate(zip(*outcome.curves.values(), strict=True), 1):
        table.add_row(str(t), *(f"{value:.2f}" for value in row))
    return table


def patches_table(outcome: Patches) -> Table:
    """Loss by layer."""
    table = Table(title="Patches: 1000 x the Lasso loss above its minimum", box=SIMPLE)
    _columns(table, "layers", *outcome.curves, "FISTA iterations as good")
    for t, (*row, iterations) in enumerate(
        zip(*outcome.curves.values(), outcome.layers_worth, strict=True), 1
    ):
        table.add_row(str(t), *(f"{1e3 * value:.3f}" for value in row), in_iterations(iterations))
    return table


def worth_table(layers: Layers, patches: Patches) -> Table:
    """Time of encoders beside that of FISTA."""
    threads, depth = torch.get_num_threads(), len(patches.layers_worth)
    title = f"{depth} layers beside FISTA that is as good, {threads} thread{'s' * (threads > 1)}"
    table = Table(
        title=title,
        caption="times in microseconds for a row, in one batch of all held-out rows",
        box=SIMPLE,
    )
    _columns(table, "encoder", "time", "FISTA iterations", "alpha", "time", "ratio")
    rows = {f"drawn codes: {name}": found for name, found in layers.worth.items()}
    for name, (seconds, found) in {**rows, "patches: LISTA": patches.worth}.items():
        if found is None:
            table.add_row(name, _time(seconds), in_iterations(None), "", "", "")
            continue
        ratio = f"{found.seconds / seconds:.1f}x"
        table.add_row(
            name,
            _time(seconds),
            str(found.iterations),
            f"{found.alpha:g}",
            _time(found.seconds),
            ratio,
        )
    return table


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def _columns(table: Table, *names: str) -> None:
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)


def in_iterations(count: int | None) -> str:
    """A number of iterations, where None is more than were tried."""
    return f"> {MOST_ITERATIONS}" if count is None else str(count)


def about_drawn(outcome: Layers) -> str:
    """What the first table is about."""
    n, m = outcome.shape
    ends = " and ".join(f"{alphas[-1]:g}" for alphas in outcome.alphas.values())
    return (
        f"Codes of {n} numbers, {sparse_problems.DENSITY:.0%} of them not 0, seen by {m} with "
        f"{sparse_problems.DECIBELS:.0f} dB of signal over noise; {outcome.samples} held-out rows. "
        f"ISTA and FISTA have the best alpha of {', '.join(f'{alpha:g}' for alpha in ALPHAS)} for "
        f"each number of iterations, {ends} at last. LISTA-CP and ALISTA have support selection."
    )


def about_patches(outcome: Patches) -> str:
    """What the second table is about."""
    n, m = outcome.dictionary.shape
    return (
        f"Patches of {m} grey values, their mean taken away, of norm 1; {n} learned atoms, alpha "
        f"{outcome.sizes.alpha:g}; {outcome.rows} rows to train with, {outcome.sizes.held_out} "
        f"held out. Codes of zeros are {1e3 * outcome.zeros:.1f} above the minimum, with "
        f"{outcome.density:.1%} of a code not 0."
    )


def summary(layers: Layers, patches: Patches) -> list[str]:
    """What the figures say."""
    curves, depth = layers.curves, len(patches.layers_worth)
    many = f"{depth} layer{'s' * (depth > 1)}"
    ends = ", ".join(f"{name} {curve[-1]:.1f} dB" for name, curve in curves.items())
    return [
        f"Drawn codes, {many} or iterations: {ends}.",
        f"Patches: one learned layer is worth {in_iterations(patches.layers_worth[0])} iterations "
        f"of FISTA, {many} are worth {in_iterations(patches.layers_worth[-1])}.",
    ]
