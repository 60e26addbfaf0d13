"""The table of a run: printed after the timings, and by `python bench/report.py RUN` for a saved
run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

import records
from records import Comparison, Row

HEAD = f"{'size':>16}  {'where':9} {'contender':>13} {'median':>10} {'ns/elem':>8} "
HEAD += f"{'GB/s':>6} {'% copy':>6} {'% GEMM':>6}   "
HEAD += f"{'best peer':>13} {'median':>10} {'ratio':>7} {'fastest':>8}"


def closing_table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield, by op, size and place: our median, the best peer's, and the ratio."""
    rows = list(rows)
    if not rows:
        return
    yield ""
    yield "Medians of interleaved rounds. ratio = best peer / ours, so below 1 a peer wins;"
    yield "fastest = the same of the fastest rounds; ~ = other work took the cores in half of the"
    yield "rounds: believe the fastest, or run again. GB/s counts the bytes of the least algorithm;"
    yield "% copy is of a plain copy beyond the caches, % GEMM of a matrix product:"
    for place in dict.fromkeys((row.machine, row.place) for row in rows):
        row = next(row for row in rows if (row.machine, row.place) == place)
        yield (
            f"  {row.machine}, {row.place}: copy {row.copy_gb_per_s:.1f} GB/s, "
            f"{row.dtype} GEMM {row.gemm_gop_per_s:.0f} Gop/s"
        )
    found = records.comparisons(rows)
    for op in dict.fromkeys(row.op for row in rows):
        yield from ("", op, HEAD)
        yield from (_line(c) for c in found if c.ours.op == op)
    found = [c for c in found if c.peers]
    lost = [f"{c.ours.op} {c.ours.shape}, {c.ours.place}" for c in found if c.ratio < 1]
    yield ""
    yield (
        f"a peer wins {len(lost)} of {len(found)} times" + (": " if lost else "") + "; ".join(lost)
    )


def _line(comparison: Comparison) -> str:
    row = comparison.ours
    line = f"{row.shape:>16}  {row.place:9} {row.contender:>13} {format_time(row.median_us)} "
    line += f"{row.median_us * 1e3 / row.elements:8.3f} {row.bytes / row.median_us * 1e-3:6.1f} "
    line += f"{row.percent_of_copy:6.0f} {row.percent_of_gemm:6.0f}   "
    if not comparison.peers:
        return line.rstrip()
    best, ratio = comparison.best, comparison.ratio
    line += f"{best.contender:>13} {format_time(best.median_us)} "
    line += f"{ratio:6.2f}x {comparison.ratio_of_fastest:7.2f}x"
    return line + " ~" * comparison.disturbed + "  LOSES" * (ratio < 1)


def format_time(micro: float) -> str:
    """Return a time in ten characters."""
    return f"{micro:7.2f} us" if micro < 1000 else f"{micro / 1000:7.2f} ms"


def main() -> None:
    """Print the table of a saved run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", help="a file, or a part of its name in bench/results/")
    try:
        rows = records.read(records.find(parser.parse_args().run))
    except ValueError as error:
        raise SystemExit(f"bench/report.py: {error}") from None
    print(*closing_table(rows), sep="\n")


if __name__ == "__main__":
    main()
