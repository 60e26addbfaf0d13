"""Bounds as a picture: how they tighten with samples, and how training went."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_kernels.cli import drawing
from latent_kernels.cli.bounds.results import Row, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = dict[int, float]  # bounds by samples, or by epochs


def draw(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Draw L_S of held-out images against S on the left, and bounds over the epochs on the
    right.
    """
    seeds = len(rows[0].fits)
    title = f"VAEs on handwritten digits, trained on the bound of k samples ({study.estimator})"
    title += f"; means of {seeds} seeds, shaded from the lowest to the highest" if seeds > 1 else ""
    figure = drawing.new_figure(13.0, 5.6, title)
    left, right = figure.subplots(1, 2)
    shown: list[float] = []
    for row, style in zip(rows, drawing.STYLES, strict=False):
        _draw_tightening(left, row, style)
        shown += _draw_training(right, row, style[0])
    _finish(left, right, study.recipe.curve_samples)
    drawing.value_range(right, shown)
    drawing.legend_below(figure, left, columns=4)
    drawing.save_figure(figure, path)


def _draw_tightening(ax: Axes, row: Row, style: tuple[str, str]) -> None:
    curves = [one.by_samples for one in row.fits]
    means = _means(curves)
    largest = max(means)
    label = f"k = {row.k}: $L_{{{largest}}}$ = {drawing.minus(f'{means[largest]:.2f}')}"
    _draw_band(ax, curves, label=label, **drawing.curve(style))
    if row.k in means:
        ring: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.4}
        ax.plot([row.k], [means[row.k]], "o", color=style[0], **ring)


def _draw_training(ax: Axes, row: Row, colour: str) -> list[float]:
    """Draw the bounds over the epochs; return the range worth showing, since the first epochs are
    far below the rest.
    """
    held_out = [one.held_out for one in row.fits]
    trained = [dict(enumerate(one.trained, 1)) for one in row.fits]
    _draw_band(ax, held_out, color=colour, linewidth=1.8)
    means = _means(trained)
    ax.plot(list(means), list(means.values()), color=colour, linewidth=0.8, linestyle=":")
    start = len(means) // 15
    return [bound for one in (*held_out, *trained) for epoch, bound in one.items() if epoch > start]


def _draw_band(ax: Axes, curves: Sequence[Curve], **style: Any) -> None:
    """Draw the mean of the curves, and shade from the lowest to the highest."""
    means = _means(curves)
    x = list(means)
    ax.plot(x, list(means.values()), **style)
    low, high = ([reach(one[at] for one in curves) for at in x] for reach in (min, max))
    ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _means(curves: Sequence[Curve]) -> Curve:
    return {at: statistics.mean(one[at] for one in curves) for at in curves[0]}


def _finish(left: Axes, right: Axes, curve_samples: int) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    left.set(
        xscale="log",
        xlabel="samples $S$ of the bound",
        ylabel="held-out bound $L_S$ (nats per image)",
    )
    left.set_title(
        "the bound tightens to $\\log p(x)$; a ring is at the $S = k$ trained with", fontsize=11
    )
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    left.xaxis.set_minor_locator(NullLocator())
    right.set(xlabel="epoch", ylabel="bound (nats per image)")
    right.set_title(
        f"full: held-out $L_{{{curve_samples}}}$; dotted: $L_k$ in training", fontsize=11
    )
    drawing.integer_axis(right)
    for ax in (left, right):
        ax.grid(alpha=0.25)
