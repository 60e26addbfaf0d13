"""GaussianMixture against scikit-learn's, against the laws of EM, and through scikit-learn's own
checks.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import mixture as sk
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from latent_kernels.mixtures.gaussian_mixture import GaussianMixture

TYPES = ["full", "tied", "diag", "spherical"]
INITS = ["kmeans", "k-means++", "random", "random_from_data"]
PARAMETERS = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"]
IRIS, WINE = load_iris().data, load_wine().data


CHECKED = [
    GaussianMixture(),
    GaussianMixture(2, covariance_type="diag", reg_covar=1e-3, tol=0.1),
    GaussianMixture(covariance_type="tied", init_params="k-means++"),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    if estimator.n_components > 1 and "sample_weight_equivalence" in str(check):
        pytest.skip(
            "random starts of repeated and of weighted rows differ; see a_weight_is_so_many_rows"
        )
    check(estimator)


def blobs(seed: int = 0, n: int = 240, d: int = 3, k: int = 3, spread: float = 4.0) -> np.ndarray:
    generator = np.random.RandomState(seed)
    centres = spread * generator.standard_normal((k, d))
    mixing = generator.standard_normal((k, d, d)) / np.sqrt(d) + np.eye(d)
    labels = generator.randint(k, size=n)
    return centres[labels] + np.einsum(
        "nd,nde->ne", generator.standard_normal((n, d)), mixing[labels]
    )


def agree(a: Any, b: Any, rtol: float, names: list[str] = PARAMETERS) -> None:
    """Check every parameter, relative to the greatest element of its array."""
    for name in names:
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        assert x.shape == y.shape, name
        assert np.abs(x - y).max() <= rtol * np.abs(y).max(), name


def _start(X: np.ndarray, covariance_type: str, k: int = 3) -> dict[str, Any]:
    """Return a start that depends only on X's mean and variance."""
    d = X.shape[1]
    variance = np.nanvar(X, axis=0)
    precisions = {
        "full": np.repeat(np.diag(1 / variance)[None], k, axis=0),
        "tied": np.diag(1 / variance),
        "diag": np.tile(1 / variance, (k, 1)),
        "spherical": np.full(k, 1 / variance.mean()),
    }
    means = np.nanmean(X, axis=0) + np.linspace(-1, 1, k)[:, None] * (
        1 + np.arange(d) % 2
    ) * np.sqrt(variance)
    start = {
        "weights_init": np.full(k, 1 / k),
        "means_init": means,
        "precisions_init": precisions[covariance_type],
    }
    return {"n_components": k, "covariance_type": covariance_type, **start}


# --- scikit-learn's estimator ---------------------------------------------------------------------


@pytest.mark.parametrize("data", ["iris", "wine"])
@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_is_scikit_learns(covariance_type: str, init_params: str, data: str) -> None:
    X = {"iris": IRIS, "wine": WINE}[data]
    settings: dict[str, Any] = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 3,
        "max_iter": 300,
        # One row alone has scikit-learn's rounding errors as its variance, which only a greater
        # reg_covar hides.
        "reg_covar": 1e-6 if init_params in ("kmeans", "random") else 1e-2,
    }
    theirs, ours = sk.GaussianMixture(**settings), GaussianMixture(**settings)
    assert (ours.fit_predict(X) == theirs.fit_predict(X)).all()
    agree(ours, theirs, 1e-6)
    assert (ours.n_iter_, ours.converged_, ours.n_features_in_) == (
        theirs.n_iter_,
        theirs.converged_,
        X.shape[1],
    )
    # The first bound is of weights that scikit-learn does not normalize where each component starts
    # from one row.
    np.testing.assert_allclose(ours.lower_bounds_[1:], theirs.lower_bounds_[1:], rtol=1e-7)
    assert ours.lower_bound_ == ours.lower_bounds_[-1]
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
    for method in ("score", "aic", "bic"):
        np.testing.assert_allclose(getattr(ours, method)(X), getattr(theirs, method)(X), rtol=1e-7)
    for mine, other in zip(ours.sample(50), theirs.sample(50), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_takes_scikit_learns_arguments_with_its_defaults() -> None:
    theirs, ours = sk.GaussianMixture().get_params(), GaussianMixture().get_params()
    assert set(theirs) | {"init_size"} == set(ours)
    assert {k: v for k, v in theirs.items() if k != "verbose_interval"}.items() <= ours.items()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_several_runs_keep_the_likeliest_as_scikit_learn_does(covariance_type: str) -> None:
    X = blobs(5, spread=2.0)
    settings: dict[str, Any] = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": "random",
        "random_state": 1,
        "n_init": 4,
        "max_iter": 500,
        "tol": 1e-4,
    }
    theirs, ours = sk.GaussianMixture(**settings).fit(X), GaussianMixture(**settings).fit(X)
    one = GaussianMixture(**{**settings, "n_init": 1}).fit(X)
    agree(ours, theirs, 1e-6)
    assert ours.lower_bound_ >= one.lower_bound_


