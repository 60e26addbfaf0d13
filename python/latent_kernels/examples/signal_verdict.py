"""How the signal-to-noise ratio of gradients of importance-weighted bounds goes with S, and whose
is the highest.

Tighter bounds can be worse to learn q from: the mean of a gradient may fall faster with S than its
noise does. Source: Rainforth et al., "Tighter variational bounds are not necessarily better"
(2018).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latent_kernels.examples.variance_verdict import NAMES, digits, enumeration
from latent_kernels.variational.variance import VarianceProfile

BIASED = "stl"  # for S > 1
_FEWEST_POINTS = 3
_CRITICAL = 1.959964  # of the normal distribution, 97.5%


class Trend(NamedTuple):
    """The power of S that a ratio goes like, with its 95% interval on either side, and the S that
    it was fitted to.
    """

    slope: float
    reach: float
    first: int
    last: int


def clear(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The rows whose signal is certain: the interval of its ratio does not reach down to 0."""
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(rows["signal_to_noise"]) & np.isfinite(rows["signal_to_noise_high"])
        certain: npt.NDArray[np.void] = rows[finite & (rows["signal_to_noise_low"] > 0)]
    return certain


def trend(rows: npt.NDArray[np.void]) -> Trend | None:
    """The weighted least-squares slope of log ratio on log S up to the first S without a clear
    signal, or None.

    Its error is that of the points, or that of their scatter about the line where this is larger.
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


def verdict(profile: VarianceProfile) -> str:
    """Two sentences: how each ratio goes with S, and which is the highest at the largest S."""
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
            [f"{_name(row)} ({digits(float(row['signal_to_noise']))})" for row in (best, *tied)]
        )
        sentence = f"At S = {samples}, {names} tie for the highest: their 95% intervals overlap"
    else:
        value, low, high = (
            digits(float(best[column]))
            for column in ("signal_to_noise", "signal_to_noise_low", "signal_to_noise_high")
        )
        wins = "wins with" if others else "reaches"
        sentence = f"At S = {samples}, {_name(best)} {wins} {value} (95%: {low} to {high})"
    if beaten:
        sentence += f"; {enumeration([_behind(row) for row in beaten])}"
    return f"{sentence}.{note}"


def _name(row: np.void) -> str:
    return NAMES[str(row["estimator"])]


def _behind(row: np.void) -> str:
    if row["signal_to_noise_low"] > 0:
        return f"{_name(row)} has {digits(float(row['signal_to_noise']))}"
    return f"{_name(row)} less than {digits(float(row['signal_to_noise_high']))}"
