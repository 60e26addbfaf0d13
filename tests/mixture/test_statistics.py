"""Sufficient statistics: sums that add and move, M-steps; and an E-step's errors for bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.mixtures import e_step
from tests.mixture.checks import TYPES, Problem, gaussian_problem, mixed_problem, use_backend

FAMILIES = ("gaussian", "poisson", "categorical", "bernoulli", "gaussian", "categorical")
KINDS = [*TYPES, "mixed"]


@pytest.fixture(params=backends.BACKENDS["mixture"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield use_backend(monkeypatch, request.param)
    monkeypatch.undo()
    backends.forget()


def problem_of(kind: str, missing: float = 0.0) -> Problem:
    if kind == "mixed":
        return mixed_problem(FAMILIES, 700, 3, missing=missing)
    return gaussian_problem((700, 4, 3), kind, missing=missing, weighted=True)


def same(a: lk.SufficientStatistics, b: lk.SufficientStatistics, tolerance: float = 1e-12) -> None:
    """Check that each sum is within `tolerance` of its array's greatest entry."""
    assert a.covariance_type == b.covariance_type
    np.testing.assert_array_equal(a.anchor, b.anchor)
    np.testing.assert_array_equal(a.feature_starts, b.feature_starts)
    for name in SUMS:
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        assert x.shape == y.shape, name
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * np.abs(y).max(initial=0), err_msg=name
        )


SUMS = [
    "log_likelihood",
    "total_weight",
    "counts",
    "observed",
    "first",
    "second",
    "features",
    "features_observed",
]


# --- sums that add and move -----------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_add_to_the_whole(backend: str, kind: str, missing: float) -> None:
    problem = problem_of(kind, missing)
    whole = problem.run()
    for cuts in ([350], [1, 256, 699], [0, 257]):
        edges = [0, *cuts, 700]
        shards = []
        for first, last in itertools.pairwise(edges):
            weight = None if problem.sample_weight is None else problem.sample_weight[first:last]
            shards.append(replace(problem, X=problem.X[first:last], sample_weight=weight).run())
        total = shards[0]
        for shard in shards[1:]:
            total = total + shard
        same(total, whole)
        vectors = whole.from_vector(np.sum([s.to_vector() for s in shards], axis=0))
        same(vectors, whole)


def direct(problem: Problem, anchor: Any) -> tuple[Any, Any]:
    """Return first and second moments about an anchor, from the responsibilities, for Gaussian
    blocks without missing values.
    """
    _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
    r = r if problem.sample_weight is None else r * problem.sample_weight[:, None]
    x = problem.X[:, problem.parameters.gaussian.columns]
    t = np.nan_to_num(x[:, None, :] - anchor)
    first = np.einsum("nk,nkd->kd", r, t)
    if problem.covariance_type == "full":
        return first, np.einsum("nk,nka,nkb->kab", r, t, t)
    if problem.covariance_type == "tied":
        return first, np.einsum("nk,nka,nkb->ab", r, t, t)
    return first, np.einsum("nk,nkd,nkd->kd", r, t, t)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_about_another_anchor(backend: str, kind: str, missing: float) -> None:
    """Moving the anchor and back changes nothing, and gives what direct sums about it give (of
    observed columns, for diagonal covariances).
    """
    problem = problem_of(kind, missing)
    statistics = problem.run()
    anchor = (
        statistics.anchor + np.random.default_rng(1).standard_normal(statistics.anchor.shape) * 3
    )
    moved = statistics.about(anchor)
    np.testing.assert_array_equal(moved.anchor, anchor)
    same(moved.about(statistics.anchor), statistics, 1e-11)
    for name in set(SUMS) - {"first", "second"}:
        np.testing.assert_array_equal(getattr(moved, name), getattr(statistics, name))
    if not (missing and kind in ("full", "tied")):
        first, second = direct(problem, anchor)
        np.testing.assert_allclose(moved.first, first, rtol=0, atol=1e-12 * np.abs(first).max())
        np.testing.assert_allclose(moved.second, second, rtol=0, atol=1e-12 * np.abs(second).max())
    a, b = statistics.m_step(), moved.m_step()
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-11)


def test_shards_about_different_anchors() -> None:
    problem = problem_of("full")
    half = replace(problem, X=problem.X[:300], sample_weight=problem.sample_weight[:300]).run()
    rest = replace(problem, X=problem.X[300:], sample_weight=problem.sample_weight[300:]).run()
    moved = rest.about(rest.anchor + 1e-3)
    with pytest.raises(
        ValueError, match=r"only about one anchor; move one of them: a\.about\(b\.anchor\) \+ b"
    ):
        half + moved
    same((half.about(moved.anchor) + moved).about(half.anchor), problem.run())
    with pytest.raises(
        ValueError, match=r"anchor must be finite with shape \(3, 4\); got shape \(3,\)"
    ):
        half.about(np.zeros(3))
    with pytest.raises(ValueError, match=r"anchor must be finite"):
        half.about(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"covariance_type is the same; got 'full' and 'tied'"):
        half + problem_of("tied").run()
    with pytest.raises(ValueError, match=r"must have the same shapes"):
        half + gaussian_problem((10, 4, 2), "full").run()
    with pytest.raises(TypeError):
        half + 1


def test_an_anchor_is_copied() -> None:
    statistics = problem_of("diag").run()
    anchor = statistics.anchor + 1
    moved = statistics.about(anchor)
    anchor += 1
    assert not np.array_equal(moved.anchor, anchor)


@pytest.mark.parametrize("kind", KINDS)
def test_multiples_and_vectors(backend: str, kind: str) -> None:
    problem = problem_of(kind, 0.2)
    statistics = problem.run()
    weight = np.ones(700) if problem.sample_weight is None else problem.sample_weight
    same(statistics * 2.5, replace(problem, sample_weight=2.5 * weight).run())
    same(2.5 * statistics, statistics * 2.5, 0)
    same(statistics + statistics, 2 * statistics, 0)
    vector = statistics.to_vector()
    assert vector.dtype == np.float64
    assert vector.size == 2 + sum(getattr(statistics, name).size for name in SUMS[2:])
    same(statistics.from_vector(vector), statistics, 0)
    np.testing.assert_array_equal(statistics.from_vector(vector * 3).to_vector(), vector * 3)


# --- M-steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg_covar", [0.0, 0.25])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_m_step(backend: str, covariance_type: str, reg_covar: float) -> None:
    """The M-step gives NumPy's weighted means and covariances."""
    problem = problem_of(covariance_type)
    _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
    r = r * problem.sample_weight[:, None]
    got = problem.run().m_step(reg_covar=reg_covar)
    np.testing.assert_allclose(got.weights, r.sum(axis=0) / r.sum(), rtol=1e-12)
    np.testing.assert_allclose(
        got.means, [np.average(problem.X, axis=0, weights=w) for w in r.T], rtol=0, atol=1e-12
    )
    full = np.stack([np.cov(problem.X.T, aweights=w, ddof=0) for w in r.T])
    diagonal = np.einsum("kdd->kd", full)
    want = {
        "full": full + reg_covar * np.eye(4),
        "tied": np.einsum("k,kab->ab", got.weights, full) + reg_covar * np.eye(4),
        "diag": diagonal + reg_covar,
        "spherical": diagonal.mean(axis=1) + reg_covar,
    }
    np.testing.assert_allclose(got.covariances, want[covariance_type], rtol=0, atol=1e-11)


def test_m_step_of_columns_partly_missing() -> None:
    """Each column is computed from the rows in which it is observed; spherical covariances have one
    variance of all of them.
    """
    for covariance_type in ("diag", "spherical"):
        problem = problem_of(covariance_type, 0.4)
        _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
        r = r * problem.sample_weight[:, None]
        got, x = problem.run().m_step(), np.ma.masked_invalid(problem.X)
        squares = np.zeros((3, 4))
        for k in range(3):
            for d in range(4):
                w = np.where(np.isnan(problem.X[:, d]), 0, r[:, k])
                assert got.means[k, d] == pytest.approx(
                    np.ma.average(x[:, d], weights=w), abs=1e-12
                )
                squares[k, d] = np.ma.average((x[:, d] - got.means[k, d]) ** 2, weights=w)
        if covariance_type == "spherical":
            seen = r.T @ (~np.isnan(problem.X)).astype(float)
            squares = (squares * seen).sum(axis=1) / seen.sum(axis=1)
        np.testing.assert_allclose(got.covariances, squares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_m_step_of_a_component_without_weight(backend: str, covariance_type: str) -> None:
    """A component without weight keeps its mean and covariance where the previous ones are given;
    the others are as without it.
    """
    problem = replace(problem_of(covariance_type), weights=np.array([0.4, 0.0, 0.6]))
    statistics = problem.run()
    if covariance_type == "tied":  # does not depend on single components
        given = statistics.m_step(covariances=np.eye(4))
        np.testing.assert_array_equal(statistics.m_step().covariances, given.covariances)
    else:
        with pytest.raises(
            ValueError, match=r"component 1 has lost all its weight.*give the previous covariances"
        ):
            statistics.m_step()
    got = statistics.m_step(covariances=problem.covariances, reg_covar=1e-3)
    assert got.weights[1] == 0
    np.testing.assert_array_equal(got.means[1], problem.means[1])
    keep = [0, 2]
    c = problem.covariances
    alive = replace(problem, weights=problem.weights[keep], means=problem.means[keep])
    alive = (
        replace(alive, covariances=c if covariance_type == "tied" else c[keep])
        .run()
        .m_step(reg_covar=1e-3)
    )
    np.testing.assert_allclose(got.means[keep], alive.means, rtol=0, atol=1e-12)
    if covariance_type == "tied":
        np.testing.assert_allclose(got.covariances, alive.covariances, rtol=0, atol=1e-12)
    else:
        np.testing.assert_allclose(got.covariances[keep], alive.covariances, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got.covariances[1], c[1])


def test_m_step_of_a_column_wholly_missing() -> None:
    problem = problem_of("diag")
    problem.X[:, 2] = np.nan
    got = problem.run().m_step(covariances=problem.covariances)
    np.testing.assert_array_equal(got.means[:, 2], problem.means[:, 2])
    np.testing.assert_array_equal(got.covariances[:, 2], problem.covariances[:, 2])
    assert not np.isclose(got.covariances[:, 1], problem.covariances[:, 1]).any()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_m_step_of_too_few_rows(backend: str, covariance_type: str) -> None:
    """The covariance of a single row is reg_covar alone."""
    given = {
        "full": np.eye(2)[None],
        "tied": np.eye(2),
        "diag": np.ones((1, 2)),
        "spherical": np.ones(1),
    }
    X, covariances = np.array([[1.0, 2.0]]), given[covariance_type]
    statistics = lk.gaussian_e_step(X, [1.0], [[1.0, 2.0]], covariances, covariance_type)
    with pytest.raises(
        ValueError,
        match=r"covariance (of component 0|shared by all components) is not positive definite"
        r".*greater reg_covar",
    ):
        statistics.m_step()
    np.testing.assert_allclose(
        statistics.m_step(reg_covar=0.5).covariances, 0.5 * covariances, rtol=1e-12
    )


def test_errors_of_m_step() -> None:
    statistics = problem_of("diag").run()
    for reg_covar in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="reg_covar must be >= 0"):
            statistics.m_step(reg_covar=reg_covar)
    with pytest.raises(ValueError, match="nothing to estimate from"):
        (0 * statistics).m_step()
    with pytest.raises(ValueError, match="the statistics must be finite"):
        (math.inf * (statistics + 0 * statistics)).m_step()


def test_mean_parameters(backend: str) -> None:
    """The parameters are averages of each column's features over the rows in which it is
    observed.
    """
    problem = mixed_problem(FAMILIES, 700, 3, missing=0.3)
    problem.X[:, 3] = np.nan
    got = problem.run()
    assert got.feature_starts.tolist() == [0, 1, 3, 4, 7]
    _, _, r = e_step.posterior(problem.X, problem.parameters, responsibilities=True)
    wanted = []
    for column, classes in ((1, None), (2, 2), (3, None), (5, 3)):
        x, there = problem.X[:, column], ~np.isnan(problem.X[:, column])
        for phi in [x] if classes is None else [(x == c).astype(float) for c in range(classes)]:
            with np.errstate(invalid="ignore"):
                wanted.append(r[there].T @ phi[there] / r[there].sum(axis=0))
    means = got.mean_parameters()
    np.testing.assert_allclose(means, np.stack(wanted, axis=1), rtol=1e-12)
    assert np.isnan(means[:, 3]).all()
    np.testing.assert_allclose(means[:, 1:3].sum(axis=1), 1, rtol=1e-12)
    assert gaussian_problem((5, 2, 3), "diag").run().mean_parameters().shape == (3, 0)


def test_m_step_without_gaussian_columns(backend: str) -> None:
    got = mixed_problem(("bernoulli", "poisson"), 300, 3).run()
    weights, means, covariances = got.m_step()
    np.testing.assert_allclose(weights, got.counts / 300, rtol=1e-12)
    assert means.shape == covariances.shape == (3, 0)


# --- bad input ------------------------------------------------------------------------------------

ROWS = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [1.0, 7.0, 2.0]])
RATES, P, CLASSES = (
    np.array([1.0, 2.0]),
    np.array([0.3, 0.6]),
    np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]),
)
SKEW = np.array([[1.0, 0.5, 0], [0.1, 1, 0], [0, 0, 1]])
INDEFINITE = np.array([[1.0, 2.0, 0], [2.0, 1, 0], [0, 0, 1]])


def at(row: int, column: int, value: float, dtype: Any = np.float64) -> Any:
    X = ROWS.astype(dtype)
    X[row, column] = value
    return X


def gaussian(
    X: Any = ROWS,
    w: Any = (0.5, 0.5),
    m: Any = None,
    c: Any = None,
    kind: str = "diag",
    **rest: Any,
) -> Any:
    m = np.zeros((2, 3)) if m is None else m
    c = np.ones((2, 3)) if c is None else c
    return lambda: lk.gaussian_e_step(X, w, m, c, kind, **rest)


def family(
    X: Any = ROWS,
    w: Any = (0.5, 0.5),
    f: Any = ("bernoulli", "poisson", "categorical"),
    p: Any = None,
) -> Any:
    p = [P, RATES, CLASSES] if p is None else p
    return lambda: lk.exponential_family_e_step(X, w, f, p)


