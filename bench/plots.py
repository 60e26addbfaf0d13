"""Pictures of saved runs: `python bench/plots.py` reads bench/results/*.json and draws beside them.

throughput.png (and throughput-cuda.png, where the run has GPU rows): elements a second over sizes
in the newest run. ratios.png: how many times as fast as the best peer, every row of the newest run.
trend.png: the ratio to the best peer over the runs made on the same processor, once there are two.
All take the fastest of the interleaved rounds, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

RESULTS = Path(__file__).parent / "results"
# one colour and marker for a contender everywhere; colours that stay apart for the colour-blind
# (Okabe and Ito)
STYLES = {
    "ours": ("#D55E00", "o"),
    "eager": ("#0072B2", "s"),
    "compile": ("#009E73", "^"),
    "distributions": ("#CC79A7", "D"),
    "graph": ("#E69F00", "v"),
}
NAMES = {
    "ours": "latent-kernels",
    "eager": "torch eager",
    "compile": "torch.compile",
    "graph": "torch, CUDA graph",
}


def load() -> list[dict[str, Any]]:
    """Saved runs, oldest first."""
    runs = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted((run for run in runs if "benchmarks" in run), key=lambda run: run["datetime"])


def rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What each row recorded."""
    return [
        row["extra_info"]
        for row in run["benchmarks"]
        if "interleaved_median_us" in row["extra_info"]
    ]


def _title(run: dict[str, Any], device: str) -> str:
    info = run["machine_info"]
    what = info["gpu"] if device == "cuda" else f"{info['cpu']['brand_raw']}, {info['simd_build']}"
    return f"{what}, torch {info['versions']['torch']}, {run['datetime'][:10]}"


