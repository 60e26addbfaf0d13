"""`latent-kernels demo`: train the VAEs, draw and compare them, and profile gradient estimators."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latent_kernels.cli.demo import figures, study
from latent_kernels.cli.demo.results import Results, Settings, about, summary
from latent_kernels.cli.frame import Screen, Seed, Stopped, one_of, output_folder
from latent_kernels.cli.vae import BOUNDS, Objective
from latent_kernels.cli.variance.results import verdict

SETTINGS = Settings()


def demo(
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images per model.")
    ] = None,
    bound: Annotated[
        str, typer.Option(help="What training maximizes: elbo, iwae, stl or dreg.")
    ] = "elbo",
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples for each image; 50 take five minutes.")
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads; models this small gain nothing from more.")
    ] = 1,
) -> None:
    """Train VAEs on handwritten digits, draw them, and compare with plain torch (a minute)."""
    one_of("--bound", bound, BOUNDS)
    output_folder(out, figures.FILES)

    screen, start, settings = Screen(), time.perf_counter(), SETTINGS
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    found, written, stopped = Results(settings, seed, Objective(bound, samples)), [], False
    screen.say(about(found))
    try:
        with screen.progress() as report:
            study.run(found, report, screen.say)
    except KeyboardInterrupt:  # the results complete at that time are drawn
        stopped = True
    try:
        for name, write in figures.writers(found):
            write(out / name)
            written.append(name)
    except KeyboardInterrupt:
        stopped = True

    if found.seeds():
        screen.say(summary(found))
    if found.profile is not None:
        screen.say(f"{found.problem.description}. {verdict(found.profile)}")
    files = f"{out}: {', '.join(written)}"
    if stopped and written:
        raise Stopped(f"in {files}")
    if stopped:
        raise KeyboardInterrupt
    screen.say(f"[bold]Done in {time.perf_counter() - start:.0f} s.[/bold] In {files}.")
