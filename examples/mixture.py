"""
The number of components of a mixture
=====================================

Fits Gaussian mixtures by EM, compares them by the BIC, and adds the statistics of two shards.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import latent_kernels as lk


def main(most: int = 15) -> dict[int, float]:
    """Return the BIC of each number of components up to `most`."""
    grey = load_digits().data
    centred = grey - grey.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:6]
    X = centred @ axes.T  # six principal components of 1797 images

    bic = {}
    for k in range(1, most + 1):
        model = lk.GaussianMixture(k, covariance_type="full", random_state=0).fit(X)
        bic[k] = model.bic(X)
        print(f"{k:2d} components: BIC {bic[k]:.0f}")
    best = min(bic, key=lambda k: bic[k])
    plt.plot(list(bic), list(bic.values()), "o-")
    plt.xlabel("components")
    plt.ylabel("BIC")
    print(f"the least BIC has {best} components")

    # What one EM iteration needs of the data is a sum: shards can be read one after another.
    model = lk.GaussianMixture(best, random_state=0).fit(X)
    parameters = model.weights_, model.means_, model.covariances_, "full"
    statistics = lk.gaussian_e_step(X[:900], *parameters)
    statistics += lk.gaussian_e_step(X[900:], *parameters)
    better = statistics.m_step(reg_covar=1e-6)
    print(f"mean log-likelihood {statistics.log_likelihood / len(X):.3f} nats a row")
    print("weights after one more iteration:", np.sort(better.weights)[::-1].round(3))
    return bic


if __name__ == "__main__":
    main()
    plt.show()