def _plain_numbers(axis: Axes) -> None:
    """1, 2, 5, 10, ... up a logarithmic axis."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def draw_throughput(run: dict[str, Any], device: str) -> Path | None:
    """One panel per op of several sizes: elements a second, a line for each contender and number of
    threads.
    """
    found = [row for row in rows(run) if row["device"] == device and row["contender"] in STYLES]
    sizes: dict[str, set[int]] = {}
    for row in found:
        sizes.setdefault(row["op"], set()).add(row["elements"])
    # Sizes of a mixture are of three kinds, so that no line over one of them says anything.
    ops = [
        op
        for op, of in sizes.items()
        if len(of) > 2 and "SIMD" not in op and not op.startswith("mixture")
    ]
    found = [row for row in found if row["op"] in ops]
    if not ops:
        return None
    most = max(row["threads"] for row in found)
    columns = min(3, len(ops))
    height = math.ceil(len(ops) / columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(4.6 * columns, 3.7 * height), squeeze=False
    )
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis, op in zip(axes.flat, ops, strict=False):
        for name, (color, marker) in STYLES.items():
            for threads in (1, most) if most > 1 else (1,):
                mine = [
                    r
                    for r in found
                    if (r["op"], r["contender"], r["threads"]) == (op, name, threads)
                ]
                mine.sort(key=lambda r: (r["elements"], r["shape"]))
                axis.plot(
                    [r["elements"] for r in mine],
                    [r["elements"] / r["interleaved_fastest_us"] for r in mine],
                    color=color,
                    marker=marker,
                    markersize=5,
                    linewidth=1.6,
                    linestyle="-" if threads == 1 else "--",
                    markerfacecolor=color if threads == 1 else "white",
                )
        axis.set(
            xscale="log",
            yscale="log",
            title=op,
            xlabel="output elements",
            ylabel="million elements / s",
        )
        axis.xaxis.set_minor_formatter(NullFormatter())
        _plain_numbers(axis)
        axis.grid(True, which="major", color="0.85", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    present = {row["contender"] for row in found}
    handles = [
        Line2D([], [], color=color, marker=marker, label=NAMES.get(name, f"torch.{name}"))
        for name, (color, marker) in STYLES.items()
        if name in present
    ]
    if most > 1:
        gray: dict[str, Any] = {"color": "0.3", "marker": "o"}
        handles.append(Line2D([], [], label="1 thread", **gray))
        handles.append(
            Line2D([], [], linestyle="--", markerfacecolor="white", label=f"{most} threads", **gray)
        )
    figure.suptitle(f"Throughput in the fastest rounds: {_title(run, device)}")
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    path = RESULTS / ("throughput.png" if device == "cpu" else f"throughput-{device}.png")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def draw_ratios(run: dict[str, Any], device: str) -> Path | None:
    """Every row of ours as a point: how many times as fast as the best peer, by op."""
    found = [row for row in rows(run) if row["device"] == device and "ratio_of_fastest" in row]
    ops = list(dict.fromkeys(row["op"] for row in found))
    if not ops:
        return None
    figure, axis = plt.subplots(figsize=(9.2, 0.27 * len(ops) + 1.6))
    axis.axvspan(1e-3, 1, color="0.93", linewidth=0)
    for y, op in enumerate(reversed(ops)):
        for row in (r for r in found if r["op"] == op):
            one = row["threads"] == 1
            axis.plot(
                row["ratio_of_fastest"],
                y + (0.12 if one else -0.12),
                marker="o",
                markersize=3 + 0.9 * math.log10(row["elements"]),
                color="#D55E00",
                markerfacecolor="#D55E00" if one else "white",
                alpha=0.8,
            )
    ratios = [row["ratio_of_fastest"] for row in found]
    axis.set(
        xscale="log", xlim=(min(ratios) / 1.15, max(ratios) * 1.15), ylim=(-0.7, len(ops) - 0.3)
    )
    axis.set_yticks(range(len(ops)), reversed(ops), fontsize=8)
    axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, axis="x", color="0.85", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(
        "times as fast as the best peer in the fastest rounds; grey: the peer wins\n"
        "a point for each size, larger for more elements; hollow: two threads"
    )
    axis.set_title(_title(run, device), fontsize=10)
    figure.tight_layout()
    path = RESULTS / ("ratios.png" if device == "cpu" else f"ratios-{device}.png")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def draw_trend(runs: list[dict[str, Any]]) -> Path | None:
    """One panel per op: the ratio to the best peer over the runs of the newest run's processor."""
    cpu = runs[-1]["machine_info"]["cpu"]["brand_raw"]
    runs = [run for run in runs if run["machine_info"]["cpu"]["brand_raw"] == cpu]
    if len(runs) < 2:
        return None
    lines: dict[str, dict[str, dict[int, float]]] = {}
    for i, run in enumerate(runs):
        for row in rows(run):
            if row["contender"] == "ours" and "ratio_of_fastest" in row:
                place = row["device"] if row["device"] != "cpu" else f"{row['threads']}t"
                line = lines.setdefault(row["op"], {}).setdefault(f"{row['shape']} {place}", {})
                line[i] = row["ratio_of_fastest"]
    columns = min(3, len(lines))
    height = math.ceil(len(lines) / columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(5.2 * columns, 3.8 * height), squeeze=False
    )
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    labels = [run["datetime"][5:16].replace("T", "\n") for run in runs]
    for axis, (op, sizes) in zip(axes.flat, lines.items(), strict=False):
        colors = plt.get_cmap("viridis")
        for k, (size, points) in enumerate(sizes.items()):
            color = colors(0.9 * k / max(len(sizes) - 1, 1))
            axis.plot(
                list(points),
                list(points.values()),
                marker="o",
                markersize=4,
                color=color,
                label=size,
            )
        axis.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
        axis.set(title=op, yscale="log", ylabel="best peer / ours", xlim=(-0.2, len(runs) - 0.8))
        axis.set_xticks(range(len(runs)), labels, fontsize=7)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.45), max(high, 2.2))
        _plain_numbers(axis)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(
        f"Ratio to the best peer in the fastest rounds, over runs on {cpu} (dotted: equal)"
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    path = RESULTS / "trend.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    """Draws what the saved runs allow."""
    runs = load()
    if not runs:
        raise SystemExit("bench/results has no saved run; make bench writes one")
    drawn = [
        draw(runs[-1], device)
        for device in ("cpu", "cuda")
        for draw in (draw_throughput, draw_ratios)
    ]
    drawn.append(draw_trend(runs))
    for path in drawn:
        if path is not None:
            print(f"wrote bench/results/{path.name}")


if __name__ == "__main__":
    main()
