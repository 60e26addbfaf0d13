"""Which estimator a profile speaks for, given a budget of time; in one sentence, and no surer than
the intervals are.

A budget T buys T / t gradients of t seconds each, and averaging them divides the variance: what
counts at T is the least variance x time among the numbers of samples whose gradient fits into T.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from latent_kernels.variational.variance import VarianceProfile

NAMES = {
    "none": "no control variate",
    "leave_one_out": "leave-one-out",
    "optimal": "optimal coefficient",
    "disarm": "DisARM",
    "reparameterized": "reparameterized",
    "iwae": "IWAE",
    "stl": "STL",
    "dreg": "DReG",
    "vimco": "VIMCO",
}


class Reached(NamedTuple):
    """What an estimator makes of a budget."""

    estimator: str
    num_samples: int
    gradients: float  # of so many samples each, averaged
    variance: float
    low: float
    high: float


def default_budget(profile: VarianceProfile) -> float:
    """Seconds into which every measured gradient fits, two digits of them; NaN where none was."""
    times = profile.table["seconds"]
    if not np.isfinite(times).any():
        return math.nan
    longest = float(np.nanmax(times))
    unit = 10.0 ** (math.floor(math.log10(longest)) - 1)
    return math.ceil(longest / unit) * unit


def reached(profile: VarianceProfile, budget: float) -> list[Reached]:
    """The variance of each estimator within `budget` seconds, least first; those that do not fit
    are left out.
    """
    found = []
    for name in profile.estimators:
        rows = profile.rows(name)
        rows = rows[np.isfinite(rows["variance_time"]) & (rows["seconds"] <= budget)]
        if len(rows):
            best = rows[np.argmin(rows["variance_time"])]
            limits = (
                float(best[f"variance_time{suffix}"]) / budget for suffix in ("", "_low", "_high")
            )
            found.append(
                Reached(name, int(best["num_samples"]), budget / float(best["seconds"]), *limits)
            )
    return sorted(found, key=lambda x: x.variance)


def verdict(profile: VarianceProfile, budget: float | None = None) -> str:
    """One sentence: who wins within `budget` seconds for a gradient, by how much, and who ties."""
    budget = default_budget(profile) if budget is None else budget
    if math.isnan(budget):
        return "Nothing was measured that could be compared."
    within, found = f"With {_time(budget)} for a gradient", reached(profile, budget)
    if not found:
        times = profile.table["seconds"]
        return (
            f"{within} no estimator finishes: the fastest takes {_time(float(np.nanmin(times)))}."
        )
    best, others = found[0], found[1:]
    if not others:
        return (
            f"{within}, {_name(best)} reaches variance {digits(best.variance)} nats² "
            f"{_detail(best)}, without rival."
        )
    tied = [x for x in others if x.low <= best.high]
    beaten = [x for x in others if x.low > best.high]
    if tied:
        group = [best, *tied]
        names = enumeration([f"{_name(x)} ({digits(x.variance)} nats² {_spent(x)})" for x in group])
        sentence = f"{within}, {names} tie for the least variance: their 95% intervals overlap"
    else:
        sentence = (
            f"{within}, {_name(best)} wins: variance {digits(best.variance)} nats² {_detail(best)}"
        )
    if beaten:
        behind = enumeration([f"{_name(x)} {_times(x.variance, best.variance)}" for x in beaten])
        sentence += f"; {behind} as much"
    return sentence + "."


def _name(x: Reached) -> str:
    return NAMES[x.estimator]


def _detail(x: Reached) -> str:
    return f"(95%: {digits(x.low)} to {digits(x.high)}) {_spent(x)}"


def _spent(x: Reached) -> str:
    times = f", {x.gradients:.2g} times over" if x.gradients >= 1.05 else ""
    return f"at S = {x.num_samples}{times}"


def digits(x: float) -> str:
    """Three of them."""
    if x == 0 or 1e-3 <= x < 1e5:
        return f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"
    return f"{x:.1e}"


def _times(x: float, least: float) -> str:
    if not least:
        return "infinitely"
    ratio = x / least
    return f"{ratio:.2g} times" if ratio < 100 else f"{float(f'{ratio:.2g}'):,.0f} times"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"


def enumeration(parts: list[str]) -> str:
    """With commas, and "and" before the last."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
