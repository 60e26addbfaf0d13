"""Write the pages that quote timings: the README's table of headlines, and docs/benchmarks.md with
every row. `make bench` runs it; a test holds that the pages are what it writes.

The README shows the newest run; docs/benchmarks.md has the newest run of each machine, newest
first. A row of the README is one of HEADLINES, those that a peer wins included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

import records
from records import Comparison, Row

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- headlines: by bench/pages.py -->", "<!-- end of headlines -->"

# op and shape of each, on one thread, and what a reader calls it
HEADLINES = {
    ("noise normal", "1048576"): "a million normals",
    ("rsample_kl forward+backward", "1024x64"): "`rsample_kl`, 1024 x 64, forward and backward",
    ("rsample_kl forward+backward", "32768x256"): "the same, 32768 x 256",
    ("importance_bound forward+backward", "5000x256"): "`importance_bound`, 5000 samples of 256",
    ("bernoulli_log_prob forward+backward", "50x64x784"): "`bernoulli_log_prob`, 50 x 64 x 784",
    (
        "gaussian_log_prob decoder forward+backward",
        "50x64x784",
    ): "`gaussian_log_prob`, the same, variances learned",
    ("score gaussian gradient", "64x256x256"): "score-function gradient, 64 samples of 256 x 256",
    ("mixture diag", "200000x16x32"): "EM step, diagonal, 200,000 x 16, 32 components",
    ("mixture full", "200000x16x32"): "the same, full covariances, float64",
    ("lista training 5%", "250x500x1024x16"): "LISTA, 16 layers, a training step, codes 5% dense",
    ("lista forward 60%", "250x500x1024x16"): "the same, codes alone, 60% dense",
}


def time_of(micro: float) -> str:
    """Return a time with two digits."""
    value, unit = (micro, "us") if micro < 1e3 else (micro / 1e3, "ms")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def _where(row: Row) -> str:
    return f"{row.machine}, torch {row.environment.torch}, {row.environment.date[:10]}"


def _cells(comparison: Comparison) -> tuple[str, str, str]:
    """Return our time, the best peer's, and the ratio; in bold type where the peer wins."""
    best, ratio = comparison.best, f"{comparison.ratio:.2g}"
    if comparison.ratio < 1:
        ratio = f"**{ratio}**"
    return time_of(comparison.ours.median_us), f"{time_of(best.median_us)}, {best.contender}", ratio


def headlines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of the README's table of headlines."""
    found = {
        (c.ours.op, c.ours.shape): c
        for c in records.comparisons(rows)
        if c.peers and c.ours.threads == 1
    }
    shown = [(text, found[key]) for key, text in HEADLINES.items() if key in found]
    yield "| | ours | best other | times as fast |"
    yield "| --- | --- | --- | --- |"
    for text, comparison in shown:
        yield f"| {text} | {' | '.join(_cells(comparison))} |"
    yield ""
    yield (
        f"Medians on one thread of an {_where(shown[0][1].ours)}; the best of torch eager, "
        "`torch.compile`, torch.distributions, scikit-learn and the like, its answer checked first."
    )


def benchmarks(runs: Iterable[list[Row]]) -> Iterator[str]:
    """Yield the lines of docs/benchmarks.md: for each machine, its newest rows."""
    yield "# Benchmarks"
    yield ""
    yield (
        "Every row of the newest run on each machine, by bench/pages.py; "
        "[how they are measured](../bench/README.md). Times are medians of interleaved rounds, "
        "ratios those of the medians. In bold type: the peer wins."
    )
    for rows in runs:
        found = [c for c in records.comparisons(rows) if c.peers]
        mean = statistics.geometric_mean(c.ratio for c in found)
        lost = sum(c.ratio < 1 for c in found)
        yield from ("", f"## {_where(rows[0])}", "")
        yield (
            f"{len(found)} rows: {mean:.2g} times as fast as the best peer in the geometric mean; "
            f"the peer wins {lost}. A plain copy reached {rows[0].copy_gb_per_s:.0f} GB/s."
        )
        for op in dict.fromkeys(c.ours.op for c in found):
            yield from ("", f"### {op}", "")
            yield "| size | type | where | ours | best other | times as fast |"
            yield "| --- | --- | --- | --- | --- | --- |"
            for c in found:
                if c.ours.op == op:
                    shape = f"{c.ours.shape} {c.ours.variant}".strip()
                    cells = (shape, c.ours.dtype, c.ours.place, *_cells(c))
                    yield f"| {' | '.join(cells)} |"


def pages() -> dict[Path, str]:
    """Return the text of each page, computed from the saved runs."""
    rows = [row for path in records.saved() for row in records.read(path)]
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{README} has no lines {BEGIN} and {END}")
    table = "\n".join(headlines(records.newest(rows, "cpu")))
    newest_first = sorted(rows, key=lambda row: row.environment.date, reverse=True)
    runs = [
        records.newest([row for row in rows if row.machine == machine], device)
        for machine, device in dict.fromkeys((row.machine, row.device) for row in newest_first)
    ]
    return {
        README: f"{before}{BEGIN}\n{table}\n{END}{after}",
        BENCHMARKS: "\n".join(benchmarks(runs)) + "\n",
    }


def main() -> None:
    """Write the pages that have changed."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
