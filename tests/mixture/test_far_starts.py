"""Means thousands of standard deviations from where they were: the sums are repeated about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import latent_kernels as lk
from latent_kernels.kernels.mixture import independent_task, matrix_tasks
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel
from tests.mixture.checks import DTYPES, TYPES

UNITS: dict[str, Any] = {
    "full": np.eye(3)[None],
    "tied": np.eye(3),
    "diag": np.ones((1, 3)),
    "spherical": np.ones(1),
}


def rows(shift: float, dtype: Any, missing: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) @ [[1, 0.5, 0], [0, 1, 0.3], [0, 0, 1]] + shift
    if missing:
        X[::5, 1] = np.nan
    return X.astype(dtype)


def truth(X: np.ndarray, kind: str) -> np.ndarray:
    matrix = np.cov(X.astype(np.float64).T, bias=True)
    variances = np.diag(matrix)
    return {
        "full": matrix[None],
        "tied": matrix,
        "diag": variances[None],
        "spherical": variances.mean()[None],
    }[kind]


@pytest.mark.parametrize("shift", [300, 1e4, 1e5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_the_first_covariance_has_its_digits(kind: str, dtype: Any, shift: float) -> None:
    """The covariance errs by the rounding of float64 sums about the old mean: a few times 2e-16
    shift^2.
    """
    X = rows(shift, dtype)
    weight = np.random.default_rng(1).integers(1, 4, 500)
    for w, repeated in ((None, X), (weight, np.repeat(X, weight, axis=0))):
        got = lk.gaussian_e_step(X, [1.0], np.zeros((1, 3)), UNITS[kind], kind, sample_weight=w)
        expected = truth(repeated, kind)
        error = abs(got.m_step().covariances - expected).max() / expected.max()
        assert error < 4e-7 + 2e-15 * shift**2
    assert got.anchor.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", TYPES)
def test_missing_values_too(kind: str) -> None:
    """With missing values float32 gives the same as float64."""
    single, double = (
        lk.gaussian_e_step(x, [1.0], np.zeros((1, 3)), UNITS[kind], kind).m_step().covariances
        for X in [rows(1e4, np.float32, missing=True)]
        for x in (X, X.astype(np.float64))
    )
    # What completes a missing value is 1e4 from the data in the old covariance: 1e8 in the sums.
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4 * abs(double).max())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_fits_from_far_away(kind: str, dtype: Any, components: int) -> None:
    X = rows(1e5, dtype)
    near = GaussianMixture(covariance_type=kind).fit(X)
    settings: dict[str, Any] = {"covariance_type": kind, "random_state": 0}
    start = np.arange(float(components))[:, None] * np.ones(3)
    fits = [
        GaussianMixture(components, means_init=start, **settings).fit(X),
        GaussianMixture(components, means_init=start, **settings).fit_batches([X[:250], X[250:]]),
        GaussianMixture(components, means_init=start, **settings).partial_fit(X),
        GaussianMixture(components, warm_start=True, **settings).fit(X - dtype(1e5)).fit(X),
    ]
    for fitted in fits:
        assert fitted.score(X) > near.score(X) - 1e-3 - (kind in ("diag", "spherical"))


def test_mixed_columns_too() -> None:
    X = rows(1e5, np.float64)
    X[:, 2] = np.arange(500) % 2
    families = ["gaussian", "gaussian", "bernoulli"]
    start = [([0.0], [1.0]), ([0.0], [1.0]), [0.5]]
    fitted = MixtureModel(families=families, weights_init=[1.0], parameters_init=start).fit(X)
    for column in (0, 1):
        assert fitted.parameters_[column][1] == pytest.approx(X[:, column].var(), rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_components_of_one_point_are_not_repeated_for_ever(
    kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = []
    for task in (matrix_tasks.Full, matrix_tasks.Tied, independent_task.Independent):

        def about(self: Any, means: Any, original: Any = task.about) -> Any:
            repeated.append(means)
            return original(self, means)

        monkeypatch.setattr(task, "about", about)
    point = np.array([[5.1, 7.3, 900.7]])
    X = np.concatenate([rows(0, dtype), np.tile(point, (4, 1)), 10 * point]).astype(dtype)
    start = {"weights_init": [1 / 3] * 3, "means_init": np.vstack([0 * point, point, 10 * point])}
    model = GaussianMixture(3, covariance_type=kind, tol=0, max_iter=20, **start)
    with pytest.warns(UserWarning, match="did not converge"):
        model.fit(X)
    assert len(repeated) <= 2


@pytest.mark.parametrize("kind", TYPES)
def test_the_message_names_the_cause(kind: str) -> None:
    far = lk.gaussian_e_step(rows(1e9, np.float64), [1.0], np.zeros((1, 3)), UNITS[kind], kind)
    rounded = replace(far, second=far.second * (1 - 1e-13))
    for previous in (None, UNITS[kind]):
        with pytest.raises(ValueError, match="moved so far that rounding errors hide its variance"):
            rounded.m_step(covariances=previous)
    ones = lk.gaussian_e_step(np.ones((500, 3)), [1.0], np.zeros((1, 3)), UNITS[kind], kind)
    with pytest.raises(ValueError, match="too few distinct rows"):
        ones.m_step(covariances=UNITS[kind])
