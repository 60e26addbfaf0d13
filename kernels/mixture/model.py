"""What the kernels of a mixture take and give, as NumPy arrays.

K components, G Gaussian columns, C columns of other exponential families with F features.
Everything is float64 but the data; `covariance_type` and the shapes are scikit-learn's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
KINDS = ("bernoulli", "poisson", "categorical")


class GaussianColumns(NamedTuple):
    """Columns with a Gaussian density in each component."""

    columns: Integers  # [G], where they stand in X
    covariance_type: str
    means: Floats  # [K, G]
    precisions_cholesky: Floats  # U, Sigma^-1 = U U^T: [K, G, G] full, [G, G] tied; 1/sigma: [K, G] diag, [K] spherical


class CanonicalColumns(NamedTuple):
    """Columns of other exponential families: log p(x | k) = <natural_k, phi(x)> - log_partition_k +
    log h(x).
    """

    columns: Integers  # [C], where they stand in X
    kinds: tuple[str, ...]  # [C], of KINDS
    starts: Integers  # [C + 1]: the features of column c are starts[c]:starts[c + 1]
    natural: Floats  # [K, F]
    log_partition: Floats  # [K, C]


class Parameters(NamedTuple):
    """A mixture: columns are independent of one another within a component, but for the Gaussian
    block.
    """

    log_weights: Floats  # [K], -inf for a component without weight
    gaussian: GaussianColumns
    canonical: CanonicalColumns


class Sums(NamedTuple):
    """Sums over rows, weighted with the responsibilities and the sample weights."""

    log_likelihood: float
    counts: Floats  # [K]
    observed: Floats  # [K, G]: of the rows in which the column is there (full, tied: the counts)
    first: Floats  # [K, G]: sum of x - mean
    second: Floats  # sum of (x - mean)(x - mean)^T: [K, G, G] full, [G, G] tied; of squares: [K, G] diag and spherical
    features: Floats  # [K, F]: sum of phi(x)
    features_observed: Floats  # [K, C]


def no_gaussian(components: int) -> GaussianColumns:
    """No Gaussian columns."""
    empty = np.zeros((components, 0))
    return GaussianColumns(np.zeros(0, np.int64), "diag", empty, empty)


def no_canonical(components: int) -> CanonicalColumns:
    """No columns of other families."""
    empty = np.zeros((components, 0))
    return CanonicalColumns(np.zeros(0, np.int64), (), np.zeros(1, np.int64), empty, empty)


def roots(gaussian: GaussianColumns) -> Floats:
    """1/sigma [K, G] of diagonal and spherical covariances, U [K, G, G] of the others."""
    u = gaussian.precisions_cholesky
    components, size = gaussian.means.shape
    if gaussian.covariance_type == "spherical":
        return np.broadcast_to(u[:, None], (components, size))
    if gaussian.covariance_type == "tied":
        return np.broadcast_to(u, (components, size, size))
    return u


def check_domain(X: NDArray[np.floating], canonical: CanonicalColumns) -> None:
    """Raises ValueError if a value is outside its column's family; NaN is missing."""
    for c, (column, kind) in enumerate(zip(canonical.columns, canonical.kinds, strict=True)):
        x = X[:, column]
        categories = int(canonical.starts[c + 1] - canonical.starts[c])
        most = {
            "bernoulli": 1.0,
            "poisson": np.finfo(np.float64).max,
            "categorical": categories - 1.0,
        }[kind]
        bad = ~np.isnan(x) & ~((x >= 0) & (x <= most) & (x == np.floor(x)))
        if bad.any():
            takes = {
                "bernoulli": "0 and 1",
                "poisson": "integers >= 0",
                "categorical": f"the categories 0 to {categories - 1}",
            }[kind]
            raise ValueError(
                f"column {column} of X is {kind!r} and takes {takes}, or NaN where it is missing; "
                f"got {x[bad][0]} in row {int(np.flatnonzero(bad)[0])}"
            )
