"""BayesianGaussianMixture against scikit-learn's, against exact evidences, and the laws of
variational Bayes.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaln, multigammaln
from sklearn import mixture as sk
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from latent_kernels.mixtures.bayesian_gaussian_mixture import BayesianGaussianMixture
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from tests.estimators.test_gaussian_mixture import INITS, TYPES, agree, blobs

WEIGHTS = ["dirichlet_process", "dirichlet_distribution"]
FITTED = [
    *["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"],
    *["weight_concentration_", "mean_precision_", "degrees_of_freedom_"],
    *["weight_concentration_prior_", "mean_precision_prior_", "mean_prior_"],
    *["degrees_of_freedom_prior_", "covariance_prior_"],
]
CHECKED = [
    BayesianGaussianMixture(),
    BayesianGaussianMixture(2, covariance_type="diag", init_params="k-means++"),
    BayesianGaussianMixture(
        2, covariance_type="spherical", weight_concentration_prior_type="dirichlet_distribution"
    ),
]

pytestmark = pytest.mark.filterwarnings("ignore:.*did not converge")


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    if estimator.n_components > 1 and "sample_weight_equivalence" in str(check):
        pytest.skip("random starts of repeated and of weighted rows differ")
    check(estimator)


# --- scikit-learn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", TYPES)
def test_equals_scikit_learn(kind: str, init: str, weights: str) -> None:
    X = blobs(1)
    settings: dict[str, Any] = {
        "n_components": 5,
        "covariance_type": kind,
        "init_params": init,
        "weight_concentration_prior_type": weights,
        "random_state": 3,
        "max_iter": 30,
    }
    ours = BayesianGaussianMixture(**settings).fit(X)
    theirs = sk.BayesianGaussianMixture(**settings).fit(X)
    assert ours.n_iter_ == theirs.n_iter_
    agree(ours, theirs, 1e-9, FITTED)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), atol=1e-8)


def _given_priors(kind: str, size: int) -> dict[str, Any]:
    covariance: Any = {"diag": np.arange(1.0, size + 1), "spherical": 2.0}.get(
        kind, np.eye(size) + 0.3
    )
    return {
        "weight_concentration_prior": 0.7,
        "mean_precision_prior": 0.3,
        "mean_prior": np.linspace(-1, 1, size),
        "degrees_of_freedom_prior": size + 1.5,
        "covariance_prior": covariance,
    }


@pytest.mark.parametrize("kind", TYPES)
def test_priors_equal_scikit_learn(kind: str) -> None:
    X = blobs(1)
    settings = {"n_components": 3, "covariance_type": kind, "random_state": 0, "max_iter": 20}
    settings |= _given_priors(kind, 3)
    ours = BayesianGaussianMixture(**settings).fit(X)
    agree(ours, sk.BayesianGaussianMixture(**settings).fit(X), 1e-9, FITTED)


def test_data_far_from_the_origin_have_the_same_covariance_prior() -> None:
    X = blobs(1) + 1e6
    model = BayesianGaussianMixture(3, random_state=0, max_iter=1).fit(X)
    np.testing.assert_allclose(model.mean_prior_, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(model.covariance_prior_, np.cov(X.T), rtol=1e-8)


# --- truths ---------------------------------------------------------------------------------------


def _log_evidence_of_a_gaussian(X: np.ndarray, kind: str, prior: dict[str, Any]) -> float:
    """Return ln p(X) of one Gaussian component under its conjugate prior."""
    beta_0, m_0, nu_0 = (
        prior[f"{name}_prior"] for name in ("mean_precision", "mean", "degrees_of_freedom")
    )
    inverse_scale, (n, size) = prior["covariance_prior"], X.shape
    mean, beta = X.mean(axis=0), beta_0 + n
    scatter = (X - mean).T @ (X - mean) + n * beta_0 / beta * np.outer(mean - m_0, mean - m_0)
    norms = 0.5 * size * np.log(beta_0 / beta) - 0.5 * n * size * np.log(np.pi)
    if kind in ("full", "tied"):
        before, after = inverse_scale, inverse_scale + scatter
        gammas = multigammaln((nu_0 + n) / 2, size) - multigammaln(nu_0 / 2, size)
        logs = [np.linalg.slogdet(x)[1] for x in (before, after)]
        return norms + gammas + 0.5 * nu_0 * logs[0] - 0.5 * (nu_0 + n) * logs[1]
    scatter = np.diag(scatter)
    rows = n
    if kind == "spherical":
        scatter, rows = scatter.sum(), n * size
    before, after = np.asarray(inverse_scale), inverse_scale + scatter
    gammas = (gammaln((nu_0 + rows) / 2) - gammaln(nu_0 / 2)) * before.size
    logs = [np.log(x).sum() for x in (before, after)]
    return float(norms + gammas + 0.5 * nu_0 * logs[0] - 0.5 * (nu_0 + rows) * logs[1])


@pytest.mark.parametrize("kind", TYPES)
def test_the_bound_of_one_component_is_the_evidence(kind: str) -> None:
    X, prior = blobs(4), _given_priors(kind, 3)
    model = BayesianGaussianMixture(
        covariance_type=kind,
        weight_concentration_prior_type="dirichlet_distribution",
        exact_updates=True,
        reg_covar=0,
        **prior,
    ).fit(X)
    evidence = _log_evidence_of_a_gaussian(X, kind, prior)
    assert model.evidence_lower_bound_ == pytest.approx(evidence, rel=1e-12)
    assert model.lower_bound_ == model.evidence_lower_bound_
    # scikit-learn's posterior of "spherical" is another one, whose bound is lower.
    other = clone(model).set_params(exact_updates=False).fit(X)
    below = evidence - other.evidence_lower_bound_
    assert below > 0.1 if kind == "spherical" else abs(below) <= 1e-10 * abs(evidence)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", TYPES)
def test_the_bound_never_falls(kind: str, weights: str, missing: bool) -> None:
    X = blobs(2)
    if missing:
        X[np.random.RandomState(0).uniform(size=X.shape) < 0.2] = np.nan
    model = BayesianGaussianMixture(
        6,
        covariance_type=kind,
        weight_concentration_prior_type=weights,
        exact_updates=True,
        reg_covar=0,
        tol=0,
        max_iter=80,
        init_params="random_from_data",
        random_state=1,
    ).fit(X)
    bounds = np.array(model.lower_bounds_)
    assert (np.diff(bounds) >= -1e-12 * abs(bounds[-1])).all()
    assert bounds[-1] > bounds[0]


@pytest.mark.parametrize("kind", TYPES)
def test_rows_without_weight_leave_the_prior(kind: str) -> None:
    prior = _given_priors(kind, 3)
    model = BayesianGaussianMixture(4, covariance_type=kind, exact_updates=True, **prior)
    model.fit(blobs(0), sample_weight=np.full(240, 1e-200))
    np.testing.assert_allclose(model.means_, np.tile(prior["mean_prior"], (4, 1)), atol=1e-150)
    np.testing.assert_allclose(model.mean_precision_, 0.3)
    np.testing.assert_allclose(model.degrees_of_freedom_, 4.5)
    expected = np.broadcast_to(prior["covariance_prior"] / 4.5, model.covariances_.shape)
    np.testing.assert_allclose(model.covariances_, expected)
    assert model.evidence_lower_bound_ == pytest.approx(0, abs=1e-9)


def test_components_that_are_not_needed_lose_their_weight() -> None:
    generator = np.random.RandomState(0)
    centres = 8.0 * np.array([[0, 0], [1, 0], [0, 1]])
    X = (centres[:, None] + generator.standard_normal((3, 400, 2))).reshape(-1, 2)
    for weights in WEIGHTS:
        model = BayesianGaussianMixture(
            12,
            weight_concentration_prior_type=weights,
            weight_concentration_prior=1e-3,
            max_iter=1000,
            random_state=0,
        ).fit(X)
        assert (model.weights_ > 0.01).sum() == 3, weights


def test_missing_values_of_full_and_diag_agree_where_columns_are_independent() -> None:
    """One component, whose prior is so strong that its covariance stays diagonal."""
    X = blobs(3)
    X[np.random.RandomState(0).uniform(size=X.shape) < 0.3] = np.nan
    X = X[~np.isnan(X).all(axis=1)]
    shared = {"degrees_of_freedom_prior": 1e8, "max_iter": 200, "tol": 1e-9, "reg_covar": 0}
    full = BayesianGaussianMixture(covariance_prior=1e8 * np.eye(3), **shared).fit(X)
    diagonal = BayesianGaussianMixture(
        covariance_type="diag", covariance_prior=np.full(3, 1e8), **shared
    ).fit(X)
    np.testing.assert_allclose(full.means_, diagonal.means_, atol=1e-4)
    np.testing.assert_allclose(full.means_[0], np.nanmean(X, axis=0), atol=0.05)


# --- what scikit-learn has no equivalent of -------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_a_weight_is_so_many_rows(kind: str) -> None:
    X = blobs(1)
    counts = np.random.RandomState(0).randint(0, 4, size=len(X))
    settings = {"covariance_type": kind, "random_state": 0, "max_iter": 10} | _given_priors(kind, 3)
    weighted = BayesianGaussianMixture(1, **settings).fit(X, sample_weight=counts)
    repeated = BayesianGaussianMixture(1, **settings).fit(np.repeat(X, counts, axis=0))
    agree(weighted, repeated, 1e-10, FITTED)
    assert weighted.evidence_lower_bound_ == pytest.approx(repeated.evidence_lower_bound_)
    lighter = BayesianGaussianMixture(1, **settings).fit(X, sample_weight=counts / 100)
    assert (lighter.mean_precision_ < weighted.mean_precision_).all()


@pytest.mark.parametrize("kind", TYPES)
def test_batches_are_one_fit(kind: str) -> None:
    X = blobs(1)
    X[3, 0] = X[200, 1] = np.nan
    weight = np.random.RandomState(0).uniform(0.5, 2, size=len(X))
    settings = {"n_components": 4, "covariance_type": kind, "random_state": 0, "max_iter": 15}
    whole = BayesianGaussianMixture(**settings).fit(X, sample_weight=weight)
    batches = [(X[i : i + 70], weight[i : i + 70]) for i in range(0, 240, 70)]
    agree(BayesianGaussianMixture(**settings).fit_batches(batches), whole, 1e-9, FITTED)


@pytest.mark.parametrize("kind", TYPES)
def test_partial_fit_approaches_fit(kind: str) -> None:
    generator = np.random.RandomState(0)
    labels = generator.randint(2, size=4000)
    X = 10.0 * labels[:, None] + generator.standard_normal((4000, 2))
    prior = {"mean_prior": np.full(2, 5.0), "covariance_prior": None}
    settings = {"n_components": 2, "covariance_type": kind, "random_state": 0} | prior
    whole = BayesianGaussianMixture(**settings, max_iter=300).fit(X)
    online = BayesianGaussianMixture(**settings, total_samples=4000)
    for start in range(0, 4000, 200):
        online = online.partial_fit(X[start : start + 200])
    assert online.mean_precision_.sum() == pytest.approx(4000 + 2)
    order, own = whole.means_[:, 0].argsort(), online.means_[:, 0].argsort()
    np.testing.assert_allclose(online.means_[own], whole.means_[order], atol=0.2)
    np.testing.assert_allclose(online.weights_[own], whole.weights_[order], atol=0.05)
    seen = BayesianGaussianMixture(**settings).partial_fit(X[:200]).partial_fit(X[200:300])
    assert seen.mean_precision_.sum() == pytest.approx(300 + 2)


def test_partial_fit_with_the_same_batch_is_coordinate_ascent() -> None:
    X = blobs(1)
    settings = {"n_components": 1, "random_state": 0} | _given_priors("full", 3)
    online = BayesianGaussianMixture(**settings, total_samples=240).partial_fit(X).partial_fit(X)
    agree(online, BayesianGaussianMixture(**settings).fit(X), 1e-10, FITTED)


def test_warm_start_continues() -> None:
    X = blobs(1)
    settings: dict[str, Any] = {"n_components": 4, "random_state": 0, "tol": 0}
    whole = BayesianGaussianMixture(max_iter=12, **settings).fit(X)
    parts = BayesianGaussianMixture(max_iter=6, warm_start=True, **settings).fit(X).fit(X)
    agree(parts, whole, 1e-10, FITTED)
    parts.set_params(weight_concentration_prior_type="dirichlet_distribution")
    with pytest.raises(ValueError, match="another weight_concentration_prior_type"):
        parts.fit(X)


def test_is_pickled_and_samples() -> None:
    X = blobs(1)
    model = pickle.loads(pickle.dumps(BayesianGaussianMixture(3, random_state=0).fit(X)))
    rows, labels = model.sample(50)
    assert rows.shape == (50, 3)
    assert (np.diff(labels) >= 0).all()
    assert not hasattr(model, "bic")  # a number of parameters says nothing about a posterior
    assert hasattr(GaussianMixture(3).fit(X), "bic")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_concentration_prior_type": "gamma"}, "weight_concentration_prior_type must be"),
        ({"weight_concentration_prior": 0}, "weight_concentration_prior must be None or a number"),
        ({"mean_precision_prior": np.nan}, "mean_precision_prior must be None or a number"),
        ({"degrees_of_freedom_prior": 2}, "degrees_of_freedom_prior must be greater than D - 1"),
        ({"degrees_of_freedom_prior": "3"}, "degrees_of_freedom_prior must be None or a number"),
        ({"mean_prior": [0.0]}, "mean_prior must be finite with shape"),
        ({"mean_prior": [0.0, 0.0, np.inf]}, "mean_prior must be finite with shape"),
        ({"covariance_prior": np.eye(2)}, "covariance_prior must be finite with shape"),
        ({"covariance_prior": np.ones((3, 3))}, "covariance_prior must be symmetric and positive"),
        ({"covariance_prior": np.triu(np.ones((3, 3)))}, "covariance_prior must be symmetric"),
        ({"covariance_type": "diag", "covariance_prior": [1.0, 0.0, 1.0]}, "covariance_prior must"),
        ({"covariance_type": "spherical", "covariance_prior": -1.0}, "covariance_prior must be >"),
        ({"total_samples": -5}, "total_samples must be None or a number > 0"),
        ({"exact_updates": "yes"}, "exact_updates must be a bool"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(2, **settings).fit(blobs(0))


def test_a_constant_column_has_an_improper_prior() -> None:
    X = np.column_stack([blobs(0)[:, 0], np.ones(240)])
    model = BayesianGaussianMixture(2, covariance_type="diag", random_state=0).fit(X)
    assert np.isfinite(model.means_).all()
    assert model.evidence_lower_bound_ == -np.inf
