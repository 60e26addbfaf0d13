"""Rows without weight, rows whose squares overflow, and weights in any unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import latent_kernels as lk
from latent_kernels.mixtures import e_step
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel
from tests.mixture.checks import DTYPES, TYPES, use_backend

BIG = {np.float32: (1e20, 9.97e36, 3e38), np.float64: (1e20, 1e160, 1.7e308)}
MEANS = np.array([[0.0, 0.0, 0.0], [6.0, 6.0, 6.0]])
UNITS = [1e-310, 1e-300, 1e-38, 1e38, 1e300, 1e307]


@pytest.fixture(params=["numba", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_backend(monkeypatch, request.param)


def rows(dtype: Any) -> np.ndarray:
    X = np.random.default_rng(0).normal(size=(600, 3)) + np.repeat(MEANS, 300, axis=0)
    return X.astype(dtype)


def covariances(kind: str) -> np.ndarray:
    matrix = np.eye(3) + 0.2
    return {
        "full": np.stack([matrix, 2 * matrix]),
        "tied": matrix,
        "diag": np.array([[1.0, 2, 1], [1, 1, 3]]),
        "spherical": np.array([1.0, 2.0]),
    }[kind]


def model(kind: str, **options: Any) -> GaussianMixture:
    precisions = covariances(kind)
    precisions = np.linalg.inv(precisions) if kind in ("full", "tied") else 1 / precisions
    start = {"weights_init": [0.5, 0.5], "means_init": MEANS, "precisions_init": precisions}
    return GaussianMixture(2, covariance_type=kind, **start, **options)


def numbers(fitted: Any) -> np.ndarray:
    return np.concatenate(
        [np.ravel(x) for x in (fitted.weights_, fitted.means_, fitted.covariances_)]
    )


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_rows_without_weight_do_not_count(backend: str, kind: str, dtype: Any, hard: bool) -> None:
    X, weight = rows(dtype), np.random.default_rng(1).uniform(0.5, 2, 600)
    X[1::50, 1] = np.nan
    arguments = ([0.5, 0.5], MEANS, covariances(kind), kind)
    for big in BIG[dtype]:
        Y, v = X.copy(), weight.copy()
        Y[::7], v[::7] = big, 0
        Y[3::70, 0], v[3::70] = -big, 0
        here = lk.gaussian_e_step(Y, *arguments, sample_weight=v, hard=hard).to_vector()
        Y[v == 0] = 1
        there = lk.gaussian_e_step(Y, *arguments, sample_weight=v, hard=hard).to_vector()
        if backend == "numba" and kind != "diag" and kind != "spherical":
            np.testing.assert_array_equal(here, there)
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-3)


def test_nor_do_they_in_mixed_columns(backend: str) -> None:
    X = np.column_stack([rows(np.float32)[:, 0], np.arange(600) % 3])
    weight = np.ones(600)
    weight[::5] = 0
    parameters = [([0.0, 6.0], [1.0, 1.0]), [1.0, 2.0]]
    families = ["gaussian", "poisson"]
    there = lk.exponential_family_e_step(X, [0.5, 0.5], families, parameters, sample_weight=weight)
    X[::5] = 1e200, 1e30
    here = lk.exponential_family_e_step(X, [0.5, 0.5], families, parameters, sample_weight=weight)
    np.testing.assert_allclose(here.to_vector(), there.to_vector(), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_fits_without_the_rows_of_weight_zero(kind: str, dtype: Any) -> None:
    X = rows(dtype)
    for big in BIG[dtype]:
        Y, weight = np.vstack([X, np.full((2, 3), big, dtype)]), np.r_[np.ones(600), 0, 0]
        expected = numbers(model(kind).fit(X))
        found = [
            model(kind).fit(Y, sample_weight=weight),
            model(kind).fit_batches([(Y[:300], weight[:300]), (Y[300:], weight[300:])]),
        ]
        for fitted in found:
            np.testing.assert_allclose(numbers(fitted), expected, rtol=1e-5, atol=1e-6)
        online = model(kind).partial_fit(Y, sample_weight=weight)
        np.testing.assert_allclose(
            numbers(online), numbers(model(kind).partial_fit(X)), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_a_far_row_has_a_score(backend: str, kind: str, dtype: Any) -> None:
    """Far rows in float32 have the score of float64; where that overflows, it is -inf for that row
    alone.
    """
    X = rows(dtype)
    fitted = model(kind, max_iter=0).fit(X)
    near = fitted.score_samples(X), fitted.predict(X), fitted.predict_proba(X)
    for big in BIG[dtype]:
        Y = X.copy()
        Y[5], Y[17], Y[300, 1] = big, -big, big
        Y[300, 0] = np.nan
        far = [5, 17, 300]
        density, labels, r = fitted.score_samples(Y), fitted.predict(Y), fitted.predict_proba(Y)
        for here, there in zip((density, labels, r), near, strict=True):
            # A missing value changes the way in which the rows of its tile are computed.
            here, there = np.delete(here, far, 0), np.delete(there, far, 0)
            np.testing.assert_allclose(here, there, rtol=1e-4, atol=10 * np.finfo(dtype).eps)
        if big < 1e100:
            np.testing.assert_allclose(density[far], fitted.score_samples(Y[far].astype(float)))
            assert (density[far] < -1e38).all()
        else:
            np.testing.assert_array_equal(density[far], -np.inf)
            assert fitted.score(Y) == -np.inf
            weight = np.ones(600)
            weight[far] = 0
            assert np.isfinite(fitted.score(Y, sample_weight=weight))
        if kind == "tied":  # the difference between components has no digits left
            np.testing.assert_allclose(r[far].sum(axis=1), 1)
            continue
        # On the same lines, but nearer.
        nearer = np.where(abs(Y[far]) > 1e10, np.sign(Y[far]) * 1e15, 0).astype(np.float64)
        nearer[2, 0] = np.nan
        np.testing.assert_array_equal(labels[far], fitted.predict(nearer))
        np.testing.assert_allclose(r[far], fitted.predict_proba(nearer), atol=1e-6)
        assert r.dtype == dtype


def test_parameters_that_are_not_finite_are_to_blame() -> None:
    for name, value in (("means_", np.nan), ("covariances_", np.inf), ("weights_", np.nan)):
        served = GaussianMixture(2, covariance_type="diag")
        served.weights_, served.means_ = np.array([0.5, 0.5]), MEANS.copy()
        served.covariances_ = np.ones((2, 3))
        getattr(served, name)[0] = value
        with pytest.raises(ValueError, match=r"covariances .*must be finite"):
            served.predict(rows(np.float64))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_the_unit_of_weights_never_matters(kind: str, dtype: Any, unit: float) -> None:
    X, weight = rows(dtype), np.random.default_rng(1).uniform(0.5, 2, 600)
    X[::9, 0] = np.nan
    settings: dict[str, Any] = {"reg_covar": 1e-2}
    halves = [slice(0, 300), slice(300, 600)]

    def fits(weight: np.ndarray) -> list[GaussianMixture]:
        batches = [(X[half], weight[half]) for half in halves]
        online = model(kind, **settings).fit(X, sample_weight=weight)
        for batch in batches:
            online.partial_fit(*batch[:1], sample_weight=batch[1])
        drawn = GaussianMixture(2, covariance_type=kind, random_state=0, **settings)
        return [
            model(kind, **settings).fit(X, sample_weight=weight),
            model(kind, **settings).fit_batches(batches),
            online,
            drawn.fit(X, sample_weight=weight),
        ]

    tolerance = 1e-4 if dtype == np.float32 else 1e-6
    for here, there in zip(fits(unit * weight), fits(weight), strict=True):
        np.testing.assert_allclose(numbers(here), numbers(there), rtol=tolerance, atol=tolerance)
        score = there.score(X, sample_weight=weight)
        assert here.score(X, sample_weight=unit * weight) == pytest.approx(score, rel=1e-3)
        if unit < 1e300:
            assert np.isfinite(here.bic(X, sample_weight=unit * weight))


def test_batches_of_very_different_weights() -> None:
    X, weight = rows(np.float64), np.ones(600)
    weight[:300] = 1e-200
    for batches in ([0, 1], [1, 0]):
        parts = [(X[300 * i : 300 * i + 300], weight[300 * i : 300 * i + 300]) for i in batches]
        found = model("full", reg_covar=1e-3).fit_batches([*parts, X[300:310]])
        assert found.weights_[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("unit", [1e-300, 1e307])
def test_mixed_models_too(unit: float) -> None:
    X = np.column_stack([rows(np.float64)[:, 0], np.arange(600) % 3, np.arange(600) % 2])
    families = ["gaussian", "poisson", "categorical"]
    weight = np.random.default_rng(1).uniform(0.5, 2, 600)
    here, there = (
        MixtureModel(2, families=families, random_state=0).fit(X, sample_weight=w)
        for w in (unit * weight, weight)
    )
    np.testing.assert_allclose(here.weights_, there.weights_, rtol=1e-8)


def test_weights_whose_sums_overflow_are_to_blame() -> None:
    with pytest.raises(ValueError, match="sample_weight is so large that sums with it overflow"):
        lk.gaussian_e_step(
            rows(np.float32),
            [0.5, 0.5],
            MEANS,
            covariances("diag"),
            sample_weight=np.full(600, 1e307),
        )
    assert e_step.weight_unit(1.5e307) == 2.0**1020
