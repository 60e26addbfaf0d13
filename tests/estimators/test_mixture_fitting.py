"""Both mixture estimators: weights, missing values, errors, and parameters set by hand."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs

from latent_kernels.mixtures import _em, _initialization
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel
from tests.estimators.test_gaussian_mixture import INITS, TYPES, agree, blobs

IRIS = load_iris().data
FAMILIES = ("gaussian", "bernoulli", "poisson", "categorical")


def _mixed(n: int = 200) -> np.ndarray:
    """Return a column of each of FAMILIES, in two classes."""
    generator, labels = np.random.RandomState(1), np.arange(n) % 2
    x = 4 * labels + generator.standard_normal(n)
    b = generator.uniform(size=n) < 0.2 + 0.6 * labels
    return np.column_stack(
        [x, b, generator.poisson(2 + 5 * labels), generator.randint(1 + labels, 4)]
    )


def _numbers(model: Any) -> np.ndarray:
    if isinstance(model, GaussianMixture):
        return np.concatenate(
            [np.ravel(x) for x in (model.weights_, model.means_, model.covariances_)]
        )
    parts = itertools.chain.from_iterable(
        p if isinstance(p, tuple) else (p,) for p in model.parameters_
    )
    return np.concatenate([model.weights_, *(np.ravel(p) for p in parts)])


def _quiet(model: Any, *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(*arguments, **options)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_unit_of_weights_does_not_matter(mixed: bool, init_params: str, scale: float) -> None:
    X = _mixed() if mixed else blobs()
    weight = np.random.RandomState(0).uniform(0.2, 2, size=len(X))
    settings: dict[str, Any] = {"init_params": init_params, "random_state": 0, "reg_covar": 1e-2}
    model: Any = (
        MixtureModel(2, families=FAMILIES, **settings) if mixed else GaussianMixture(3, **settings)
    )
    for w in (weight, np.ones(len(X))):
        there = _numbers(model.fit(X, sample_weight=w)).copy()
        here = _numbers(model.fit(X, sample_weight=scale * w))
        np.testing.assert_allclose(here, there, rtol=1e-8, atol=1e-10)


def test_scores_take_weights() -> None:
    weight = np.random.RandomState(0).randint(0, 4, size=150)
    repeated = np.repeat(IRIS, weight, axis=0)
    model = GaussianMixture(3, random_state=0).fit(IRIS)
    for name in ("score", "aic", "bic"):
        method = getattr(model, name)
        assert method(IRIS, sample_weight=weight) == pytest.approx(method(repeated), rel=1e-12)
    with pytest.raises(ValueError, match="must not be 0 for every row"):
        model.score(IRIS, sample_weight=np.zeros(150))


def test_rows_without_weight_have_no_category() -> None:
    X, weight = _mixed(), np.ones(200)
    X[7, 3], weight[7] = 40, 0
    with_it = MixtureModel(2, families=FAMILIES, random_state=0).fit(X, sample_weight=weight)
    without = MixtureModel(2, families=FAMILIES, random_state=0).fit(X[weight > 0])
    batches = MixtureModel(2, families=FAMILIES, random_state=0).fit_batches(
        [(X[:90], weight[:90]), X[90:]]
    )
    online = MixtureModel(2, families=FAMILIES, random_state=0).partial_fit(X, sample_weight=weight)
    for model in (with_it, batches, online):
        assert model.n_categories_.tolist() == [0, 0, 0, 4]
    np.testing.assert_allclose(_numbers(with_it), _numbers(without), rtol=1e-12)
    np.testing.assert_allclose(_numbers(batches), _numbers(without), rtol=1e-8, atol=1e-12)


def test_the_fit_counts_as_so_many_batches() -> None:
    X = blobs(7)
    first = GaussianMixture(3, random_state=0).fit(X, sample_weight=np.full(240, 2.0))
    before = first.weights_ @ first.means_
    batch = X[:24] + 10
    model = GaussianMixture(3, random_state=0).fit(X).partial_fit(batch)
    moved = (model.weights_ @ model.means_ - before) / (batch.mean(axis=0) - before)
    np.testing.assert_allclose(moved, (10 + 2) ** -0.6, rtol=1e-6)
    # The next batch is the eleventh.
    before = model.weights_ @ model.means_
    model.partial_fit(batch)
    moved = (model.weights_ @ model.means_ - before) / (batch.mean(axis=0) - before)
    np.testing.assert_allclose(moved, (11 + 2) ** -0.6, rtol=1e-6)


# --- missing values -------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_reg_covar_does_not_compound(covariance_type: str) -> None:
    generator = np.random.RandomState(0)
    X = generator.standard_normal((400, 3))
    X[generator.uniform(size=X.shape) < 0.4] = np.nan
    X = np.column_stack([X, np.full(400, np.nan)])
    variances = []
    for reg_covar in (0.0, 0.1):
        settings: dict[str, Any] = {
            "covariance_type": covariance_type,
            "reg_covar": reg_covar,
            "tol": 0,
        }
        model = _quiet(GaussianMixture(max_iter=300, **settings), X)
        variances.append(np.diag(model.covariances_.reshape(4, 4)))
        online = GaussianMixture(**settings)
        for _ in range(100):
            online.partial_fit(X)
        np.testing.assert_allclose(
            np.diag(online.covariances_.reshape(4, 4)), variances[-1], rtol=1e-3
        )
    np.testing.assert_allclose(variances[1] - variances[0], 0.1, rtol=0.1)
    np.testing.assert_allclose(variances[0][3], 1)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_column_without_any_value_starts_with_variance_1(covariance_type: str) -> None:
    X = np.hstack([blobs(0, n=60, d=2), np.full((60, 1), np.nan)])
    settings: dict[str, Any] = {
        "covariance_type": covariance_type,
        "random_state": 0,
        "reg_covar": 0,
        "max_iter": 0,
    }
    model = GaussianMixture(2, **settings).fit(X)
    without = GaussianMixture(2, **settings).fit(X[:, :2])
    if covariance_type == "spherical":
        np.testing.assert_allclose(model.covariances_, without.covariances_)
    else:
        there = (
            model.covariances_[..., 2, 2] if covariance_type != "diag" else model.covariances_[:, 2]
        )
        np.testing.assert_allclose(there, 1)
    mixed = MixtureModel(2, reg_covar=0, random_state=0).fit(X)
    np.testing.assert_allclose(mixed.parameters_[2][1], 1)


# --- the start ------------------------------------------------------------------------------------


def test_too_many_categories() -> None:
    X = np.column_stack([np.arange(60.0), np.arange(60) % 2])
    model = MixtureModel(2, families=["gaussian", "categorical"], random_state=0)
    for greatest in (1000, 1e12, 1e30):
        X[0, 1] = greatest
        with pytest.raises(
            ValueError, match=r"column 1 of X is 'categorical' with values up to .*recode"
        ):
            model.fit(X)
    X[0, 1] = 999
    assert model.fit(X).n_categories_[1] == 1000
    X[0] = 1e30, 1
    assert model.fit(X).n_categories_[1] == 2


def test_a_large_number_of_categories_takes_no_room_for_each_row() -> None:
    x = np.random.RandomState(0).randint(10_000, size=(10_000, 1)).astype(np.float64)
    x[0] = 9_999
    for init_params, most in (("random", 20e6), ("kmeans", 400e6)):
        model = MixtureModel(
            2, families="categorical", init_params=init_params, random_state=0, max_iter=0
        )
        tracemalloc.start()
        model.fit(x)
        assert tracemalloc.get_traced_memory()[1] < most  # one-hot it would be 800 MB
        tracemalloc.stop()
        assert model.parameters_[0].shape == (2, 10_000)


def test_random_responsibilities_are_never_all_there() -> None:
    weight = np.random.RandomState(1).uniform(size=10_000)
    X = np.random.RandomState(2).standard_normal((10_000, 2))
    generator, same = np.random.RandomState(0), np.random.RandomState(0)
    assignment = _initialization.assign("random", X, weight, 50, generator)
    r = same.uniform(size=(10_000, 50))
    r *= weight[:, None] / r.sum(axis=1)[:, None]
    np.testing.assert_allclose(assignment.sums(X), r.T @ X, atol=1e-9)
    np.testing.assert_allclose(assignment.counts, r.sum(axis=0))
    assert generator.uniform() == same.uniform()
    tracemalloc.start()
    GaussianMixture(
        50, init_params="random", covariance_type="diag", max_iter=0, random_state=0
    ).fit(X)
    assert tracemalloc.get_traced_memory()[1] < 0.8 * r.nbytes
    tracemalloc.stop()


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_model_made_by_hand(covariance_type: str) -> None:
    theirs = Theirs(3, covariance_type=covariance_type, random_state=0).fit(IRIS)
    model = GaussianMixture(3, covariance_type=covariance_type)
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        setattr(model, name, getattr(theirs, name))
    np.testing.assert_array_equal(model.predict(IRIS), theirs.predict(IRIS))
    np.testing.assert_allclose(model.score_samples(IRIS), theirs.score_samples(IRIS), rtol=1e-9)
    assert model.sample(5)[0].shape == (5, 4)
    with pytest.raises(ValueError, match="X must have 4 columns"):
        model.predict(IRIS[:, :3])


def test_a_mixed_model_made_by_hand() -> None:
    fitted = MixtureModel(2, families=FAMILIES, random_state=0).fit(_mixed())
    model = MixtureModel(2, families=FAMILIES)
    model.weights_, model.parameters_ = fitted.weights_, fitted.parameters_
    assert model.sample(5)[0].shape == (5, 4)
    np.testing.assert_array_equal(model.predict(_mixed()), fitted.predict(_mixed()))
    assert model.bic(_mixed()) == fitted.bic(_mixed())


def test_a_refit_that_fails_leaves_the_model() -> None:
    X = _mixed()
    mixed: Any = MixtureModel(2, families=FAMILIES, random_state=0).fit(X)
    gaussian: Any = GaussianMixture(2, random_state=0).fit(X)
    for model in (mixed, gaussian):
        before, labels = _numbers(model).copy(), model.predict(X)
        wrong = np.vstack([X[:, :3], [[np.inf] * 3]])
        for data in (wrong, X[:1, :3]):
            with pytest.raises(ValueError, match=r"infinity|families|n_samples"):
                model.fit(data)
        assert model.n_features_in_ == 4
        np.testing.assert_array_equal(_numbers(model), before)
        np.testing.assert_array_equal(model.predict(X), labels)
    X[:, 3] += 2
    mixed.set_params(reg_covar=0, init_params="random_from_data")
    with pytest.raises(ValueError, match="positive"):
        mixed.fit(np.column_stack([np.ones(200), X[:, 1:]]))
    assert mixed.n_categories_[3] == 4
    unfitted = GaussianMixture(1, reg_covar=0)
    with pytest.raises(ValueError, match="positive definite"):
        unfitted.fit(np.ones((20, 2)))
    assert not hasattr(unfitted, "n_features_in_")


def test_settings_that_do_not_go_with_the_fit() -> None:
    model = GaussianMixture(4, covariance_type="diag", random_state=0).fit(IRIS)
    model.set_params(covariance_type="tied")  # of the same shape
    for call in (model.predict, model.score, model.partial_fit, lambda _: model.sample()):
        with pytest.raises(ValueError, match="fitted with covariance_type = 'diag'"):
            call(IRIS)
    for wrong in ("no", 1, None):
        with pytest.raises(ValueError, match="warm_start must be a bool"):
            GaussianMixture(warm_start=wrong).fit(IRIS)


def test_warnings_are_at_the_callers_line() -> None:
    calls: list[Any] = [
        lambda m: m.fit(IRIS),
        lambda m: m.fit_predict(IRIS),
        lambda m: m.fit_batches([IRIS]),
    ]
    for call in calls:
        with pytest.warns(ConvergenceWarning, match="did not converge") as caught:
            call(GaussianMixture(3, max_iter=1, random_state=0))
        assert caught[0].filename == __file__
    model = GaussianMixture(3, max_iter=1, random_state=0)
    with pytest.raises(ConvergenceWarning):  # pyproject.toml turns the warning into an error
        model.fit(IRIS)
    assert model.n_iter_ == 1  # the fit is complete nevertheless
    start = {
        "weights_init": [0.5, 0.5],
        "means_init": [[0.0], [1e6]],
        "precisions_init": [1.0, 1.0],
    }
    model = GaussianMixture(2, covariance_type="spherical", **start)
    with pytest.warns(ConvergenceWarning, match="without any weight: 1") as caught:
        model.partial_fit(IRIS[:, :1])
    assert caught[0].filename == __file__


def test_one_array_makes_no_copy_of_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GaussianMixture(3, random_state=0).fit(IRIS)

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(_em, "zero_statistics", never)
    agree(GaussianMixture(3, random_state=0).fit(IRIS), model, 0.0)
