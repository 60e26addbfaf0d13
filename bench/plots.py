"""Pictures of saved runs: `python bench/plots.py` reads bench/results and saves the pictures beside
its folders.

ratios.png: how many times as fast as the best peer, every row. throughput.png: elements a second
over sizes. Both show one machine, that of the newest run, and name it; ratios-cuda.png and
throughput-cuda.png do so for a GPU. All take the fastest of the interleaved rounds, which other
work on the machine disturbs least.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

import records
from records import Comparison, Row

# Colours that stay apart for the colour-blind: Okabe and Ito's for contenders, viridis for sizes.
STYLES = {
    "ours": ("#D55E00", "o", "latent-kernels"),
    "eager": ("#0072B2", "s", "torch eager"),
    "compile": ("#009E73", "^", "torch.compile"),
    "distributions": ("#CC79A7", "D", "torch.distributions"),
    "graph": ("#E69F00", "v", "torch, CUDA graph"),
}
# score functions: a formula in eager torch, a surrogate loss through torch.distributions
SAME_STYLE = {"formula": "eager", "surrogate": "distributions"}
SIZES = (  # elements below which a point has the colour
    (1e4, "#7B2D8B", "under 10 thousand"),
    (1e5, "#31688E", "under 100 thousand"),
    (1e6, "#35B779", "under 1 million"),
    (math.inf, "#FDB813", "a million and more"),
)
NO_LINES = ("mixture", "kernel")
WIDTH = 8.8  # inches: 880 pixels, as wide as GitHub shows a README, at 100 pixels an inch
PIXELS = 160  # an inch: more than GitHub shows, for sharp screens


def line_of(comparison: Comparison) -> str:
    """Return the name of the picture's line for a row: its op, without the density; and the
    contender, where there are several of ours.
    """
    op = re.sub(r" [\d.]+%$| by SIMD build$", "", _short(comparison.ours.op))
    variant = comparison.ours.variant
    return f"{op}, {variant}" if variant else op


def _short(op: str) -> str:
    return op.replace("forward+backward", "fwd+bwd")


def _caption(rows: Iterable[Row]) -> str:
    """Return the machine, versions and dates of rows that are all of one machine."""
    rows = list(rows)
    machines = {row.machine for row in rows}
    if len(machines) != 1:
        raise ValueError(f"a picture shows one machine, not {len(machines)}")
    environments = {row.environment for row in rows}
    days = sorted({e.date[:10] for e in environments})
    commits = ", ".join(e.commit[:7] for e in sorted(environments, key=lambda e: e.date))
    versions = ", ".join(sorted({e.torch for e in environments}))
    dates = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"{machines.pop()}; torch {versions}; {dates}, at {commits}"


def draw_ratios(rows: list[Row]) -> Figure | None:
    """Draw each row of ours as a point, by op: how many times as fast as the best peer."""
    found = [c for c in records.comparisons(rows) if c.peers]
    if not found:
        return None
    lines: dict[str, list[Comparison]] = {}
    for comparison in found:
        lines.setdefault(line_of(comparison), []).append(comparison)
    ratios = [c.ratio_of_fastest for c in found]
    low, high = min(*ratios, 0.5) / 1.2, max(*ratios, 2) * 1.2
    height = 0.158 * len(lines) + 1.35
    figure, axis = plt.subplots(figsize=(WIDTH, height))
    figure.subplots_adjust(left=0.285, right=0.85, top=1 - 0.8 / height, bottom=0.45 / height)
    axis.axvspan(low, 1, color="#F3E3DC", linewidth=0)
    axis.axvline(1, color="0.3", linewidth=0.9)
    for y, (name, line) in enumerate(lines.items()):
        if y % 2:
            axis.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, linewidth=0)
        x = [c.ratio_of_fastest for c in line]
        axis.plot([min(x), max(x)], [y, y], color="0.6", linewidth=1, zorder=1)
        shift = 0.13 * (len({c.ours.threads for c in line}) > 1)  # or two would hide each other
        for c in sorted(line, key=lambda c: c.ours.elements):
            color = next(color for limit, color, _ in SIZES if c.ours.elements < limit)
            one = c.ours.threads == 1
            _dot(axis, c.ratio_of_fastest, y + (-shift if one else shift), color, one)
        peers = [name for name, _ in Counter(c.best.contender for c in line).most_common()]
        text = ", ".join(peers[:2]).replace(" unsolved", "") + ", ..." * (len(peers) > 2)
        axis.text(
            1.01,
            y,
            text,
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=6.5,
            color="0.3",
        )
    axis.text(
        1.01, -1.1, "the best peer", transform=axis.get_yaxis_transform(), va="center", fontsize=7
    )
    axis.set(xscale="log", xlim=(low, high), ylim=(len(lines) - 0.4, -0.6))
    axis.set_yticks(range(len(lines)), [*lines], fontsize=7.5)
    axis.tick_params(axis="y", length=0)
    ticks = [x for x in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low < x < high]
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=7.5)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(True, axis="x", color="0.85", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel(
        "times as fast as the best peer, in the fastest rounds; shaded: the peer wins", fontsize=8
    )
    lost, mean = sum(x < 1 for x in ratios), statistics.geometric_mean(ratios)
    title = f"{mean:.2g} times as fast as the best peer in the geometric mean of {len(ratios)} rows"
    _head(figure, f"{title}, of which the peer wins {lost}", rows)
    _size_legend(figure, max(c.ours.threads for c in found))
    return figure


def _size_legend(figure: Figure, threads: int) -> None:
    height = figure.get_figheight()
    axis = figure.add_axes((0, 1 - 0.62 / height, 1, 0.2 / height))
    axis.set(xlim=(0, WIDTH), ylim=(-1, 1))
    axis.axis("off")
    axis.text(0.9, 0, "elements:", va="center", fontsize=7)
    x = 1.6
    dots = [(label, color, True) for _, color, label in SIZES]
    if threads > 1:
        dots += [("one thread", "0.3", True), ("two threads", "0.3", False)]
    for label, color, filled in dots:
        _dot(axis, x, 0, color, filled)
        axis.text(x + 0.08, 0, label, va="center", fontsize=7)
        x += 0.35 + 0.055 * len(label)


def _dot(axis: Axes, x: float, y: float, color: str, filled: bool) -> None:
    axis.plot(
        x,
        y,
        marker="o",
        markersize=4.6,
        markeredgecolor=color,
        markerfacecolor=color if filled else "white",
        markeredgewidth=1.1,
    )


def draw_throughput(rows: list[Row]) -> Figure | None:
    """Draw a panel for each op of several sizes: elements a second on one thread, a line for each
    contender, and the rate at which the op would move its bytes as fast as a plain copy.
    """
    rows = [row for row in rows if row.threads == 1 and not row.op.endswith("SIMD build")]
    sizes: dict[str, set[int]] = {}
    for row in rows:
        sizes.setdefault(row.op, set()).add(row.elements)
    # Sizes of a mixture are of three kinds, so that no line over one of them says anything; kernels
    # by themselves are about as large as each other.
    ops = [op for op, of in sizes.items() if len(of) > 3 and op.split()[0] not in NO_LINES]
    rows = [row for row in rows if row.op in ops]
    if not ops:
        return None
    columns = 3
    lines = math.ceil(len(ops) / columns)
    height = 2.0 * lines + 0.85
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, height), squeeze=False)
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis, op in zip(axes.flat, ops, strict=False):
        mine = sorted((r for r in rows if r.op == op), key=lambda r: (r.elements, r.shape))
        for name, (color, marker, _) in STYLES.items():
            line = [r for r in mine if SAME_STYLE.get(r.contender, r.contender) == name]
            axis.plot(
                [r.elements for r in line],
                [r.elements / r.fastest_us * 1e-3 for r in line],
                color=color,
                marker=marker,
                markersize=3.2,
                linewidth=1.3,
                zorder=3 if name == "ours" else 2,
            )
        ceiling = [r for r in mine if r.ours]
        axis.plot(
            [r.elements for r in ceiling],
            [r.copy_gb_per_s * r.elements / r.bytes for r in ceiling],
            color="0.55",
            linewidth=1,
            linestyle=":",
        )
        axis.set(xscale="log", yscale="log")
        axis.set_title(_short(op), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(True, which="major", color="0.88", linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("elements of the output", fontsize=8, y=0.27 / height)
    where = ", one thread" if rows[0].device == "cpu" else ""
    figure.supylabel(f"billion elements a second{where}", fontsize=8, x=0.008)
    present = {SAME_STYLE.get(row.contender, row.contender) for row in rows}
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=3.2, linewidth=1.3, label=label)
        for name, (color, marker, label) in STYLES.items()
        if name in present
    ]
    handles.append(
        Line2D([], [], color="0.55", linestyle=":", label="a plain copy of as many bytes")
    )
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=7
    )
    figure.subplots_adjust(
        left=0.07, right=0.99, top=1 - 0.62 / height, bottom=0.68 / height, hspace=0.42, wspace=0.2
    )
    _head(figure, "Throughput over sizes", rows)
    return figure


def _head(figure: Figure, title: str, rows: list[Row]) -> None:
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.16 / height, title, ha="center", va="center", fontsize=9, weight="bold")
    figure.text(
        0.5, 1 - 0.32 / height, _caption(rows), ha="center", va="center", fontsize=7, color="0.3"
    )


def save(figure: Figure, path: Path) -> None:
    """Save a picture of a few colours: a palette makes it a third as large."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=PIXELS)
    plt.close(figure)
    Image.open(memory).convert("RGB").quantize(128, kmeans=2).save(path, optimize=True)


def main() -> None:
    """Draw the pictures for which there are saved runs."""
    rows = [row for path in records.saved() for row in records.read(path)]
    if not rows:
        raise SystemExit("bench/results has no saved run; make bench writes one")
    for device in ("cpu", "cuda"):
        chosen = records.newest(rows, device)
        for name, draw in (("ratios", draw_ratios), ("throughput", draw_throughput)):
            figure = draw(chosen)
            if figure is not None:
                path = records.RESULTS / f"{name}{'' if device == 'cpu' else f'-{device}'}.png"
                save(figure, path)
                print(f"wrote bench/results/{path.name}")


if __name__ == "__main__":
    main()
