"""
How many components: variational Bayes
======================================

With a prior that prefers few components, variational Bayes lets go of those that the data do not
need: their weights fall to 0 while the lower bound of the evidence rises. The BIC of maximum
likelihood fits asks the same question with a fit for each number of components.
"""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

import latent_kernels as lk

MOST, CENTRES = 12, np.array([[-6, 0], [0, 5], [5, -3], [8, 6]])
X = np.concatenate(
    [m + np.random.default_rng(i).normal(size=(500, 2)) for i, m in enumerate(CENTRES)]
)


def weights_by_iteration(iterations: int) -> tuple[np.ndarray, list[float]]:
    """Return the weights after each iteration [iterations, MOST], and the bounds."""
    model = lk.BayesianGaussianMixture(
        MOST, weight_concentration_prior=1e-3, warm_start=True, max_iter=1, tol=0, random_state=0
    )
    weights, bounds = [], []
    warnings.simplefilter("ignore", ConvergenceWarning)  # one iteration at a time
    for _ in range(iterations):
        model.fit(X)
        weights.append(model.weights_)
        bounds.append(model.evidence_lower_bound_)
    return np.array(weights), bounds


def main(iterations: int = 150) -> tuple[int, int]:
    """Return the number of components that keep their weight, and that of the least BIC."""
    weights, bounds = weights_by_iteration(iterations)
    fits = [lk.GaussianMixture(k, random_state=0).fit(X) for k in range(1, MOST + 1)]
    bic = [model.bic(X) for model in fits]
    kept, best = int((weights[-1] > 0.01).sum()), int(np.argmin(bic)) + 1
    print(f"{kept} of {MOST} components keep their weight; the least BIC has {best}")
    _, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    axes[0].plot(weights)
    axes[0].set(xlabel="iteration", title="weights")
    axes[1].plot(bounds)
    axes[1].set(xlabel="iteration", title="lower bound of ln p(X), nats")
    axes[2].plot(range(1, MOST + 1), bic, "o-")
    axes[2].set(xlabel="components", title="BIC of maximum likelihood")
    return kept, best


if __name__ == "__main__":
    main()
    plt.show()
