"""Pictures of sparse encoders: codes by layer, and a dictionary beside the iterations that an
encoder saves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels.cli import drawing
from latent_kernels.cli.frame import plural
from latent_kernels.cli.sparse.results import Curves, Layers, Patches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_SOLVER, _LEARNED = {"markersize": 4, "linewidth": 1.4}, {"markersize": 5, "linewidth": 2.0}
_STYLES = {
    "ISTA": drawing.curve(("0.55", "v"), **_SOLVER),
    "FISTA": drawing.curve((drawing.BLACK, "^"), **_SOLVER),
    "LISTA": drawing.curve((drawing.VERMILION, "o"), **_LEARNED),
    "LISTA-CP": drawing.curve((drawing.BLUE, "s"), **_LEARNED),
    "ALISTA": drawing.curve((drawing.GREEN, "D"), **_LEARNED),
}
_GAP = 1  # pixels between tiles
_TINY = 1e-12  # rounding may show a loss at its minimum as 0
_CLOSE = 0.055  # names nearer than this share of an axis would run into each other


def draw_layers(outcome: Layers, path: Path) -> None:
    """Draw NMSE by layer or iteration."""
    sizes = outcome.sizes
    figure = drawing.new_figure(
        9.6,
        6.2,
        f"Sparse codes of {sizes.components} numbers, seen by {sizes.features}: "
        "layers that learned, beside iterations",
    )
    ax = figure.subplots()
    for name, values in outcome.curves.items():
        ax.plot(range(1, len(values) + 1), values, **_STYLES[name])
    _name_ends(ax, outcome.curves)
    ax.set(xlabel="layers, or iterations", ylabel="NMSE of held-out codes (dB; less is better)")
    ax.set_title(
        "10% of a code is not 0, 40 dB of signal over noise. ISTA, FISTA: the best alpha at each "
        "point.\nLISTA-CP, ALISTA: with support selection. Each point of an encoder is trained for "
        "its depth.",
        fontsize=10,
    )
    drawing.integer_axis(ax)
    ax.grid(alpha=0.25)
    drawing.save_figure(figure, path)


def draw_patches(outcome: Patches, path: Path) -> None:
    """Draw the atoms on the left; on the right the loss, beside the FISTA iterations that reach
    it.
    """
    n, alpha = len(outcome.dictionary), outcome.sizes.alpha
    title = (
        f"Patches of photographs: {n} learned atoms of 8 x 8, and an encoder that learned to code "
        "with them"
    )
    figure = drawing.new_figure(13.0, 6.4, title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.22))
    left.imshow(tiles(outcome.dictionary), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    left.set(xticks=[], yticks=[])
    left.set_title("the dictionary: those of most use first, each at its own scale", fontsize=10)
    left.spines[:].set_visible(False)
    _draw_losses(right, outcome)
    right.set_title(
        f"Lasso, alpha = {alpha:g}; {outcome.density:.0%} of the best codes are not 0", fontsize=10
    )
    drawing.save_figure(figure, path)


def tiles(dictionary: torch.Tensor) -> Floats:
    """Return atoms [n, side^2] as one picture of values in [-1, 1], white between them."""
    atoms = dictionary.double().numpy()
    atoms = atoms / np.abs(atoms).max(axis=1, keepdims=True)
    side, columns = math.isqrt(atoms.shape[1]), math.ceil(math.sqrt(len(atoms)))
    lines, pitch = -(-len(atoms) // columns), side + _GAP
    canvas = np.ones((lines * pitch + _GAP, columns * pitch + _GAP))
    for i, atom in enumerate(atoms):
        top, start = (_GAP + pitch * at for at in divmod(i, columns))
        canvas[top : top + side, start : start + side] = atom.reshape(side, side)
    return canvas


def _draw_losses(ax: Axes, outcome: Patches) -> None:
    depth = len(outcome.layers_worth)
    far = 1.25 * max([depth, *(k or max(outcome.fista) for k in outcome.layers_worth)])
    iterations = [k for k in outcome.fista if k <= far]
    layers, learned = range(1, depth + 1), outcome.curves["LISTA"]
    ax.plot(iterations, [outcome.fista[k] for k in iterations], label="FISTA", **_STYLES["FISTA"])
    ax.plot(layers, outcome.curves["ISTA"], label="ISTA", **_STYLES["ISTA"])
    ax.plot(layers, learned, label="LISTA, trained on the loss", **_STYLES["LISTA"])
    for t in sorted({1, depth}):
        _draw_worth(ax, t, learned[t - 1], outcome.layers_worth[t - 1], outcome.fista)
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="layers, or iterations", ylabel="mean Lasso loss above its minimum")
    shown = [2**k for k in range(int(math.log2(far)) + 1)]
    ax.set_xticks(shown, [str(k) for k in shown])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.5, high)  # space for the text of the last arrow
    ax.legend(loc="lower left", frameon=False)


def _draw_worth(
    ax: Axes, layers: int, loss: float, iterations: int | None, fista: dict[int, float]
) -> None:
    """Draw an arrow from the encoder to FISTA's curve, at the same loss."""
    if iterations is None or iterations <= layers:
        return
    colour = drawing.VERMILION
    arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.4, "shrinkA": 5, "shrinkB": 0}
    ax.annotate("", (crossing(fista, iterations, loss), loss), (layers, loss), arrowprops=arrow)
    text = f"{plural(layers, 'layer')} = {iterations} iterations of FISTA"
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "color": colour}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a curve may pass behind
    if layers == 1:  # above the arrow, else below, where no curve is
        ax.annotate(text, (layers, loss), (8, 6), ha="left", va="bottom", **style)
    else:
        ax.annotate(text, (iterations, loss), (-12, -7), ha="right", va="top", **style)


def crossing(fista: dict[int, float], iterations: int, loss: float) -> float:
    """Return the number of iterations at which the line through the last points of FISTA's curve
    reaches this loss.

    The line is straight on logarithmic axes.
    """
    before = max(k for k in fista if k < iterations)
    high, low, at = np.log(np.maximum([fista[before], fista[iterations], loss], _TINY))
    return float(before * (iterations / before) ** ((high - at) / (high - low)))


def _name_ends(ax: Axes, curves: Curves) -> None:
    """Put names and last values at the right of curves, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    at = math.inf
    for name, values in sorted(curves.items(), key=lambda item: -item[1][-1]):
        at = min(values[-1], at - _CLOSE * (high - low))
        ax.text(
            1.015,
            at,
            f"{name}, {drawing.minus(f'{values[-1]:.1f}')} dB",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=10,
            color=_STYLES[name]["color"],
            clip_on=False,
        )
