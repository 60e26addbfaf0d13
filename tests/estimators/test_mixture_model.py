"""MixtureModel: known truths, the laws of EM, values of each family, scikit-learn's checks."""

from __future__ import annotations

import itertools
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel

INITS = ["kmeans", "k-means++", "random", "random_from_data"]
FAMILIES = (
    "gaussian",
    "bernoulli",
    "poisson",
    "categorical",
    "bernoulli",
    "poisson",
    "categorical",
    "gaussian",
)
WEIGHTS = np.array([0.5, 0.3, 0.2])
TRUTH: list[Any] = [
    (np.array([0.0, 4, -4]), np.array([1.0, 2, 0.5])),
    np.array([0.1, 0.9, 0.5]),
    np.array([1.0, 6, 15]),
    np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]),
    np.array([0.8, 0.7, 0.05]),
    np.array([9.0, 0.5, 3]),
    np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25]]),
    (np.array([10.0, 10, 13]), np.array([1.0, 4, 1])),
]


@parametrize_with_checks(
    [
        MixtureModel(),
        MixtureModel(init_params="random"),
        MixtureModel(2, families="gaussian", reg_covar=1e-3, tol=0.1),
    ]
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    if estimator.n_components > 1 and "sample_weight_equivalence" in str(check):
        pytest.skip(
            "random starts of repeated and of weighted rows differ; see a_weight_is_so_many_rows"
        )
    check(estimator)


def _known(
    n: int, seed: int = 0, missing: float = 0.0, families: tuple[str, ...] = FAMILIES
) -> np.ndarray:
    """Return rows of the mixture of WEIGHTS and TRUTH, with columns of these families alone."""
    generator = np.random.RandomState(seed)
    labels = generator.choice(3, size=n, p=WEIGHTS)
    columns = []
    for family, truth in zip(FAMILIES, TRUTH, strict=True):
        if family == "gaussian":
            x = truth[0][labels] + np.sqrt(truth[1][labels]) * generator.standard_normal(n)
        elif family == "poisson":
            x = generator.poisson(truth[labels])
        elif family == "bernoulli":
            x = generator.uniform(size=n) < truth[labels]
        else:
            x = (generator.uniform(size=(n, 1)) > truth[labels].cumsum(axis=1)).sum(axis=1)
        columns.append(x)
    X = np.column_stack(columns).astype(np.float64)
    X[generator.uniform(size=X.shape) < missing] = np.nan
    return X[:, [f in families for f in FAMILIES]]


def _log_density(
    x: np.ndarray, weights: np.ndarray, families: tuple[str, ...], parameters: list[Any]
) -> np.ndarray:
    """Return log p(x) [N], with scipy's densities."""
    joint = np.tile(np.log(weights), (len(x), 1))
    for k, (i, family) in itertools.product(range(len(weights)), enumerate(families)):
        there = ~np.isnan(x[:, i])
        value, parameter = x[there, i], parameters[i]
        if family == "gaussian":
            term = stats.norm.logpdf(value, parameter[0][k], np.sqrt(parameter[1][k]))
        elif family == "poisson":
            term = stats.poisson.logpmf(value, parameter[k])
        elif family == "bernoulli":
            term = stats.bernoulli.logpmf(value, parameter[k])
        else:
            term = np.log(parameter[k][value.astype(int)])
        joint[there, k] += term
    return np.logaddexp.reduce(joint, axis=1)


def _flat(model: MixtureModel) -> np.ndarray:
    """Return all parameters in one vector."""
    parts = itertools.chain.from_iterable(
        p if isinstance(p, tuple) else (p,) for p in model.parameters_
    )
    return np.concatenate([model.weights_, *(np.ravel(p) for p in parts)])


def _near(a: MixtureModel, b: MixtureModel, tolerance: float) -> None:
    np.testing.assert_allclose(_flat(a), _flat(b), rtol=tolerance, atol=tolerance)


# --- truths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_the_truth_is_found(missing: float) -> None:
    n = 6000
    X = _known(n, missing=missing)
    model = MixtureModel(3, families=FAMILIES, random_state=0, tol=1e-6).fit(X)
    assert model.converged_
    order = np.argsort(model.weights_)[::-1]
    # Six standard errors of the estimates from the rows of the least component, of which a part
    # says nothing.
    rows = 0.8 * WEIGHTS.min() * (1 - missing) * n
    np.testing.assert_allclose(model.weights_[order], WEIGHTS, atol=6 * np.sqrt(0.25 / n))
    for family, found, truth in zip(FAMILIES, model.parameters_, TRUTH, strict=True):
        if family == "gaussian":
            assert (np.abs(found[0][order] - truth[0]) < 6 * np.sqrt(truth[1] / rows)).all()
            assert (np.abs(found[1][order] - truth[1]) < 6 * truth[1] * np.sqrt(2 / rows)).all()
            continue
        variance = truth if family == "poisson" else truth * (1 - truth)
        assert (np.abs(found[order] - truth) < 6 * np.sqrt(variance / rows)).all()


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "poisson"])
def test_latent_classes_are_found(family: str) -> None:
    """Two classes are found from ten columns of one family."""
    generator = np.random.RandomState(1)
    labels = np.repeat([0, 1], [1200, 800])
    p = np.where(np.arange(10) % 2, [[0.85], [0.2]], [[0.3], [0.7]])
    if family == "poisson":
        X, truth = generator.poisson(6 * p[labels]).astype(float), 6 * p
        error = 6 * np.sqrt(truth / 700)
    elif family == "bernoulli":
        X, truth = (generator.uniform(size=(2000, 10)) < p[labels]).astype(float), p
        error = 6 * np.sqrt(p * (1 - p) / 700)
    else:
        first = generator.uniform(size=(2000, 10)) < p[labels]
        X, truth = np.where(first, 0, 1 + generator.randint(2, size=first.shape)).astype(float), p
        error = 6 * np.sqrt(p * (1 - p) / 700)
    model = MixtureModel(2, families=family, random_state=0, n_init=3, tol=1e-6, max_iter=300).fit(
        X
    )
    order = np.argsort(model.weights_)[::-1]
    np.testing.assert_allclose(model.weights_[order], [0.6, 0.4], atol=0.05)
    for i, found in enumerate(model.parameters_):
        first_category = found[:, 0] if family == "categorical" else found
        assert (np.abs(first_category[order] - truth[:, i]) < error[:, i]).all()
        if family == "categorical":
            assert found.shape == (2, 3)
            np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert (order[labels] == model.predict(X)).mean() > 0.95


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_gaussian_columns_alone_are_the_diagonal_mixture(missing: float) -> None:
    X = _known(400, missing=missing, families=("gaussian",))
    settings: dict[str, Any] = {
        "n_components": 3,
        "init_params": "random",
        "random_state": 0,
        "max_iter": 500,
    }
    mixed, diagonal = (
        MixtureModel(**settings).fit(X),
        GaussianMixture(covariance_type="diag", **settings).fit(X),
    )
    np.testing.assert_allclose(mixed.lower_bounds_, diagonal.lower_bounds_, rtol=1e-10)
    np.testing.assert_allclose(mixed.weights_, diagonal.weights_, rtol=1e-8)
    for i in range(2):
        np.testing.assert_allclose(
            mixed.parameters_[i][0], diagonal.means_[:, i], rtol=1e-8, atol=1e-8
        )
        np.testing.assert_allclose(mixed.parameters_[i][1], diagonal.covariances_[:, i], rtol=1e-8)
    assert mixed.families_ == ("gaussian", "gaussian")
    np.testing.assert_allclose(mixed.bic(X), diagonal.bic(X), rtol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_densities_are_scipys(missing: float) -> None:
    X = _known(300, missing=missing)
    model = MixtureModel(2, families=FAMILIES, random_state=0).fit(X)
    expected = _log_density(X, model.weights_, FAMILIES, model.parameters_)
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-9)
    assert model.score(X) == pytest.approx(expected.mean(), rel=1e-9)
    free = 1 + 2 * (4 + 2 + 2 + 2 + 3)
    assert model.aic(X) == pytest.approx(-2 * expected.sum() + 2 * free, rel=1e-9)
    assert model.bic(X) == pytest.approx(-2 * expected.sum() + np.log(300) * free, rel=1e-9)
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    assert (proba.argmax(axis=1) == model.predict(X)).all()
    assert (model.fit_predict(X) == model.predict(X)).all()


