"""Data sets of `latent-kernels mixture`, and the results of EM on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latent_kernels.mixtures.sufficient_statistics import GaussianParameters

Floats = NDArray[np.float64]

TOLERANCE = 1e-5  # change of the mean log-likelihood, below which EM has converged


@dataclass(frozen=True)
class Data:
    """Two columns of a data set."""

    title: str
    X: Floats  # [N, 2]
    columns: tuple[str, str]
    classes: int


@dataclass(frozen=True)
class Fit:
    """EM from one start."""

    trace: list[GaussianParameters]  # the start, then after each iteration
    log_likelihood: list[float]  # of each but the last of them, mean over rows in nats

    @property
    def converged(self) -> bool:
        """Return whether the log-likelihood had come to rest."""
        return (
            len(self.log_likelihood) > 1
            and abs(self.log_likelihood[-1] - self.log_likelihood[-2]) < TOLERANCE
        )

    @property
    def lost(self) -> int:
        """Return how many components ended without weight."""
        return int(np.count_nonzero(self.trace[-1].weights == 0))


@dataclass(frozen=True)
class Outcome:
    """What there is to draw."""

    data: Data
    covariance_type: str
    fits: list[Fit]  # the best one first
    responsibilities: Floats  # [N, K], of the best one's end
    bic: dict[int, float]  # by the number of components


# --- data, shipped with scikit-learn --------------------------------------------------------------


def iris() -> Data:
    """R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7
    (1936).

    Lengths are rounded to 1 mm, so that a component on one value of them has an infinite density:
    uniform noise, the same in every run, undoes the rounding.
    """
    from sklearn.datasets import load_iris

    X = load_iris(return_X_y=True)[0][:, 2:]
    X = X + np.random.default_rng(0).uniform(-0.05, 0.05, X.shape)
    return Data(
        "Fisher's irises, noise in place of rounding",
        X,
        ("petal length (cm)", "petal width (cm)"),
        3,
    )


def wine() -> Data:
    """S. Aeberhard and M. Forina, "Wine", UCI repository (1992): 13 chemical measurements of 178
    wines.
    """
    from sklearn.datasets import load_wine

    X = load_wine(return_X_y=True)[0]
    X, shares = _principal((X - X.mean(0)) / X.std(0))
    names = [
        f"principal component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares)
    ]
    return Data("Wines, 13 standardized measurements", X, (names[0], names[1]), 3)


def digits() -> Data:
    """The images of `digits.load`, all of them."""
    from sklearn.datasets import load_digits

    X, shares = _principal(load_digits(return_X_y=True)[0])
    names = [
        f"principal component {i + 1} (grey levels, {share:.0%} of variance)"
        for i, share in enumerate(shares)
    ]
    return Data("Handwritten digits, 8 x 8 grey values", X, (names[0], names[1]), 10)


DATA: dict[str, Callable[[], Data]] = {"iris": iris, "digits": digits, "wine": wine}


def _principal(X: Floats) -> tuple[Floats, Floats]:
    """The first two principal components, and their shares of the variance."""
    centred = X - X.mean(axis=0)
    _, s, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    return centred @ axes.T, s[:2] ** 2 / (s**2).sum()
