"""`latent-kernels demo`: trains the VAEs of `vae`, draws and compares them, and profiles gradient
estimators.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import latent_kernels as lk
from latent_kernels.examples import (
    measure,
    mixture_command,
    pictures,
    problems,
    report,
    sparse_command,
    sparse_pictures,
    variance_pictures,
)
from latent_kernels.examples.digits import Digits, load
from latent_kernels.examples.measure import Size
from latent_kernels.examples.objectives import ELBO, Objective, Ops
from latent_kernels.examples.sparse_curves import Patches
from latent_kernels.examples.sparse_problems import Photographs
from latent_kernels.examples.vae import (
    FUSED,
    LIKELIHOODS,
    PLAIN,
    VAE,
    Epoch,
    Terms,
    evaluate,
    train,
)
from latent_kernels.examples.variance_verdict import verdict
from latent_kernels.variational.variance import ProfileInterrupted, VarianceProfile


@dataclass(frozen=True)
class Settings:
    """What the demo does; the defaults take about a minute on one core."""

    seed: int = 0
    epochs: int = 150
    latents: tuple[int, ...] = (2, 5, 10, 20)
    hidden: int = 256
    compared_latent: int = 10
    compared_seeds: int = 3
    held_out_samples: int = 64
    objective: Objective = ELBO
    profiled_samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    profiled_repeats: int = 64
    photographs: Photographs = sparse_command.DEMO
    encoder_layers: int = sparse_command.DEMO_LAYERS
    sizes: tuple[Size, ...] = (
        Size("demo", 64, None, 10, 256, 400),
        Size("large", 1024, 16, 64, 256, 15),
    )


SETTINGS = Settings()
_PROFILED = "logistic-regression"


@dataclass
class Run:
    """One model and its training so far."""

    model: VAE
    ops: Ops
    seed: int
    history: list[Epoch] = field(default_factory=list)


@dataclass
class Outcome:
    """What the demo leaves behind."""

    files: list[Path]
    runs: list[Run]
    comparison: report.Comparison
    profile: VarianceProfile | None
    interrupted: bool
    seconds: float


def run(settings: Settings, out: Path, console: Console) -> Outcome:
    """Trains, measures, and writes pictures and tables to `out`, an existing folder.

    A KeyboardInterrupt on the way ends the work but not the writing: what is there by then is
    drawn.
    """
    start = time.perf_counter()
    digits = load()
    comparison = report.Comparison(
        torch.get_num_threads(),
        settings.compared_latent,
        settings.held_out_samples,
        objective=settings.objective,
    )
    runs: list[Run] = []
    profile: VarianceProfile | None = None
    patches: Patches | None = None
    interrupted = False
    try:
        _train_all(settings, digits, runs, comparison, console)
        with console.status("Measuring steps against plain torch"):
            for size in settings.sizes:
                fitted = size.with_samples(settings.objective)
                comparison.costs += measure.compare(
                    fitted, digits.train, seed=settings.seed, objective=settings.objective
                )
        with console.status("Profiling the variance of gradient estimators"):
            profile = _profile(settings)
        with console.status("Training a sparse encoder on photographs"):
            patches = sparse_command.demonstrate(
                settings.photographs, settings.encoder_layers, settings.seed % 2**32
            )
    except ProfileInterrupted as stop:
        profile, interrupted = stop.profile, True
    except KeyboardInterrupt:
        interrupted = True
    files = _write(settings, digits, runs, comparison, profile, patches, out)
    _show(comparison, profile, console)
    return Outcome(files, runs, comparison, profile, interrupted, time.perf_counter() - start)


def _plan(settings: Settings) -> list[tuple[str, int, int, Ops]]:
    """(likelihood, latent size, seed, ops) of each model: those to draw, then those only to
    compare.
    """
    plan = [
        (name, latent, settings.seed, FUSED) for latent in settings.latents for name in LIKELIHOODS
    ]
    for seed in range(settings.seed, settings.seed + settings.compared_seeds):
        for ops in (FUSED, PLAIN):
            compared = ("gaussian", settings.compared_latent, seed, ops)
            if compared not in plan:
                plan.append(compared)
    return plan


def _train_all(
    settings: Settings,
    digits: Digits,
    runs: list[Run],
    comparison: report.Comparison,
    console: Console,
) -> None:
    plan, objective = _plan(settings), settings.objective
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[terms]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with progress:
        models = progress.add_task("models", total=len(plan), terms="")
        for likelihood, latent, seed, ops in plan:
            task = progress.add_task(f"{likelihood} D={latent}", total=settings.epochs, terms="")
            torch.manual_seed(seed)
            current = Run(VAE(latent, likelihood, settings.hidden), ops, seed)
            runs.append(current)
            fitting = train(
                current.model,
                digits.train,
                digits.held_out,
                epochs=settings.epochs,
                ops=ops,
                objective=objective,
            )
            for epoch in fitting:
                current.history.append(epoch)
                progress.update(task, advance=1, terms=_terms(epoch.held_out, objective))
            torch.manual_seed(seed)
            draws = settings.held_out_samples
            final = evaluate(
                current.model, digits.held_out, num_samples=draws, ops=ops, objective=objective
            )
            progress.remove_task(task)
            label = f"{likelihood} D={latent} seed {seed} {ops.name}"
            progress.console.print(f"{label:<37} {_terms(final, objective)} nats", highlight=False)
            progress.advance(models)
            if (likelihood, latent) == ("gaussian", settings.compared_latent):
                (comparison.ours if ops is FUSED else comparison.plain)[seed] = final


def _profile(settings: Settings) -> VarianceProfile:
    problem = problems.PROBLEMS[_PROFILED]()
    return lk.profile_variance(
        problem.q,
        problem.log_joint,
        num_samples=settings.profiled_samples,
        repeats=settings.profiled_repeats,
        seed=settings.seed,
        exact_gradient=problem.exact_gradient,
    )


def _terms(terms: Terms, objective: Objective) -> str:
    elbo = f"ELBO {terms.elbo:6.2f} = {terms.reconstruction:6.2f} - KL {terms.kl:5.2f}"
    return elbo if terms.bound is None else f"{objective.name} {terms.bound:6.2f}, {elbo}"


def _write(
    settings: Settings,
    digits: Digits,
    runs: list[Run],
    comparison: report.Comparison,
    profile: VarianceProfile | None,
    patches: Patches | None,
    out: Path,
) -> list[Path]:
    """Everything that at least one epoch of training gives reason for; returns what was written."""
    started = [r for r in runs if r.history]
    shown = [r for r in started if r.seed == settings.seed]
    ours = [r.model for r in shown if r.ops is FUSED]
    curves = [
        pictures.Curve(r.model.likelihood, r.model.latent, r.ops is PLAIN, r.history) for r in shown
    ]
    bound = (
        f"${settings.objective.name.replace('_', '_{')}}}$"
        if settings.objective.weighted
        else "ELBO"
    )
    planar = [model for model in ours if model.latent == 2]
    jobs: list[tuple[str, bool, Callable[[Path], object]]] = [
        ("manifold.png", bool(planar), lambda path: pictures.manifold(planar, digits, path)),
        (
            "prior_samples.png",
            bool(ours),
            lambda path: pictures.prior_samples(ours, path, seed=settings.seed),
        ),
        (
            "training_curves.png",
            bool(curves),
            lambda path: pictures.training_curves(curves, path, bound=bound),
        ),
    ]
    measured = bool(comparison.costs or comparison.seeds())
    jobs += [
        (
            "comparison.md",
            measured,
            lambda path: path.write_text(comparison.markdown(), encoding="utf-8"),
        ),
        (
            "comparison.json",
            measured,
            lambda path: path.write_text(comparison.as_json(), encoding="utf-8"),
        ),
    ]
    if profile is not None:
        found, title = profile, problems.PROBLEMS[_PROFILED]().description
        jobs.append(("variance.png", True, lambda path: variance_pictures.draw(found, title, path)))
        jobs.append(
            (
                "mixture.png",
                True,
                lambda path: mixture_command.write_figure(path, seed=settings.seed % 2**32),
            )
        )
    if patches is not None:
        drawn = patches
        jobs.append(
            ("sparse_patches.png", True, lambda path: sparse_pictures.draw_patches(drawn, path))
        )
    files = []
    for name, wanted, write in jobs:
        if wanted:
            write(out / name)
            files.append(out / name)
    return files


def _show(comparison: report.Comparison, profile: VarianceProfile | None, console: Console) -> None:
    if comparison.costs:
        table = Table(title="One training step", caption=comparison.caption(), box=SIMPLE)
        for i, name in enumerate(report.COST_HEADER):
            table.add_column(name, justify="right" if i else "left")
        for row in comparison.cost_rows():
            table.add_row(*row)
        console.print(table)
    if comparison.seeds():
        table = Table(
            *comparison.bound_header(),
            title="The trained model",
            caption=comparison.verdict(),
            box=SIMPLE,
        )
        for row in comparison.bound_rows():
            table.add_row(*row)
        console.print(table)
    if profile is not None:
        console.print(
            f"{problems.PROBLEMS[_PROFILED]().description}. {verdict(profile)}", highlight=False
        )
