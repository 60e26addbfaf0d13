"""The exponential families of single columns: parameters, log-partition functions, samples.

| kind | phi(x) | natural parameter | mean parameter |
| --- | --- | --- | --- |
| bernoulli | x in {0, 1} | log p - log(1 - p) | p |
| poisson | x in {0, 1, 2, ...} | log rate | rate |
| categorical | one-hot(x), x in {0, ..., C - 1} | log p_c | p_c |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FAMILIES = ("gaussian", "bernoulli", "poisson", "categorical")
# A mean on the boundary has an infinite natural parameter, and 0 * inf is NaN: it is moved this far
# inside.
BOUNDARY = 1e-12


def clipped(kind: str, mean: Floats) -> Floats:
    """Return the nearest mean parameters [K] or [K, C] whose natural parameters are finite."""
    if kind == "poisson":
        return np.maximum(mean, BOUNDARY)
    if kind == "bernoulli":
        return np.clip(mean, BOUNDARY, 1 - BOUNDARY)
    mean = np.maximum(mean, BOUNDARY)
    result: Floats = mean / mean.sum(axis=-1, keepdims=True)
    return result


def natural_parameters(kind: str, mean: Floats) -> tuple[Floats, Floats]:
    """Return the natural parameters [K, features] and log-partition functions [K] of a column.

    mean: its mean parameters, [K], or [K, C] for a categorical column.
    """
    mean = clipped(kind, mean)
    if kind == "poisson":
        return np.log(mean)[:, None], mean
    if kind == "bernoulli":
        return (np.log(mean) - np.log1p(-mean))[:, None], -np.log1p(-mean)
    return np.log(mean), np.zeros(len(mean))


def sample(kind: str, mean: Floats, generator: np.random.RandomState) -> Floats:
    """Return one value for each row of mean parameters [n] or [n, C]."""
    if kind == "poisson":
        return generator.poisson(mean).astype(np.float64)
    if kind == "bernoulli":
        return (generator.uniform(size=len(mean)) < mean).astype(np.float64)
    steps = np.cumsum(mean, axis=1)
    u = generator.uniform(size=len(mean)) * steps[:, -1]
    result: Floats = (steps[:, :-1] <= u[:, None]).sum(axis=1).astype(np.float64)
    return result
