"""Estimates of variance, bias, signal and cost from a sample of gradients, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLUMNS = (
    "variance",
    "variance_low",
    "variance_high",
    "bias_z",
    "bias_p",
    "signal_to_noise",
    "signal_to_noise_low",
    "signal_to_noise_high",
    "seconds",
    "variance_time",
    "variance_time_low",
    "variance_time_high",
)
_RESAMPLES = 1000
_CRITICAL = 1.959964  # the 97.5% quantile of the normal distribution


@dataclass
class Summary:
    """A row of the table, by column, and the single parameters' mean and variance."""

    columns: dict[str, float]
    mean: Floats
    variance: Floats

    @classmethod
    def of(cls, gradients: Floats, seconds: Floats, truth: Floats | None, eps: float) -> Summary:
        """Return the summary of gradients [R, P] that took `seconds` [R].

        The exact gradient `truth` [P] is NaN for parameters that are not to be compared.
        """
        repeats = len(gradients)
        with np.errstate(invalid="ignore", over="ignore"):  # where gradients are not finite
            mean, variance = gradients.mean(0), gradients.var(0, ddof=1)
            deviations = ((gradients - mean) ** 2).sum(1) * (repeats / (repeats - 1))
        trace = float(deviations.mean())
        low, high = interval(deviations)
        fast, median, slow = median_interval(seconds)
        found = {"variance": trace, "variance_low": low, "variance_high": high, "seconds": median}
        ratio = signal_to_noise(gradients, mean, deviations)
        found["signal_to_noise"], found["signal_to_noise_low"], found["signal_to_noise_high"] = (
            ratio
        )
        found["bias_z"], found["bias_p"] = bias(gradients, truth, eps)
        found["variance_time"] = trace * median
        found["variance_time_low"] = trace * median / _joined(trace, low, median, fast)
        found["variance_time_high"] = trace * median * _joined(trace, high, median, slow)
        return cls(found, mean, variance)


