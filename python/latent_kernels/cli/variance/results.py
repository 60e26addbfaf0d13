"""One or two sentences about a profile, which claim no more than its intervals support.

For the ELBO: the best estimator given a budget of time. A budget T buys T / t gradients of t
seconds each, and averaging them divides the variance: what counts at T is the least variance x time
among the numbers of samples whose gradient fits into T.

For an importance-weighted bound: how the signal-to-noise ratio of gradients goes with S, and whose
is the highest. Tighter bounds can be worse to learn q from: the mean of a gradient may fall faster
with S than its noise does. Source: Rainforth et al., "Tighter variational bounds are not
necessarily better" (2018).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latent_kernels.variational._statistics import Floats
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
BIASED = "stl"  # for S > 1
_FEWEST_POINTS = 3
_CRITICAL = 1.959964  # of the normal distribution, 97.5%


def verdict(profile: VarianceProfile, budget: float | None = None) -> str:
    """Return the conclusion from the profile; the budget, in seconds for a gradient, is for the
    ELBO.
    """
    return best_in_time(profile, budget) if profile.objective == "elbo" else best_signal(profile)


# --- the ELBO: variance within a budget of time ---------------------------------------------------


class Reached(NamedTuple):
    """The variance that an estimator reaches within a budget."""

    estimator: str
    num_samples: int
    gradients: float  # gradients averaged, of so many samples each
    variance: float
    low: float
    high: float


def default_budget(profile: VarianceProfile) -> float:
    """Return the seconds within which every measured gradient fits, with two digits; NaN if none
    was measured.
    """
    times = profile.table["seconds"]
    if not np.isfinite(times).any():
        return math.nan
    longest = float(np.nanmax(times))
    unit = 10.0 ** (math.floor(math.log10(longest)) - 1)
    return math.ceil(longest / unit) * unit


def reached(profile: VarianceProfile, budget: float) -> list[Reached]:
    """Return the variance of each estimator within `budget` seconds, least first, without those
    that do not fit.
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


def best_in_time(profile: VarianceProfile, budget: float | None = None) -> str:
    """Return one sentence: who wins within `budget` seconds a gradient, by how much, who ties."""
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


def _times(x: float, least: float) -> str:
    if not least:
        return "infinitely"
    ratio = x / least
    return f"{ratio:.2g} times" if ratio < 100 else f"{float(f'{ratio:.2g}'):,.0f} times"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"


# --- importance-weighted bounds: signal to noise --------------------------------------------------


class Trend(NamedTuple):
    """The power of S that a ratio follows, with its 95% interval on either side, and the S up to
    which it was fitted.
    """

    slope: float
    reach: float
    first: int
    last: int


