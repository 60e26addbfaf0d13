"""The data sets of `latent-kernels mixture`, in two dimensions. scikit-learn ships them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Data(NamedTuple):
    """Two columns of a data set."""

    title: str
    X: Floats  # [N, 2]
    columns: tuple[str, str]
    classes: int


def iris() -> Data:
    """Return the lengths and widths of petals.

    Lengths are rounded to 1 mm, so that a component on one value of them has an infinite density:
    uniform noise, the same in every run, undoes the rounding.

    Source: R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of
    Eugenics 7 (1936).
    """
    from sklearn.datasets import load_iris

    X = load_iris(return_X_y=True)[0][:, 2:]
    X = X + np.random.default_rng(0).uniform(-0.05, 0.05, X.shape)
    columns = ("petal length (cm)", "petal width (cm)")
    return Data("Fisher's irises, noise in place of rounding", X, columns, classes=3)


def wine() -> Data:
    """Return the principal components of 13 chemical measurements of 178 wines.

    Source: S. Aeberhard and M. Forina, "Wine", UCI repository (1992).
    """
    from sklearn.datasets import load_wine

    X = load_wine(return_X_y=True)[0]
    X, columns = _principal((X - X.mean(0)) / X.std(0))
    return Data("Wines, 13 standardized measurements", X, columns, classes=3)


def digits() -> Data:
    """Return the principal components of all the images of `cli.digits`."""
    from sklearn.datasets import load_digits

    X, columns = _principal(load_digits(return_X_y=True)[0], unit="grey levels, ")
    return Data("Handwritten digits, 8 x 8 grey values", X, columns, classes=10)


DATA = {"iris": iris, "digits": digits, "wine": wine}


def _principal(X: Floats, unit: str = "") -> tuple[Floats, tuple[str, str]]:
    """Return the first two principal components, and their names with their shares of variance."""
    centred = X - X.mean(axis=0)
    _, s, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    first, second = (
        f"principal component {i + 1} ({unit}{s[i] ** 2 / (s**2).sum():.0%} of variance)"
        for i in range(2)
    )
    return centred @ axes.T, (first, second)
