"""A variance profile as a picture: against the number of samples, and against time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_kernels.examples.pictures import new_figure, save_figure
from latent_kernels.examples.variance_verdict import NAMES
from latent_kernels.variational.variance import VarianceProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by people of every colour vision, and a marker each for those
# who print grey.
STYLES = {
    "none": ("#D55E00", "o"),
    "leave_one_out": ("#0072B2", "s"),
    "optimal": ("#009E73", "^"),
    "disarm": ("#CC79A7", "D"),
    "reparameterized": ("#000000", "v"),
    "iwae": ("#D55E00", "o"),
    "stl": ("#009E73", "^"),
    "dreg": ("#0072B2", "s"),
    "vimco": ("#CC79A7", "D"),
}
GUIDE: dict[str, Any] = {"color": "0.72", "linewidth": 0.8, "linestyle": (0, (4, 4)), "zorder": 0}


def draw(profile: VarianceProfile, title: str, path: Path, *, budget: float | None = None) -> None:
    """Left: variance against S, bands for the 95% intervals, lines of slope 1/S. Right: variance
    against time.
    """
    figure = new_figure(12.5, 6.0)
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2, sharey=True)
    for name in profile.estimators:
        rows = profile.rows(name)
        rows = rows[np.isfinite(rows["variance"]) & (rows["variance"] > 0)]
        if len(rows):
            _draw_estimator(left, right, name, rows)
    right.margins(x=0.17)  # room for the ends' names
    left.set(title="more samples", xlabel="samples $S$ (evaluations of the log joint per gradient)")
    left.set_ylabel("gradient variance, summed over parameters (nats$^2$)")
    right.set(title="more time", xlabel="time per gradient (ms, median on this machine)")
    right.tick_params(labelleft=True)
    variances = profile.table["variance"]
    variances = variances[np.isfinite(variances) & (variances > 0)]
    if len(
        variances
    ):  # whose range is that of the axes: an interval from few repeats may reach far
        for ax, label in ((left, "slope $1/S$"), (right, "variance $\\times$ time is constant")):
            ax.set(xscale="log", yscale="log", ylim=(variances.min() / 3, variances.max() * 3))
            _guides(ax, label)
        _ticks(left, right, profile.table["num_samples"])
    else:
        left.set_title("no variance that a logarithmic axis could show")
    low, high = right.get_xlim()
    if budget is not None and low < 1e3 * budget < high:
        right.axvline(1e3 * budget, color="0.35", linewidth=1.0, linestyle=":")
        text, edge = f" budget {1e3 * budget:.2g} ms", right.get_xaxis_transform()
        right.text(1e3 * budget, 0.985, text, transform=edge, va="top", fontsize=9, color="0.25")
    handles, labels = left.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
        )
    save_figure(figure, path)


def _draw_estimator(left: Axes, right: Axes, name: str, rows: npt.NDArray[np.void]) -> None:
    colour, marker = STYLES[name]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6}
    samples, variance = rows["num_samples"], rows["variance"]
    left.fill_between(
        samples, rows["variance_low"], rows["variance_high"], color=colour, alpha=0.25, linewidth=0
    )
    left.plot(samples, variance, label=NAMES[name], **style)
    milliseconds = 1e3 * rows["seconds"]
    reach = (variance - rows["variance_low"], rows["variance_high"] - variance)
    right.errorbar(milliseconds, variance, yerr=reach, capsize=2, elinewidth=1.0, **style)
    _name_ends(right, rows, colour)


def _name_ends(ax: Axes, rows: npt.NDArray[np.void], colour: str) -> None:
    """Say at which S a curve begins and stops, unless the end of another curve says so."""
    for row, (dx, align) in zip((rows[0], rows[-1]), ((-7, "right"), (7, "left")), strict=True):
        at, text = (
            (1e3 * float(row["seconds"]), float(row["variance"])),
            f"S = {row['num_samples']}",
        )
        crowded = [
            a
            for a in ax.texts
            if a.get_text() == text and abs(math.log10(a.xy[1] / at[1])) < 0.3  # type: ignore[attr-defined]
        ]
        if not crowded:
            style: dict[str, Any] = {"ha": align, "va": "center", "fontsize": 8, "color": colour}
            ax.annotate(text, at, (dx, 0), textcoords="offset points", **style)


def _guides(ax: Axes, label: str) -> None:
    """Parallel lines of slope -1 through the axes as they are, one for each decade."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    first, last = math.floor(math.log10(bottom * left)), math.ceil(math.log10(top * right))
    for power in range(first, last + 1):
        ax.plot((left, right), (10.0**power / left, 10.0**power / right), **GUIDE)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.text(
        0.015, 0.02, f"- - -  {label}", transform=ax.transAxes, fontsize=9, color="0.4", bbox=box
    )


def _ticks(left: Axes, right: Axes, samples: npt.NDArray[np.int64]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    shown = np.unique(samples)
    left.set_xticks(shown, [f"{s}" for s in shown], rotation=45 if len(shown) > 12 else 0)
    left.xaxis.set_minor_locator(NullLocator())
    low, high = right.get_xlim()
    narrow = high < 8 * low
    right.xaxis.set_major_locator(
        MaxNLocator(6) if narrow else LogLocator(base=10, subs=(1.0, 2.0, 5.0))
    )
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    for ax in (left, right):
        ax.grid(axis="y", alpha=0.25)
