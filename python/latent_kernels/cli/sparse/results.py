"""The quality of codes by layers and iterations, the times of encoders, and sentences about
both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from rich.table import Table

from latent_kernels.cli.frame import plural, table
from latent_kernels.cli.sparse import solvers
from latent_kernels.cli.sparse.problems import DECIBELS, DENSITY, Codes, Photographs

Curves = dict[str, list[float]]  # by name; entry t - 1 is for t layers or iterations


class Worth(NamedTuple):
    """The iterations of a solver that reach an encoder's score."""

    iterations: int
    alpha: float
    seconds: float  # for a row


class Comparison(NamedTuple):
    """Median seconds of an encoder for a row, in one batch of all rows, beside a solver's."""

    seconds: float
    worth: Worth | None  # None where no solver is as good


class Layers(NamedTuple):
    """NMSE in dB of the drawn codes."""

    sizes: Codes
    curves: Curves
    alphas: Curves  # of ISTA and FISTA
    worth: dict[str, Comparison]  # of the encoders


class Patches(NamedTuple):
    """The Lasso objective of patches, measured from its minimum."""

    sizes: Photographs
    dictionary: torch.Tensor
    rows: int  # trained with
    zeros: float  # mean objective of codes of zeros, above the minimum as all below
    density: float  # share of non-zeros at the minimum
    curves: Curves
    fista: dict[int, float]  # by iterations, as far as the encoder goes
    layers_worth: list[int | None]  # iterations of FISTA as good as t layers; None beyond the most
    worth: Comparison


def layers_table(outcome: Layers) -> Table:
    """Return the table of NMSE by layer."""
    rows = (
        (str(t), *(f"{value:.2f}" for value in values))
        for t, values in enumerate(zip(*outcome.curves.values(), strict=True), 1)
    )
    columns, caption = ("layers", *outcome.curves), "by layers, or iterations"
    return table("Drawn codes: NMSE in dB", columns, rows, caption=caption)


def patches_table(outcome: Patches) -> Table:
    """Return the table of the loss by layer."""
    by_layer = zip(*outcome.curves.values(), outcome.layers_worth, strict=True)
    rows = (
        (str(t), *(f"{1e3 * value:.3f}" for value in values), _iterations(worth))
        for t, (*values, worth) in enumerate(by_layer, 1)
    )
    columns = ("layers", *outcome.curves, "FISTA iterations as good")
    return table("Patches: 1000 x the Lasso loss above its minimum", columns, rows)


def worth_table(layers: Layers, patches: Patches) -> Table:
    """Return the table of the encoders' times beside those of FISTA."""
    compared = {f"drawn codes: {name}": found for name, found in layers.worth.items()}
    rows = []
    for name, (seconds, worth) in {**compared, "patches: LISTA": patches.worth}.items():
        solver = (_iterations(None), "", "", "")
        if worth is not None:
            ratio = f"{worth.seconds / seconds:.1f}x"
            solver = (str(worth.iterations), f"{worth.alpha:g}", _time(worth.seconds), ratio)
        rows.append((name, _time(seconds), *solver))
    return table(
        f"{plural(len(patches.layers_worth), 'layer')} beside FISTA that is as good, "
        f"{plural(torch.get_num_threads(), 'thread')}",
        ("encoder", "time", "FISTA iterations", "alpha", "time", "ratio"),
        rows,
        caption="times in microseconds for a row, in one batch of all held-out rows",
    )


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def _iterations(count: int | None) -> str:
    return f"> {solvers.MOST_ITERATIONS}" if count is None else str(count)


def about_drawn(outcome: Layers) -> str:
    """Return a description of the first table."""
    sizes = outcome.sizes
    ends = " and ".join(f"{alphas[-1]:g}" for alphas in outcome.alphas.values())
    return (
        f"Codes of {sizes.components} numbers, {DENSITY:.0%} of them not 0, seen by "
        f"{sizes.features} with {DECIBELS:.0f} dB of signal over noise; {sizes.samples} held-out "
        f"rows. ISTA and FISTA have the best alpha of {', '.join(map(str, solvers.ALPHAS))} for "
        f"each number of iterations, {ends} at last. LISTA-CP and ALISTA have support selection."
    )


def about_patches(outcome: Patches) -> str:
    """Return a description of the second table."""
    n, m = outcome.dictionary.shape
    return (
        f"Patches of {m} grey values, their mean taken away, of norm 1; {n} learned atoms, alpha "
        f"{outcome.sizes.alpha:g}; {outcome.rows} rows to train with, {outcome.sizes.held_out} "
        f"held out. Codes of zeros are {1e3 * outcome.zeros:.1f} above the minimum, with "
        f"{outcome.density:.1%} of a code not 0."
    )


def summary(layers: Layers, patches: Patches) -> list[str]:
    """Return the conclusions from the figures."""
    worth, many = patches.layers_worth, plural(len(patches.layers_worth), "layer")
    ends = ", ".join(f"{name} {curve[-1]:.1f} dB" for name, curve in layers.curves.items())
    return [
        f"Drawn codes, {many} or iterations: {ends}.",
        f"Patches: one learned layer is worth {_iterations(worth[0])} iterations of FISTA, {many} "
        f"are worth {_iterations(worth[-1])}.",
    ]
