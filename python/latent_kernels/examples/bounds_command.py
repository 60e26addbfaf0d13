"""`latent-kernels bounds`: VAEs trained on bounds of k samples, and the held-out log p(x) that each
comes to.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from latent_kernels.examples import bounds_pictures
from latent_kernels.examples.bounds_study import (
    HELD_OUT_SEED,
    Estimate,
    Fit,
    Recipe,
    Row,
    Study,
    binarized,
    fit,
)
from latent_kernels.examples.digits import load
from latent_kernels.examples.objectives import ESTIMATORS
from latent_kernels.examples.variance_command import BadOption, check_writable
from latent_kernels.variational._statistics import nulls

Report = Callable[[str, int, int], object]  # what is under way, how much of it is done, of how much

FILES = ("bounds.png", "bounds.json")
RECIPE = Recipe()
QUICK = Recipe(latent=10, hidden=64, epochs=30, samples=500, points=10)
MOST = 1000  # samples of a bound to train on


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    samples: tuple[int, ...]
    seeds: int
    epochs: int | None  # None: as the recipe has it
    estimator: str
    seed: int
    out: Path  # a folder, made if it is not there
    quick: bool

    def check(self) -> None:
        """Raises BadOption, or OSError for files that could not be written, before there is any
        work to lose.
        """
        if self.estimator not in ESTIMATORS:
            raise BadOption(
                "--estimator", f"must be one of {', '.join(ESTIMATORS)}; got {self.estimator!r}"
            )
        if max(self.samples) > MOST:
            raise BadOption(
                "--samples", f"must be numbers of at most {MOST}; got {max(self.samples)}"
            )
        if len(self.samples) > len(bounds_pictures.STYLES):
            raise BadOption(
                "--samples",
                f"must be at most six numbers, a colour for each; got {len(self.samples)}",
            )
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(self.out)) from None
        except OSError as error:
            error.filename = str(self.out)
            raise
        for name in FILES:
            check_writable(self.out / name)

    def recipe(self) -> Recipe:
        """Of every model."""
        recipe = QUICK if self.quick else RECIPE
        return recipe if self.epochs is None else replace(recipe, epochs=self.epochs)


# --- the command ----------------------------------------------------------------------------------


def run(request: Request, console: Console) -> bool:
    """Train, write, print and draw; return whether it was interrupted after the first model."""
    request.check()
    study, interrupted = Study(request.recipe(), request.estimator), False
    console.print(about(study, request), highlight=False, soft_wrap=True)
    try:
        with _progress(console) as report:
            for found in fits(request, study.recipe, report):
                study.fits.append(found)
    except KeyboardInterrupt:
        if not study.fits:
            raise
        interrupted = True
    picture, numbers = (request.out / name for name in FILES)
    rows = study.rows()
    _write(as_json(study, rows), numbers)
    for table in (bounds_table(study, rows), proposals_table(study, rows)):
        console.print(table)
    for line in summary(study, rows):
        console.print(line, highlight=False, soft_wrap=True)
    try:
        bounds_pictures.draw(study, rows, picture)
        files = f"In {picture}, {numbers}."
    except KeyboardInterrupt:
        interrupted, files = True, f"Stopped while drawing; the numbers are in {numbers}."
    console.print(files, highlight=False, soft_wrap=True)
    return interrupted


def _write(content: dict[str, Any], path: Path) -> None:
    """Under its name only when complete: an interruption leaves the numbers of before, or these."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(
            json.dumps(nulls(content), allow_nan=False, indent=2) + "\n", encoding="utf-8"
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def fits(request: Request, recipe: Recipe, report: Report) -> Iterator[Fit]:
    """The models, one seed after another."""
    digits = load()
    held_out = binarized(digits.held_out, HELD_OUT_SEED)
    for seed in range(request.seed, request.seed + request.seeds):
        for k in request.samples:
            told = _named(report, f"k = {k}, seed {seed}")
            yield fit(recipe, k, request.estimator, seed, digits.train, held_out, told)


def _named(report: Report, what: str) -> Callable[[int, int], object]:
    return lambda done, total: report(what, done, total)


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


# --- what it says ---------------------------------------------------------------------------------


