"""Rows with missing values under full and tied covariances, grouped by their missing columns.

The columns o that are present have the marginal N(m_o, S_oo), whose E-step over the rows of a
pattern gives sums F, Q about m_o. The conditional expectation of x - m is B (x_o - m_o) with B =
S_:o S_oo^-1, and the conditional covariance C = S - B S_o: does not depend on x. The completed sums
are therefore B F and B Q B^T + N C (Ghahramani & Jordan 1994).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from latent_kernels.kernels.mixture.model import (
    Floats,
    GaussianColumns,
    Integers,
    Parameters,
    Sums,
    no_canonical,
    roots,
)

CHUNK = 65536  # rows whose patterns are sorted at a time


def posterior(make_task: Any, X: Any, parameters: Parameters, outputs: tuple[Any, ...]) -> None:
    """Write log-densities, labels and responsibilities of the incomplete rows.

    They go into the arrays of `outputs` that are not empty.
    """
    marginals = _Marginals(parameters)
    for rows, present in _patterns(X, parameters.gaussian.columns):
        part = tuple(
            np.empty((len(rows) if len(out) else 0, *out.shape[1:]), out.dtype) for out in outputs
        )
        if len(present) == 0:
            _write_prior(parameters, part)
        else:
            make_task(
                _present_values(X, rows, present, parameters), marginals(tuple(present)).parameters
            ).run(None, False, part)
        for out, values in zip(outputs, part, strict=True):
            if len(out):
                out[rows] = values


class _Marginal(NamedTuple):
    """The parameters for one pattern of missing columns."""

    parameters: Parameters
    regression: Floats  # B [K, D, O]
    covariance: Floats  # C [K, D, D]


class _Marginals:
    """The marginals of patterns; the most recently used ones are kept."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        inverse = np.linalg.inv(roots(parameters.gaussian))
        self.covariances = inverse.swapaxes(-1, -2) @ inverse  # S = U^-T U^-1
        self._cached = functools.lru_cache(maxsize=64)(self._make)

    def __call__(self, present: tuple[int, ...]) -> _Marginal:
        return self._cached(present)

    def _make(self, present: tuple[int, ...]) -> _Marginal:
        at = list(present)
        lower = np.linalg.cholesky(self.covariances[:, at][:, :, at])
        u = np.triu(np.linalg.inv(lower).swapaxes(-1, -2))
        regression = self.covariances[:, :, at] @ u @ u.swapaxes(-1, -2)
        regression[:, at] = np.eye(len(at))
        covariance = self.covariances - regression @ self.covariances[:, at]
        covariance[:, at] = 0
        covariance[:, :, at] = 0
        gaussian = GaussianColumns(
            np.arange(len(at)), "full", self.parameters.gaussian.means[:, at], u
        )
        parameters = Parameters(self.parameters.log_weights, gaussian, no_canonical(len(u)))
        return _Marginal(parameters, regression, covariance)


def _patterns(X: Any, columns: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yield the incomplete rows by pattern: (rows, Gaussian columns present in exactly these)."""
    for first in range(0, len(X), CHUNK):
        missing = np.isnan(X[first : first + CHUNK][:, columns])
        incomplete = np.flatnonzero(missing.any(axis=1))
        if len(incomplete) == 0:
            continue
        masks = missing[incomplete]
        keys, which = np.unique(np.packbits(masks, axis=1), axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(which.ravel(), minlength=len(keys)))
        for rows in np.split(order, ends[:-1]):
            yield first + incomplete[rows], np.flatnonzero(~masks[rows[0]])


def _present_values(X: Any, rows: Integers, present: Integers, parameters: Parameters) -> Any:
    return X[rows[:, None], parameters.gaussian.columns[present]]


def _write_prior(parameters: Parameters, outputs: tuple[Any, ...]) -> None:
    """Write the posterior of rows in which everything is missing, which is the weights."""
    densities, labels, responsibilities = outputs
    densities[:] = np.logaddexp.reduce(parameters.log_weights)
    labels[:] = int(parameters.log_weights.argmax())
    if len(responsibilities):
        responsibilities[:] = np.exp(
            parameters.log_weights - np.logaddexp.reduce(parameters.log_weights)
        )


def add_incomplete_rows(
    complete: Sums,
    make_task: Any,
    X: Any,
    parameters: Parameters,
    sample_weight: Floats | None,
    hard: bool,
) -> Sums:
    """Return the sums of all rows, given those of the complete ones."""
    components, size = parameters.gaussian.means.shape
    marginals = _Marginals(parameters)
    likelihood, counts = 0.0, np.zeros(components)
    first, second = np.zeros((components, size)), np.zeros((components, size, size))
    for rows, present in _patterns(X, parameters.gaussian.columns):
        weight = None if sample_weight is None else np.ascontiguousarray(sample_weight[rows])
        if len(present) == 0:
            total = float(len(rows)) if weight is None else float(weight.sum())
            likelihood += total * (
                parameters.log_weights.max()
                if hard
                else np.logaddexp.reduce(parameters.log_weights)
            )
            share = np.exp(parameters.log_weights)
            share = np.eye(components)[share.argmax()] if hard else share / share.sum()
            counts += total * share
            second += (total * share)[:, None, None] * marginals.covariances
            continue
        marginal = marginals(tuple(present))
        task = make_task(_present_values(X, rows, present, parameters), marginal.parameters)
        sums, _ = task.statistics(weight, hard)
        b = marginal.regression
        likelihood += sums.log_likelihood
        counts += sums.counts
        first += (b @ sums.first[:, :, None])[..., 0]
        second += (
            b @ sums.second @ b.swapaxes(-1, -2) + sums.counts[:, None, None] * marginal.covariance
        )
    if parameters.gaussian.covariance_type == "tied":
        second = second.sum(axis=0)
    counts = complete.counts + counts
    return complete._replace(
        log_likelihood=complete.log_likelihood + float(likelihood),
        counts=counts,
        observed=np.repeat(counts[:, None], size, axis=1),
        first=complete.first + first,
        second=complete.second + second,
    )
