"""`latent-kernels sparse`: sparse encoders by layer, on drawn codes and on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latent_kernels.cli.frame import Screen, Seed, Threads, keeping, output_folder
from latent_kernels.cli.sparse import figures, results, study
from latent_kernels.cli.sparse.problems import Codes

FIGURES = ("sparse_layers.png", "sparse_patches.png")


def sparse(
    layers: Annotated[int, typer.Option(min=1, max=64, help="Layers of the encoders.")] = 16,
    features: Annotated[
        int, typer.Option(min=8, max=4096, help="Numbers that drawn codes are seen by.")
    ] = 250,
    components: Annotated[
        int, typer.Option(min=16, max=4096, help="Numbers of a drawn code.")
    ] = 500,
    samples: Annotated[int, typer.Option(min=32, help="Held-out drawn codes.")] = 500,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("sparse"),
    quick: Annotated[
        bool, typer.Option(help="A quarter of the training, and smaller photographs.")
    ] = False,
    threads: Threads = 1,
) -> None:
    """Train sparse encoders, and draw them by layer beside ISTA and FISTA (four minutes;
    --quick: two).
    """
    output_folder(out, FIGURES)
    layers_path, patches_path = (out / name for name in FIGURES)

    screen, codes = Screen(), Codes(features, components, samples, 0.25 if quick else 1.0)
    with screen.progress() as report:
        drawn = study.compare_drawn(codes, layers, seed, report)
    figures.draw_layers(drawn, layers_path)
    screen.say(results.about_drawn(drawn), results.layers_table(drawn))
    with keeping(f"{layers_path.name} is complete"):
        photographs = study.QUICK if quick else study.PHOTOGRAPHS
        with screen.progress() as report:
            patches = study.compare_patches(photographs, layers, seed, report)
        figures.draw_patches(patches, patches_path)
        screen.say(
            results.about_patches(patches),
            results.patches_table(patches),
            results.worth_table(drawn, patches),
            *results.summary(drawn, patches),
            f"In {layers_path}, {patches_path}.",
        )