def test_samples_have_the_model_s_moments() -> None:
    model = MixtureModel(
        3,
        families=FAMILIES,
        weights_init=WEIGHTS,
        parameters_init=TRUTH,
        max_iter=0,
        random_state=0,
    )
    model.fit(_known(100))
    np.testing.assert_array_equal(model.parameters_[1], TRUTH[1])
    n = 40_000
    X, labels = model.sample(n)
    assert X.shape == (n, 8)
    assert (np.diff(labels) >= 0).all()
    np.testing.assert_allclose(np.bincount(labels) / n, WEIGHTS, atol=5 * 0.5 / np.sqrt(n))
    for i, (family, truth) in enumerate(zip(FAMILIES, TRUTH, strict=True)):
        for k in range(3):
            x = X[labels == k, i]
            if family == "categorical":
                found = np.bincount(x.astype(int), minlength=truth.shape[1]) / len(x)
                assert np.abs(found - truth[k]).max() < 5 * 0.5 / np.sqrt(len(x))
                continue
            mean = truth[0][k] if family == "gaussian" else truth[k]
            variance = (
                mean * (1 - mean)
                if family == "bernoulli"
                else truth[1][k]
                if family == "gaussian"
                else mean
            )
            assert abs(x.mean() - mean) < 5 * np.sqrt(variance / len(x))
            # Of the fourth moments here the greatest is 12 squared variances (that of a Poisson of
            # rate 0.5: 5).
            assert abs(x.var() - variance) < 5 * variance * np.sqrt(12 / len(x)) + 1e-3


