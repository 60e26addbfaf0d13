"""A variance profile as a picture.

For the ELBO, variance against the number of samples and against time. For an importance-weighted
bound, signal to noise and variance against the number of samples.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_kernels.cli.drawing import STYLES as CYCLE
from latent_kernels.cli.drawing import curve, legend_below, new_figure, save_figure
from latent_kernels.cli.variance.results import BIASED, NAMES, clear
from latent_kernels.variational._statistics import Floats
from latent_kernels.variational.variance import VarianceProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = npt.NDArray[np.void]

_VERMILION, _BLUE, _GREEN, _PURPLE, _BLACK, _ = CYCLE
STYLES = {
    "none": _VERMILION,
    "leave_one_out": _BLUE,
    "optimal": _GREEN,
    "disarm": _PURPLE,
    "reparameterized": _BLACK,
    "iwae": _VERMILION,
    "stl": _GREEN,
    "dreg": _BLUE,
    "vimco": _PURPLE,
}
_GUIDE: dict[str, Any] = {"color": "0.72", "linewidth": 0.8, "linestyle": (0, (4, 4)), "zorder": 0}
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_VARIANCE = "gradient variance, summed over parameters (nats$^2$)"


def draw(profile: VarianceProfile, title: str, path: Path, *, budget: float | None = None) -> None:
    """Draw the profile; a budget, in seconds for a gradient of the ELBO, is marked."""
    if profile.objective == "elbo":
        _draw_time(profile, title, path, budget)
    else:
        _draw_signals(profile, title, path)


def _note(ax: Axes, text: str, colour: str) -> None:
    """Write a note at the lower left of the axes."""
    ax.text(0.015, 0.02, text, transform=ax.transAxes, fontsize=9, color=colour, bbox=_BOX)


def _sample_ticks(ax: Axes, samples: npt.NDArray[np.int64]) -> None:
    """Put a tick at each number of samples."""
    from matplotlib.ticker import NullLocator

    shown = np.unique(samples)
    ax.set_xticks(shown, [f"{s}" for s in shown], rotation=45 if len(shown) > 12 else 0)
    ax.xaxis.set_minor_locator(NullLocator())


def _visible(rows: Rows) -> Rows:
    """Return the rows whose variance a logarithmic axis can show."""
    visible: Rows = rows[np.isfinite(rows["variance"]) & (rows["variance"] > 0)]
    return visible


# --- the ELBO -------------------------------------------------------------------------------------


def _draw_time(profile: VarianceProfile, title: str, path: Path, budget: float | None) -> None:
    """Draw variance against S with bands for the 95% intervals on the left, and variance against
    time on the right.
    """
    figure = new_figure(12.5, 6.0, title)
    left, right = figure.subplots(1, 2, sharey=True)
    for name in profile.estimators:
        rows = _visible(profile.rows(name))
        if len(rows):
            _draw_estimator(left, right, name, rows)
    right.margins(x=0.17)  # space for the names of the curves' ends
    left.set(title="more samples", xlabel="samples $S$ (evaluations of the log joint per gradient)")
    left.set_ylabel(_VARIANCE)
    right.set(title="more time", xlabel="time per gradient (ms, median on this machine)")
    right.tick_params(labelleft=True)
    variances = _visible(profile.table)["variance"]
    if len(variances):
        for ax, label in ((left, "slope $1/S$"), (right, "variance $\\times$ time is constant")):
            # the limits are those of the variances, since intervals from few repeats may be very
            # wide
            ax.set(xscale="log", yscale="log", ylim=(variances.min() / 3, variances.max() * 3))
            _draw_guides(ax, label)
            ax.grid(axis="y", alpha=0.25)
        _sample_ticks(left, profile.table["num_samples"])
        _time_ticks(right)
    else:
        left.set_title("no variance that a logarithmic axis could show")
    low, high = right.get_xlim()
    if budget is not None and low < 1e3 * budget < high:
        right.axvline(1e3 * budget, color="0.35", linewidth=1.0, linestyle=":")
        text, edge = f" budget {1e3 * budget:.2g} ms", right.get_xaxis_transform()
        right.text(1e3 * budget, 0.985, text, transform=edge, va="top", fontsize=9, color="0.25")
    legend_below(figure, left)
    save_figure(figure, path)


def _draw_estimator(left: Axes, right: Axes, name: str, rows: Rows) -> None:
    style, variance = curve(STYLES[name]), rows["variance"]
    low, high = rows["variance_low"], rows["variance_high"]
    left.fill_between(rows["num_samples"], low, high, color=style["color"], alpha=0.25, linewidth=0)
    left.plot(rows["num_samples"], variance, label=NAMES[name], **style)
    reach = (variance - low, high - variance)
    right.errorbar(1e3 * rows["seconds"], variance, reach, capsize=2, elinewidth=1.0, **style)
    for row, (dx, align) in zip((rows[0], rows[-1]), ((-7, "right"), (7, "left")), strict=True):
        _name_end(right, row, dx, ha=align, color=style["color"])


def _name_end(ax: Axes, row: np.void, dx: int, **style: Any) -> None:
    """Write at which S a curve begins or ends, unless the end of another curve is beside it."""
    at, text = (1e3 * float(row["seconds"]), float(row["variance"])), f"S = {row['num_samples']}"
    crowded = any(
        a.get_text() == text and abs(math.log10(a.xy[1] / at[1])) < 0.3  # type: ignore[attr-defined]
        for a in ax.texts
    )
    if not crowded:
        ax.annotate(text, at, (dx, 0), textcoords="offset points", va="center", fontsize=8, **style)


def _draw_guides(ax: Axes, label: str) -> None:
    """Draw parallel lines of slope -1, one for each decade, within the present limits of the
    axes.
    """
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    first, last = math.floor(math.log10(bottom * left)), math.ceil(math.log10(top * right))
    for power in range(first, last + 1):
        ax.plot((left, right), (10.0**power / left, 10.0**power / right), **_GUIDE)
    _note(ax, f"- - -  {label}", "0.4")


def _time_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = ax.get_xlim()
    narrow = high < 8 * low
    ax.xaxis.set_major_locator(
        MaxNLocator(6) if narrow else LogLocator(base=10, subs=(1.0, 2.0, 5.0))
    )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


# --- importance-weighted bounds -------------------------------------------------------------------


def _draw_signals(profile: VarianceProfile, title: str, path: Path) -> None:
    """Draw signal to noise with powers of S on the left, and variance with 1/S and 1/S^3 on the
    right.
    """
    figure = new_figure(12.5, 6.0, f"Gradients of importance-weighted bounds: {title}")
    left, right = figure.subplots(1, 2)
    left.set(title="signal to noise of $q$'s gradient")
    left.set_ylabel("$|E\\,g|$ / standard deviation of $g$")
    right.set(title="its variance", ylabel=_VARIANCE)
    hidden = [_draw_signal(left, name, profile.rows(name)) for name in profile.estimators]
    for name in profile.estimators:
        _draw_variance(right, name, _visible(profile.rows(name)))
    shown = np.unique(profile.table["num_samples"][profile.table["repeats"] > 0])
    for ax, slopes in (
        (left, {"S^{1/2}": 0.5, "S^0": 0.0, "S^{-1/2}": -0.5}),
        (right, {"S^{-1}": -1.0, "S^{-3}": -3.0}),
    ):
        ax.set_xlabel("samples $S$ of the bound $E[L_S]$")
        heights = np.concatenate(
            [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()] or [np.empty(0)]
        )
        heights = heights[np.isfinite(heights) & (heights > 0)]
        if len(heights):
            _finish(ax, shown, heights, slopes)
        else:
            ax.set_title("nothing that a logarithmic axis could show")
    if any(hidden):
        _note(left, "open: signal hidden in noise, below the upper end of its interval", "0.3")
    legend_below(figure, right)
    save_figure(figure, path)


def _signal_style(name: str) -> dict[str, Any]:
    return curve(STYLES[name], linestyle="--" if name == BIASED else "-")


def _draw_signal(ax: Axes, name: str, rows: Rows) -> bool:
    """Draw a line where the signal is certain, and open markers elsewhere.

    Return whether there were open markers.

    A lost signal interrupts the line; where an estimator is undefined, there is nothing to
    interrupt.
    """
    style, rows = _signal_style(name), rows[rows["repeats"] > 0]
    certain = np.isin(rows["num_samples"], clear(rows)["num_samples"])
    columns = ("signal_to_noise_low", "signal_to_noise_high", "signal_to_noise")
    low, high, ratio = (np.where(certain, rows[column], np.nan) for column in columns)
    ax.fill_between(rows["num_samples"], low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(rows["num_samples"], ratio, **style)
    with np.errstate(invalid="ignore"):
        rest = rows[(rows["signal_to_noise_low"] == 0) & (rows["signal_to_noise_high"] > 0)]
        rest = rest[np.isfinite(rest["signal_to_noise_high"])]
    top = rest["signal_to_noise_high"]
    style |= {"linestyle": "", "markerfacecolor": "white", "uplims": True, "elinewidth": 1.0}
    ax.errorbar(rest["num_samples"], top, yerr=0.2 * top, **style)
    return len(rest) > 0


def _draw_variance(ax: Axes, name: str, rows: Rows) -> None:
    if len(rows):
        style, biased = _signal_style(name), " (biased for $S > 1$)" * (name == BIASED)
        limits = rows["variance_low"], rows["variance_high"]
        ax.fill_between(rows["num_samples"], *limits, color=style["color"], alpha=0.2, linewidth=0)
        ax.plot(rows["num_samples"], rows["variance"], label=NAMES[name] + biased, **style)


def _finish(
    ax: Axes, shown: npt.NDArray[np.int64], heights: Floats, slopes: dict[str, float]
) -> None:
    """Set logarithmic axes around the curves, a tick for each S, and lines for powers of S."""
    first, last = float(shown[0]), float(shown[-1])
    rising = max(slopes.values()) > 0
    width = max(last / first, 4.0)
    # the names of the powers are at the right
    ax.set(xscale="log", yscale="log", xlim=(first / width**0.05, last * width**0.12))
    low, high = heights.min() / 2, heights.max() * (2 if rising else 8)
    _sample_ticks(ax, shown)
    ax.grid(axis="y", alpha=0.25)
    start = math.sqrt(low * high) if rising else high / 2
    for label, slope in slopes.items():
        inside = low * (high / low) ** (0.94 if slope > 0 else 0.06)
        end = min(last, first * (inside / start) ** (1 / slope)) if slope else last
        height = start * (end / first) ** slope
        ax.plot((first, end), (start, height), **_GUIDE)
        style: dict[str, Any] = {"textcoords": "offset points", "color": "0.4", "fontsize": 10}
        ax.annotate(f"${label}$", (end, height), (7, -3), **style)
    ax.set(ylim=(low, high))