def interval(deviations: Floats, resamples: int = _RESAMPLES) -> tuple[float, float]:
    """Return a 95% interval of the mean of squared deviations [R]; see `profile_variance`."""
    mean, count = float(deviations.mean()), len(deviations)
    if not math.isfinite(mean):
        return math.nan, math.nan
    error = float(deviations.std(ddof=1)) / math.sqrt(count) / mean if mean else 0.0
    if error < 1e-12:  # all the same
        return mean, mean
    rng = np.random.default_rng(0)
    pivots = []
    for _ in range(10):
        sample = deviations[rng.integers(0, count, (resamples // 10, count))]
        means, spreads = sample.mean(1), sample.std(1, ddof=1)
        usable = (means > 0) & (spreads > 0)
        relative = spreads[usable] / (math.sqrt(count) * means[usable])
        pivots.append(np.log(means[usable] / mean) / relative)
    below, above = np.quantile(np.concatenate(pivots), (0.025, 0.975))
    low, high = max(float(above), _CRITICAL), min(float(below), -_CRITICAL)
    return mean * math.exp(-low * error), mean * math.exp(min(-high * error, 700.0))


def signal_to_noise(
    gradients: Floats, mean: Floats, deviations: Floats
) -> tuple[float, float, float]:
    """Return |E g| / sqrt(variance) with its 95% interval, from gradients [R, P].

    The noise part of |mean|^2 is subtracted. The standard error of the ratio's square is the
    jackknife's: its values for R - 1 gradients follow from `deviations` and from products with the
    mean.
    """
    repeats, trace, square = len(gradients), float(deviations.mean()), float(mean @ mean)
    if not math.isfinite(trace):
        return math.nan, math.nan, math.nan
    if not trace:
        found = math.inf if square else 0.0
        return found, found, found
    ratio = (square - trace / repeats) / trace
    distances = deviations * ((repeats - 1) / repeats)
    traces = (distances.sum() - deviations) / (repeats - 2)
    squares = (
        square - 2 * (gradients @ mean - square) / (repeats - 1) + distances / (repeats - 1) ** 2
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # where all but one gradient are the same
        ratios = squares / traces - 1 / (repeats - 1)
    return _roots(ratio, ratios)


def ratio_of_means(squares: Floats, variances: Floats) -> tuple[float, float, float]:
    """sqrt(mean of squares / mean of variances) with its 95% interval, from pairs [R] of them: by
    the jackknife of its square, as `signal_to_noise`.
    """
    square, variance, count = float(squares.mean()), float(variances.mean()), len(squares)
    if not variance:
        found = math.inf if square > 0 else 0.0
        return found, found, found
    if count < 2:
        return math.sqrt(max(square / variance, 0.0)), 0.0, math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (squares.sum() - squares) / (variances.sum() - variances)
    return _roots(square / variance, ratios)


def _roots(ratio: float, ratios: Floats) -> tuple[float, float, float]:
    """The root of a squared ratio, and of its interval by the jackknife: from the values [R] of the
    ratio without each of the R observations.
    """
    count = len(ratios)
    with np.errstate(invalid="ignore"):
        error = math.sqrt((count - 1) / count * float(((ratios - ratios.mean()) ** 2).sum()))
    if not math.isfinite(error):
        return math.sqrt(max(ratio, 0.0)), 0.0, math.inf
    low, high = ratio - _CRITICAL * error, ratio + _CRITICAL * error
    return math.sqrt(max(ratio, 0.0)), math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))


def bias(gradients: Floats, truth: Floats | None, eps: float) -> tuple[float, float]:
    """Return the largest |z| over the parameters whose `truth` is not NaN, and its p-value.

    The p-value is Bonferroni's bound. Student's t statistics are turned into normal ones by the
    approximation of Wallace, "Bounds on normal approximations to Student's and the chi-square
    distributions" (1959).
    """
    if truth is None or not np.isfinite(gradients).all() or np.isnan(truth).all():
        return math.nan, math.nan
    gradients, truth = gradients[:, ~np.isnan(truth)], truth[~np.isnan(truth)]
    mean, freedom = gradients.mean(0), len(gradients) - 1
    noise = gradients.std(0, ddof=1) / math.sqrt(len(gradients)) + eps * (
        np.abs(gradients).max(0) + np.abs(truth)
    )
    difference = np.abs(mean - truth)
    t = float(np.max(np.divide(difference, noise, out=np.zeros_like(noise), where=difference > 0)))
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return z, min(1.0, len(truth) * math.erfc(z / math.sqrt(2)))


def median_interval(seconds: Floats) -> tuple[float, float, float]:
    """Return the median between the ends of its 95% interval, by order statistics."""
    ordered, reach = np.sort(seconds), 0.5 * _CRITICAL * math.sqrt(len(seconds))
    low = max(math.floor(len(seconds) / 2 - reach), 0)
    high = min(math.ceil(len(seconds) / 2 + reach), len(seconds) - 1)
    return float(ordered[low]), float(np.median(seconds)), float(ordered[high])


def _joined(variance: float, limit: float, median: float, median_limit: float) -> float:
    """Return the factor from variance times median to its limit.

    The distances of both factors from their limits are added in quadrature on the log scale.
    """
    if not variance or not math.isfinite(variance):
        return 1.0
    return math.exp(math.hypot(math.log(limit / variance), math.log(median_limit / median)))


def unflatten(flat: Sequence[Floats], shapes: Sequence[tuple[int, ...]]) -> tuple[Floats, ...]:
    """Return rows [P] as an array [rows, ...] for each parameter."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = np.split(np.stack(flat), ends, axis=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))


def nulls(x: Any) -> Any:
    """Return x with None in place of numbers that are not finite, which JSON cannot hold."""
    if isinstance(x, dict):
        return {key: nulls(value) for key, value in x.items()}
    if isinstance(x, list):
        return [nulls(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