@pytest.mark.parametrize("covariance_type", TYPES)
def test_given_start_is_where_it_starts(covariance_type: str) -> None:
    start = _start(IRIS, covariance_type)
    theirs, ours = sk.GaussianMixture(**start).fit(IRIS), GaussianMixture(**start).fit(IRIS)
    agree(ours, theirs, 1e-8)
    nothing = GaussianMixture(**start, max_iter=0, random_state=np.random.RandomState(0)).fit(IRIS)
    np.testing.assert_array_equal(nothing.means_, start["means_init"])
    np.testing.assert_allclose(
        nothing.precisions_, start["precisions_init"], rtol=1e-12, atol=1e-12
    )
    assert (nothing.n_iter_, nothing.converged_, nothing.lower_bounds_) == (0, False, [])
    # The generator was not needed, so its state has not changed.
    assert nothing.random_state.randint(1 << 30) == np.random.RandomState(0).randint(1 << 30)


@pytest.mark.parametrize("given", ["weights_init", "means_init", "precisions_init"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_part_of_a_start(covariance_type: str, given: str) -> None:
    start = _start(IRIS, covariance_type)
    settings = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "random_state": 0,
        given: start[given],
    }
    agree(GaussianMixture(**settings).fit(IRIS), sk.GaussianMixture(**settings).fit(IRIS), 1e-7)


def test_warm_start_goes_on() -> None:
    settings: dict[str, Any] = {
        "n_components": 3,
        "random_state": 0,
        "warm_start": True,
        "tol": 1e-6,
    }
    ours, theirs = (
        GaussianMixture(max_iter=2, **settings),
        sk.GaussianMixture(max_iter=2, **settings),
    )
    for _ in range(3):
        for model in (ours, theirs):
            with pytest.warns(ConvergenceWarning):
                model.fit(IRIS)
    agree(ours, theirs, 1e-8)
    whole = GaussianMixture(max_iter=6, **settings)
    with pytest.warns(ConvergenceWarning, match="max_iter = 6"):
        whole.fit(IRIS)
    agree(ours, whole, 1e-12)
    ours.set_params(n_components=2)
    with pytest.raises(ValueError, match="do not go with n_components = 2"):
        ours.fit(IRIS)


# --- laws of EM -----------------------------------------------------------------------------------


def _rises(bounds: list[float]) -> bool:
    """Return whether the sequence is non-decreasing, up to the rounding of a mean of float64 log
    densities.
    """
    return bool((np.diff(bounds) >= -1e-12 * np.maximum(1, np.abs(bounds[1:]))).all())


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_likelihood_never_falls(covariance_type: str, missing: float) -> None:
    X = blobs(1, n=300, spread=1.5)
    X[np.random.RandomState(2).uniform(size=X.shape) < missing] = np.nan
    model = GaussianMixture(**_start(X, covariance_type), reg_covar=0, tol=1e-10, max_iter=80)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X)
    assert model.n_iter_ > 5
    assert _rises(model.lower_bounds_)
    assert model.lower_bounds_[-1] > model.lower_bounds_[0] + 0.1


def _em_with_missing_values(
    X: np.ndarray, start: dict[str, Any], iterations: int
) -> tuple[np.ndarray, ...]:
    """Return the fit of Ghahramani and Jordan (1994) for full covariances, row by row, without any
    code of the library.
    """
    weights, means = start["weights_init"].copy(), start["means_init"].copy()
    covariances = np.linalg.inv(start["precisions_init"])
    n, d = X.shape
    for _ in range(iterations):
        r = np.empty((n, len(weights)))
        completed, extra = np.empty((n, len(weights), d)), np.zeros((n, len(weights), d, d))
        for i, k in itertools.product(range(n), range(len(weights))):
            o = ~np.isnan(X[i])
            m = ~o
            s = covariances[k][np.ix_(o, o)]
            t = X[i, o] - means[k, o]
            r[i, k] = (
                weights[k]
                * np.exp(-0.5 * t @ np.linalg.solve(s, t))
                / np.sqrt(np.linalg.det(2 * np.pi * s))
            )
            gain = covariances[k][np.ix_(m, o)] @ np.linalg.inv(s)
            completed[i, k, o], completed[i, k, m] = X[i, o], means[k, m] + gain @ t
            extra[i, k][np.ix_(m, m)] = (
                covariances[k][np.ix_(m, m)] - gain @ covariances[k][np.ix_(o, m)]
            )
        r /= r.sum(axis=1, keepdims=True)
        counts = r.sum(axis=0)
        weights, means = counts / n, np.einsum("nk,nkd->kd", r, completed) / counts[:, None]
        t = completed - means
        squares = np.einsum("nk,nkd,nke->kde", r, t, t) + np.einsum("nk,nkde->kde", r, extra)
        covariances = squares / counts[:, None, None]
    return weights, means, covariances


