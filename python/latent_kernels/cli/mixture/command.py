"""`latent-kernels mixture`: EM on real data, drawn, and its speed beside scikit-learn's."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from latent_kernels.cli.frame import (
    PICTURES,
    Screen,
    Seed,
    Threads,
    keeping,
    one_of,
    output_file,
)
from latent_kernels.cli.mixture import figures, results, study
from latent_kernels.cli.mixture.data import DATA
from latent_kernels.kernels.mixture.model import COVARIANCE_TYPES


def mixture(
    data: Annotated[str, typer.Option(help="iris, digits or wine, two dimensions of it.")] = "iris",
    components: Annotated[
        int | None,
        typer.Option(min=1, max=50, help="Components; else as many as the data have classes."),
    ] = None,
    covariance_type: Annotated[str, typer.Option(help="full, tied, diag or spherical.")] = "full",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The picture, .png, .pdf or .svg.")] = Path(
        "mixture.png"
    ),
    compare: Annotated[
        bool, typer.Option(help="Measure an iteration against scikit-learn.")
    ] = True,
    threads: Threads = 1,
) -> None:
    """Fit a Gaussian mixture to real data by EM, draw how it goes, and compare its speed
    (seconds).
    """
    one_of("--data", data, DATA)
    one_of("--covariance-type", covariance_type, COVARIANCE_TYPES)
    output_file(out, PICTURES)

    screen, chosen = Screen(), DATA[data]()
    components = components or chosen.classes
    with screen.progress() as report:
        done, total = count(1), study.STARTS + len(study.compared(components))
        outcome = study.fit(
            chosen, components, covariance_type, seed, lambda: report("fits", next(done), total)
        )
        figures.draw(outcome, out)
    screen.say(*results.summary(outcome), f"In {out}.")
    if compare:
        with keeping("the picture is complete"):
            with screen.console.status("Measuring against scikit-learn"):
                speeds = study.compare_speed(study.SIZE, seed)
            screen.say(results.speed_table(study.SIZE, speeds))
