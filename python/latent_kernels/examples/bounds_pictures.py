"""Bounds as a picture: how they tighten with samples, and how training went."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_kernels.examples.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latent_kernels.examples.bounds_study import Row, Study

# Okabe and Ito's colours, told apart by people of every colour vision, and a marker each for those
# who print grey.
STYLES = (
    ("#D55E00", "o"),
    ("#0072B2", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#000000", "v"),
    ("#E69F00", "P"),
)


def draw(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Left: L_S of held-out images against S. Right: the bounds over the epochs."""
    figure = new_figure(13.0, 5.6)
    seeds = len(rows[0].fits)
    shaded = f"; means of {seeds} seeds, shaded from the lowest to the highest" if seeds > 1 else ""
    title = (
        f"VAEs on handwritten digits, trained on the bound of k samples ({study.estimator}){shaded}"
    )
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2)
    for row, (colour, marker) in zip(rows, STYLES, strict=False):
        _draw_tightening(left, row, colour, marker)
        _draw_training(right, row, colour)
    _finish(study, rows, left, right)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(handles), 4), frameon=False
    )
    save_figure(figure, path)


def _draw_tightening(ax: Axes, row: Row, colour: str, marker: str) -> None:
    sizes = list(row.fits[0].by_samples)
    curves = [[one.by_samples[s] for s in sizes] for one in row.fits]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6}
    means = [statistics.mean(at) for at in zip(*curves, strict=True)]
    value = f"{means[-1]:.2f}".replace("-", "\N{MINUS SIGN}")
    ax.plot(sizes, means, label=f"k = {row.k}: $L_{{{sizes[-1]}}}$ = {value}", **style)
    ax.fill_between(sizes, *_reach(curves), color=colour, alpha=0.2, linewidth=0)
    if row.k in sizes:
        ax.plot(
            [row.k],
            [means[sizes.index(row.k)]],
            "o",
            color=colour,
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=1.4,
        )


def _draw_training(ax: Axes, row: Row, colour: str) -> None:
    epochs = list(row.fits[0].held_out)
    curves = [list(one.held_out.values()) for one in row.fits]
    ax.plot(
        epochs,
        [statistics.mean(at) for at in zip(*curves, strict=True)],
        color=colour,
        linewidth=1.8,
    )
    ax.fill_between(epochs, *_reach(curves), color=colour, alpha=0.2, linewidth=0)
    trained = [statistics.mean(at) for at in zip(*(one.trained for one in row.fits), strict=True)]
    ax.plot(range(1, len(trained) + 1), trained, color=colour, linewidth=0.8, linestyle=":")


def _reach(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The lowest and the highest at each point."""
    return [min(at) for at in zip(*curves, strict=True)], [
        max(at) for at in zip(*curves, strict=True)
    ]


def _finish(study: Study, rows: Sequence[Row], left: Axes, right: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

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
    right.set(xlabel="epoch", ylabel="bound (nats per image)", ylim=_range_worth_showing(rows))
    right.set_title(
        f"full: held-out $L_{{{study.recipe.curve_samples}}}$; dotted: $L_k$ in training",
        fontsize=11,
    )
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in (left, right):
        ax.grid(alpha=0.25)


def _range_worth_showing(rows: Sequence[Row]) -> tuple[float, float]:
    """The first epochs fall far below the rest."""
    epochs = len(rows[0].fits[0].trained)
    start = epochs // 15
    values = [v for row in rows for one in row.fits for e, v in one.held_out.items() if e > start]
    values += [v for row in rows for one in row.fits for v in one.trained[start:]]
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin
