"""The E-step of mixtures on every backend, against values computed row by row."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from latent_kernels.kernels import backends
from latent_kernels.mixtures import e_step
from tests.mixture.checks import (
    DTYPES,
    SHAPES,
    TYPES,
    Problem,
    Truth,
    check,
    check_statistics,
    gaussian_problem,
    mixed_problem,
    random_covariances,
    use_backend,
)

SPLIT = ["diag", "spherical"]


@pytest.fixture(params=backends.BACKENDS["mixture"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield use_backend(monkeypatch, request.param)
    monkeypatch.undo()
    backends.forget()


@functools.cache
def truth_of(*arguments: Any, **options: Any) -> Truth:
    """Return one truth for all backends."""
    make = gaussian_problem if isinstance(arguments[1], str) else mixed_problem
    return Truth(make(*arguments, **options))


# --- the truth itself -----------------------------------------------------------------------------


def test_truth_has_the_densities_of_scipy_and_mpmath() -> None:
    for covariance_type in TYPES:
        problem = gaussian_problem((7, 3, 2), covariance_type)
        truth, sigma = Truth(problem), problem.dense()
        for k in range(2):
            normal = scipy.stats.multivariate_normal(problem.means[k], sigma[k])
            joint = math.log(problem.weights[k]) + normal.logpdf(problem.X)
            np.testing.assert_allclose(truth.joint[:, k], joint, rtol=1e-12)
        with mpmath.workdps(40):
            for i, row in enumerate(problem.X):
                p = []
                for k in range(2):
                    s, t = (
                        mpmath.matrix(sigma[k]),
                        mpmath.matrix(row) - mpmath.matrix(problem.means[k]),
                    )
                    exponent = -(t.T * mpmath.inverse(s) * t)[0] / 2
                    p.append(
                        problem.weights[k]
                        * mpmath.exp(exponent)
                        / mpmath.sqrt((2 * mpmath.pi) ** 3 * mpmath.det(s))
                    )
                assert truth.log_density[i] == pytest.approx(float(mpmath.log(sum(p))), rel=1e-12)
                assert truth.r[i, 0] == pytest.approx(float(p[0] / sum(p)), rel=1e-12)


def test_truth_completes_missing_values_as_integrals_do() -> None:
    """E[x - m] and E[(x - m)^2] given the other column equal quadrature of the joint density."""
    problem = gaussian_problem((1, 2, 1), "full")
    problem.X[0, 1] = np.nan
    truth, m = Truth(problem), problem.means[0]
    joint = scipy.stats.multivariate_normal(m, problem.covariances[0])
    p, first, second = (
        scipy.integrate.quad(
            lambda t, j=j: t**j * joint.pdf([problem.X[0, 0], m[1] + t]), -20, 20, points=[0]
        )[0]
        for j in range(3)
    )
    assert truth.sums["log_likelihood"] == pytest.approx(math.log(p), rel=1e-8)
    assert truth.sums["first"][0, 1] == pytest.approx(first / p, rel=1e-7)
    assert truth.sums["second"][0, 1, 1] == pytest.approx(second / p, rel=1e-7)
    assert truth.sums["second"][0, 0, 1] == pytest.approx(
        first / p * (problem.X[0, 0] - m[0]), rel=1e-7
    )


# --- shapes, dtypes, layouts, weights -------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_shapes(
    backend: str, covariance_type: str, dtype: Any, shape: tuple[int, int, int]
) -> None:
    check(truth_of(shape, covariance_type, dtype))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 2), (255, 2, 3), (257, 5, 5), (300, 8, 4), (150, 17, 9)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_missing_values(
    backend: str, covariance_type: str, dtype: Any, shape: tuple[int, int, int]
) -> None:
    check(truth_of(shape, covariance_type, dtype, missing=0.3, weighted=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_rows_and_columns_wholly_missing(backend: str, covariance_type: str, dtype: Any) -> None:
    problem = gaussian_problem((300, 4, 3), covariance_type, dtype)
    problem.X[::7] = np.nan
    problem.X[1::3, 1:3] = np.nan
    check(Truth(problem))
    problem.X[:, 2] = np.nan
    got = check_statistics(problem)
    _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
    np.testing.assert_allclose(
        r[::7], np.tile(problem.weights, (43, 1)), rtol=1e-6
    )  # nothing but the prior
    if covariance_type in SPLIT:
        assert (got.observed[:, 2] == 0).all()
        assert (got.first[:, 2] == 0).all()
    problem.X[:] = np.nan
    got = check_statistics(problem)
    assert got.log_likelihood == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(got.counts, 300 * problem.weights, rtol=1e-5)


def strided(X: Any) -> Any:
    result = np.full((2 * len(X), X.shape[1]), np.nan, X.dtype)[::2, ::-1]
    result[:] = X
    return result


def unaligned(X: Any) -> Any:
    room = np.zeros(X.nbytes + 1, np.uint8)[1:].view(X.dtype).reshape(X.shape)
    room[:] = X
    return room


def read_only(X: Any) -> Any:
    X = X.copy()
    X.flags.writeable = False
    return X


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": lambda X: X[::-1].copy()[::-1],
    "rows of stride zero": lambda X: np.broadcast_to(X[:1], X.shape),
    "unaligned": unaligned,
    "read-only": read_only,
    "memory-mapped": None,
    "tensor": lambda X: torch.from_numpy(X.copy()),
    "transposed tensor": lambda X: torch.from_numpy(X.T.copy()).t(),
    "rows of a tensor with gradients":
        lambda X: torch.from_numpy(np.repeat(X, 2, axis=0)).requires_grad_()[::2],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", [*TYPES, "mixed"])
def test_layouts(
    backend: str, covariance_type: str, dtype: Any, layout: str, tmp_path: Path
) -> None:
    """The result is right in every layout without a copy, and X is left unchanged."""
    if covariance_type == "mixed":
        truth = truth_of(("gaussian", "poisson", "categorical"), 260, 3, dtype)
    else:
        truth = truth_of((260, 3, 3), covariance_type, dtype, missing=0.05)
    truth = copy.copy(truth)
    problem = truth.problem
    if layout == "memory-mapped":
        problem.X.tofile(tmp_path / "X")
        X: Any = np.memmap(tmp_path / "X", dtype, mode="r", shape=problem.X.shape)
    else:
        X = LAYOUTS[layout](problem.X)
    problem = truth.problem = replace(problem, X=X)
    if layout == "rows of stride zero":  # which are all the first
        truth = Truth(problem)
    assert np.shares_memory(e_step.checked_data(X), problem.data)
    assert e_step.checked_data(X).strides == problem.data.strides
    before = problem.data.copy()
    check(truth)
    np.testing.assert_array_equal(problem.data, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_sample_weight(backend: str, covariance_type: str, dtype: Any) -> None:
    """Weights of zero drop rows, integers repeat them, equal ones scale; the posterior does not
    depend on the weights.
    """
    problem = gaussian_problem((500, 3, 4), covariance_type, dtype, missing=0.1)
    times = np.random.default_rng(1).integers(0, 4, 500)
    for weight in (
        times,
        np.full(500, 0.37),
        np.random.default_rng(2).exponential(size=500),
        np.zeros(500),
    ):
        check_statistics(replace(problem, sample_weight=weight.astype(np.float64)))
        check_statistics(replace(problem, sample_weight=weight.astype(np.float64), hard=True))
    repeated = replace(problem, X=np.repeat(problem.X, times, axis=0)).run()
    weighted = replace(problem, sample_weight=torch.from_numpy(times)).run()
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(weighted.counts, repeated.counts, rtol=tolerance)
    scale = np.abs(repeated.to_vector()).max()
    np.testing.assert_allclose(
        weighted.to_vector(), repeated.to_vector(), rtol=0, atol=tolerance * scale
    )


# --- hard assignment ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_ties_go_to_the_first(backend: str, covariance_type: str, dtype: Any) -> None:
    """Ties go to the first of six equal components, and of two pairs at equal distances from a
    row.
    """
    problem = gaussian_problem((300, 2, 6), covariance_type, dtype)
    same = (
        np.repeat(problem.covariances[:1], 6, axis=0)
        if covariance_type != "tied"
        else problem.covariances
    )
    problem = replace(
        problem, weights=np.full(6, 1 / 6), means=np.zeros((6, 2)), covariances=same, hard=True
    )
    assert problem.run().counts.tolist() == [300, 0, 0, 0, 0, 0]
    _, labels, r = e_step.posterior(
        problem.X, problem.parameters, labels=True, responsibilities=True
    )
    assert (labels == 0).all()
    np.testing.assert_allclose(r, 1 / 6, rtol=1e-5)
    ones = {
        "full": np.tile(np.eye(2), (4, 1, 1)),
        "tied": np.eye(2),
        "diag": np.ones((4, 2)),
        "spherical": np.ones(4),
    }
    means = np.array([[3.0, 3], [-1, 0], [1, 0], [-1, 0]])
    X = np.array([[0, 0], [0, 5], [0, -5], [2, 0], [-2, 0]], dtype)
    problem = Problem(X, np.full(4, 0.25), means, ones[covariance_type], covariance_type, hard=True)
    assert e_step.posterior(X, problem.parameters, labels=True)[1].tolist() == [1, 0, 1, 2, 1]
    assert problem.run().counts.tolist() == [1, 3, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lloyds_algorithm(backend: str, dtype: Any) -> None:
    """Equal weights, one variance and hard=True are k-means, step by step until nothing changes."""
    g = np.random.default_rng(5)
    X = (
        g.standard_normal((5, 3))[g.integers(5, size=700)] * 3 + g.standard_normal((700, 3))
    ).astype(dtype)
    means, steps, old = X[:5].astype(np.float64), 0, None
    while True:
        squares = ((X[:, None, :].astype(np.float64) - means) ** 2).sum(axis=2)
        labels = squares.argmin(axis=1)
        problem = Problem(X, np.full(5, 0.2), means, np.full(5, 0.7), "spherical", hard=True)
        got = problem.run()
        np.testing.assert_array_equal(
            e_step.posterior(X, problem.parameters, labels=True)[1], labels
        )
        np.testing.assert_array_equal(got.counts, np.bincount(labels, minlength=5))
        inertia = (
            700 * (math.log(0.2) - 1.5 * math.log(2 * math.pi * 0.7))
            - squares.min(axis=1).sum() / 1.4
        )
        assert got.log_likelihood == pytest.approx(
            inertia, rel=1e-5 if dtype == np.float32 else 1e-12
        )
        means = np.stack([X[labels == k].mean(axis=0, dtype=np.float64) for k in range(5)])
        np.testing.assert_allclose(
            got.m_step().means, means, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12
        )
        steps += 1
        if old is not None and (labels == old).all():
            break
        old = labels
    assert 4 < steps < 100


# --- other families -------------------------------------------------------------------------------

MIXED = (
    "categorical",
    "gaussian",
    "bernoulli",
    "poisson",
    "gaussian",
    "categorical",
    "categorical",
    "poisson",
)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("components", [1, 3, 9])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "families", [("bernoulli",), ("poisson",) * 3, ("categorical",) * 4, ("gaussian",) * 2, MIXED]
)
def test_families(
    backend: str, families: tuple[str, ...], dtype: Any, components: int, missing: float
) -> None:
    truth = truth_of(families, 257, components, dtype, missing=missing)
    check(truth)
    n = len(truth.X)
    check_statistics(
        replace(
            truth.problem, sample_weight=np.random.default_rng(3).integers(0, 3, n).astype(float)
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_on_the_boundary(backend: str, dtype: Any) -> None:
    """Means on the boundary count as 1e-12 inside, so an impossible value has a large negative,
    finite log density.
    """
    given = [
        np.array([0.0, 1.0, 0.5]),
        np.array([0.0, 3.0, 1e-3]),
        np.array([[0.0, 1, 0], [0.2, 0.3, 0.5], [1, 0, 0]]),
    ]
    X = np.array([[b, n, c] for b in (0, 1) for n in (0, 1, 7) for c in range(3)], dtype)
    none = np.zeros((3, 0))
    problem = Problem(
        X,
        np.array([0.3, 0.3, 0.4]),
        none,
        none,
        "diag",
        ("bernoulli", "poisson", "categorical"),
        given,
    )
    check(Truth(problem))
    assert problem.run().log_likelihood > -1e3


def test_large_counts_in_float32(backend: str) -> None:
    """Log densities of large counts are right although x log(rate) - rate - log x! cancels: seven
    digits of each term would leave no digit of a sum of about -8.
    """
    X = np.random.default_rng(0).poisson(1e6, (400, 1)).astype(np.float32)
    none = np.zeros((2, 0))
    problem = Problem(
        X, np.array([0.5, 0.5]), none, none, "diag", ("poisson",), [np.array([1e6, 1.001e6])]
    )
    truth = Truth(problem, np.float64)
    density, _, _ = e_step.posterior(X, problem.parameters, log_density=True)
    np.testing.assert_allclose(density, truth.log_density, atol=1e-6, rtol=0)
    np.testing.assert_allclose(problem.run().counts, truth.sums["counts"], rtol=1e-5)


# --- accuracy -------------------------------------------------------------------------------------


def moments(truth: Truth) -> Any:
    """Return the covariances that the true sums give."""
    sums, whole = truth.sums, truth.whole
    delta = sums["first"] / sums["observed"]
    if truth.problem.covariance_type == "tied":
        n = sums["counts"]
        return (sums["second"] - np.einsum("k,ka,kb->ab", n, delta, delta)) / n.sum()
    if whole:
        return (
            sums["second"] / sums["counts"][:, None, None] - delta[:, :, None] * delta[:, None, :]
        )
    variances = sums["second"] / sums["observed"] - delta**2
    return variances if truth.problem.covariance_type == "diag" else variances.mean(axis=1)


def clusters(means: Any, covariance_type: str, dtype: Any, n: int = 4000) -> Problem:
    """Return rows of unit variance about means, and parameters a little off."""
    g, (k, d) = np.random.default_rng(7), means.shape
    X = (means[np.arange(n) % k] + g.standard_normal((n, d))).astype(dtype)
    start = means + 0.3 * g.standard_normal((k, d))
    return Problem(
        X, np.full(k, 1 / k), start, random_covariances(g, covariance_type, k, d), covariance_type
    )


@pytest.mark.parametrize("covariance_type", TYPES)
def test_float32_far_from_zero(backend: str, covariance_type: str) -> None:
    """With variance 1 at mean 10^4 the error is 1e-4, where E[x^2] - E[x]^2 in float32 has no right
    digit.
    """
    problem = clusters(
        np.array([[1e4, 1e4, -1e4], [1e4 + 1, 1e4 + 2, -1e4]]), covariance_type, np.float32
    )
    truth = Truth(problem)
    check(truth)
    want = moments(truth)
    np.testing.assert_allclose(problem.run().m_step().covariances, want, rtol=1e-4, atol=1e-4)
    x = problem.X[::2]
    textbook = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    assert textbook.dtype == np.float32
    assert (np.abs(textbook - 1) > 0.5).all()


@pytest.mark.parametrize(
    ("dtype", "distance", "tolerance"), [(np.float32, 1e4, 5e-3), (np.float64, 1e9, 1e-6)]
)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_clusters_far_apart(
    backend: str, covariance_type: str, dtype: Any, distance: float, tolerance: float
) -> None:
    """Clusters without a common center near the data are fitted. The data themselves have a
    resolution of 1e-3 there (float64: 1e-7).
    """
    problem = clusters(distance * np.array([[1.0, -1], [-1, 1], [1, 1]]), covariance_type, dtype)
    truth = Truth(problem)
    check(truth)
    assert (truth.r.max(axis=1) == 1).all()
    np.testing.assert_allclose(
        problem.run().m_step().covariances, moments(truth), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("shape", [(130, 64, 3), (300, 2, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_many_columns_and_components(
    backend: str, covariance_type: str, dtype: Any, shape: Any
) -> None:
    check(truth_of(shape, covariance_type, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_extreme_separation(backend: str, covariance_type: str, dtype: Any) -> None:
    """Log densities of -10^5 to -10^11 are handled, for which a softmax without its maximum would
    give 0 / 0.
    """
    means = 1e3 * np.array([[1.0, 0], [0, 1], [-1, -1]])
    problem = clusters(means, covariance_type, dtype, 600)
    problem.X[:3] = 1e6 * means / 1e3
    truth = Truth(problem)
    check(truth)
    density, _, r = e_step.posterior(
        problem.X, problem.parameters, log_density=True, responsibilities=True
    )
    np.testing.assert_array_equal(r, np.eye(3)[truth.labels])
    assert (truth.labels[3:] == np.arange(3, 600) % 3).all()
    assert (density[:3] < -1e10).all()
    assert np.isfinite(density).all()
    np.testing.assert_array_equal(problem.run().counts, np.bincount(truth.labels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_components_without_weight(backend: str, covariance_type: str, dtype: Any) -> None:
    problem = gaussian_problem((300, 2, 4), covariance_type, dtype, missing=0.1)
    for weights in ([0, 0.4, 0, 0.6], [1, 0, 0, 0], [0, 0, 0, 1]):
        problem = replace(problem, weights=np.array(weights, float))
        check(Truth(problem))
        got, dead = problem.run(), problem.weights == 0
        assert (got.counts[dead] == 0).all()
        assert (got.first[dead] == 0).all()
        _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
        assert (r[:, dead] == 0).all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("covariance_type", TYPES)
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.integers(0, 2**20), st.integers(30, 300), st.integers(1, 4), st.integers(1, 5))
def test_a_step_of_em_never_decreases_the_likelihood(
    backend: str,
    covariance_type: str,
    missing: float,
    hard: bool,
    seed: int,
    n: int,
    d: int,
    k: int,
) -> None:
    """A step of EM never decreases the likelihood: soft, and hard (of the classification); with
    missing values, of the observed ones.
    """
    problem = gaussian_problem((n, d, k), covariance_type, missing=missing, hard=hard, seed=seed)
    before = problem.run()
    try:
        weights, means, covariances = before.m_step(covariances=problem.covariances)
    except ValueError:  # a component has too few rows
        assume(False)
    after = replace(problem, weights=weights, means=means, covariances=covariances).run()
    assert after.log_likelihood >= before.log_likelihood - 1e-9 * (1 + abs(before.log_likelihood))