# --- laws of EM -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("families", [*[(f,) for f in dict.fromkeys(FAMILIES)], FAMILIES])
def test_likelihood_never_falls(families: tuple[str, ...], missing: float) -> None:
    X = _known(500, missing=missing, families=families)
    names = [f for f in FAMILIES if f in families]
    model = MixtureModel(
        3, families=names, reg_covar=0, tol=1e-9, max_iter=50, init_params="random", random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X)
    assert model.n_iter_ > 2
    # Rounding of the mean, and 1e-12 in each column for means kept that far inside their boundary.
    slack = 1e-12 * (len(names) + np.abs(model.lower_bounds_[1:]))
    assert (np.diff(model.lower_bounds_) >= -slack).all()
    assert model.lower_bounds_[-1] > model.lower_bounds_[0]


def test_a_weight_is_so_many_rows() -> None:
    X, weight = _known(200), np.random.RandomState(0).randint(0, 4, size=200)
    settings: dict[str, Any] = {
        "families": FAMILIES,
        "weights_init": WEIGHTS,
        "parameters_init": TRUTH,
    }
    weighted = MixtureModel(3, **settings).fit(X, sample_weight=weight)
    _near(weighted, MixtureModel(3, **settings).fit(np.repeat(X, weight, axis=0)), 1e-10)


@pytest.mark.parametrize("init_params", INITS)
def test_batches_are_the_whole(init_params: str) -> None:
    X, weight = _known(300, missing=0.1), np.random.RandomState(0).uniform(size=300)
    weight[::17] = 0
    X[:, 3] = np.where(
        np.arange(300) < 299, np.minimum(X[:, 3], 1), 4
    )  # the greatest category comes last
    weight[299] = 1
    settings: dict[str, Any] = {
        "families": FAMILIES,
        "init_params": init_params,
        "random_state": 0,
        "init_size": 120,
    }
    settings["reg_covar"] = 0.1
    whole = MixtureModel(3, **settings).fit(X, sample_weight=weight)
    items = [(X[a:b], weight[a:b]) for a, b in itertools.pairwise([0, 100, 100, 217, 300])]
    batches = MixtureModel(3, **settings).fit_batches(lambda: iter(items))
    _near(batches, whole, 1e-10)
    assert batches.n_categories_.tolist() == [0, 0, 0, 5, 0, 0, 4, 0]