def test_missing_values_are_those_of_an_independent_em() -> None:
    X = blobs(3, n=80)
    X[np.random.RandomState(4).uniform(size=X.shape) < 0.25] = np.nan
    start = _start(X, "full", k=2)
    model = GaussianMixture(**start, reg_covar=0, tol=0, max_iter=8)
    with pytest.warns(ConvergenceWarning):
        model.fit(X)
    weights, means, covariances = _em_with_missing_values(X, start, 8)
    np.testing.assert_allclose(model.weights_, weights, rtol=1e-9)
    np.testing.assert_allclose(model.means_, means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.covariances_, covariances, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_missing_values_leave_the_truth_to_be_found(covariance_type: str) -> None:
    generator = np.random.RandomState(0)
    centres = np.array([[0.0, 0, 0], [6, 6, 0], [0, 6, 6]])
    labels = np.repeat([0, 1, 2], [600, 500, 400])
    X = centres[labels] + generator.standard_normal((1500, 3))
    X[generator.uniform(size=X.shape) < 0.15] = np.nan
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(X)
    order = [int(((model.means_ - c) ** 2).sum(axis=1).argmin()) for c in centres]
    assert sorted(order) == [0, 1, 2]
    # Five standard errors of a mean of 340 values, and of a weight.
    assert np.abs(model.means_[order] - centres).max() < 5 / np.sqrt(340)
    assert np.abs(model.weights_[order] - [0.4, 1 / 3, 4 / 15]).max() < 0.065
    assert np.isfinite(model.score_samples(X)).all()
    assert (model.predict(X)[:1500] == np.array(order)[labels]).mean() > 0.95


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_column_without_any_value(covariance_type: str) -> None:
    X = np.hstack([blobs(0, n=60, d=2), np.full((60, 1), np.nan)])
    model = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X)
    without = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X[:, :2])
    np.testing.assert_allclose(model.means_[:, :2], without.means_, rtol=1e-3, atol=1e-3)
    assert all(np.isfinite(getattr(model, name)).all() for name in PARAMETERS)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_weight_is_so_many_rows(covariance_type: str) -> None:
    X, weight = IRIS, np.random.RandomState(0).randint(0, 4, size=len(IRIS))
    repeated = np.repeat(X, weight, axis=0)
    settings = _start(X, covariance_type)
    weighted = GaussianMixture(**settings).fit(X, sample_weight=weight)
    agree(weighted, sk.GaussianMixture(**settings).fit(repeated), 1e-8)
    agree(GaussianMixture(**settings).fit(X, sample_weight=2.5 * weight), weighted, 1e-10)


@pytest.mark.parametrize("init_params", INITS)
def test_rows_without_weight_might_as_well_not_be_there(init_params: str) -> None:
    weight = np.ones(len(IRIS))
    weight[::3] = 0
    settings: dict[str, Any] = {
        "n_components": 3,
        "init_params": init_params,
        "random_state": 0,
        "reg_covar": 1e-2,
    }
    weighted = GaussianMixture(**settings).fit(IRIS, sample_weight=weight)
    agree(weighted, GaussianMixture(**settings).fit(IRIS[weight > 0]), 1e-9)


# --- degenerate data ------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_without_weight_keeps_its_parameters(covariance_type: str) -> None:
    start = _start(IRIS, covariance_type)
    start["means_init"][1] = 1e6
    with pytest.warns(ConvergenceWarning, match="without any weight: 1"):
        model = GaussianMixture(**start, max_iter=300).fit(IRIS)
    assert model.weights_[1] == 0
    np.testing.assert_array_equal(model.means_[1], start["means_init"][1])
    if covariance_type != "tied":
        np.testing.assert_allclose(
            model.precisions_[1], start["precisions_init"][1], rtol=1e-12, atol=1e-12
        )
    assert all(np.isfinite(getattr(model, name)).all() for name in PARAMETERS)
    assert not (model.predict(IRIS) == 1).any()
    assert len(model.sample(20)[0]) == 20


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_singular_covariance_is_an_error(covariance_type: str) -> None:
    X = np.vstack([np.zeros((20, 2)), np.ones((20, 2))])
    model = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0)
    with pytest.raises(ValueError, match="reg_covar"):
        model.fit(X)
    model.set_params(reg_covar=1e-6).fit(X)
    np.testing.assert_allclose(np.sort(model.means_[:, 0]), [0, 1], atol=1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_fewer_distinct_rows_than_components(covariance_type: str) -> None:
    X = np.repeat(np.array([[0.0, 1], [5, 5]]), 10, axis=0)
    model = GaussianMixture(4, covariance_type=covariance_type, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X)
    assert any("without any weight" in str(w.message) for w in caught)
    assert all(np.isfinite(getattr(model, name)).all() for name in PARAMETERS)
    assert len(set(model.predict(X[:10]))) == 1 != len(set(model.predict(X)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components must be an integer >= 1"),
        ({"n_components": 151}, "n_samples = 150 with n_components = 151"),
        ({"tol": -1.0}, "tol must be"),
        ({"reg_covar": -1.0}, "reg_covar must be"),
        ({"reg_covar": float("nan")}, "reg_covar must be"),
        ({"max_iter": -1}, "max_iter must be"),
        ({"n_init": 0}, "n_init must be"),
        ({"verbose_interval": 0}, "verbose_interval must be"),
        ({"init_params": "best"}, "init_params must be one of"),
        ({"init_size": 1, "n_components": 2}, "init_size must be"),
        ({"covariance_type": "round"}, "covariance_type must be one of"),
        ({"weights_init": [0.5, 0.4], "n_components": 2}, "weights_init must"),
        ({"weights_init": [1.0], "n_components": 2}, "weights_init must"),
        ({"means_init": np.zeros((1, 3))}, r"means_init must be finite with shape \(1, 4\)"),
        ({"means_init": np.full((1, 4), np.nan)}, "means_init must be finite"),
        (
            {"precisions_init": np.zeros((1, 4, 4))},
            "precisions_init must be symmetric and positive definite",
        ),
        ({"precisions_init": np.eye(4)}, r"precisions_init must be finite with shape \(1, 4, 4\)"),
        (
            {"precisions_init": [[1, 1, 1, 0]], "covariance_type": "diag"},
            "precisions_init must be > 0",
        ),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**settings).fit(IRIS)


def test_wrong_data() -> None:
    model = GaussianMixture()
    with pytest.raises(NotFittedError):
        model.predict(IRIS)
    with pytest.raises(ValueError, match="sample_weight must be finite and >= 0"):
        model.fit(IRIS, sample_weight=-np.ones(150))
    with pytest.raises(ValueError, match="n_samples = 0"):
        model.fit(IRIS, sample_weight=np.zeros(150))
    with pytest.raises(ValueError, match="n_samples must be >= 1"):
        model.fit(IRIS).sample(0)
    model.covariance_type = "diag"
    with pytest.raises(ValueError, match="covariance_type = 'diag'"):
        model.predict(IRIS)


# --- precision, copies, progress ------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
def test_float32_is_near_float64(covariance_type: str) -> None:
    X = blobs(9).astype(np.float32)
    start = _start(X.astype(np.float64), covariance_type)
    single = GaussianMixture(**start, tol=1e-5, max_iter=500).fit(X)
    double = GaussianMixture(**start, tol=1e-5, max_iter=500).fit(X.astype(np.float64))
    assert all(getattr(single, name).dtype == np.float64 for name in PARAMETERS)
    agree(single, double, 1e-3)
    assert abs(single.lower_bound_ - double.lower_bound_) < 1e-5 * abs(double.lower_bound_)
    assert single.predict_proba(X).dtype == np.float32


def test_clone_and_pickle() -> None:
    model = GaussianMixture(3, covariance_type="tied", random_state=0, init_size=100)
    assert clone(model).get_params() == model.get_params()
    model.fit(IRIS)
    other = pickle.loads(pickle.dumps(model))
    agree(other, model, 0.0)
    np.testing.assert_array_equal(other.predict(IRIS), model.predict(IRIS))
    agree(other.partial_fit(IRIS), model.partial_fit(IRIS), 0.0)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"n_components": 3, "random_state": 0, "n_init": 2}
    GaussianMixture(**settings).fit(IRIS)
    assert capsys.readouterr() == ("", "")
    GaussianMixture(**settings, verbose=1).fit(IRIS)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line[:8] for line in lines] == ["init 1/2", "init 2/2"]
    assert all("mean log-likelihood -1." in line and line.endswith(": converged") for line in lines)
    model = GaussianMixture(**{**settings, "n_init": 1}, verbose=2).fit(IRIS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == model.n_iter_ + 1
    assert f"] {model.n_iter_}/100, mean log-likelihood {model.lower_bound_:.6f}" in lines[-2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    GaussianMixture(**settings, verbose=1).fit(IRIS)
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert err.count("\r") > 10
    assert "[####" in err
