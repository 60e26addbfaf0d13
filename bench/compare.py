"""Two runs side by side, of two machines or of two commits: `python bench/compare.py A B`.

Each run is a CSV file, or a part of its name in bench/results. For each row that both have: the
ratio to the best peer in A and in B, our time in either, and how many times as fast B is.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import records
from records import Comparison, Environment, Row
from report import format_time


class Pair(NamedTuple):
    """A row of ours in both runs."""

    a: Comparison
    b: Comparison


class Measures(NamedTuple):
    """The quantities of a row that are compared: medians, or the fastest rounds."""

    time: Callable[[Row], float]
    ratio: Callable[[Comparison], float]


MEDIAN = Measures(lambda row: row.median_us, lambda comparison: comparison.ratio)
FASTEST = Measures(lambda row: row.fastest_us, lambda comparison: comparison.ratio_of_fastest)


def load(name: str) -> tuple[Environment, dict[Any, Comparison]]:
    """Read one run: its environment, and its rows of ours by what they time."""
    path = records.find(name)
    rows = records.read(path)
    environments = {row.environment for row in rows}
    if len(environments) != 1:
        raise ValueError(f"{path} holds {len(environments)} runs; one is needed")
    found = {(c.ours.group, c.ours.contender): c for c in records.comparisons(rows)}
    return environments.pop(), found


def text(row: Row) -> str:
    """Return the name of a row, which -k is matched with."""
    return f"{row.op} {row.shape}, {row.place}, {row.contender}"


def differences(a: Environment, b: Environment, device: str) -> Iterator[str]:
    """Yield every difference between the conditions of the two runs, since it affects the
    comparison.
    """
    machines = a.machine(device) != b.machine(device)
    if machines:
        yield "The machines differ: compare the ratios; our times tell of the machines."
    if machines and a.commit != b.commit:
        yield "The commits differ too: a change may be due to either."
    for name in ("torch", "triton", "numba", "numpy", "scikit_learn", "driver"):
        old, new = getattr(a, name), getattr(b, name)
        if old != new:
            yield f"{name} differs: {old or 'none'} and {new or 'none'}."


def table(pairs: list[Pair], of: Measures) -> Iterator[str]:
    """Yield the rows by op, and below them the geometric means."""
    head = f"{'size':>16}  {'where':9} {'contender':>13} {'ratio A':>7} {'ratio B':>7} "
    head += f"{'ours A':>10} {'ours B':>10}     A/B"
    for op in dict.fromkeys(pair.a.ours.op for pair in pairs):
        yield from ("", op, head)
        yield from (_line(pair, of) for pair in pairs if pair.a.ours.op == op)
    yield ""
    rivals = [pair for pair in pairs if pair.a.peers and pair.b.peers]
    if rivals:
        a, b = ([of.ratio(side) for side in sides] for sides in zip(*rivals, strict=True))
        means = f"A {statistics.geometric_mean(a):.3f}, B {statistics.geometric_mean(b):.3f}"
        yield f"{len(rivals)} rows with peers, geometric mean of the ratios: {means}"
        losses = (sum(ratio < 1 for ratio in side) for side in (a, b))
        yield "rows that the peer wins: A {}, B {}".format(*losses)
    gain = statistics.geometric_mean(of.time(a.ours) / of.time(b.ours) for a, b in pairs)
    yield f"our time in {len(pairs)} rows: B is {gain:.3f} times as fast in the geometric mean"


def _line(pair: Pair, of: Measures) -> str:
    row, times = pair.a.ours, [of.time(side.ours) for side in pair]
    ratios = [of.ratio(side) if side.peers else None for side in pair]
    line = f"{row.shape:>16}  {row.place:9} {row.contender:>13} "
    line += " ".join(" " * 7 if ratio is None else f"{ratio:6.2f}x" for ratio in ratios)
    line += f" {' '.join(map(format_time, times))} {times[0] / times[1]:6.2f}x"
    lost = [
        name for name, ratio in zip("AB", ratios, strict=True) if ratio is not None and ratio < 1
    ]
    return line + (f"  LOSES in {' and '.join(lost)}" if lost else "")


def compare(first: str, second: str, pattern: str = "", of: Measures = MEDIAN) -> Iterator[str]:
    """Yield the comparison of two runs; ValueError says why there is none."""
    (a, rows), (b, others) = load(first), load(second)
    if a == b:
        raise ValueError(f"{first} and {second} are one run")
    rows, others = (
        {key: c for key, c in side.items() if re.search(pattern, text(c.ours))}
        for side in (rows, others)
    )
    pairs = [Pair(c, others[key]) for key, c in rows.items() if key in others]
    if not pairs:
        matched = f" that match {pattern!r}" if pattern else ""
        raise ValueError(
            f"{first} and {second} have no row in common: of {len(rows)} and "
            f"{len(others)} rows{matched}"
        )
    devices = list(dict.fromkeys(pair.a.ours.device for pair in pairs))
    for name, environment in (("A", a), ("B", b)):
        machines = "; ".join(environment.machine(device) for device in devices)
        yield f"{name}: {machines}; {environment.date}, at {environment.commit}"
    for device in devices:
        yield from differences(a, b, device)
    yield from table(pairs, of)
    for name, count in (("A", len(rows)), ("B", len(others))):
        if count > len(pairs):
            yield f"{count - len(pairs)} rows are in {name} alone: not compared"


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", help="a file, or a part of its name in bench/results")
    parser.add_argument("b", help="the same")
    parser.add_argument(
        "-k",
        default="",
        metavar="PATTERN",
        help="only rows whose name (op shape, threads, contender) matches this regular expression",
    )
    parser.add_argument(
        "--fastest", action="store_true", help="the fastest rounds in place of medians"
    )
    options = parser.parse_args()
    of = FASTEST if options.fastest else MEDIAN
    try:
        for line in compare(options.a, options.b, options.k, of):
            print(line)
    except (ValueError, OSError, re.error) as error:
        raise SystemExit(f"bench/compare.py: {error}") from None


if __name__ == "__main__":
    main()
