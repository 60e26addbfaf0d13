"""`latent-kernels mixture`: its numbers against scikit-learn's from the same start, its picture,
and its errors.
"""

from __future__ import annotations

import functools
import re
import warnings

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Theirs

from latent_kernels.cli import timing
from latent_kernels.cli.mixture import figures, results, study
from latent_kernels.cli.mixture.data import DATA
from latent_kernels.kernels import backends
from latent_kernels.kernels.mixture.model import COVARIANCE_TYPES
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.sufficient_statistics import GaussianParameters
from tests.cli import checks
from tests.cli.checks import check_picture, check_refused, check_unwritable


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(study, "STARTS", 2)
    monkeypatch.setattr(study, "LEAST_COMPARED", 3)
    monkeypatch.setattr(study, "SIZE", results.Size(400, 3, 2))
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()


call = functools.partial(checks.call, "mixture")


def fit(data="iris", components=3, covariance_type="full", seed=0):
    return study.fit(DATA[data](), components, covariance_type, seed)


def theirs(outcome):
    """Return scikit-learn's fit from the best of our starts."""
    weights, means, covariances = outcome.fits[0].trace[0]
    matrices = outcome.covariance_type in ("full", "tied")
    model = Theirs(
        len(weights),
        covariance_type=outcome.covariance_type,
        weights_init=weights,
        means_init=means,
        precisions_init=np.linalg.inv(covariances) if matrices else 1 / covariances,
        tol=results.TOLERANCE,
        max_iter=study.MOST_ITERATIONS,
        reg_covar=study.REG_COVAR,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(outcome.data.X)


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("data", ["iris", "wine"])
def test_the_fit_is_scikit_learns_from_the_same_start(data, covariance_type):
    outcome = fit(data, 3, covariance_type, seed=2)
    best, model = outcome.fits[0], theirs(outcome)
    assert len(best.trace) == len(best.log_likelihood) + 1
    assert len(best.log_likelihood) == model.n_iter_
    assert best.log_likelihood[-1] == pytest.approx(model.lower_bound_, abs=1e-9)
    for name, ours in zip(("weights_", "means_", "covariances_"), best.trace[-1], strict=True):
        np.testing.assert_allclose(ours, getattr(model, name), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        outcome.responsibilities, model.predict_proba(outcome.data.X), atol=1e-7
    )
    assert outcome.bic[3] == pytest.approx(model.bic(outcome.data.X), rel=1e-9)


@pytest.mark.parametrize("data", DATA)
def test_the_log_likelihood_never_falls(data):
    for one in fit(data, 3).fits:
        assert np.diff(one.log_likelihood).min() > -1e-8


def test_the_best_start_is_the_estimators():
    """Every K is fitted from as many starts of the same seed as the estimator would use, so that
    their BICs are comparable.
    """
    outcome = fit("wine", 4, "diag", seed=5)
    X, options = outcome.data.X, {"n_init": 2, "max_iter": study.MOST_ITERATIONS}
    model = study._model(X, 4, "diag", random_state=5, **options).fit(X)
    assert isinstance(model, GaussianMixture)
    assert model.lower_bounds_ == pytest.approx(outcome.fits[0].log_likelihood, abs=1e-9)
    assert outcome.bic[4] == pytest.approx(model.bic(outcome.data.X))
    assert [f.log_likelihood[-1] for f in outcome.fits] == sorted(
        f.log_likelihood[-1] for f in outcome.fits
    )[::-1]


def test_it_says_how_far_it_is():
    calls = []
    outcome = study.fit(DATA["iris"](), 2, "spherical", 0, lambda: calls.append(0))
    assert list(outcome.bic) == list(study.compared(2)) == [1, 2, 3, 4]
    assert len(calls) == study.STARTS + 4


def test_irises_are_what_they_were_before_rounding():
    from sklearn.datasets import load_iris

    X, rounded = DATA["iris"]().X, load_iris(return_X_y=True)[0][:, 2:]
    np.testing.assert_allclose(X.round(1), rounded, atol=1e-12)
    assert len(np.unique(X)) == X.size


@pytest.mark.parametrize("name", ["wine", "digits"])
def test_principal_components(name):
    """The components are scikit-learn's, up to their signs."""
    from sklearn import datasets

    X = getattr(datasets, f"load_{name}")(return_X_y=True)[0]
    if name == "wine":
        X = (X - X.mean(0)) / X.std(0)
    pca, data = PCA(2, svd_solver="full").fit(X), DATA[name]()
    np.testing.assert_allclose(abs(data.X), abs(pca.transform(X)), atol=1e-8)
    for column, share in zip(data.columns, pca.explained_variance_ratio_, strict=True):
        assert f"{share:.0%} of variance" in column


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        figures.draw(fit("wine", 2, seed=seed), tmp_path / f"{name}.png")
    a, b, c = (imread(tmp_path / f"{name}.png") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_covariance_type_can_be_drawn(covariance_type, tmp_path):
    components = 2 if covariance_type == "full" else 9  # more than there are colours
    outcome = fit("iris", components, covariance_type)
    figures.draw(outcome, tmp_path / "m.svg")
    assert (tmp_path / "m.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert outcome.responsibilities.shape == (150, components)


def test_one_component(tmp_path):
    outcome = fit("iris", 1)
    figures.draw(outcome, tmp_path / "m.png")
    # at the start, at the solution, and once more there
    assert len(outcome.fits[0].log_likelihood) == 3
    assert (tmp_path / "m.png").exists()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_ellipses_lie_at_mahalanobis_distance(covariance_type):
    means = np.array([[1.0, -2.0], [0.0, 3.0]])
    full = np.array([[[2.0, 0.7], [0.7, 0.5]], [[1.0, -0.3], [-0.3, 4.0]]])
    given, matrices = {
        "full": (full, full),
        "tied": (full[0], full[[0, 0]]),
        "diag": (np.array([[1.0, 2.0], [3.0, 4.0]]), [np.diag([1.0, 2.0]), np.diag([3.0, 4.0])]),
        "spherical": (np.array([1.0, 3.0]), [np.eye(2), 3 * np.eye(2)]),
    }[covariance_type]
    parameters = GaussianParameters(np.array([0.5, 0.5]), means, given)
    found = figures.ellipses(parameters, covariance_type, 2.0)
    for points, mean, matrix in zip(found, means, matrices, strict=True):
        offsets = points - mean
        squares = np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(matrix), offsets)
        np.testing.assert_allclose(squares, 4.0)
        assert points[0] == pytest.approx(points[-1])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_what_it_found(tmp_path):
    path = tmp_path / "m.png"
    result = call(
        "--data", "iris", "--components", 2, "--covariance-type", "diag", "--seed", 3, "--out", path
    )
    assert result.exit_code == 0, result.output
    check_picture(path)
    outcome = fit("iris", 2, "diag", 3)
    model = theirs(outcome)
    numbers = re.search(
        r"Log-likelihood (\S+) nats per row after (\d+) iterations, the best of 2", result.output
    )
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(model.lower_bound_, abs=1e-6)
    assert int(numbers[2]) == model.n_iter_
    numbers = re.search(r"BIC (\S+); it is least, (\S+), with (\d+) component", result.output)
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(model.bic(outcome.data.X), abs=0.06)
    assert float(numbers[2]) == pytest.approx(outcome.bic[int(numbers[3])], abs=0.06)
    assert "150 rows, 2 components, diag covariances" in result.output
    assert f"In {path}." in result.output
    assert "An iteration of EM, 400 x 3, 2 components, 1 thread" in result.output
    rows = re.findall(r"^ *(\w+) +float\d\d +\S+ ms +\S+ ms +\S+x +(\S+) *$", result.output, re.M)
    assert [covariance_type for covariance_type, _ in rows] == ["diag", "full"]
    assert all(float(difference) < 1e-3 for _, difference in rows)


def test_it_says_what_went_wrong(monkeypatch):
    outcome = fit("iris", 3)
    assert len(results.summary(outcome)) == 3
    outcome.fits[0].trace[-1].weights[1] = 0
    assert results.summary(outcome)[3:] == ["1 of 3 components have lost all their weight."]
    monkeypatch.setattr(study, "MOST_ITERATIONS", 2)
    for components in (1, 3):
        said = results.summary(fit("iris", components))
        assert said[3:] == ["It did not converge in 2 iterations."]


def test_other_warnings_are_seen(monkeypatch):
    monkeypatch.setattr(
        study, "fit_from", lambda *_: warnings.warn("another", RuntimeWarning, stacklevel=1)
    )
    with pytest.warns(RuntimeWarning, match="another"), pytest.raises(AttributeError):
        fit()


def test_the_answers_of_the_comparison_agree():
    for speed in study.compare_speed(results.Size(3000, 4, 3), seed=1):
        assert speed.ours > 0
        assert speed.sklearn > 0
        assert speed.difference < (1e-4 if speed.dtype == "float32" else 1e-11)


def test_without_the_comparison(tmp_path):
    result = call("--no-compare", "--out", tmp_path / "m.pdf", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "scikit-learn" not in result.output
    assert (tmp_path / "m.pdf").read_bytes().startswith(b"%PDF")
    assert torch.get_num_threads() == 1


def test_help_names_data_and_covariances():
    text = " ".join(call("--help").output.replace("│", " ").split())
    for name in (*DATA, *COVARIANCE_TYPES):
        assert name in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data", "faithful", "must be one of iris, digits, wine; got 'faithful'"),
        ("--covariance-type", "round", "must be one of full, tied, diag, spherical; got 'round'"),
        ("--components", 0, ""),
        ("--components", 51, ""),
        ("--seed", -1, ""),
        ("--seed", 2**32, ""),
        ("--threads", 0, ""),
        ("--out", "picture.bmp", "must end in .png"),
    ],
)
def test_bad_options(option, value, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(tmp_path, option, message, "mixture", option, value)


def test_a_picture_that_cannot_be_written(tmp_path):
    check_unwritable(tmp_path, "mixture", "--out")


def test_an_unknown_backend_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(backends.VARIABLE, "mixture=fortran")
    result = call()
    assert result.exit_code == 1
    assert "got 'mixture=fortran'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "drawn", "message"),
    [
        ("fit_from", False, "stopped before there was anything to draw"),
        ("_compare", True, "the picture is complete"),
    ],
)
def test_ctrl_c(where, drawn, message, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, where, interrupt)
    result = call("--out", tmp_path / "m.png")
    assert result.exit_code == 130
    assert message in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert [p.name for p in tmp_path.iterdir()] == (["m.png"] if drawn else [])
