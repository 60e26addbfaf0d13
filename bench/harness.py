"""Make a row: check the answer, time the contenders in turns, then let pytest-benchmark time the
row by itself.

pytest-benchmark finishes one row before it begins the next, and a shared machine changes its speed
in between. So the first row of a group also times all of the group's contenders in rounds A B C A B
C ..., and every ratio comes from the medians of those rounds; pytest-benchmark's own statistics
stand beside them, for --benchmark-compare.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda
import machine
import records
from latent_kernels.cli.timing import LONG, Call, between, interleave, wall_clock
from records import Row

ROW_BUDGET = 0.04


@dataclass(frozen=True)
class Contest:
    """The contenders of a group, ready to run, and the check that each one's output must pass."""

    calls: dict[str, Call]
    check: Callable[[str, Any], None]  # takes (contender, output), raises AssertionError


@dataclass(frozen=True)
class Group:
    """One op at one size, number of threads and device: rows that are compared with each other."""

    op: str
    shape: tuple[int, ...]
    threads: int
    device: str
    contenders: tuple[str, ...]
    elements: int
    # bytes that the least algorithm reads and writes; counted where the group is made
    bytes: int
    operations: int
    prepare: Callable[[], Contest] | None = field(default=None, repr=False, compare=False)
    ours: tuple[str, ...] = ("ours",)
    dtype: str = "float32"

    @property
    def size(self) -> str:
        """Return the shape as text."""
        return "x".join(map(str, self.shape))

    @property
    def place(self) -> str:
        """Return the device and the number of threads as text."""
        return records.place(self.device, self.threads)


@dataclass
class Result:
    """The timed rows of a group, or the reason why an answer was wrong."""

    rows: dict[str, Row] = field(default_factory=dict)  # by contender
    inner: dict[str, int] = field(default_factory=dict)  # calls in one measurement
    failure: AssertionError | None = None


results: dict[Group, Result] = {}
output: Path | None = None  # a file of timings, to which each group is written once it is timed
# at most one: a contest holds its tensors and its compiled functions
_open: dict[Group, Contest] = {}


def groups(
    make: Callable[[Any, int, str], Group],
    shapes: Sequence[Any],
    gpu_shapes: Sequence[Any] = (),
    two: Sequence[Any] | None = None,
) -> list[Group]:
    """Return make(shape, threads, device) for each shape: on one thread; for the shapes in `two`,
    on two threads as well; and on a GPU. Without `two`, shapes from 64k elements on use two
    threads; below, neither side uses a second.
    """
    if two is None:
        two = [shape for shape in shapes if math.prod(n for n in shape if n) >= 2**16]
    found = []
    for shape in shapes:
        found.append(make(shape, 1, "cpu"))
        if shape in two and torch.get_num_threads() > 1:
            found.append(make(shape, 2, "cpu"))
    return found + [make(shape, 1, "cuda") for shape in gpu_shapes]


def rows(groups: Iterable[Group]) -> list[Any]:
    """Return parameters (group, contender): the contenders of a group after each other."""
    params = []
    for group in groups:
        marks = [pytest.mark.gpu] if group.device == "cuda" else []
        for name in group.contenders:
            kind = "" if group.dtype == "float32" else f"-{group.dtype}"
            label = f"{group.op}-{group.size}{kind}-{group.place}-{name}".replace(" ", "_")
            params.append(pytest.param(group, name, id=label, marks=marks))
    return params


def run(benchmark: Any, group: Group, contender: str) -> None:
    """Time one row. The first row of a group checks and times all its contenders."""
    torch.set_num_threads(group.threads)
    contest = _contest(group)
    if group not in results:
        result = results[group] = _measure(group, contest)
        _save(result.rows.values())
    result = results[group]
    if result.failure is not None:
        raise result.failure
    row, inner = result.rows[contender], result.inner[contender]
    benchmark.group = f"{group.op} {group.size}, {group.place}"
    benchmark.extra_info.update(median_us=row.median_us, fastest_us=row.fastest_us)
    seconds = row.median_us * 1e-6
    long = seconds > LONG
    rounds = 1 if long else between(ROW_BUDGET / (seconds * inner), 3, 30)
    call = _synchronized(contest.calls[contender], group)
    benchmark.pedantic(call, rounds=rounds, iterations=inner, warmup_rounds=0 if long else 1)


def record(op: str, seconds: Sequence[float]) -> None:
    """Save times that were measured elsewhere and have no peers and no size."""
    _save([_row(Group(op, (), 1, "cpu", ("ours",), 1, 0, 0), "ours", seconds)])


def _save(rows: Iterable[Row]) -> None:
    if output is not None:
        records.append(output, rows)


def _contest(group: Group) -> Contest:
    if group not in _open:
        _open.clear()
        gc.collect()
        torch._dynamo.reset()  # else code compiled for other thread counts is used again
        assert group.prepare is not None
        _open[group] = group.prepare()
    return _open[group]


def _synchronized(call: Call, group: Group) -> Call:
    """Return a call that waits for the GPU, since pytest-benchmark uses the host's clock;
    interleaved times use device events.
    """
    if group.device != "cuda":
        return call

    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    return waiting


def _measure(group: Group, contest: Contest) -> Result:
    assert set(contest.calls) == set(group.contenders)
    result = Result()
    try:
        for name, call in contest.calls.items():
            contest.check(name, call())
    except AssertionError as error:
        result.failure = AssertionError(
            f"{group.op} {group.size}, {group.place}: wrong answer of {name}: {error}"
        )
        return result
    times = interleave(contest.calls, cuda.seconds if group.device == "cuda" else wall_clock)
    result.inner = {name: found.calls for name, found in times.items()}
    result.rows = {name: _row(group, name, times[name].seconds) for name in group.contenders}
    return result


def _row(group: Group, contender: str, seconds: Sequence[float]) -> Row:
    return Row(
        op=group.op,
        shape=group.size,
        dtype=group.dtype,
        device=group.device,
        threads=group.threads,
        contender=contender,
        ours=int(contender in group.ours),
        elements=group.elements,
        bytes=group.bytes,
        operations=group.operations,
        median_us=statistics.median(seconds) * 1e6,
        fastest_us=min(seconds) * 1e6,
        rounds=len(seconds),
        copy_gb_per_s=machine.copy_bandwidth(group.threads, group.device) * 1e-9,
        gemm_gop_per_s=machine.gemm_rate(group.threads, group.device, group.dtype) * 1e-9,
        environment=machine.environment(),
    )


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Check that every element is within `tolerance` of the float64 value, relative to
    1 + |value|.
    """
    error = ((got.double() - expected).abs() / (1 + expected.abs())).max().item()
    assert error <= tolerance, f"{what} is off by {error:.2g}, allowed {tolerance:.2g}"


def moments(x: torch.Tensor, mean: float, variance: float, fourth: float, what: str) -> None:
    """Check sample mean and variance to six standard errors, given the `fourth` central moment."""
    x = x.double().flatten()
    n = x.numel()
    assert bool(torch.isfinite(x).all()), f"{what} is not finite"
    error = abs(x.mean().item() - mean) / (variance / n) ** 0.5
    assert error < 6, f"the mean of {what} is {error:.1f} standard errors off"
    error = abs((x - mean).square().mean().item() - variance) / ((fourth - variance**2) / n) ** 0.5
    assert error < 6, f"the variance of {what} is {error:.1f} standard errors off"
