"""Mixtures whose parameters are assigned, as models are served and simulated."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as Theirs

from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel
from tests.estimators.test_gaussian_mixture import TYPES

IRIS = load_iris().data
FORMS = ("covariances_", "precisions_cholesky_", "precisions_")


def _theirs(covariance_type: str, components: int = 3) -> Theirs:
    return Theirs(components, covariance_type=covariance_type, random_state=0, tol=1e-2).fit(IRIS)


def _assign(model: Any, theirs: Theirs, *forms: str) -> Any:
    for name in ("weights_", "means_", *forms):
        setattr(model, name, np.array(getattr(theirs, name)))
    return model


def _agree(model: GaussianMixture, theirs: Theirs) -> None:
    np.testing.assert_array_equal(model.predict(IRIS), theirs.predict(IRIS))
    np.testing.assert_allclose(model.score_samples(IRIS), theirs.score_samples(IRIS), rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba(IRIS), theirs.predict_proba(IRIS), atol=1e-9)
    single = IRIS.astype(np.float32)
    np.testing.assert_allclose(model.score_samples(single), theirs.score_samples(IRIS), rtol=1e-3)
    for name in ("score", "aic", "bic"):
        assert getattr(model, name)(IRIS) == pytest.approx(getattr(theirs, name)(IRIS), rel=1e-9)
    for name in FORMS:
        np.testing.assert_allclose(getattr(model, name), getattr(theirs, name), rtol=1e-7)
    drawn, expected = model.sample(20), theirs.sample(20)
    np.testing.assert_allclose(drawn[0], expected[0], rtol=1e-6)
    np.testing.assert_array_equal(drawn[1], expected[1])


@pytest.mark.parametrize("forms", [FORMS[:1], FORMS[1:2], FORMS[:2], FORMS[1::-1], FORMS])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_one_form_of_the_covariances_is_enough(covariance_type: str, forms: Any) -> None:
    theirs = _theirs(covariance_type)
    settings: dict[str, Any] = {"covariance_type": covariance_type, "random_state": 0}
    _agree(_assign(GaussianMixture(3, **settings), theirs, *forms), theirs)
    model = _assign(GaussianMixture(1, **settings), theirs, *forms)  # n_components does not matter
    _agree(model, theirs)
    _agree(pickle.loads(pickle.dumps(model)), theirs)
    for form in forms:  # what was given stays as it is
        np.testing.assert_array_equal(getattr(model, form), getattr(theirs, form))
    model = GaussianMixture(**settings)
    vars(model).update({k: v for k, v in vars(theirs).items() if k.endswith("_")})
    _agree(model, theirs)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_assigned_after_a_fit(covariance_type: str, form: str) -> None:
    theirs = _theirs(covariance_type)
    for components in (3, 2):
        for kind in (covariance_type, "diag"):
            model = GaussianMixture(components, covariance_type=kind, random_state=0).fit(IRIS[:60])
            model.set_params(covariance_type=covariance_type)
            _agree(_assign(model, theirs, form), theirs)
            _agree(_assign(model, theirs, form), theirs)
            model.set_params(n_components=3).partial_fit(IRIS)
            assert model.means_.shape == (3, 4)
            model.set_params(n_components=5, warm_start=True)
            for call in (model.fit, model.partial_fit):
                with pytest.raises(ValueError, match="do not go with n_components = 5"):
                    call(IRIS)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_any_triangular_factor_of_the_precisions(covariance_type: str) -> None:
    theirs = _theirs(covariance_type)
    model = _assign(GaussianMixture(3, covariance_type=covariance_type, random_state=0), theirs)
    model.precisions_cholesky_ = np.linalg.cholesky(theirs.precisions_)  # lower, as many write it
    _agree_in_all_but_the_factor(model, theirs)
    rotation = np.linalg.qr(np.random.RandomState(0).standard_normal((4, 4)))[0]
    model.precisions_cholesky_ = theirs.precisions_cholesky_ @ rotation
    _agree_in_all_but_the_factor(model, theirs)


def _agree_in_all_but_the_factor(model: GaussianMixture, theirs: Theirs) -> None:
    np.testing.assert_allclose(model.score_samples(IRIS), theirs.score_samples(IRIS), rtol=1e-9)
    np.testing.assert_allclose(model.covariances_, theirs.covariances_, rtol=1e-7)
    np.testing.assert_allclose(model.sample(20)[0], theirs.sample(20)[0], rtol=1e-6)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_without_variance_can_be_drawn(covariance_type: str) -> None:
    theirs = _theirs(covariance_type)
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0)
    _assign(model, theirs).covariances_ = 0 * theirs.covariances_
    X, labels = model.sample(50)
    np.testing.assert_array_equal(X, theirs.means_[labels])
    with pytest.raises(ValueError, match=r"positive definite|> 0"):
        model.predict(IRIS)


def test_what_is_missing_is_named() -> None:
    model = GaussianMixture(2)
    for name, value in (("weights_", [0.5, 0.5]), ("means_", np.eye(2)), (None, None)):
        for call in (model.predict, model.score_samples, model.bic, lambda _: model.sample()):
            with pytest.raises(NotFittedError, match=r"GaussianMixture .*means_ and covariances_"):
                call(np.eye(2))
        assert not any(hasattr(model, form) for form in FORMS)
        if name is not None:
            setattr(model, name, value)
    mixed = MixtureModel(2)
    mixed.weights_ = np.array([0.5, 0.5])
    for call in (mixed.predict, lambda _: mixed.sample()):
        with pytest.raises(NotFittedError, match="set weights_ and parameters_"):
            call(np.eye(2))


def test_shapes_that_do_not_go_together() -> None:
    model = GaussianMixture(2, covariance_type="diag")
    model.weights_, model.means_ = [0.5, 0.5], np.zeros((2, 3))
    model.covariances_ = np.ones(2)
    for call in (model.predict, lambda _: model.sample()):
        with pytest.raises(ValueError, match=r"covariances_ must have shape \(2, 3\)"):
            call(np.zeros((4, 3)))
    model.covariances_, model.weights_ = np.ones((2, 3)), [1 / 3, 1 / 3, 1 / 3]
    for call in (model.predict, lambda _: model.sample()):
        with pytest.raises(ValueError, match=r"weights_ must have shape \(2,\)"):
            call(np.zeros((4, 3)))


def test_mixed_columns_with_other_components_and_categories() -> None:
    X = np.column_stack([np.arange(60.0), np.arange(60) % 2])
    families = ["gaussian", "categorical"]
    fitted = MixtureModel(2, families=families, random_state=0).fit(X)
    by_hand = MixtureModel(1, families=families, random_state=0)
    for model in (fitted, by_hand):
        model.weights_ = [0.2, 0.3, 0.5]
        gaussian = ([0.0, 30.0, 60.0], [1.0, 1.0, 1.0])
        model.parameters_ = [gaussian, [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]]
        drawn, labels = model.sample(100)
        np.testing.assert_array_equal(drawn[:, 1], labels)
        np.testing.assert_array_equal(model.predict(drawn), labels)
        assert model._n_parameters() == 2 + 3 * 4
        assert model.n_categories_.tolist() == [0, 3]
    with pytest.raises(ValueError, match="do not go with n_components = 2"):
        fitted.partial_fit(X)