def about(study: Study, request: Request) -> str:
    """What the tables are about."""
    r = study.recipe
    return (
        f"Handwritten digits of 8x8, binarized by their grey values; VAEs with {r.latent} latent "
        f"units, {r.hidden} hidden ones and a Bernoulli likelihood, {r.epochs} "
        f"epoch{'s' * (r.epochs > 1)} by {request.estimator}, {request.seeds} "
        f"seed{'s' * (request.seeds > 1)} each. Bounds are means over 360 held-out images, in nats."
    )


def bounds_table(study: Study, rows: Sequence[Row]) -> Table:
    """The held-out bounds."""
    caption = (
        "gain: over the row above, on the same images; ±: standard error over images; "
        f"z: {_unit(len(study.seeds()))}; sd: of the seeds' means"
    )
    table = Table(
        title="Held-out bounds by k, the samples trained with", caption=caption, box=SIMPLE
    )
    _columns(table, "k", "ELBO", f"L_{study.recipe.samples}", "sd", "gain", "z", "sd")
    for row in rows:
        gain = (
            ("", "", "")
            if row.gain is None
            else (_estimate(row.gain, "+"), f"{row.gain.z:.1f}", _sd(row.gain))
        )
        table.add_row(str(row.k), f"{row.elbo:.2f}", _estimate(row.bound), _sd(row.bound), *gain)
    return table


def proposals_table(study: Study, rows: Sequence[Row]) -> Table:
    """What q is good for."""
    r = study.recipe
    caption = (
        "means over images and seeds; Pareto k: the median, and the share of images above "
        f"{study.usable:.2g}, beyond which {r.samples} samples are not dependable"
    )
    table = Table(title="q as a proposal, and the latent units in use", caption=caption, box=SIMPLE)
    tails = ("Pareto k", f"> {study.usable:.2g}")
    _columns(table, "k", f"active of {r.latent}", f"ESS of {r.samples}", *tails, "training")
    for row in rows:
        tail = (f"{row.tail:.2f}", f"{row.heavy:.0%}")
        table.add_row(
            str(row.k), f"{row.active:.1f}", f"{row.effective:.0f}", *tail, f"{row.seconds:.1f} s"
        )
    return table


def _columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _estimate(found: Estimate, sign: str = "-") -> str:
    return f"{found.mean:{sign}.2f} ± {found.error:.2f}"


def _unit(seeds: int) -> str:
    """Of z."""
    return f"in standard errors over images{' and seeds' if seeds > 1 else ', for these models'}"


def _sd(found: Estimate) -> str:
    return "" if found.spread is None else f"{found.spread:.2f}"


def summary(study: Study, rows: Sequence[Row]) -> list[str]:
    """Return whether the bound rises with k, and how that compares with what seeds do."""
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    bounds = [torch.stack([one.bounds for one in row.fits]) for row in (first, last)]
    whole = Estimate.of(bounds[1] - bounds[0])
    falls = [f"{row.k}" for row in rows if row.gain is not None and row.gain.mean <= 0]
    order = f"does not rise to k = {', '.join(falls)}" if falls else "rises with k"
    noise = (
        "" if whole.spread is None else f" Seeds move this difference by {whole.spread:.2f} (sd)."
    )
    return [
        f"The held-out bound {order}: with k = {last.k} it is {_estimate(whole, '+')} nats beside "
        f"k = {first.k} (z = {whole.z:.1f}, {_unit(whole.seeds)}).{noise}"
    ]


def as_json(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Every number but those of single images."""
    return {
        "recipe": asdict(study.recipe),
        "estimator": study.estimator,
        "pareto_k_threshold": study.usable,
        "rows": [
            {
                "k": row.k,
                "elbo": row.elbo,
                "bound": asdict(row.bound),
                "gain": None if row.gain is None else {**asdict(row.gain), "z": row.gain.z},
                "active_units": row.active,
                "effective_sample_size": row.effective,
                "pareto_k": row.tail,
                "pareto_k_above_threshold": row.heavy,
                "seconds": row.seconds,
            }
            for row in rows
        ],
        "fits": [
            {
                "k": one.k,
                "seed": one.seed,
                "bound": one.log_likelihood,
                "active_units": one.active,
                "seconds": one.seconds,
                "by_samples": one.by_samples,
                "trained": one.trained,
                "held_out": one.held_out,
            }
            for one in study.fits
        ],
    }