def test_online_em_approaches_the_fit() -> None:
    X = _known(6000)
    exact = MixtureModel(3, families=FAMILIES, random_state=0, tol=1e-6, max_iter=500).fit(X)
    online = MixtureModel(3, families=FAMILIES, random_state=0)
    for batch in np.split(X, 30):
        online.partial_fit(batch)
    gap = exact.score(X) - online.score(X)
    first = MixtureModel(3, families=FAMILIES, random_state=0, max_iter=0).fit(X[:200])
    # The free parameters of a fit to n rows lose p / 2n each; the last steps average about 8
    # batches of 200.
    assert 0 < gap < min(3 * exact._n_parameters() / (2 * 1600), exact.score(X) - first.score(X))


def test_warm_start_goes_on() -> None:
    X = _known(300)
    settings: dict[str, Any] = {"families": FAMILIES, "random_state": 0, "tol": 0}
    model, whole = (
        MixtureModel(3, max_iter=2, warm_start=True, **settings),
        MixtureModel(3, max_iter=4, **settings),
    )
    with pytest.warns(ConvergenceWarning):
        model.fit(X)
    with pytest.warns(ConvergenceWarning):
        model.fit(X)
    with pytest.warns(ConvergenceWarning):
        whole.fit(X)
    _near(model, whole, 1e-13)
    X[0, 3] = 7
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(X)


# --- edges ----------------------------------------------------------------------------------------


def test_probabilities_stay_inside() -> None:
    X = np.column_stack([np.zeros(20), np.zeros(20), np.ones(20)])
    model = MixtureModel(families=["bernoulli", "poisson", "categorical"], min_categories=4).fit(X)
    np.testing.assert_allclose(model.parameters_[0], [1e-12])
    np.testing.assert_allclose(model.parameters_[1], [1e-12])
    np.testing.assert_allclose(model.parameters_[2], [[1e-12, 1, 1e-12, 1e-12]])
    assert model.predict_proba([[1.0, 5, 3]]).tolist() == [[1.0]]
    assert np.isfinite(model.score_samples([[1.0, 5, 3]])).all()


def test_a_column_without_any_value() -> None:
    X = _known(200)
    X[:, [0, 1, 2, 3]] = np.nan
    model = MixtureModel(2, families=FAMILIES, random_state=0, min_categories=2).fit(X)
    assert np.isfinite(_flat(model)).all()
    assert model.n_categories_.tolist() == [0, 0, 0, 2, 0, 0, 4, 0]


def test_a_component_without_weight_keeps_its_parameters() -> None:
    X = _known(200)
    start = pickle.loads(pickle.dumps(TRUTH))
    start[0][0][1] = 1e6
    with pytest.warns(ConvergenceWarning, match="without any weight: 1"):
        model = MixtureModel(3, families=FAMILIES, weights_init=WEIGHTS, parameters_init=start).fit(
            X
        )
    assert model.weights_[1] == 0
    for family, found, given in zip(FAMILIES, model.parameters_, start, strict=True):
        for a, b in zip(found, given, strict=True) if family == "gaussian" else [(found, given)]:
            np.testing.assert_allclose(a[1], b[1], rtol=1e-14)


def test_a_component_with_hardly_any_weight_keeps_its_parameters() -> None:
    x = np.random.RandomState(0).standard_normal((50, 1))
    far = (
        x.max() + 37.2
    )  # the nearest row is with it by e^-690, less than whose digits a variance needs
    start = {"weights_init": [0.5, 0.5], "parameters_init": [([0.0, far], [1.0, 1.0])]}
    with pytest.warns(ConvergenceWarning, match="without any weight: 1"):
        model = MixtureModel(2, reg_covar=0, **start).fit(x)
    assert (model.parameters_[0][0][1], model.parameters_[0][1][1]) == (far, 1.0)


