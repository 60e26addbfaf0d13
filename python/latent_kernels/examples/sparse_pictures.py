"""Sparse encoders as pictures: how good codes are by layer, and a learned dictionary beside what an
encoder saves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels.examples.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latent_kernels.examples.sparse_curves import Layers, Patches

Floats = NDArray[np.float64]

# Okabe and Ito's colours, told apart by people of every colour vision, and a marker each for those
# who print grey.
_STYLES = {
    "ISTA": ("0.55", "v"),
    "FISTA": ("#000000", "^"),
    "LISTA": ("#D55E00", "o"),
    "LISTA-CP": ("#0072B2", "s"),
    "ALISTA": ("#009E73", "D"),
}
_GAP = 1  # pixels between tiles
_TINY = 1e-12  # rounding may show a loss at its minimum as 0
_CLOSE = 0.055  # names nearer than this share of an axis would run into each other


def draw_layers(outcome: Layers, path: Path) -> None:
    """NMSE by layer or iteration."""
    from matplotlib.ticker import MaxNLocator

    n, m = outcome.shape
    figure = new_figure(9.6, 6.2)
    figure.suptitle(
        f"Sparse codes of {n} numbers, seen by {m}: layers that learned, beside iterations",
        fontsize=12,
    )
    ax = figure.subplots()
    for name, curve in outcome.curves.items():
        ax.plot(range(1, len(curve) + 1), curve, **_style(name))
    _name_ends(ax, outcome.curves)
    ax.set(xlabel="layers, or iterations", ylabel="NMSE of held-out codes (dB; less is better)")
    text = (
        "10% of a code is not 0, 40 dB of signal over noise. ISTA, FISTA: the best alpha at each "
        "point.\n"
    )
    text += (
        "LISTA-CP, ALISTA: with support selection. Each point of an encoder is trained for its "
        "depth."
    )
    ax.set_title(text, fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    save_figure(figure, path)


def draw_patches(outcome: Patches, path: Path) -> None:
    """Left: the atoms. Right: the loss above its minimum, and how far along FISTA's curve the
    layers reach.
    """
    figure = new_figure(13.0, 6.4)
    n, alpha = len(outcome.dictionary), outcome.sizes.alpha
    title = (
        f"Patches of photographs: {n} learned atoms of 8 x 8, and an encoder that learned to code "
        "with them"
    )
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.22))
    left.imshow(tiles(outcome.dictionary), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    left.set(xticks=[], yticks=[])
    left.set_title("the dictionary: those of most use first, each at its own scale", fontsize=10)
    left.spines[:].set_visible(False)
    _draw_losses(right, outcome)
    right.set_title(
        f"Lasso, alpha = {alpha:g}; {outcome.density:.0%} of the best codes are not 0", fontsize=10
    )
    save_figure(figure, path)


def tiles(dictionary: torch.Tensor) -> Floats:
    """Atoms [n, side^2] as one picture of values in [-1, 1], white between them."""
    atoms = dictionary.double().numpy()
    side, columns = math.isqrt(atoms.shape[1]), math.ceil(math.sqrt(len(atoms)))
    lines, pitch = -(-len(atoms) // columns), side + _GAP
    canvas = np.ones((lines * pitch + _GAP, columns * pitch + _GAP))
    for i, atom in enumerate(atoms):
        top, start = (_GAP + pitch * at for at in divmod(i, columns))
        canvas[top : top + side, start : start + side] = (atom / np.abs(atom).max()).reshape(
            side, side
        )
    return canvas


def _draw_losses(ax: Axes, outcome: Patches) -> None:
    depth = len(outcome.layers_worth)
    far = 1.25 * max([depth, *(k or max(outcome.fista) for k in outcome.layers_worth)])
    iterations = [k for k in outcome.fista if k <= far]
    layers = range(1, depth + 1)
    ax.plot(iterations, [outcome.fista[k] for k in iterations], label="FISTA", **_style("FISTA"))
    ax.plot(layers, outcome.curves["ISTA"], label="ISTA", **_style("ISTA"))
    ax.plot(layers, outcome.curves["LISTA"], label="LISTA, trained on the loss", **_style("LISTA"))
    for t in sorted({1, depth}):
        _draw_worth(
            ax, t, outcome.curves["LISTA"][t - 1], outcome.layers_worth[t - 1], outcome.fista
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="layers, or iterations",
        ylabel="mean Lasso loss above its minimum",
    )
    shown = [2**k for k in range(int(math.log2(far)) + 1)]
    ax.set_xticks(shown, [str(k) for k in shown])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.5, high)  # room for what the last arrow says
    ax.legend(loc="lower left", frameon=False)


def _draw_worth(
    ax: Axes, layers: int, loss: float, iterations: int | None, fista: dict[int, float]
) -> None:
    """An arrow from the encoder to FISTA's curve, at the same loss."""
    if iterations is None or iterations <= layers:
        return
    colour = _STYLES["LISTA"][0]
    arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.4, "shrinkA": 5, "shrinkB": 0}
    ax.annotate("", (crossing(fista, iterations, loss), loss), (layers, loss), arrowprops=arrow)
    text = f"{layers} layer{'s' * (layers > 1)} = {iterations} iterations of FISTA"
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "color": colour}
    if layers == 1:  # above the arrow, else below, where no curve is
        ax.annotate(text, (layers, loss), (8, 6), ha="left", va="bottom", **style)
    else:
        ax.annotate(text, (iterations, loss), (-12, -7), ha="right", va="top", **style)


def crossing(fista: dict[int, float], iterations: int, loss: float) -> float:
    """Where the line through the last points of FISTA's curve, straight on logarithmic axes, comes
    to `loss`.
    """
    before = max(k for k in fista if k < iterations)
    (high, low), (left, right) = (
        np.log([fista[before], max(fista[iterations], _TINY)]),
        np.log([before, iterations]),
    )
    return float(np.exp(left + (right - left) * (high - math.log(max(loss, _TINY))) / (high - low)))


def _style(name: str) -> dict[str, Any]:
    colour, marker = _STYLES[name]
    learned = "ISTA" in name and name not in ("ISTA", "FISTA")
    return {
        "color": colour,
        "marker": marker,
        "markersize": 5 if learned else 4,
        "linewidth": 2.0 if learned else 1.4,
    }


def _name_ends(ax: Axes, curves: dict[str, list[float]]) -> None:
    """The names of curves and their last values at the right, moved apart where they would meet."""
    low, high = ax.get_ylim()
    room, at = _CLOSE * (high - low), math.inf
    for name in sorted(curves, key=lambda n: -curves[n][-1]):
        last = curves[name][-1]
        at = min(last, at - room)
        text = f"{name}, {_minus(last)} dB"
        edge = ax.get_yaxis_transform()
        ax.text(
            1.015,
            at,
            text,
            transform=edge,
            va="center",
            fontsize=10,
            color=_STYLES[name][0],
            clip_on=False,
        )


def _minus(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