def clear(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the rows whose signal is certain: the interval of their ratio does not reach 0."""
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(rows["signal_to_noise"]) & np.isfinite(rows["signal_to_noise_high"])
        certain: npt.NDArray[np.void] = rows[finite & (rows["signal_to_noise_low"] > 0)]
    return certain


def trend(rows: npt.NDArray[np.void]) -> Trend | None:
    """Return the weighted least-squares slope of log ratio on log S up to the first S without a
    clear signal, or None.

    Its error follows from the errors of the points, or from their scatter about the line where this
    is larger.
    """
    certain = clear(rows)
    lost = rows["num_samples"][
        (rows["repeats"] > 0) & ~np.isin(rows["num_samples"], certain["num_samples"])
    ]
    if len(lost):
        certain = certain[certain["num_samples"] < lost.min()]
    if len(certain) < _FEWEST_POINTS:
        return None
    x, y = np.log(certain["num_samples"]), np.log(certain["signal_to_noise"])
    error = np.log(certain["signal_to_noise_high"] / certain["signal_to_noise_low"]) / (
        2 * _CRITICAL
    )
    weight = 1 / np.maximum(error, 1e-6) ** 2
    centred = x - np.average(x, weights=weight)
    slope = float((weight * centred * y).sum() / (weight * centred**2).sum())
    rest = y - np.average(y, weights=weight) - slope * centred
    scatter = float((weight * rest**2).sum()) / (len(certain) - 2)
    reach = _CRITICAL * math.sqrt(max(scatter, 1.0) / float((weight * centred**2).sum()))
    return Trend(slope, reach, int(certain["num_samples"][0]), int(certain["num_samples"][-1]))


def best_signal(profile: VarianceProfile) -> str:
    """Return the power of S that each ratio follows, and which ratio is the highest at the largest
    S.
    """
    found = {name: trend(profile.rows(name)) for name in profile.estimators}
    trends = [f"{NAMES[name]} goes like {_power(x)}" for name, x in found.items() if x is not None]
    first = f"Signal to noise of q's gradient: {'; '.join(trends)}. " if trends else ""
    return first + _highest(profile)


def _power(x: Trend) -> str:
    return f"S^({x.slope:+.2f} ± {x.reach:.2f}) from S = {x.first} to {x.last}"


def _highest(profile: VarianceProfile) -> str:
    table = profile.table[np.isfinite(profile.table["signal_to_noise"])]
    if not len(table):
        return "Nothing was measured that could be compared."
    samples = int(table["num_samples"].max())
    rows = table[table["num_samples"] == samples]
    biased = (rows["estimator"] == BIASED) & (samples > 1)
    note = f" {NAMES[BIASED]} is biased for S > 1, and not compared." if biased.any() else ""
    profiled = profile.table[
        (profile.table["num_samples"] == samples) & (profile.table["repeats"] > 0)
    ]
    if samples > 1 and (profiled["estimator"] == BIASED).all():
        return f"At S = {samples} no unbiased estimator was profiled.{note}"
    rows = rows[~biased]
    rows = rows[np.argsort(-rows["signal_to_noise"])]
    certain = clear(rows)
    if not len(certain):
        return f"At S = {samples} no unbiased estimator's signal shows above its noise.{note}"
    best, others = certain[0], [row for row in rows if row["estimator"] != certain[0]["estimator"]]
    tied = [row for row in others if row["signal_to_noise_high"] >= best["signal_to_noise_low"]]
    beaten = [row for row in others if row["signal_to_noise_high"] < best["signal_to_noise_low"]]
    if tied:
        names = enumeration(
            [
                f"{_estimator(row)} ({digits(float(row['signal_to_noise']))})"
                for row in (best, *tied)
            ]
        )
        sentence = f"At S = {samples}, {names} tie for the highest: their 95% intervals overlap"
    else:
        value, low, high = (
            digits(float(best[column]))
            for column in ("signal_to_noise", "signal_to_noise_low", "signal_to_noise_high")
        )
        wins = "wins with" if others else "reaches"
        sentence = f"At S = {samples}, {_estimator(best)} {wins} {value} (95%: {low} to {high})"
    if beaten:
        sentence += f"; {enumeration([_behind(row) for row in beaten])}"
    return f"{sentence}.{note}"


def _estimator(row: np.void) -> str:
    return NAMES[str(row["estimator"])]


def _behind(row: np.void) -> str:
    if row["signal_to_noise_low"] > 0:
        return f"{_estimator(row)} has {digits(float(row['signal_to_noise']))}"
    return f"{_estimator(row)} less than {digits(float(row['signal_to_noise_high']))}"


# --- how many samples for a signal-to-noise ratio -------------------------------------------------


def samples_for(profile: VarianceProfile, wanted: float) -> str:
    """Return one sentence: how many samples each estimator needs for that signal-to-noise ratio.

    Between two numbers of samples the ratio is interpolated on logarithmic scales. Beyond the last
    one that of the ELBO goes on like the root of S, as that of any mean; the ratio of an
    importance-weighted bound is not extrapolated: it may fall.
    """
    parts = [f"{NAMES[name]} {_needed(profile, name, wanted)}" for name in profile.estimators]
    return f"For a signal-to-noise ratio of {digits(wanted)}: {'; '.join(parts)}."


def _needed(profile: VarianceProfile, name: str, wanted: float) -> str:
    profiled = profile.rows(name)
    rows, last = clear(profiled), int(profiled["num_samples"][-1])
    if not len(rows):
        return "shows no signal"
    x = rows["num_samples"].astype(float)
    # the interval's upper curve reaches the ratio first
    fewest, found, most = (
        _reached(x, rows[f"signal_to_noise{end}"], wanted, profile.objective == "elbo")
        for end in ("_high", "", "_low")
    )
    if found is None:
        highest = digits(float(rows["signal_to_noise"].max()))
        return f"does not reach it up to S = {last} (at most {highest})"
    if found <= x[0]:
        return f"has it at S = {int(x[0])}"
    low = max(math.ceil(fewest or 1), 1)
    high = "more" if most is None else f"{math.ceil(most):,}"
    note = ", extrapolated" if found > x[-1] else ""
    return f"needs S = {math.ceil(found):,} (95%: {low:,} to {high}{note})"


def _reached(x: Floats, ratio: Floats, wanted: float, extrapolate: bool) -> float | None:
    """Return the least S at which the ratio reaches the wanted value, or None."""
    above = np.flatnonzero(ratio >= wanted)
    if not len(above):
        return float(x[-1] * (wanted / ratio[-1]) ** 2) if extrapolate else None
    i = int(above[0])
    if i == 0:
        return float(x[0])
    share = math.log(wanted / ratio[i - 1]) / math.log(ratio[i] / ratio[i - 1])
    return float(x[i - 1] * (x[i] / x[i - 1]) ** share)


# --- text -----------------------------------------------------------------------------------------


def digits(x: float) -> str:
    """Format a number with three significant digits."""
    if x == 0 or 1e-3 <= x < 1e5:
        return f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"
    return f"{x:.1e}"


def enumeration(parts: list[str]) -> str:
    """Join words with commas, and "and" before the last."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
