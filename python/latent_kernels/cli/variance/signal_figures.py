"""A profile of gradients of importance-weighted bounds as a picture: signal to noise, and variance,
against S.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_kernels.examples.pictures import new_figure, save_figure
from latent_kernels.examples.signal_verdict import BIASED, clear
from latent_kernels.examples.variance_pictures import GUIDE, STYLES
from latent_kernels.examples.variance_verdict import NAMES
from latent_kernels.variational._statistics import Floats
from latent_kernels.variational.variance import VarianceProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(profile: VarianceProfile, title: str, path: Path) -> None:
    """Left: signal to noise, beside powers of S. Right: variance, beside 1/S and 1/S^3. Bands are
    95% intervals.
    """
    figure = new_figure(12.5, 6.0)
    figure.suptitle(f"Gradients of importance-weighted bounds: {title}", fontsize=12)
    left, right = figure.subplots(1, 2)
    left.set(title="signal to noise of $q$'s gradient")
    left.set_ylabel("$|E\\,g|$ / standard deviation of $g$")
    right.set(title="its variance")
    right.set_ylabel("gradient variance, summed over parameters (nats$^2$)")
    hidden = False
    for name in profile.estimators:
        rows = profile.rows(name)
        hidden |= _draw_signal(left, name, rows)
        _draw_variance(right, name, rows)
    shown = np.unique(profile.table["num_samples"][profile.table["repeats"] > 0])
    for ax, slopes in (
        (left, {"S^{1/2}": 0.5, "S^0": 0.0, "S^{-1/2}": -0.5}),
        (right, {"S^{-1}": -1.0, "S^{-3}": -3.0}),
    ):
        ax.set_xlabel("samples $S$ of the bound $E[L_S]$")
        heights = [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]
        heights = [x[np.isfinite(x) & (x > 0)] for x in heights]
        if any(len(x) for x in heights):
            _finish(ax, shown, np.concatenate(heights), slopes)
        else:
            ax.set_title("nothing that a logarithmic axis could show")
    if hidden:
        text = "open: signal hidden in noise, below the upper end of its interval"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        left.text(0.015, 0.02, text, transform=left.transAxes, fontsize=9, color="0.3", bbox=box)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
        )
    save_figure(figure, path)


def _style(name: str) -> dict[str, Any]:
    colour, marker = STYLES[name]
    line = "--" if name == BIASED else "-"
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6, "linestyle": line}


def _draw_signal(ax: Axes, name: str, rows: npt.NDArray[np.void]) -> bool:
    """Draw what is certain as a line, and for the rest an open marker.

    Return whether there was such a rest.

    A lost signal interrupts the line; where an estimator is undefined, there is nothing to
    interrupt.
    """
    style, rows = _style(name), rows[rows["repeats"] > 0]
    certain = np.isin(rows["num_samples"], clear(rows)["num_samples"])
    columns = ("signal_to_noise_low", "signal_to_noise_high", "signal_to_noise")
    low, high, ratio = (np.where(certain, rows[column], np.nan) for column in columns)
    ax.fill_between(rows["num_samples"], low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(rows["num_samples"], ratio, **style)
    with np.errstate(invalid="ignore"):
        rest = rows[(rows["signal_to_noise_low"] == 0) & (rows["signal_to_noise_high"] > 0)]
        rest = rest[np.isfinite(rest["signal_to_noise_high"])]
    below = 0.2 * rest["signal_to_noise_high"]
    open_marker: dict[str, Any] = {
        "linestyle": "",
        "markerfacecolor": "white",
        "uplims": True,
        "elinewidth": 1.0,
    }
    ax.errorbar(
        rest["num_samples"], rest["signal_to_noise_high"], yerr=below, **(style | open_marker)
    )
    return len(rest) > 0


def _draw_variance(ax: Axes, name: str, rows: npt.NDArray[np.void]) -> None:
    rows = rows[np.isfinite(rows["variance"]) & (rows["variance"] > 0)]
    if len(rows):
        style, label = (
            _style(name),
            f"{NAMES[name]} (biased for $S > 1$)" if name == BIASED else NAMES[name],
        )
        limits = rows["variance_low"], rows["variance_high"]
        ax.fill_between(rows["num_samples"], *limits, color=style["color"], alpha=0.2, linewidth=0)
        ax.plot(rows["num_samples"], rows["variance"], label=label, **style)


def _finish(
    ax: Axes, shown: npt.NDArray[np.int64], heights: Floats, slopes: dict[str, float]
) -> None:
    """Set logarithmic axes around the curves, a tick for each S, and lines for powers of S."""
    from matplotlib.ticker import NullLocator

    first, last = float(shown[0]), float(shown[-1])
    rising = max(slopes.values()) > 0
    room = max(last / first, 4.0)
    ax.set(
        xscale="log", yscale="log", xlim=(first / room**0.05, last * room**0.12)
    )  # there the powers' names stand
    ax.set_ylim(heights.min() / 2, heights.max() * (2 if rising else 8))
    ax.set_xticks(shown, [f"{s}" for s in shown], rotation=45 if len(shown) > 12 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", alpha=0.25)
    low, high = ax.get_ylim()
    start = math.sqrt(low * high) if rising else high / 2
    for label, slope in slopes.items():
        inside = low * (high / low) ** (0.94 if slope > 0 else 0.06)
        end = min(last, first * (inside / start) ** (1 / slope)) if slope else last
        height = start * (end / first) ** slope
        ax.plot((first, end), (start, height), **GUIDE)
        ax.annotate(
            f"${label}$",
            (end, height),
            (7, -3),
            textcoords="offset points",
            color="0.4",
            fontsize=10,
        )
    ax.set(ylim=(low, high))
