"""`latent-kernels bounds`: VAEs trained on bounds of k samples, and their held-out log p(x)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latent_kernels.cli.bounds import figures, results, study
from latent_kernels.cli.drawing import STYLES
from latent_kernels.cli.frame import (
    BadOption,
    Screen,
    Seed,
    Stopped,
    Threads,
    keeping,
    one_of,
    output_folder,
    sample_counts,
    write_text,
)
from latent_kernels.cli.vae import ESTIMATORS

FILES = ("bounds.png", "bounds.json")
RECIPE = results.Recipe()
QUICK = results.Recipe(latent=10, hidden=64, epochs=30, samples=500, points=10)
MOST = 1000  # samples of a bound to train on


def bounds(
    samples: Annotated[str, typer.Option(help="The k to train with, such as 1,5,50.")] = "1,5,50",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Models of each k.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images per model.")
    ] = None,
    estimator: Annotated[
        str, typer.Option(help="Of the bound's gradient: iwae, dreg or stl.")
    ] = "iwae",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the numbers.")] = Path(
        "bounds"
    ),
    quick: Annotated[
        bool, typer.Option(help="Small models, a tenth of the epochs, judged by 500 samples.")
    ] = False,
    threads: Threads = 1,
) -> None:
    """Train VAEs on importance-weighted bounds, and compare their held-out bounds (five minutes;
    --quick: one).
    """
    one_of("--estimator", estimator, ESTIMATORS)
    ks = sample_counts(samples, MOST)
    if len(ks) > len(STYLES):
        raise BadOption(
            "--samples", f"must be at most six numbers, a colour for each; got {len(ks)}"
        )
    output_folder(out, FILES)

    screen, recipe = Screen(), QUICK if quick else RECIPE
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    found, stopped = results.Study(recipe, estimator), False
    screen.say(results.about(found, seeds))
    try:
        with screen.progress() as report:
            for one in study.fits(recipe, ks, range(seed, seed + seeds), estimator, report):
                found.fits.append(one)
    except KeyboardInterrupt:
        if not found.fits:
            raise
        stopped = True
    picture, numbers = (out / name for name in FILES)
    rows = found.rows()
    write_text(numbers, results.as_json(found, rows))
    screen.say(results.bounds_table(found, rows), results.proposals_table(found, rows))
    screen.say(*results.summary(rows))
    with keeping(f"the numbers are in {numbers}"):
        figures.draw(found, rows, picture)
    screen.say(f"In {picture}, {numbers}.")
    if stopped:
        raise Stopped("the models that were complete are in the files")
