"""What every picture shares: its palette, its size, and the way it is saved, so that no
half-written file is left.

matplotlib is imported inside of functions, and through `Figure`, which needs no window system.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_kernels.cli.frame import complete

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which people of every colour vision tell apart.
VERMILION, BLUE, GREEN, PURPLE = "#D55E00", "#0072B2", "#009E73", "#CC79A7"
BLACK, ORANGE, SKY = "#000000", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
# One colour and one marker for each curve, so that a picture can be read in grey too.
STYLES = (
    (VERMILION, "o"),
    (BLUE, "s"),
    (GREEN, "^"),
    (PURPLE, "D"),
    (BLACK, "v"),
    (ORANGE, "P"),
)


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of width x height inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix."""
    with complete(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:].lower() or "png")


def curve(style: tuple[str, str], **options: Any) -> dict[str, Any]:
    """Return the drawing options of a curve with markers."""
    colour, marker = style
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6, **options}


def legend_below(figure: Figure, ax: Axes, columns: int | None = None) -> None:
    """Put the legend of these axes below the whole figure, in one row or `columns` columns."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ncols = min(len(handles), columns or len(handles))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)


def value_range(ax: Axes, values: Sequence[float]) -> None:
    """Set the limits of the vertical axis to the range of these values plus a margin."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)


def integer_axis(ax: Axes) -> None:
    """Put the ticks of the horizontal axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def minus(text: str) -> str:
    """Return the text with real minus signs, like those on matplotlib's axes."""
    return text.replace("-", "\N{MINUS SIGN}")
