"""The formulas of the E-step, in NumPy and float64, with [N, K] arrays. Missing values are NaN.

r_ik = softmax_k(log pi_k + log p(x_i | k)) (Dempster, Laird, Rubin 1977; Bishop, PRML, section
9.2), and sums of r_ik and of r_ik times the sufficient statistics of x_i. For full and tied
covariances, missing values and their squares are replaced by their conditional expectations
(Ghahramani & Jordan 1994).
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp, softmax

from latent_kernels.kernels.mixture.model import (
    CanonicalColumns,
    Floats,
    GaussianColumns,
    Integers,
    Parameters,
    Sums,
    check_domain,
    roots,
)


def features(X: Floats, canonical: CanonicalColumns) -> tuple[Floats, Floats, Floats]:
    """Return phi(x) [N, F], which columns are present [N, C], and the sum of log h(x) [N]."""
    check_domain(X, canonical)
    phi = np.zeros((len(X), canonical.starts[-1]))
    x = X[:, canonical.columns]
    present = ~np.isnan(x)
    log_base = np.zeros(len(X))
    for c, kind in enumerate(canonical.kinds):
        rows, start = present[:, c], canonical.starts[c]
        if kind == "categorical":
            phi[rows, start + x[rows, c].astype(np.int64)] = 1.0
        else:
            phi[rows, start] = x[rows, c]
        if kind == "poisson":
            log_base[rows] -= gammaln(x[rows, c] + 1)
    return phi, present.astype(np.float64), log_base


def _patterns(x: Floats) -> list[tuple[Integers, Integers]]:
    """Return (present columns, the rows in which exactly these are) for each pattern."""
    masks, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    return [
        (np.flatnonzero(mask), np.flatnonzero(which.ravel() == i)) for i, mask in enumerate(masks)
    ]


def _gaussian_log_density(x: Floats, gaussian: GaussianColumns) -> Floats:
    """Return log p(the present part of x | k), [N, K]."""
    u, means = roots(gaussian), gaussian.means
    result = np.zeros((len(x), len(means)))
    if gaussian.covariance_type in ("diag", "spherical"):
        for k in range(len(means)):
            terms = np.log(u[k]) - 0.5 * np.log(2 * np.pi) - 0.5 * ((x - means[k]) * u[k]) ** 2
            result[:, k] = np.nansum(terms, axis=1)
        return result
    for present, rows in _patterns(x):
        for k in range(len(means)):
            covariance = np.linalg.inv(u[k] @ u[k].T)[np.ix_(present, present)]
            t = x[np.ix_(rows, present)] - means[k, present]
            squares = (t * np.linalg.solve(covariance, t.T).T).sum(axis=1)
            result[rows, k] = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return result


def _posterior(X: Floats, parameters: Parameters, hard: bool) -> tuple[Floats, Floats]:
    """Return log p(x_i) [N] (hard: the greatest log joint) and r_ik [N, K] (hard: 0 or 1)."""
    phi, present, log_base = features(X, parameters.canonical)
    joint = parameters.log_weights + _gaussian_log_density(
        X[:, parameters.gaussian.columns], parameters.gaussian
    )
    joint = (
        joint
        + phi @ parameters.canonical.natural.T
        - present @ parameters.canonical.log_partition.T
    )
    if hard:
        one = np.eye(joint.shape[1])[joint.argmax(axis=1)]
        return joint.max(axis=1) + log_base, one
    log_sum = logsumexp(joint, axis=1)
    return log_sum + log_base, softmax(joint, axis=1)


def _completed(x: Floats, k: int, r: Floats, gaussian: GaussianColumns) -> tuple[Floats, Floats]:
    """Return E[x - mean | present values] [N, G], and the sum of r times its covariance [G, G]."""
    u = roots(gaussian)[k]
    covariance = np.linalg.inv(u @ u.T)
    t = x - gaussian.means[k]
    extra = np.zeros_like(covariance)
    for present, rows in _patterns(x):
        missing = np.setdiff1d(np.arange(x.shape[1]), present)
        if len(missing) == 0:
            continue
        regression = np.linalg.solve(
            covariance[np.ix_(present, present)], covariance[np.ix_(present, missing)]
        )
        t[np.ix_(rows, missing)] = t[np.ix_(rows, present)] @ regression
        conditional = (
            covariance[np.ix_(missing, missing)] - covariance[np.ix_(missing, present)] @ regression
        )
        extra[np.ix_(missing, missing)] += r[rows].sum() * conditional
    return t, extra


def statistics(X: Floats, parameters: Parameters, sample_weight: Floats | None, hard: bool) -> Sums:
    """Return the sums of the E-step."""
    check_domain(X, parameters.canonical)
    X = np.asarray(X, np.float64)
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    X, weight = X[weight > 0], weight[weight > 0]  # 0 times another row's values might be NaN
    log_density, r = _posterior(X, parameters, hard)
    r = r * weight[:, None]
    gaussian = parameters.gaussian
    x, counts = X[:, gaussian.columns], r.sum(axis=0)
    components, size = gaussian.means.shape
    phi, column_present, _ = features(X, parameters.canonical)
    if gaussian.covariance_type in ("diag", "spherical"):
        t = x[:, None, :] - gaussian.means
        present = ~np.isnan(t)
        t = np.where(present, t, 0.0)
        observed = np.einsum("nk,nkg->kg", r, present)
        first, second = np.einsum("nk,nkg->kg", r, t), np.einsum("nk,nkg->kg", r, t * t)
    else:
        observed = np.repeat(counts[:, None], size, axis=1)
        first, second = np.zeros((components, size)), np.zeros((components, size, size))
        for k in range(components):
            t, extra = _completed(x, k, r[:, k], gaussian)
            first[k] = r[:, k] @ t
            second[k] = (r[:, k, None] * t).T @ t + extra
        if gaussian.covariance_type == "tied":
            second = second.sum(axis=0)
    return Sums(
        float(weight @ log_density),
        counts,
        observed,
        first,
        second,
        r.T @ phi,
        r.T @ column_present,
    )


def posterior(
    X: Floats,
    parameters: Parameters,
    log_density: Floats | None,
    labels: Integers | None,
    responsibilities: Floats | None,
) -> None:
    """Write log p(x_i), the most probable component and r_ik into the arrays that are given."""
    X = np.asarray(X, np.float64)
    density, r = _posterior(X, parameters, hard=False)
    if log_density is not None:
        log_density[:] = density
    if labels is not None:
        labels[:] = r.argmax(axis=1)
    if responsibilities is not None:
        responsibilities[:] = r
