"""The start of EM: a sample of the rows, responsibilities for it, and the statistics of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")
# These give each of the components one row, and the other rows to none.
SINGLE_ROWS = ("k-means++", "random_from_data")

# The k-means encoding has columns for this many categories; rarer ones are all the same to it.
_MOST_ENCODED = 1000


class Sample(NamedTuple):
    """The rows that the initialization uses."""

    X: Floats  # [n, D], NaN where a value is missing
    weight: Floats | None  # [n], all > 0; None for 1


class Assignment:
    """The rows of every component, and their responsibilities times their weights.

    All other responsibilities are 0.

    Args:
        members: for each component its rows and their responsibilities times weights.

    """

    def __init__(self, members: list[tuple[Integers, Floats]]) -> None:
        self._members = members
        self.counts = np.array([r.sum() for _, r in members])  # [K]

    def pieces(self) -> Iterator[tuple[int, Any, Floats]]:
        """Yield (component, rows, r of these rows), the same ones each time.

        A component may have several pieces or none.
        """
        for k, (rows, r) in enumerate(self._members):
            yield k, rows, r

    def sums(self, Y: Floats) -> Floats:
        """Return sum_i r_ik y_i, [K, E]."""
        result = np.zeros((len(self.counts), Y.shape[1]))
        for k, rows, r in self.pieces():
            result[k] += r @ Y[rows]
        return result


class RandomAssignment(Assignment):
    """Random responsibilities of all rows.

    Each call draws them again from the same state of the generator, so that they are never all in
    memory.
    """

    _BLOCK = 1 << 10

    def __init__(
        self, rows: int, weight: Floats | None, components: int, generator: np.random.RandomState
    ) -> None:
        self._rows, self._weight, self._components, self._state = (
            rows,
            weight,
            components,
            generator.get_state(),
        )
        self.counts = np.zeros(components)
        for k, _, r in self._drawn(generator):
            self.counts[k] += r.sum()

    def pieces(self) -> Iterator[tuple[int, Any, Floats]]:
        again = np.random.RandomState()
        again.set_state(self._state)
        return self._drawn(again)

    def _drawn(self, generator: np.random.RandomState) -> Iterator[tuple[int, Any, Floats]]:
        for start in range(0, self._rows, self._BLOCK):
            rows = slice(start, min(start + self._BLOCK, self._rows))
            r = generator.uniform(size=(rows.stop - start, self._components))
            r /= r.sum(axis=1)[:, None]
            if self._weight is not None:
                r *= self._weight[rows, None]
            for k in range(self._components):
                yield k, rows, r[:, k]


def sample_size(init_size: int | None, components: int, rows: int) -> int:
    """Return how many rows the initialization uses."""
    return min(rows, init_size if init_size is not None else max(10_000, 100 * components))


def sample_indices(rows: int, size: int, generator: np.random.RandomState) -> Integers:
    """Return `size` of `rows` indices, ascending; all of them take nothing from the generator."""
    if size >= rows:
        return np.arange(rows)
    from sklearn.utils.random import sample_without_replacement

    chosen = sample_without_replacement(rows, size, random_state=generator)
    return np.sort(np.asarray(chosen, np.int64))


def filled(X: Floats, weight: Floats | None) -> Floats:
    """Return X with column means in place of NaN, 0 in a column without any value."""
    missing = np.isnan(X)
    if not missing.any():
        return X
    w = np.where(missing, 0.0, 1.0 if weight is None else weight[:, None])
    total = w.sum(axis=0)
    means = (w * np.where(missing, 0.0, X)).sum(axis=0) / np.where(total > 0, total, 1.0)
    result: Floats = np.where(missing, means, X)
    return result


def without_values(X: Floats) -> NDArray[np.bool_]:
    """Return whether a column is NaN in every row, [D]."""
    return np.asarray(np.isnan(X).all(axis=0))


def standardized(X: Floats, weight: Floats | None) -> Floats:
    """Return columns of mean 0 and variance 1; constant ones become 0."""
    centred = X - np.average(X, axis=0, weights=weight)
    scale = np.sqrt(np.average(centred**2, axis=0, weights=weight))
    return centred / np.where(scale > 0, scale, 1.0)


def one_hot(x: Floats) -> Floats:
    """Return [n, C] for the C categories that occur, NaN where x is NaN.

    C is at most _MOST_ENCODED, for the most frequent ones.
    """
    present = ~np.isnan(x)
    values, which, counts = np.unique(x[present], return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:_MOST_ENCODED])
    column = np.full(len(values), len(kept))
    column[kept] = np.arange(len(kept))
    result = np.zeros((len(x), len(kept) + 1))
    result[present, column[which]] = 1.0
    result[~present] = np.nan
    return result[:, : max(len(kept), 1)]


def category_counts(
    x: Floats, weight: Floats | None, assignment: Assignment, categories: int
) -> Floats:
    """Return the weight of each category in each component [K, C], smoothed.

    The whole sample's frequencies are added as one more row: without it a probability of 0 would
    stay 0 for ever. Missing values count as the whole sample's mean.
    """
    present = ~np.isnan(x)
    values = np.where(present, x, 0).astype(np.int64)
    ones = np.ones(len(x)) if weight is None else weight
    whole = np.bincount(values, ones * present, categories)
    mean = whole / max(float((ones * present).sum()), np.finfo(float).tiny)
    smooth = (mean * ones.sum() + 1) / (mean * ones.sum() + 1).sum()
    counts = np.tile(smooth, (len(assignment.counts), 1))
    for k, rows, r in assignment.pieces():
        counts[k] += np.bincount(values[rows], r * present[rows], categories)
        counts[k] += (r * ~present[rows]).sum() * mean
    return counts


def assign(
    init_params: str,
    Z: Floats,
    weight: Floats | None,
    components: int,
    generator: np.random.RandomState,
) -> Assignment:
    """Return the rows of every component, drawn as scikit-learn's mixtures draw them.

    Args:
        init_params: of INIT_PARAMS.
        Z: [n, E] without NaN, with meaningful distances.
        weight: [n], or None for 1.
        components: at most n.
        generator: the source of random numbers.

    """
    if init_params == "kmeans":
        from sklearn.cluster import KMeans

        labels = (
            KMeans(n_clusters=components, n_init=1, random_state=generator)
            .fit(Z, sample_weight=weight)
            .labels_
        )
        order = np.argsort(labels, kind="stable")
        rows = np.split(order, np.searchsorted(labels[order], np.arange(1, components)))
        return Assignment([(i, _weights(weight, i)) for i in rows])
    if init_params == "random":
        return RandomAssignment(len(Z), weight, components, generator)
    if init_params == "random_from_data":
        p = None if weight is None else weight / weight.sum()
        chosen = generator.choice(len(Z), size=components, replace=False, p=p)
    else:
        from sklearn.cluster import kmeans_plusplus

        _, chosen = kmeans_plusplus(Z, components, sample_weight=weight, random_state=generator)
    return Assignment([(np.array([i]), _weights(weight, np.array([i]))) for i in chosen])


def _weights(weight: Floats | None, rows: Integers) -> Floats:
    return np.ones(len(rows)) if weight is None else weight[rows]


def gaussian_statistics(
    X: Floats,
    weight: Floats | None,
    assignment: Assignment,
    covariance_type: str,
    single_rows: bool,
    unknown: NDArray[np.bool_],
) -> SufficientStatistics:
    """Return the statistics of these responsibilities, about the components' own means.

    A component without rows has the sample's mean as its anchor. If each component has a single
    row, a "tied" covariance would be 0: as in scikit-learn, the rows without a component then count
    with their second moment about the origin.

    Args:
        X: [n, D] without NaN.
        weight: [n], or None for 1.
        assignment: the rows of each component.
        covariance_type: "full", "tied", "diag" or "spherical".
        single_rows: whether each component has a single row.
        unknown: [D], the columns without any value, whose variance is 1.

    """
    components, size = len(assignment.counts), X.shape[1]
    matrices = covariance_type in ("full", "tied")
    counts = assignment.counts
    anchor = np.tile(np.average(X, axis=0, weights=weight), (components, 1))
    some = counts > 0
    anchor[some] = assignment.sums(X)[some] / counts[some, None]
    first = np.zeros((components, size))
    second = np.zeros((components, size, size) if covariance_type == "full" else (components, size))
    shared = np.zeros((size, size))
    for k, rows, r in assignment.pieces():
        t = X[rows] - anchor[k]
        first[k] += r @ t
        squares = (t * r[:, None]).T @ t if matrices else r @ t**2
        if covariance_type == "tied":
            shared += squares
        else:
            second[k] += squares
    if covariance_type == "tied":
        if single_rows:
            rest = np.setdiff1d(
                np.arange(len(X)), np.concatenate([rows for _, rows, _ in assignment.pieces()])
            )
            shared += (X[rest] * _weights(weight, rest)[:, None]).T @ X[rest]
        second = shared + counts.sum() * np.diag(1.0 * unknown)
    elif covariance_type == "full":
        second += counts[:, None, None] * np.diag(1.0 * unknown)
    elif covariance_type == "diag" or unknown.all():
        second += counts[:, None] * unknown
    observed = np.repeat(counts[:, None], size, axis=1)
    if covariance_type == "spherical" and not unknown.all():
        observed[:, unknown] = 0.0
    return SufficientStatistics(
        covariance_type=covariance_type,
        log_likelihood=0.0,
        total_weight=float(counts.sum()),
        counts=counts,
        observed=observed,
        anchor=anchor,
        first=first,
        second=second,
        features=np.zeros((components, 0)),
        features_observed=np.zeros((components, 0)),
        feature_starts=np.zeros(1, np.int64),
    )


def sample_covariances(
    X: Floats,
    weight: Floats | None,
    covariance_type: str,
    components: int,
    reg_covar: float,
    unknown: NDArray[np.bool_],
) -> Floats:
    """Return the sample's covariance for every component, in the shape of covariance_type.

    reg_covar is added to its diagonal.
    """
    t = X - np.average(X, axis=0, weights=weight)
    w = np.ones(len(X)) if weight is None else weight
    ones = 1.0 * unknown
    if covariance_type in ("diag", "spherical"):
        variances = w @ t**2 / w.sum() + ones + reg_covar
        if covariance_type == "diag":
            return np.tile(variances, (components, 1))
        return np.full(
            components, variances.mean() if unknown.all() else variances[~unknown].mean()
        )
    matrix: Floats = (t * w[:, None]).T @ t / w.sum() + np.diag(ones + reg_covar)
    return matrix if covariance_type == "tied" else np.repeat(matrix[None], components, axis=0)