def test_the_start_is_of_weighted_rows_with_means_for_missing_values() -> None:
    X, weight = _known(60, missing=0.2), np.random.RandomState(0).uniform(size=60)
    X = X[:, [0, 7, 1, 2]]
    names = ["gaussian", "gaussian", "bernoulli", "poisson"]
    there = weight[:, None] * ~np.isnan(X)
    means = np.nansum(there * X, axis=0) / there.sum(axis=0)
    filled = np.where(np.isnan(X), means, X)
    full = GaussianMixture(max_iter=0, reg_covar=0.5).fit(X, sample_weight=weight)
    np.testing.assert_allclose(full.means_[0], means, rtol=1e-12)
    covariance = np.cov(filled.T, aweights=weight, ddof=0) + 0.5 * np.eye(4)
    np.testing.assert_allclose(full.covariances_[0], covariance, rtol=1e-10, atol=1e-12)
    mixed = MixtureModel(families=names, max_iter=0, reg_covar=0.5).fit(X, sample_weight=weight)
    found = [p[0] if isinstance(p, tuple) else p for p in mixed.parameters_]
    np.testing.assert_allclose(np.ravel(found), means, rtol=1e-12)
    np.testing.assert_allclose(mixed.parameters_[0][1], covariance[0, 0], rtol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": "normal"}, "families must be among .*'normal' for column 0"),
        ({"families": ["gaussian"]}, "families must name one for each of the 2 columns"),
        ({"families": "bernoulli"}, "column 1 of X is 'bernoulli', with values 0 and 1; got 2.0"),
        ({"families": ["poisson", "gaussian"]}, r"column 0 of X is 'poisson', .*; got 0.5"),
        ({"families": ["gaussian", "poisson"]}, r"column 1 of X is 'poisson', .*; got -1.0"),
        (
            {"families": ["gaussian", "categorical"]},
            r"column 1 of X is 'categorical', .*; got -1.0",
        ),
        ({"parameters_init": [(0, 1)]}, "parameters_init does not go with"),
        ({"weights_init": [2.0]}, "weights_init must"),
        ({"init_params": "best"}, "init_params must be one of"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureModel(**settings).fit(np.array([[1.0, 1], [1, 0], [1, 2], [0.5, -1]]))


def test_categories_that_fit_has_not_seen() -> None:
    X = _known(100, families=("categorical",))
    model = MixtureModel(2, families="categorical", random_state=0).fit(X)
    X[3, 1] = 4
    for call in (model.predict, model.score, model.partial_fit):
        with pytest.raises(
            ValueError, match=r"column 1 of X is 'categorical', with values 0, \.\.\., 3 .*got 4.0"
        ):
            call(X)
    model = MixtureModel(2, families="categorical", min_categories=[3, 6], random_state=0).fit(X)
    assert model.n_categories_.tolist() == [3, 6]
    for wrong in (2.5, [1, 2, 3], -1):
        with pytest.raises(
            ValueError, match="min_categories must be None, an integer or one for each of the 2"
        ):
            model.set_params(min_categories=wrong).fit(X)
    passes = iter([X, X, X + 3])
    model = MixtureModel(2, families="categorical", random_state=0)
    with pytest.raises(ValueError, match="categorical"):
        model.fit_batches(lambda: iter([next(passes)]))


def test_other_arrays_and_copies() -> None:
    X = _known(200).astype(np.float32)
    settings: dict[str, Any] = {"families": FAMILIES, "random_state": 0}
    model = MixtureModel(3, **settings)
    assert clone(model).get_params() == model.get_params()
    model.fit(X)
    _near(MixtureModel(3, **settings).fit(np.asfortranarray(X)), model, 1e-5)
    _near(MixtureModel(3, **settings).fit(torch.from_numpy(X)), model, 1e-12)
    _near(MixtureModel(3, **settings).fit(X.astype(np.float64)), model, 1e-3)
    other = pickle.loads(pickle.dumps(model))
    _near(other, model, 0.0)
    _near(other.partial_fit(X), model.partial_fit(X), 0.0)
    assert all(p.dtype == np.float64 for p in model.parameters_ if not isinstance(p, tuple))
