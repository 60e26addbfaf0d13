"""
K-means as hard EM
==================

An E-step with ``hard=True`` gives each row wholly to its most probable component. With equal
weights and one spherical variance EM is then Lloyd's algorithm (Celeux and Govaert, 1992).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import latent_kernels as lk

K = 10
X = load_digits().data


def hard_em(means: np.ndarray, iterations: int = 100) -> np.ndarray:
    """Return the means to which hard EM comes from those given."""
    for _ in range(iterations):
        statistics = lk.gaussian_e_step(
            X, np.full(K, 1 / K), means, np.ones(K), "spherical", hard=True
        )
        means, previous = means + statistics.first / statistics.counts[:, None], means
        if np.array_equal(means, previous):
            break
    return means


def inertia(means: np.ndarray) -> float:
    """Return the sum of squared distances of the rows to the nearest mean."""
    distances = ((X[:, None] - means) ** 2).sum(-1)
    return float(distances.min(1).sum())


def main() -> tuple[float, float]:
    """Return the inertia of hard EM and of scikit-learn's k-means, from the same start."""
    start = X[np.random.default_rng(0).choice(len(X), K, replace=False)]
    ours = hard_em(start)
    theirs = KMeans(K, init=start, n_init=1, tol=0).fit(X).cluster_centers_
    print(f"inertia {inertia(ours):.1f}, scikit-learn's {inertia(theirs):.1f}")
    plt.matshow(ours.reshape(2, 5, 8, 8).transpose(0, 2, 1, 3).reshape(16, 40), cmap="gray_r")
    plt.title("the means")
    return inertia(ours), inertia(theirs)


if __name__ == "__main__":
    main()
    plt.show()
