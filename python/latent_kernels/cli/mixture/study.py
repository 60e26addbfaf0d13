"""EM on a data set from several starts, and an iteration of it beside scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import latent_kernels as lk
from latent_kernels.cli.mixture.data import Data, Floats
from latent_kernels.cli.mixture.results import TOLERANCE, Fit, Outcome, Size, Speed
from latent_kernels.cli.timing import interleave
from latent_kernels.mixtures.e_step import precisions_cholesky
from latent_kernels.mixtures.sufficient_statistics import GaussianParameters

STARTS = 5
REG_COVAR = 1e-6  # added to every variance; with more of it the likelihood could fall
MOST_ITERATIONS = 500
LEAST_COMPARED = 8  # BIC is drawn up to this K, or to two more than the one asked for
SIZE = Size(rows=200_000, columns=16, components=32)


# --- fitting --------------------------------------------------------------------------------------


def compared(components: int) -> range:
    """Return the numbers of components whose BIC is compared."""
    return range(1, max(LEAST_COMPARED, components + 2) + 1)


def fit(
    data: Data,
    components: int,
    covariance_type: str,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run EM from STARTS random starts, and compute the BIC of other numbers of components.

    `advance` is called after each of the starts and each of the numbers.
    """
    from sklearn.exceptions import ConvergenceWarning

    X = data.X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `summary` says it of the best fit
        fits, generator = [], np.random.RandomState(seed)
        for _ in range(STARTS):  # as the estimator draws its n_init starts, one by one
            model = _model(X, components, covariance_type, max_iter=0, random_state=generator)
            model.fit(X)
            start = GaussianParameters(model.weights_, model.means_, model.covariances_)
            fits.append(fit_from(X, start, covariance_type))
            advance()
        fits.sort(key=lambda one: -one.log_likelihood[-1])
        # An estimator as if it had been fitted from the best start.
        model.weights_, model.means_, model.covariances_ = fits[0].trace[-1]
        model.precisions_cholesky_ = precisions_cholesky(model.covariances_, covariance_type)
        bic = {}
        for k in compared(components):
            other = model
            if k != components:
                options = {"n_init": STARTS, "max_iter": MOST_ITERATIONS, "random_state": seed}
                other = _model(X, k, covariance_type, **options).fit(X)
            bic[k] = float(other.bic(X))
            advance()
    return Outcome(data, covariance_type, fits, model.predict_proba(X), bic)


def fit_from(X: Floats, start: GaussianParameters, covariance_type: str) -> Fit:
    """Run EM until it has converged, and keep the parameters of every iteration."""
    found = Fit([start], [])
    while not found.converged and len(found.log_likelihood) < MOST_ITERATIONS:
        weights, means, covariances = found.trace[-1]
        statistics = lk.gaussian_e_step(X, weights, means, covariances, covariance_type)
        found.trace.append(statistics.m_step(reg_covar=REG_COVAR, covariances=covariances))
        found.log_likelihood.append(statistics.log_likelihood / statistics.total_weight)
    return found


def _model(X: Floats, components: int, covariance_type: str, **options: Any) -> lk.GaussianMixture:
    """Return an estimator that starts from rows far apart as means, with the covariance of all
    data.
    """
    variances, whole = X.var(axis=0), np.linalg.inv(np.cov(X, rowvar=False, bias=True))
    precisions = {
        "full": np.tile(whole, (components, 1, 1)),
        "tied": whole,
        "diag": np.tile(1 / variances, (components, 1)),
        "spherical": np.full(components, 1 / variances.mean()),
    }[covariance_type]
    return lk.GaussianMixture(
        components,
        covariance_type=covariance_type,
        init_params="k-means++",
        precisions_init=precisions,
        reg_covar=REG_COVAR,
        tol=TOLERANCE,
        **options,
    )


# --- speed ----------------------------------------------------------------------------------------


def compare_speed(size: Size, seed: int) -> list[Speed]:
    """Time an iteration with diagonal covariances of float32, and with full ones of float64."""
    from threadpoolctl import threadpool_limits

    rng, shape = np.random.default_rng(seed), (size.components, size.columns)
    centres = rng.standard_normal(shape)
    X = rng.standard_normal((size.rows, size.columns))
    X += centres[rng.integers(size.components, size=size.rows)]
    weights = np.full(size.components, 1 / size.components)
    means = centres + 0.2 * rng.standard_normal(shape)  # a little off those of the data
    with threadpool_limits(limits=torch.get_num_threads(), user_api="blas"):
        return [
            _compare(X, weights, means, covariance_type, dtype)
            for covariance_type, dtype in (("diag", "float32"), ("full", "float64"))
        ]


def _compare(X: Floats, weights: Floats, means: Floats, covariance_type: str, dtype: str) -> Speed:
    """Time an iteration from unit covariances, and compare the resulting parameters."""
    from sklearn.mixture import GaussianMixture

    X, weights, means = (a.astype(dtype) for a in (X, weights, means))
    covariances = np.ones_like(means)
    if covariance_type == "full":
        covariances = covariances[:, :, None] * np.eye(X.shape[1], dtype=dtype)
    theirs = GaussianMixture(len(weights), covariance_type=covariance_type)

    def ours() -> list[Any]:
        statistics = lk.gaussian_e_step(X, weights, means, covariances, covariance_type)
        likelihood = statistics.log_likelihood / len(X)
        return [likelihood, *statistics.m_step(reg_covar=theirs.reg_covar)]

    def sklearn() -> list[Any]:
        theirs.weights_, theirs.means_ = weights, means
        theirs.precisions_cholesky_ = covariances  # of unit ones
        likelihood, log_r = theirs._e_step(X)
        theirs._m_step(X, log_r)
        return [likelihood, theirs.weights_, theirs.means_, theirs.covariances_]

    pairs = zip(ours(), sklearn(), strict=True)
    difference = max(float((abs(a - b) / (1 + abs(np.asarray(b)))).max()) for a, b in pairs)
    times = interleave({"ours": ours, "sklearn": sklearn})
    return Speed(covariance_type, dtype, times["ours"].median, times["sklearn"].median, difference)
