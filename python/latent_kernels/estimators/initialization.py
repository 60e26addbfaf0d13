"""Where EM starts: a sample of the rows, responsibilities for it, and the statistics of these."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_kernels.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")
# These give each component one row and leave the others to none.
SINGLE_ROWS = ("k-means++", "random_from_data")


class Sample(NamedTuple):
    """Rows that the initialization looks at."""

    X: Floats  # [n, D], NaN where a value is missing
    weight: Floats | None  # [n], all > 0; None for 1


class Part(NamedTuple):
    """The rows of one component, and their responsibilities times their weights; other rows have none."""

    rows: Integers
    r: Floats


def sample_size(init_size: int | None, components: int, rows: int) -> int:
    """How many rows the initialization looks at."""
    return min(rows, init_size if init_size is not None else max(10_000, 100 * components))


def sample_indices(rows: int, size: int, generator: np.random.RandomState) -> Integers:
    """`size` of `rows` indices, ascending; all of them take nothing from the generator."""
    if size >= rows:
        return np.arange(rows)
    from sklearn.utils.random import sample_without_replacement

    chosen = sample_without_replacement(rows, size, random_state=generator)
    return np.sort(np.asarray(chosen, np.int64))


def filled(X: Floats, weight: Floats | None) -> Floats:
    """X with column means in place of NaN; 0 in a column without any value."""
    missing = np.isnan(X)
    if not missing.any():
        return X
    w = np.where(missing, 0.0, 1.0 if weight is None else weight[:, None])
    total = w.sum(axis=0)
    means = (w * np.where(missing, 0.0, X)).sum(axis=0) / np.where(total > 0, total, 1.0)
    result: Floats = np.where(missing, means, X)
    return result


def standardized(X: Floats, weight: Floats | None) -> Floats:
    """Columns of mean 0 and variance 1; constant ones are 0."""
    centred = X - np.average(X, axis=0, weights=weight)
    scale = np.sqrt(np.average(centred**2, axis=0, weights=weight))
    return centred / np.where(scale > 0, scale, 1.0)


def parts(
    init_params: str, Z: Floats, weight: Floats | None, components: int, generator: np.random.RandomState
) -> list[Part]:
    """The rows of every component, drawn from the generator as scikit-learn's mixtures draw them.

    Args:
        init_params: of INIT_PARAMS.
        Z: [n, E] without NaN, in which distances mean something.
        weight: [n], or None for 1.
        components: at most n.
        generator: what is drawn from.

    """
    if init_params == "kmeans":
        from sklearn.cluster import KMeans

        labels = KMeans(n_clusters=components, n_init=1, random_state=generator).fit(Z, sample_weight=weight).labels_
        order = np.argsort(labels, kind="stable")
        rows = np.split(order, np.searchsorted(labels[order], np.arange(1, components)))
        return [Part(i, _ones(weight, i)) for i in rows]
    if init_params == "random":
        r = generator.uniform(size=(len(Z), components))
        r /= r.sum(axis=1)[:, None]
        everything = np.arange(len(Z))
        return [Part(everything, r[:, k] * _ones(weight, everything)) for k in range(components)]
    if init_params == "random_from_data":
        p = None if weight is None else weight / weight.sum()
        chosen = generator.choice(len(Z), size=components, replace=False, p=p)
    else:
        from sklearn.cluster import kmeans_plusplus

        _, chosen = kmeans_plusplus(Z, components, sample_weight=weight, random_state=generator)
    return [Part(np.array([i]), _ones(weight, np.array([i]))) for i in chosen]


def _ones(weight: Floats | None, rows: Integers) -> Floats:
    return np.ones(len(rows)) if weight is None else weight[rows]


def gaussian_statistics(
    X: Floats, weight: Floats | None, of_components: list[Part], covariance_type: str, single_rows: bool
) -> SufficientStatistics:
    """The statistics of these responsibilities, about the components' own means.

    A component without rows has the sample's mean as its anchor. Where each component has a single row, a "tied"
    covariance would be 0: as in scikit-learn, the rows that no component has then count with their second moment about
    the origin.

    Args:
        X: [n, D] without NaN.
        weight: [n], or None for 1.
        of_components: for each one its rows.
        covariance_type: "full", "tied", "diag" or "spherical".
        single_rows: see above.

    """
    components, size = len(of_components), X.shape[1]
    matrices = covariance_type in ("full", "tied")
    counts = np.array([r.sum() for _, r in of_components])
    anchor = np.tile(np.average(X, axis=0, weights=weight), (components, 1))
    first = np.zeros((components, size))
    second = np.zeros((components, size, size) if covariance_type == "full" else (components, size))
    shared = np.zeros((size, size))
    for k, (rows, r) in enumerate(of_components):
        if counts[k] > 0:
            anchor[k] = r @ X[rows] / counts[k]
        t = X[rows] - anchor[k]
        first[k] = r @ t
        squares = (t * r[:, None]).T @ t if matrices else r @ t**2
        if covariance_type == "tied":
            shared += squares
        else:
            second[k] = squares
    if covariance_type == "tied":
        if single_rows:
            rest = np.setdiff1d(np.arange(len(X)), np.concatenate([rows for rows, _ in of_components]))
            shared += (X[rest] * _ones(weight, rest)[:, None]).T @ X[rest]
        second = shared
    return SufficientStatistics(
        covariance_type=covariance_type,
        log_likelihood=0.0,
        total_weight=float(counts.sum()),
        counts=counts,
        observed=np.repeat(counts[:, None], size, axis=1),
        anchor=anchor,
        first=first,
        second=second,
        features=np.zeros((components, 0)),
        features_observed=np.zeros((components, 0)),
        feature_starts=np.zeros(1, np.int64),
    )


def sample_covariances(
    X: Floats, weight: Floats | None, covariance_type: str, components: int, reg_covar: float
) -> Floats:
    """The sample's covariance, with reg_covar on its diagonal, for every component, in the shape of covariance_type."""
    t = X - np.average(X, axis=0, weights=weight)
    w = np.ones(len(X)) if weight is None else weight
    if covariance_type in ("diag", "spherical"):
        variances = w @ t**2 / w.sum() + reg_covar
        if covariance_type == "diag":
            return np.tile(variances, (components, 1))
        return np.full(components, variances.mean())
    matrix: Floats = (t * w[:, None]).T @ t / w.sum() + reg_covar * np.eye(X.shape[1])
    return matrix if covariance_type == "tied" else np.repeat(matrix[None], components, axis=0)
