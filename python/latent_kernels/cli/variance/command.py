"""`latent-kernels variance`: profile gradient estimators on a problem, draw, and say who wins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

import latent_kernels as lk
from latent_kernels.cli.frame import (
    PICTURES,
    BadOption,
    Report,
    Screen,
    Seed,
    Stopped,
    Threads,
    complete,
    named,
    one_of,
    output_file,
    sample_counts,
)
from latent_kernels.cli.variance import figures, results
from latent_kernels.cli.variance.problems import PROBLEMS, Problem
from latent_kernels.variational.gradient_estimators import OBJECTIVES
from latent_kernels.variational.variance import ESTIMATORS, ProfileInterrupted, VarianceProfile


def variance(
    problem: Annotated[
        str, typer.Option(help=f"{', '.join(list(PROBLEMS)[:-1])} or {list(PROBLEMS)[-1]}.")
    ] = "logistic-regression",
    objective: Annotated[
        str, typer.Option(help="Whose gradient: elbo, or importance-bound, the bound of S samples.")
    ] = "elbo",
    estimators: Annotated[
        str | None,
        typer.Option(
            help="Such as none,leave_one_out,optimal,disarm,reparameterized, and for "
            "importance-bound iwae,stl,dreg,vimco; else all that apply."
        ),
    ] = None,
    samples: Annotated[
        str, typer.Option(help="Samples per gradient: 1:1024 doubles from 1 to 1024; or 1,4,16.")
    ] = "1:1024",
    repeats: Annotated[int, typer.Option(min=8, help="Gradients for each variance.")] = 256,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The picture, .png, .pdf or .svg.")] = Path(
        "variance.png"
    ),
    csv: Annotated[Path | None, typer.Option(help="The table as CSV.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="The table and single parameters as JSON.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=1e-6, help="Milliseconds for a gradient, to compare at.")
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Also say how many samples this signal-to-noise ratio needs."),
    ] = None,
    threads: Threads = 1,
) -> None:
    """Profile the variance of gradient estimators on a problem, draw it, and say which wins
    (seconds).
    """
    names = None if estimators is None else [name.strip() for name in estimators.split(",")]
    for name in names or ():
        one_of("--estimators", name, ESTIMATORS)
    counts = sample_counts(samples)
    one_of("--problem", problem, PROBLEMS)
    objectives = {name.replace("_", "-"): name for name in OBJECTIVES}
    one_of("--objective", objective.replace("_", "-"), objectives)
    maximized = objectives[objective.replace("_", "-")]
    if budget is not None and maximized != "elbo":
        raise BadOption(
            "--budget",
            "is for the objective elbo: another S is another bound, and not a better average",
        )
    output_file(out, PICTURES)
    files = [path for path in (out, csv, json) if path is not None]
    for path in files:
        output_file(path)

    screen, chosen = Screen(), PROBLEMS[problem]()
    screen.say(chosen.description)
    with screen.progress() as report:
        profile, stopped = _profile(chosen, maximized, names, counts, repeats, seed, report)
    seconds = None if budget is None else budget / 1e3
    figures.draw(profile, chosen.description, out, budget=seconds)
    for table, write in ((csv, profile.to_csv), (json, profile.to_json)):
        if table is not None:
            with complete(table) as part:
                write(part)
    screen.say(f"In {', '.join(map(str, files))}.", results.verdict(profile, seconds))
    if snr is not None:
        screen.say(results.samples_for(profile, snr))
    if stopped:
        raise Stopped("the numbers of samples that were complete are in the files")


def _profile(
    problem: Problem,
    objective: str,
    estimators: list[str] | None,
    num_samples: tuple[int, ...],
    repeats: int,
    seed: int,
    report: Report,
) -> tuple[VarianceProfile, bool]:
    """Return the profile, and whether Ctrl-C left it incomplete."""
    known = problem.exact_gradient

    def exact(samples: int) -> tuple[Tensor, ...] | None:
        return known if samples == 1 else None  # the bound of one sample is the ELBO

    try:
        profile = lk.profile_variance(
            problem.q,
            problem.log_joint,
            objective=objective,
            estimators=estimators,
            num_samples=num_samples,
            repeats=repeats,
            seed=seed,
            exact_gradient=known if objective == "elbo" or known is None else exact,
            progress=named(report, "gradients"),
        )
    except ProfileInterrupted as stop:
        if stop.profile is None:
            raise
        return stop.profile, True
    except ValueError as error:
        if "does not apply" not in str(error):
            raise
        raise BadOption("--estimators", str(error)) from None
    return profile, False
