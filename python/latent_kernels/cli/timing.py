"""Interleaved timing of several contenders.

The speed of a shared machine changes from second to second. So all contenders are timed in rounds A
B C A B C ..., and a ratio is computed from the medians of these rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Call = Callable[[], Any]
Clock = Callable[[Call, int], float]  # seconds of so many calls

SLICE = 2e-3  # seconds of calls in one measurement: a thousand times the clock's resolution
BUDGET = 0.45  # seconds of rounds, where the least number of rounds allows
ROUNDS = (5, 31)
LONG_ROUND = 2.0  # seconds; of rounds that take longer, three are measured
LONG = 20e-3  # a call of this length needs no call before it to warm the caches


class Times(NamedTuple):
    """The times of one contender."""

    seconds: list[float]  # of one call, in each round
    calls: int  # in one measurement

    @property
    def median(self) -> float:
        """Return the seconds of one call in the median round."""
        return statistics.median(self.seconds)


def wall_clock(call: Call, count: int) -> float:
    """Return the seconds that `count` calls take."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def interleave(calls: Mapping[str, Call], clock: Clock = wall_clock) -> dict[str, Times]:
    """Time the contenders in turns; each round measures each of them once."""
    once: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, call in calls.items():
        count = 1
        while (elapsed := clock(call, count)) < SLICE / 4:
            count *= 4
        if elapsed < LONG:  # one measurement may have been disturbed
            elapsed = min(elapsed, clock(call, count), clock(call, count))
        once[name] = elapsed / count
        counts[name] = between(SLICE / once[name], 1, 100_000)
    one_round = sum((counts[name] + 1) * once[name] for name in calls)
    rounds = between(BUDGET / one_round, *ROUNDS) if one_round < LONG_ROUND else 3
    found = {name: Times([], counts[name]) for name in calls}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                if once[name] < LONG:
                    call()  # untimed: its code and data return to the caches
                found[name].seconds.append(clock(call, counts[name]) / counts[name])
    finally:
        gc.enable()
    return found


def between(x: float, low: int, high: int) -> int:
    """Return x rounded, but at least `low` and at most `high`."""
    return max(low, min(high, round(x)))
