"""The inputs and outputs of the mixture kernels, as NumPy arrays.

There are K components, G Gaussian columns, and C columns of other exponential families with F
features. Everything but the data is float64; `covariance_type` and the shapes are scikit-learn's.
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

    columns: Integers  # [G], their indices in X
    covariance_type: str
    means: Floats  # [K, G]
    # U, Sigma^-1 = U U^T: [K, G, G] full, [G, G] tied; 1/sigma: [K, G] diag, [K] spherical
    precisions_cholesky: Floats


class CanonicalColumns(NamedTuple):
    """Columns of other exponential families.

    log p(x | k) = <natural_k, phi(x)> - log_partition_k + log h(x).
    """

    columns: Integers  # [C], their indices in X
    kinds: tuple[str, ...]  # [C], of KINDS
    starts: Integers  # [C + 1]: the features of column c are starts[c]:starts[c + 1]
    natural: Floats  # [K, F]
    log_partition: Floats  # [K, C]


class Parameters(NamedTuple):
    """The parameters of a mixture.

    Within a component, columns are independent of one another, but for the Gaussian ones.
    """

    log_weights: Floats  # [K], -inf for a component without weight
    gaussian: GaussianColumns
    canonical: CanonicalColumns


class Sums(NamedTuple):
    """Sums over rows, weighted by the responsibilities and the sample weights."""

    log_likelihood: float
    counts: Floats  # [K]
    observed: Floats  # [K, G]: of the rows in which the column is present (full, tied: the counts)
    first: Floats  # [K, G]: sum of x - mean
    # sum of (x - mean)(x - mean)^T: [K, G, G] full, [G, G] tied; of squares: [K, G] diag, spherical
    second: Floats
    features: Floats  # [K, F]: sum of phi(x)
    features_observed: Floats  # [K, C]


def no_gaussian(components: int) -> GaussianColumns:
    """Return parameters without Gaussian columns."""
    empty = np.zeros((components, 0))
    return GaussianColumns(np.zeros(0, np.int64), "diag", empty, empty)


def no_canonical(components: int) -> CanonicalColumns:
    """Return parameters without columns of other families."""
    empty = np.zeros((components, 0))
    return CanonicalColumns(np.zeros(0, np.int64), (), np.zeros(1, np.int64), empty, empty)


def gaussian_mixture(
    log_weights: Floats, covariance_type: str, means: Floats, precisions_cholesky: Floats
) -> Parameters:
    """Return the parameters of a mixture whose columns are all Gaussian."""
    components, size = means.shape
    gaussian = GaussianColumns(np.arange(size), covariance_type, means, precisions_cholesky)
    return Parameters(log_weights, gaussian, no_canonical(components))


def roots(gaussian: GaussianColumns) -> Floats:
    """Return 1/sigma [K, G] for diagonal and spherical covariances, U [K, G, G] for the others."""
    u = gaussian.precisions_cholesky
    components, size = gaussian.means.shape
    if gaussian.covariance_type == "spherical":
        return np.broadcast_to(u[:, None], (components, size))
    if gaussian.covariance_type == "tied":
        return np.broadcast_to(u, (components, size, size))
    return u


def check_domain(X: NDArray[np.floating], canonical: CanonicalColumns) -> None:
    """Raise a ValueError if a value is outside its column's family; NaN means missing."""
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
