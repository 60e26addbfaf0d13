"""`latent-kernels variance`: profiles the estimators on a problem, draws the profile, and says who
wins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import latent_kernels as lk
from latent_kernels.examples import (
    signal_pictures,
    signal_verdict,
    variance_pictures,
    variance_verdict,
)
from latent_kernels.examples.problems import PROBLEMS, Problem
from latent_kernels.variational.gradient_estimators import OBJECTIVES
from latent_kernels.variational.variance import ESTIMATORS, ProfileInterrupted, VarianceProfile

FORMATS = (".png", ".pdf", ".svg")


class BadOption(ValueError):
    """An option's value that cannot be used."""

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    problem: str
    estimators: tuple[str, ...] | None
    num_samples: tuple[int, ...]
    repeats: int
    seed: int
    out: Path
    csv: Path | None = None
    json: Path | None = None
    budget: float | None = None  # milliseconds
    objective: str = "elbo"

    def check(self) -> None:
        """Raises BadOption, or OSError for a file that could not be written, before there is any
        work to lose.
        """
        if self.problem not in PROBLEMS:
            raise BadOption(
                "--problem", f"must be one of {', '.join(PROBLEMS)}; got {self.problem!r}"
            )
        if self.budget is not None and self.objective != "elbo":
            raise BadOption(
                "--budget",
                "is for the objective elbo: another S is another bound, and not a better average",
            )
        if self.out.suffix.lower() not in FORMATS:
            raise BadOption("--out", f"must end in {', '.join(FORMATS)}; got {str(self.out)!r}")
        for path in (self.out, self.csv, self.json):
            if path is not None:
                check_writable(path)


def parse_objective(text: str) -> str:
    """As on the command line, importance-bound, to as in the library, importance_bound."""
    names = {name.replace("_", "-"): name for name in OBJECTIVES}
    name = names.get(text.replace("_", "-"))
    if name is None:
        raise BadOption("--objective", f"must be one of {', '.join(names)}; got {text!r}")
    return name


def parse_estimators(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in ESTIMATORS:
            raise BadOption(
                "--estimators", f"must be a list of {','.join(ESTIMATORS)}; got {name!r}"
            )
    return names


def parse_samples(text: str) -> tuple[int, ...]:
    """`A:B` doubles from A up to B, which is included; else numbers separated by commas."""
    problem = BadOption(
        "--samples", f"must be A:B with 1 <= A <= B, or numbers like 1,4,16; got {text!r}"
    )
    try:
        first, colon, last = text.partition(":")
        found = [int(first), int(last)] if colon else [int(part) for part in text.split(",")]
    except ValueError:
        raise problem from None
    if min(found) < 1 or (colon and found[0] > found[1]):
        raise problem
    if colon:
        low, high = found
        found = [low << k for k in range((high // low).bit_length())] + [high]
    return tuple(sorted(set(found)))


def check_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder", str(path))
    probe = path.parent / f".latent-kernels-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def run(request: Request, console: Console) -> bool:
    """Profiles, writes, and prints; returns whether it was interrupted, with what was complete by
    then written.
    """
    request.check()
    problem = PROBLEMS[request.problem]()
    console.print(problem.description, highlight=False, soft_wrap=True)
    try:
        profile, interrupted = _profile(request, problem, console), False
    except ProfileInterrupted as stop:
        if stop.profile is None:
            raise
        profile, interrupted = stop.profile, True
    budget = None if request.budget is None else request.budget / 1e3
    files = _write(request, profile, problem.description, budget)
    console.print(f"In {', '.join(str(path) for path in files)}.", highlight=False, soft_wrap=True)
    console.print(_verdict(profile, budget), highlight=False, soft_wrap=True)
    return interrupted


def _profile(request: Request, problem: Problem, console: Console) -> VarianceProfile:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("gradients", total=None)
        try:
            return lk.profile_variance(
                problem.q,
                problem.log_joint,
                objective=request.objective,
                estimators=request.estimators,
                num_samples=request.num_samples,
                repeats=request.repeats,
                seed=request.seed,
                exact_gradient=_exact_gradient(request.objective, problem),
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except ValueError as error:
            if "does not apply" not in str(error):
                raise
            raise BadOption("--estimators", str(error)) from None


def _exact_gradient(objective: str, problem: Problem) -> Any:
    """What is known of it beyond enumeration: for S = 1 the bound is the ELBO."""
    known = problem.exact_gradient
    if objective == "elbo" or known is None:
        return known
    return lambda samples: known if samples == 1 else None


def _verdict(profile: VarianceProfile, budget: float | None) -> str:
    if profile.objective == "elbo":
        return variance_verdict.verdict(profile, budget)
    return signal_verdict.verdict(profile)


def _write(
    request: Request, profile: VarianceProfile, title: str, budget: float | None
) -> list[Path]:
    if profile.objective == "elbo":
        variance_pictures.draw(profile, title, request.out, budget=budget)
    else:
        signal_pictures.draw(profile, title, request.out)
    if request.csv is not None:
        profile.to_csv(request.csv)
    if request.json is not None:
        profile.to_json(request.json)
    return [path for path in (request.out, request.csv, request.json) if path is not None]