BAD = [
    (gaussian(ROWS.tolist()), TypeError, r"X must be a NumPy array or a torch\.Tensor; got list"),
    (gaussian(ROWS.astype(int)), TypeError, r"X must have dtype float32 or float64.*int64"),
    (gaussian(ROWS.astype(np.float16)), TypeError,
     r"X must have dtype float32 or float64.*float16"),
    (gaussian(ROWS.astype(">f8")), TypeError,
     r"X must have dtype .* byte order; got dtype\('>f8'\)"),
    (gaussian(ROWS.astype(complex)), TypeError, r"X must have dtype .*complex128"),
    (gaussian(torch.tensor(ROWS).half()), TypeError,
     r"X must have dtype float32 or float64; got torch\.float16"),
    (gaussian(torch.tensor(ROWS).long()), TypeError,
     r"X must have dtype float32 or float64; got torch\.int64"),
    (gaussian(torch.tensor(ROWS).to("meta")), TypeError,
     r"X must be a dense tensor on the CPU; got one on meta"),
    (gaussian(torch.tensor(ROWS).to_sparse()), TypeError,
     r"X must be a dense tensor on the CPU; .*sparse_coo"),
    (gaussian(ROWS[0]), ValueError, r"X must have shape \[N, D\] with D >= 1; got \(3,\)"),
    (gaussian(ROWS[None]), ValueError, r"X must have shape \[N, D\] with D >= 1; got \(1, 4, 3\)"),
    (gaussian(ROWS[:, :0]), ValueError, r"X must have shape \[N, D\] with D >= 1; got \(4, 0\)"),
    (gaussian(at(2, 1, np.inf)), ValueError, r"X must not hold infinite values"),
    (gaussian(at(2, 1, -np.inf, np.float32)), ValueError, r"X must not hold infinite values"),
    (gaussian(at(2, 1, 1e200)), ValueError, r"X must not hold .* squares overflow"),
    (gaussian(at(2, 1, np.inf), c=np.ones(2), kind="spherical"), ValueError,
     r"X must not hold infinite values"),
    (gaussian(at(2, 1, np.inf), c=np.eye(3), kind="tied"), ValueError,
     r"X must not hold infinite values"),
    (gaussian(at(2, 1, np.inf), hard=True), ValueError, r"X must not hold infinite values"),
    (gaussian(w=[0.5, 0.6]), ValueError, r"weights must be >= 0 with sum 1; got .* of sum 1\.1"),
    (gaussian(w=[1.5, -0.5]), ValueError, r"weights must be >= 0 with sum 1"),
    (gaussian(w=[math.nan, 1.0]), ValueError, r"weights must be >= 0 with sum 1"),
    (gaussian(w=[math.inf, 1.0]), ValueError, r"weights must be >= 0 with sum 1"),
    (gaussian(w=0.5), ValueError, r"weights must have shape \[K\] with K >= 1; got \(\)"),
    (gaussian(w=[]), ValueError, r"weights must have shape \[K\] with K >= 1; got \(0,\)"),
    (gaussian(w=["a", "b"]), TypeError, r"weights must be an array of numbers; got list"),
    (gaussian(m=np.zeros((2, 2))), ValueError,
     r"means must be .*\[K, D\] = \(2, 3\); got shape \(2, 2\)"),
    (gaussian(m=np.zeros(3)), ValueError, r"means must be finite .*got shape \(3,\)"),
    (gaussian(m=np.full((2, 3), math.nan)), ValueError, r"means must be finite"),
    (gaussian(m=np.full((2, 3), -math.inf)), ValueError, r"means must be finite"),
    (gaussian(kind="round"), ValueError,
     r"covariance_type must be one of 'full', 'tied', .*got 'round'"),
    (gaussian(c=np.ones(2)), ValueError,
     r"covariances must have shape \(2, 3\) for 'diag'; got \(2,\)"),
    (gaussian(kind="full"), ValueError,
     r"covariances must have shape \(2, 3, 3\) for 'full'; got \(2, 3\)"),
    (gaussian(kind="tied"), ValueError,
     r"covariances must have shape \(3, 3\) for 'tied'; got \(2, 3\)"),
    (gaussian(kind="spherical"), ValueError,
     r"covariances must have shape \(2,\) for 'spherical'; got \(2, 3\)"),
    (gaussian(c=[[1, 1, 1], [1, 0, 1]]), ValueError,
     r"covariances must be finite and > 0; .*component 1 are not"),
    (gaussian(c=[[1, 1, 1], [1, math.nan, 1]]), ValueError, r"covariances must be finite and > 0"),
    (gaussian(c=[-1, 1], kind="spherical"), ValueError,
     r"covariances must be finite and > 0; .*component 0"),
    (gaussian(c=[1, math.inf], kind="spherical"), ValueError,
     r"covariances must be finite and > 0; .*component 1"),
    (gaussian(c=[np.eye(3), INDEFINITE], kind="full"), ValueError,
     r"symmetric and positive definite; number 1 is not"),
    (gaussian(c=[np.eye(3), SKEW], kind="full"), ValueError,
     r"symmetric and positive definite; number 1 is not"),
    (gaussian(c=SKEW, kind="tied"), ValueError,
     r"symmetric and positive definite; number 0 is not"),
    (gaussian(c=np.full((3, 3), math.nan), kind="tied"), ValueError,
     r"symmetric and positive definite; number 0"),
    (gaussian(sample_weight=np.ones(3)), ValueError,
     r"sample_weight must have shape \(4,\).*got \(3,\)"),
    (gaussian(sample_weight=1.0), ValueError, r"sample_weight must have shape \(4,\).*got \(\)"),
    (gaussian(sample_weight=[1, 1, -1e-9, 1]), ValueError,
     r"sample_weight must be finite and >= 0"),
    (gaussian(sample_weight=[1, 1, math.nan, 1]), ValueError,
     r"sample_weight must be finite and >= 0"),
    (gaussian(sample_weight=[1, 1, math.inf, 1]), ValueError,
     r"sample_weight must be finite and >= 0"),
    (family(ROWS.tolist()), TypeError, r"X must be a NumPy array or a torch\.Tensor; got list"),
    (family(torch.tensor(ROWS).to("meta")), TypeError,
     r"X must be a dense tensor on the CPU; got one on meta"),
    (family(w=[0.5, 0.4]), ValueError, r"weights must be >= 0 with sum 1"),
    (family(f=["bernoulli", "poisson"]), ValueError,
     r"one entry for each of the 3 columns of X; got 2 and 3"),
    (family(p=[P, RATES]), ValueError, r"one entry for each of the 3 columns of X; got 3 and 2"),
    (family(f=["bernoulli", "gamma", "categorical"]), ValueError,
     r"families must be among .*got 'gamma' for column 1"),
    (family(p=[P[:1], RATES, CLASSES]), ValueError,
     r"parameters\[0\] must have shape \(2,\) .*got \(1,\)"),
    (family(p=[P, CLASSES, CLASSES]), ValueError,
     r"parameters\[1\] must have shape \(2,\) .*got \(2, 3\)"),
    (family(p=[P, RATES, P]), ValueError,
     r"parameters\[2\] must have shape \(2, C\) for 'categorical'; got \(2,\)"),
    (family(p=[P + 1, RATES, CLASSES]), ValueError,
     r"parameters\[0\] must be probabilities for 'bernoulli'"),
    (family(p=[P, -RATES, CLASSES]), ValueError,
     r"parameters\[1\] must be rates >= 0 for 'poisson'"),
    (family(p=[P, RATES * math.inf, CLASSES]), ValueError,
     r"parameters\[1\] must be rates >= 0 for 'poisson'"),
    (family(p=[P, RATES, CLASSES * 0.9]), ValueError,
     r"parameters\[2\] must be probabilities of sum 1"),
    (family(p=[P, RATES * math.nan, CLASSES]), ValueError, r"parameters\[1\] must be rates >= 0"),
    (family(f=["gaussian"] * 3, p=[(P, P), (P, -P), (P, P)]), ValueError,
     r"parameters\[1\] must be .* variances > 0"),
    (family(f=["gaussian"] * 3, p=[(P, P), (P, P[:1]), (P, P)]), ValueError,
     r"parameters\[1\] must be finite means"),
    (family(f=["gaussian"] * 3, p=[(P * math.nan, P)] * 3), ValueError,
     r"parameters\[0\] must be finite means"),
    (family(f=["gaussian"] * 3, p=[(P, P), (P, P), 0.5]), (TypeError, ValueError),
     r"parameters\[2\]"),
    (family(f=["gaussian"] * 3, p=[(P, P), (P, P, P), P]), ValueError, r"parameters\[1\]"),
    *((family(at(1, 0, bad, t)), ValueError,
       r"column 0 of X is 'bernoulli' and takes 0 and 1.*row 1")
      for bad in (0.5, -1, 2, math.inf, -math.inf) for t in (np.float32, np.float64)),
    *((family(at(2, 1, bad, t)), ValueError,
       r"column 1 of X is 'poisson' and takes integers >= 0.*row 2")
      for bad in (0.5, -1, math.inf, -math.inf) for t in (np.float32, np.float64)),
    *((family(at(3, 2, bad, t)), ValueError,
       r"column 2 of X is 'categorical' and takes .*0 to 2.*row 3")
      for bad in (0.5, -1, 3, 2**40, math.inf, -math.inf, 1e30) for t in (np.float32, np.float64)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(backend: str, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(backend: str, kind: str) -> None:
    """Sums over no rows are zero, and adding them changes nothing; the posterior is empty."""
    problem = problem_of(kind)
    weight = None if problem.sample_weight is None else np.zeros(0)
    nothing = replace(problem, X=problem.X[:0], sample_weight=weight)
    for hard in (False, True):
        got = replace(nothing, hard=hard).run()
        assert not got.to_vector().any()
        whole = problem.run()
        same(got + whole, whole, 0)
    names = ("log_density", "labels", "responsibilities")
    shapes = [
        x.shape
        for x in e_step.posterior(nothing.X, problem.parameters, **dict.fromkeys(names, True))
    ]
    assert shapes == [(0,), (0,), (0, 3)]
