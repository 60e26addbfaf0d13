"""Timings as CSV, a line for each contender: written by the harness, read by report.py, plots.py
and compare.py.

A line says what was timed, how long it took, what the machine could do at most in that run, and
which machine and versions these were. What follows from several lines (the best peer, ratios) is
not stored: `comparisons` computes it.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import stand_in

RESULTS = Path(__file__).parent / "results"


class Environment(NamedTuple):
    """The machine, the versions, and when the run began."""

    processor: str
    model: str  # family-model-stepping: processors' names say little on rented machines
    simd: str  # the SIMD build of ours in use; "avx2 stand-in" where the processor has a wider one
    torch_simd: str  # the instruction set that torch uses
    cores: int
    gpu: str
    driver: str
    date: str  # to the minute
    commit: str  # of this repository; "-dirty" behind it where files were changed
    torch: str
    triton: str
    numba: str
    numpy: str
    scikit_learn: str

    @property
    def stands_in(self) -> bool:
        """Return whether the machine stands in for one with narrower registers."""
        return self.simd.endswith(stand_in.SUFFIX)

    def machine(self, device: str) -> str:
        """Return the name of the hardware that ran the rows of a device: equal texts mean the same
        machine.
        """
        if device == "cuda":
            return self.gpu
        model = f" ({self.model})" if self.model else ""
        same = self.torch_simd.lower() == self.simd.removesuffix(stand_in.SUFFIX)
        simd = self.simd if same else f"{self.simd} and torch's {self.torch_simd.lower()}"
        return f"{self.processor}{model}, {simd}, {self.cores} cores"


class Row(NamedTuple):
    """One contender of a group: of one op at one size, number of threads and device."""

    op: str
    shape: str  # 64x20
    dtype: str
    device: str  # cpu or cuda
    threads: int
    contender: str
    ours: int  # 1: this library; 0: a peer
    elements: int
    bytes: int  # that the least algorithm reads and writes
    operations: int
    median_us: float  # of one call, over interleaved rounds
    fastest_us: float
    rounds: int
    copy_gb_per_s: float  # of a plain copy in the same run
    gemm_gop_per_s: float  # of a float matrix product in the same run
    environment: Environment

    @property
    def machine(self) -> str:
        """Return the name of the hardware that ran this row."""
        return self.environment.machine(self.device)

    @property
    def group(self) -> tuple[str, str, str, str, int]:
        """Return the key that rows compared with each other have in common."""
        return self.op, self.shape, self.dtype, self.device, self.threads

    @property
    def variant(self) -> str:
        """Return the suffix that distinguishes contenders of ours, or nothing."""
        return self.contender.removeprefix("ours").strip()

    @property
    def place(self) -> str:
        """Return the device and the number of threads as text."""
        return place(self.device, self.threads)

    @property
    def percent_of_copy(self) -> float:
        """Return the counted bytes a second as a percentage of a plain copy's."""
        return 0.1 * self.bytes / self.median_us / self.copy_gb_per_s

    @property
    def percent_of_gemm(self) -> float:
        """Return the counted operations a second as a percentage of a matrix product's."""
        return 0.1 * self.operations / self.median_us / self.gemm_gop_per_s


COLUMNS = (*Row._fields[:-1], *Environment._fields)
_TYPES = get_type_hints(Row) | get_type_hints(Environment)


class Comparison(NamedTuple):
    """A row of ours and the peers of its group; a kernel timed by itself has none."""

    ours: Row
    peers: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """Return the peer with the least median."""
        return min(self.peers, key=lambda row: row.median_us)

    @property
    def ratio(self) -> float:
        """Return the best peer's median over ours: below 1 the peer wins."""
        return self.best.median_us / self.ours.median_us

    @property
    def ratio_of_fastest(self) -> float:
        """Return the same ratio for the fastest rounds; the best peer may be another one there."""
        return min(peer.fastest_us for peer in self.peers) / self.ours.fastest_us

    @property
    def disturbed(self) -> bool:
        """Return whether other work took the cores in half of the rounds: medians far above the
        fastest rounds show it.
        """
        return any(row.median_us > 1.5 * row.fastest_us for row in (self.ours, self.best))


def place(device: str, threads: int) -> str:
    """Return a device and a number of threads as text."""
    return device if device != "cpu" else f"{threads} thread{'s' * (threads > 1)}"


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Set each row of ours beside the peers of its group, in the order of the rows."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.group, row.environment), []).append(row)
    return [
        Comparison(mine, tuple(row for row in group if not row.ours))
        for group in groups.values()
        for mine in group
        if mine.ours
    ]


def read(path: Path) -> list[Row]:
    """Read a file of timings; raise ValueError that says what is wrong with it."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError(f"{path} is not a file of timings: its first line must be the columns")
        rows = []
        seen: dict[Any, int] = {}
        for number, line in enumerate(lines, 2):
            try:
                row = _row(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            first = seen.setdefault((row.group, row.contender, row.environment), number)
            if first != number:
                raise ValueError(f"{path}, line {number}: the same row as line {first}")
            rows.append(row)
    return rows


def _row(line: list[str]) -> Row:
    values = [_TYPES[name](text) for name, text in zip(COLUMNS, line, strict=True)]
    count = len(Row._fields) - 1
    return Row._make([*values[:count], _environment(*values[count:])])


# the rows of a run share one
_environment = functools.cache(Environment)


def start(path: Path) -> None:
    """Begin a file of timings; a file of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a file, so that an interrupted run keeps what it has measured."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_texts(row) for row in rows)


def _texts(row: Row) -> Iterator[Any]:
    for x in (*row[:-1], *row.environment):
        yield f"{x:.4g}" if isinstance(x, float) else x


def find(name: str) -> Path:
    """Return the file of that path, or the one in results/ whose name contains the text given."""
    if Path(name).is_file():
        return Path(name)
    found = [path for path in saved() if name in str(path.relative_to(RESULTS))]
    if len(found) == 1:
        return found[0]
    listed = "".join(f"\n  {path.relative_to(RESULTS)}" for path in found or saved())
    raise ValueError(
        f"{name!r} is {'the name of several runs' if found else 'neither a file nor a run'}; "
        f"{'these' if found else 'saved runs'} are:{listed or ' none'}"
    )


def saved() -> list[Path]:
    """Return the files in results/: a folder for each machine, a file for each run."""
    return sorted(RESULTS.glob("*/*.csv"))


def newest(rows: Iterable[Row], device: str) -> list[Row]:
    """Return, for the machine with the newest row, each group as its newest run measured it.

    A stand-in is shown where there is no other machine.
    """
    rows = [row for row in rows if row.device == device]
    rows = [row for row in rows if not row.environment.stands_in] or rows
    if not rows:
        return []
    machine = max(rows, key=lambda row: row.environment.date).machine
    rows = [row for row in rows if row.machine == machine]
    dates: dict[Any, str] = {}
    for row in rows:
        dates[row.group] = max(dates.get(row.group, ""), row.environment.date)
    return [row for row in rows if row.environment.date == dates[row.group]]
