"""The E-step as the formulas have it, in NumPy and float64, with [N, K] arrays. Missing values are
NaN.

r_ik = softmax_k(log pi_k + log p(x_i | k)) (Dempster, Laird, Rubin 1977; Bishop, PRML, section
9.2); the sums of r_ik and of r_ik times the sufficient statistics of x_i. For full and tied
covariances a missing part is replaced by its conditional expectation, and its square by that of the
square (Ghahramani & Jordan 1994).
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp

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
    """phi(x) [N, F], which columns are there [N, C], and log h(x) summed over columns [N]."""
    check_domain(X, canonical)
    phi = np.zeros((len(X), canonical.starts[-1]))
    x = X[:, canonical.columns]
    there = ~np.isnan(x)
    log_base = np.zeros(len(X))
    for c, kind in enumerate(canonical.kinds):
        rows, start = there[:, c], canonical.starts[c]
        if kind == "categorical":
            phi[rows, start + x[rows, c].astype(np.int64)] = 1.0
        else:
            phi[rows, start] = x[rows, c]
        if kind == "poisson":
            log_base[rows] -= gammaln(x[rows, c] + 1)
    return phi, there.astype(np.float64), log_base


def _patterns(x: Floats) -> list[tuple[Integers, Integers]]:
    """(the columns that are there, the rows in which exactly these are) for each pattern of missing
    values.
    """
    masks, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    return [
        (np.flatnonzero(mask), np.flatnonzero(which.ravel() == i)) for i, mask in enumerate(masks)
    ]


def _gaussian_log_density(x: Floats, gaussian: GaussianColumns) -> Floats:
    """log p(the part of x that is there | k), [N, K]."""
    u, means = roots(gaussian), gaussian.means
    result = np.zeros((len(x), len(means)))
    if gaussian.covariance_type in ("diag", "spherical"):
        for k in range(len(means)):
            terms = np.log(u[k]) - 0.5 * np.log(2 * np.pi) - 0.5 * ((x - means[k]) * u[k]) ** 2
            result[:, k] = np.nansum(terms, axis=1)
        return result
    for there, rows in _patterns(x):
        for k in range(len(means)):
            covariance = np.linalg.inv(u[k] @ u[k].T)[np.ix_(there, there)]
            t = x[np.ix_(rows, there)] - means[k, there]
            squares = (t * np.linalg.solve(covariance, t.T).T).sum(axis=1)
            result[rows, k] = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return result


def _posterior(X: Floats, parameters: Parameters, hard: bool) -> tuple[Floats, Floats]:
    """log p(x_i) [N] (hard: the greatest log joint) and r_ik [N, K] (hard: 0 or 1)."""
    phi, there, log_base = features(X, parameters.canonical)
    joint = parameters.log_weights + _gaussian_log_density(
        X[:, parameters.gaussian.columns], parameters.gaussian
    )
    joint = (
        joint + phi @ parameters.canonical.natural.T - there @ parameters.canonical.log_partition.T
    )
    if hard:
        one = np.eye(joint.shape[1])[joint.argmax(axis=1)]
        return joint.max(axis=1) + log_base, one
    log_sum = logsumexp(joint, axis=1)
    return log_sum + log_base, np.exp(joint - log_sum[:, None])


def _completed(x: Floats, k: int, r: Floats, gaussian: GaussianColumns) -> tuple[Floats, Floats]:
    """E[x - mean] [N, G] given what is there, and the sum of r times its covariance [G, G]."""
    u = roots(gaussian)[k]
    covariance = np.linalg.inv(u @ u.T)
    t = x - gaussian.means[k]
    extra = np.zeros_like(covariance)
    for there, rows in _patterns(x):
        gone = np.setdiff1d(np.arange(x.shape[1]), there)
        if len(gone) == 0:
            continue
        regression = np.linalg.solve(
            covariance[np.ix_(there, there)], covariance[np.ix_(there, gone)]
        )
        t[np.ix_(rows, gone)] = t[np.ix_(rows, there)] @ regression
        rest = covariance[np.ix_(gone, gone)] - covariance[np.ix_(gone, there)] @ regression
        extra[np.ix_(gone, gone)] += r[rows].sum() * rest
    return t, extra


def statistics(X: Floats, parameters: Parameters, sample_weight: Floats | None, hard: bool) -> Sums:
    """The sums of the E-step."""
    X = np.asarray(X, np.float64)
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    log_density, r = _posterior(X, parameters, hard)
    r = r * weight[:, None]
    gaussian = parameters.gaussian
    x, counts = X[:, gaussian.columns], r.sum(axis=0)
    components, size = gaussian.means.shape
    phi, there, _ = features(X, parameters.canonical)
    if gaussian.covariance_type in ("diag", "spherical"):
        t = x[:, None, :] - gaussian.means
        is_there = ~np.isnan(t)
        t = np.where(is_there, t, 0.0)
        observed = np.einsum("nk,nkg->kg", r, is_there)
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
        float(weight @ log_density), counts, observed, first, second, r.T @ phi, r.T @ there
    )


def posterior(
    X: Floats,
    parameters: Parameters,
    log_density: Floats | None,
    labels: Integers | None,
    responsibilities: Floats | None,
) -> None:
    """log p(x_i), the component of greatest responsibility, and r_ik, into the arrays that are
    given.
    """
    X = np.asarray(X, np.float64)
    density, r = _posterior(X, parameters, hard=False)
    if log_density is not None:
        log_density[:] = density
    if labels is not None:
        labels[:] = r.argmax(axis=1)
    if responsibilities is not None:
        responsibilities[:] = r
