"""The checks of the mixtures' E-step on every backend: problems, an independent truth, and a bound
on the errors.

The truth goes row by row, with dense covariances whatever their type, in float64 and with
math.fsum; densities of other families are scipy.stats's. The bound is that of data known to its
dtype's precision: a backend may take x - m to `eps` of the range R of the data, and every term and
every sum to a few `eps` of the terms' size. Errors of different columns are independent and add as
squares; those of different rows may share their cause and add as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import e_step

Floats = NDArray[np.float64]
TYPES = ["full", "tied", "diag", "spherical"]
DTYPES = [np.float32, np.float64]
# (N, D, K): one of each, about a tile of rows, odd numbers, more columns and components than
# registers.
SHAPES = [
    (1, 1, 1),
    (2, 1, 2),
    (2, 3, 1),
    (255, 2, 3),
    (256, 8, 4),
    (257, 5, 5),
    (1000, 17, 9),
    (1000, 1, 4),
    (257, 33, 2),
    (256, 1, 9),
    (1000, 3, 3),
]
# Roundings of one term (of four independent errors each a unit), and of a sum (of a tile's rows,
# then of all tiles).
TERM, SUM = 4.0, 32.0


def use_backend(patch: pytest.MonkeyPatch, name: str) -> str:
    """Force a backend of the op, which must be available."""
    patch.setenv(backends.VARIABLE, f"mixture={name}")
    backends.forget()
    assert backends.backend("mixture", torch.device("cpu")).__name__.endswith(
        backends._MODULES[name]
    )
    return name


@dataclass(frozen=True)
class Problem:
    """The inputs of an E-step. Without `families` it is a Gaussian mixture of all columns."""

    X: Any
    weights: Floats
    means: Floats  # [K, G]
    covariances: Floats
    covariance_type: str
    families: Sequence[str] | None = None
    column_parameters: Sequence[Any] = ()
    sample_weight: Floats | None = None
    hard: bool = False

    @property
    def data(self) -> NDArray[Any]:
        return self.X.detach().numpy() if isinstance(self.X, torch.Tensor) else np.asarray(self.X)

    @property
    def parameters(self) -> model.Parameters:
        size = self.data.shape[1]
        if self.families is None:
            return e_step.gaussian_parameters(
                self.weights, self.means, self.covariances, self.covariance_type, size
            )
        return e_step.mixed_parameters(self.weights, self.families, self.column_parameters, size)

    def dense(self) -> Floats:
        """Return the covariances [K, G, G], whatever their type."""
        components, size = self.means.shape
        if self.covariance_type == "full":
            return self.covariances
        if self.covariance_type == "tied":
            return np.stack([self.covariances] * components)
        if self.covariance_type == "diag":
            return np.stack([np.diag(v) for v in self.covariances])
        return np.stack([v * np.eye(size) for v in self.covariances])

    def run(self) -> lk.SufficientStatistics:
        rest: dict[str, Any] = {"sample_weight": self.sample_weight, "hard": self.hard}
        if self.families is None:
            given = (self.weights, self.means, self.covariances, self.covariance_type)
            return lk.gaussian_e_step(self.X, *given, **rest)
        return lk.exponential_family_e_step(
            self.X, self.weights, self.families, self.column_parameters, **rest
        )


def random_covariances(
    g: np.random.Generator, covariance_type: str, components: int, size: int
) -> Floats:
    """Return random covariances with condition numbers below about fifty."""
    if covariance_type == "spherical":
        return g.uniform(0.3, 3, components)
    if covariance_type == "diag":
        return g.uniform(0.3, 3, (components, size))
    a = g.standard_normal((components, size, 2 * size + 2))
    full = a @ a.transpose(0, 2, 1) / (2 * size + 2) + 0.2 * np.eye(size)
    return full[0] if covariance_type == "tied" else full


def gaussian_problem(
    shape: tuple[int, int, int],
    covariance_type: str,
    dtype: Any = np.float64,
    *,
    missing: float = 0.0,
    weighted: bool = False,
    hard: bool = False,
    seed: int = 0,
) -> Problem:
    """Return overlapping clusters, so that most responsibilities are neither 0 nor 1."""
    n, d, k = shape
    g = np.random.default_rng([seed, n, d, k])
    means = g.standard_normal((k, d)) * 2 / math.sqrt(d) + 1
    X = (means[g.integers(k, size=n)] + 1.2 * g.standard_normal((n, d))).astype(dtype)
    X[g.uniform(size=X.shape) < missing] = np.nan
    weights = g.dirichlet(np.full(k, 5.0))
    covariances = random_covariances(g, covariance_type, k, d)
    sample_weight = g.uniform(0, 3, n) * (g.uniform(size=n) < 0.8) if weighted else None
    return Problem(
        X, weights, means, covariances, covariance_type, sample_weight=sample_weight, hard=hard
    )


def mixed_problem(
    families: Sequence[str],
    n: int,
    k: int,
    dtype: Any = np.float64,
    *,
    missing: float = 0.0,
    seed: int = 0,
    **rest: Any,
) -> Problem:
    """Return columns of the given families; categorical ones have 2, 3, 4, ... classes."""
    g = np.random.default_rng([seed, n, k, len(families)])
    columns: list[Floats] = []
    given: list[Any] = []
    which, classes = g.integers(k, size=n), 1
    for family in families:
        if family == "gaussian":
            given.append((2 * g.standard_normal(k), g.uniform(0.3, 3, k)))
            columns.append(given[-1][0][which] + g.standard_normal(n))
        elif family == "bernoulli":
            given.append(g.uniform(0.05, 0.95, k))
            columns.append((g.uniform(size=n) < given[-1][which]).astype(float))
        elif family == "poisson":
            given.append(g.uniform(0.2, 12, k))
            columns.append(g.poisson(given[-1][which]).astype(float))
        else:
            classes += 1
            given.append(g.dirichlet(np.full(classes, 2.0), k))
            columns.append(np.array([g.choice(classes, p=given[-1][w]) for w in which], float))
    X = np.stack(columns, axis=1).astype(dtype)
    X[g.uniform(size=X.shape) < missing] = np.nan
    gaussian = [p for p, family in zip(given, families, strict=True) if family == "gaussian"]
    means = np.array([m for m, _ in gaussian]).reshape(-1, k).T
    variances = np.array([v for _, v in gaussian]).reshape(-1, k).T
    return Problem(
        X, g.dirichlet(np.full(k, 5.0)), means, variances, "diag", tuple(families), given, **rest
    )


# --- the truth ------------------------------------------------------------------------------------


class Truth:
    """Log densities, responsibilities and sums of a problem, each with the error that a backend may
    have.
    """

    def __init__(self, problem: Problem, dtype: Any = None) -> None:
        self.problem = problem
        X = problem.data
        self.eps, self.tiny = (
            float(np.finfo(dtype or X.dtype).eps),
            4 * float(np.finfo(dtype or X.dtype).tiny),
        )
        self.X = X.astype(np.float64)
        families = problem.families or ["gaussian"] * X.shape[1]
        self.gaussian = [i for i, f in enumerate(families) if f == "gaussian"]
        self.others = [
            (i, f, problem.column_parameters[i]) for i, f in enumerate(families) if f != "gaussian"
        ]
        self.K, self.G = problem.means.shape
        self.whole = problem.covariance_type in ("full", "tied")
        self.sigma = problem.dense()
        self.cached: dict[bytes, tuple[Any, ...]] = {}
        x = self.X[:, self.gaussian]
        away = np.abs(x[:, None, :] - problem.means)  # [N, K, G]
        self.range = np.where(np.isnan(away), 0.0, away).max(axis=(0, 1), initial=0)
        self._joint()
        self._responsibilities()
        self._sums()

    def hard(self) -> Truth:
        """Return the truth of the same problem with hard=True."""
        result = copy.copy(self)
        result.problem = replace(self.problem, hard=True)
        result._sums()
        return result

    def _factors(self, there: NDArray[np.bool_]) -> tuple[Any, ...]:
        """Return, for the observed columns, W with W Sigma W^T = 1 and log det; for the others,
        their regressions and residual covariances.
        """
        key = there.tobytes()
        if key not in self.cached:
            o, m = np.flatnonzero(there), np.flatnonzero(~there)
            lower = np.stack([np.linalg.cholesky(s[np.ix_(o, o)]) for s in self.sigma])
            W = np.stack([np.linalg.inv(a) for a in lower])
            half_log_det = np.array([sum(math.log(a[j, j]) for j in range(len(o))) for a in lower])
            precision = W.transpose(0, 2, 1) @ W
            s = self.sigma
            regression = s[:, m[:, None], o] @ precision
            rest = s[:, m[:, None], m] - regression @ s[:, o[:, None], m]
            self.cached[key] = (o, m, W, half_log_det, regression, rest)
        return self.cached[key]

    def _joint(self) -> None:
        """Return log pi_k p(x_i | k), and its error."""
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.problem.weights)
        size = np.abs(
            np.where(np.isfinite(log_weights), log_weights, 0)
        )  # the sum of the terms' magnitudes
        self.joint, self.error = np.zeros((len(self.X), self.K)), np.zeros((len(self.X), self.K))
        for i, row in enumerate(self.X[:, self.gaussian]):
            o, _, W, half_log_det, _, _ = self._factors(~np.isnan(row))
            t = row[o] - self.problem.means[:, o]
            y = np.einsum("kab,kb->ka", W, t)
            constant = half_log_det + 0.5 * len(o) * math.log(2 * math.pi)
            quadratic = 0.5 * (y * y).sum(axis=1)
            self.joint[i] = log_weights - quadratic - constant
            off = np.sqrt(np.einsum("kab,kb->ka", W**2, (np.abs(t) + self.range[o]) ** 2))
            self.error[i] = np.sqrt(((y * off) ** 2).sum(axis=1)) + quadratic * math.sqrt(
                1 + len(o)
            )
            self.error[i] += size + np.abs(constant)
        for i, family, mean in self.others:
            value, there = self.X[:, i], ~np.isnan(self.X[:, i])
            for k in range(self.K):
                log_p, magnitude = _log_mass(family, value[there], mean[k])
                self.joint[there, k] += log_p
                self.error[there, k] += magnitude
        self.error *= TERM * self.eps

    def _responsibilities(self) -> None:
        self.top = self.joint.max(axis=1)
        with np.errstate(under="ignore"):
            p = np.exp(self.joint - self.top[:, None])
            total = p.sum(axis=1)
            self.r = p / total[:, None]
            self.log_density = self.top + np.log(total)
            self.density_error = (self.r * self.error).sum(axis=1) + TERM * self.eps * (
                1 + np.abs(self.log_density)
            )
            self.r_error = self.r * (
                self.error + (self.r * self.error).sum(axis=1)[:, None] + TERM * self.eps
            )
        self.r_error += self.tiny
        self.labels = self.joint.argmax(axis=1)
        gap = self.top[:, None] - self.joint
        slack = self.error + self.error[np.arange(len(gap)), self.labels][:, None]
        gap[np.arange(len(gap)), self.labels] = np.inf
        self.doubtful = (gap <= slack).any(
            axis=1
        )  # rows whose most probable component rounding may change

    def _sums(self) -> None:
        problem, n = self.problem, len(self.X)
        weight = np.ones(n) if problem.sample_weight is None else problem.sample_weight
        r, dr, log_density, dl = self.r, self.r_error, self.log_density, self.density_error
        if problem.hard:
            r, dr = (
                np.eye(self.K)[self.labels],
                np.where(self.doubtful, 1.0, 0.0)[:, None] * np.ones(self.K),
            )
            log_density = self.top
            dl = self.error[np.arange(n), self.labels] + TERM * self.eps * (1 + np.abs(self.top))
        r, dr = weight[:, None] * r, weight[:, None] * dr + SUM * self.eps * weight[:, None] * r
        K, G = self.K, self.G
        t, e, seen = np.zeros((n, K, G)), np.zeros((n, K, G)), np.ones((n, K, G))
        rests = np.zeros((n, K, G, G) if self.whole else (n, K, G))
        for i, row in enumerate(self.X[:, self.gaussian]):
            o, m, _, _, regression, rest = self._factors(~np.isnan(row))
            t[i][:, o] = row[o] - problem.means[:, o]
            e[i][:, o] = TERM * self.eps * self.range[o]
            if not self.whole:
                seen[i][:, m] = 0
            elif len(m):
                t[i][:, m] = np.einsum("kmo,ko->km", regression, t[i][:, o])
                spread = np.abs(t[i][:, o]) + self.range[o]
                e[i][:, m] = TERM * self.eps * np.einsum("kmo,ko->km", np.abs(regression), spread)
                rests[np.ix_([i], range(K), m, m)] = rest
        product = "nkg,nkh->nkgh" if self.whole else "nkg,nkg->nkg"
        square = np.einsum(product, t, t) + rests
        a = np.abs(t)
        d_square = sum(np.einsum(product, x, y) for x, y in ((a, e), (e, a), (e, e)))
        phi, phi_there = self._features()
        with np.errstate(under="ignore"):
            self.sums = {
                "log_likelihood": math.fsum(weight * log_density),
                "counts": _total(r),
                "observed": _total(r[:, :, None] * seen),
                "first": _total(r[:, :, None] * t),
                "second": _total(np.einsum("nk,nk...->nk...", r, square)),
                "features": _total(r[:, :, None] * phi[:, None, :]),
                "features_observed": _total(r[:, :, None] * phi_there[:, None, :]),
            }
            self.errors = {
                "log_likelihood": math.fsum(weight * dl)
                + SUM * self.eps * math.fsum(np.abs(weight * log_density)),
                "counts": dr.sum(axis=0),
                "observed": (dr[:, :, None] * seen).sum(axis=0),
                "first": (dr[:, :, None] * np.abs(t) + r[:, :, None] * e).sum(axis=0),
                "second": np.einsum("nk,nk...->k...", dr, np.abs(square))
                + np.einsum("nk,nk...->k...", r, d_square),
                "features": np.einsum("nk,nf->kf", dr, phi),
                "features_observed": np.einsum("nk,nf->kf", dr, phi_there),
            }
        if problem.covariance_type == "tied":
            for sums in (self.sums, self.errors):
                sums["second"] = sums["second"].sum(axis=0)

    def _features(self) -> tuple[Floats, Floats]:
        blocks, there = [np.zeros((len(self.X), 0))], [np.zeros((len(self.X), 0))]
        for i, family, mean in self.others:
            x = self.X[:, i, None]
            classes = np.arange(mean.shape[1]) if family == "categorical" else None
            blocks.append(np.nan_to_num(x) if classes is None else (x == classes).astype(float))
            there.append((~np.isnan(x)).astype(float))
        return np.concatenate(blocks, axis=1), np.concatenate(there, axis=1)


def _total(x: Floats) -> Floats:
    """Return sums over the first axis, correctly rounded."""
    flat = x.reshape(len(x), -1) if len(x) else np.zeros((0, math.prod(x.shape[1:])))
    return np.array([math.fsum(column) for column in flat.T.tolist()]).reshape(x.shape[1:])


def _log_mass(family: str, x: Floats, mean: Any) -> tuple[Floats, Floats]:
    """Return log p(x), and the magnitude of the terms that an exponential family adds up for it."""
    inside = np.maximum(
        mean, 1e-12
    )  # as documented: means on the boundary are taken as 1e-12 from it
    if family == "poisson":
        size = x * abs(math.log(inside)) + inside + scipy.special.gammaln(x + 1)
        return scipy.stats.poisson.logpmf(x, inside), size
    if family == "bernoulli":
        p = min(float(inside), 1 - 1e-12)
        return scipy.stats.bernoulli.logpmf(x, p), np.full(
            len(x), abs(math.log(p)) + 2 * abs(math.log1p(-p))
        )
    log_p = np.log(inside / inside.sum())[x.astype(int)]
    return log_p, np.abs(log_p)


# --- the checks -----------------------------------------------------------------------------------


def close(name: str, got: Any, want: Any, error: Any) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, not {want.shape}"
    assert not np.isnan(got).any(), f"{name} holds NaN"
    off, error = np.atleast_1d(np.abs(got - want)), np.atleast_1d(error)
    if (off > error).any():
        at = np.unravel_index(int(np.argmax(off - error)), off.shape)
        raise AssertionError(
            f"{name}{list(map(int, at))}: off by {off[at]:.3g}, allowed {error[at]:.3g}"
        )


def check_statistics(problem: Problem, truth: Truth | None = None) -> lk.SufficientStatistics:
    """Check that every sum is within its bound, in float64; the anchor is the means."""
    truth = truth or Truth(problem)
    got = problem.run()
    assert truth.doubtful.mean() <= 0.02 if problem.hard and len(truth.X) > 100 else True
    for name, want in truth.sums.items():
        value = np.asarray(getattr(got, name))
        assert value.dtype == np.float64, name
        close(name, value, want, truth.errors[name])
    np.testing.assert_array_equal(got.anchor, problem.means)
    assert got.covariance_type == problem.covariance_type
    weight = len(truth.X) if problem.sample_weight is None else float(np.sum(problem.sample_weight))
    assert got.total_weight == pytest.approx(weight, rel=1e-12)
    return got


def check_posterior(problem: Problem, truth: Truth | None = None) -> None:
    """Check posterior()'s three results, which have the same bits together and each alone."""
    truth = truth or Truth(problem)
    X, parameters = e_step.checked_data(problem.X), problem.parameters
    names = ("log_density", "labels", "responsibilities")
    density, labels, r = e_step.posterior(X, parameters, **dict.fromkeys(names, True))
    assert density is not None
    assert labels is not None
    assert r is not None
    assert (density.dtype, labels.dtype, r.dtype) == (np.float64, np.int64, X.dtype)
    close("log_density", density, truth.log_density, truth.density_error)
    close("responsibilities", r, truth.r, truth.r_error)
    assert labels.shape == truth.labels.shape
    wrong = labels != truth.labels
    assert not (wrong & ~truth.doubtful).any(), (
        f"labels of rows {np.flatnonzero(wrong & ~truth.doubtful)[:5]}"
    )
    for i, name in enumerate(names):
        alone = e_step.posterior(X, parameters, **{name: True})
        assert [x is None for x in alone] == [j != i for j in range(3)]
        np.testing.assert_array_equal(alone[i], (density, labels, r)[i])


def check(truth: Truth) -> None:
    """Check the posterior and the statistics, soft and hard, against the truth."""
    check_posterior(truth.problem, truth)
    for t in (truth, truth.hard()):
        check_statistics(t.problem, t)
