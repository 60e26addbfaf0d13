"""SparseCoder against scikit-learn's, through its checks, and with an encoder as its fast path."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import decomposition as sk
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import latent_kernels as lk
from latent_kernels.sparse.encoders import LISTA, PSDEncoder, train_encoder
from latent_kernels.sparse.sparse_coder import SparseCoder

SOLVERS = ["cd", "lasso_cd", "fista", "ista"]


def atoms(n: int, m: int, seed: int = 0) -> np.ndarray:
    D = np.random.RandomState(seed).standard_normal((n, m))
    return D / np.linalg.norm(D, axis=1, keepdims=True)


# The columns of the data of checks that one dictionary of 3 columns cannot go with.
WIDTHS = {
    "check_estimators_overwrite_params": 2,
    "check_estimators_fit_returns_self": 2,
    "check_readonly_memmap_input": 2,
    "check_positive_only_tag_during_fit": 4,
    "check_fit_check_is_fitted": 2,
    "check_fit_idempotent": 2,
    "check_n_features_in": 2,
    "check_n_features_in_after_fitting": 4,
    "check_estimators_dtypes": 5,
    "check_transformers_unfitted_stateless": 5,
    "check_dtype_object": 10,
    "check_fit2d_1sample": 10,
}
REASONS = {
    name: f"its data have {width} columns and the dictionary 3; see a_dictionary_that_fits_passes"
    for name, width in WIDTHS.items()
}


@parametrize_with_checks([SparseCoder(atoms(5, 3))], expected_failed_checks=lambda _: REASONS)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WIDTHS)
def test_a_dictionary_that_fits_passes_the_checks_that_another_fails(name: str) -> None:
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip("not in this scikit-learn")
    with pytest.raises((ValueError, AssertionError)):
        check("SparseCoder", SparseCoder(atoms(5, 3)))
    check("SparseCoder", SparseCoder(atoms(5, WIDTHS[name])))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    X = load_digits().data[:400] / 16
    return X - X.mean(axis=0)


def objective(X: np.ndarray, Z: np.ndarray, D: np.ndarray, alpha: float) -> float:
    return float((0.5 * ((X - Z @ D) ** 2).sum(axis=1) + alpha * np.abs(Z).sum(axis=1)).mean())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("algorithm", SOLVERS)
def test_codes_are_scikit_learns(algorithm: str, positive: bool, digits: np.ndarray) -> None:
    D, settings = atoms(40, 64), {"transform_alpha": 0.3, "positive_code": positive}
    ours = SparseCoder(D, transform_algorithm=algorithm, transform_tol=1e-9, **settings).fit(digits)
    theirs = sk.SparseCoder(
        D, transform_algorithm="lasso_cd", transform_max_iter=10_000, **settings
    ).fit(digits)
    Z, expected = ours.transform(digits), theirs.transform(digits)
    assert objective(digits, Z, D, 0.3) <= objective(digits, expected, D, 0.3) * (1 + 1e-8)
    np.testing.assert_allclose(Z, expected, atol=2e-3)
    assert (Z >= 0).all() == positive
    np.testing.assert_allclose(ours.inverse_transform(Z), Z @ D, atol=1e-12)
    assert list(ours.get_feature_names_out()) == [f"sparsecoder{i}" for i in range(40)]
    assert (ours.n_components_, ours.n_features_in_) == (40, 64)


def test_arguments_and_defaults_are_scikit_learns() -> None:
    theirs, ours = sk.SparseCoder(None).get_params(), SparseCoder(None).get_params()
    assert set(ours) - set(theirs) == {"transform_tol", "encoder"}
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("dictionary_type", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_that_of_the_data(dtype: Any, dictionary_type: Any, digits: np.ndarray) -> None:
    D, X = atoms(30, 64).astype(dictionary_type), digits.astype(dtype)
    coder = SparseCoder(D, transform_algorithm="cd", transform_alpha=0.3)
    Z = coder.transform(X)
    assert Z.dtype == coder.inverse_transform(Z).dtype == dtype
    # the very bits of the solver in that dtype: nothing was widened on the way
    expected = lk.sparse_encode(
        torch.tensor(X), torch.tensor(D.astype(dtype)), algorithm="cd", alpha=0.3
    )
    np.testing.assert_array_equal(Z, expected.numpy())
    np.testing.assert_array_equal(coder.transform(torch.tensor(X)), Z)
    assert SparseCoder(torch.tensor(D)).transform((X > 0).astype(int)).dtype == np.float64


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scikit-learn's omp: nothing left to add
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", ["omp", "lars", "lasso_lars", "lasso_cd", "threshold"])
def test_every_algorithm_of_scikit_learn(algorithm: str, dtype: Any, digits: np.ndarray) -> None:
    """Every algorithm finds scikit-learn's codes; with fewer atoms than columns the minimum is
    unique.
    """
    D, X = atoms(40, 64).astype(dtype), digits[:60].astype(dtype)
    for settings in ({}, {"transform_n_nonzero_coefs": 3, "transform_alpha": 0.2}):
        kwargs: dict[str, Any] = {"transform_algorithm": algorithm, **settings}
        theirs, ours = sk.SparseCoder(D, **kwargs), SparseCoder(D, n_jobs=-1, **kwargs)
        if algorithm == "lasso_cd":
            theirs.set_params(transform_max_iter=10_000)
            ours.set_params(transform_tol=1e-7 if dtype == np.float32 else 1e-12)
        expected, Z = theirs.fit(X).transform(X), ours.fit(X).transform(X)
        assert Z.dtype == dtype
        np.testing.assert_allclose(Z, expected, atol=2e-3 if dtype == np.float32 else 1e-6)
        if algorithm in ("omp", "lars"):
            np.testing.assert_array_equal(Z != 0, expected != 0)
        if algorithm in ("omp", "lars"):
            with pytest.raises(ValueError, match="Positive constraint not supported"):
                ours.set_params(positive_code=True).transform(X)
        else:
            positive = ours.set_params(positive_code=True).transform(X)
            expected = theirs.set_params(positive_code=True).transform(X)
            assert (positive >= 0).all()
            np.testing.assert_allclose(positive, expected, atol=2e-3)


def test_lasso_lars_is_exact_where_alpha_is_tiny() -> None:
    """The least objective is found where many codes nearly reach it: only the l1 norm tells them
    apart.
    """
    X, D = np.random.RandomState(1).standard_normal((6, 20)), atoms(50, 20)
    for alpha in (1e-2, 1e-6, 1e-10):
        settings = {"transform_algorithm": "lasso_lars", "transform_alpha": alpha}
        Z, expected = SparseCoder(D, **settings).transform(X), sk.SparseCoder(D, **settings)
        np.testing.assert_allclose(Z, expected.fit(X).transform(X), atol=1e-5)
        assert ((Z != 0).sum(axis=1) <= 20).all()
    whole = SparseCoder([[0, 1, 0], [-1, -1, 2], [1, 1, 1], [0, 1, 1], [0, 2, 1]], **settings)
    expected = [[0, 0, -1, 0, 0], [0, 1, 1, 0, 0]]
    np.testing.assert_allclose(whole.transform([[-1, -1, -1], [0, 0, 3]]), expected, atol=1e-9)


def test_split_sign(digits: np.ndarray) -> None:
    coder = SparseCoder(atoms(30, 64), transform_n_nonzero_coefs=5).fit(digits)
    Z, X = coder.transform(digits), coder.inverse_transform(coder.transform(digits))
    split = coder.set_params(split_sign=True).transform(digits)
    assert (split >= 0).all()
    np.testing.assert_array_equal(split[:, :30] - split[:, 30:], Z)
    np.testing.assert_array_equal(coder.inverse_transform(split), X)
    assert len(coder.get_feature_names_out()) == 60
    with pytest.raises(ValueError, match=r"2 n_components = 60 columns.*Expected 60, got 30"):
        coder.inverse_transform(Z)
    encoder = LISTA.from_dictionary(atoms(30, 64), 0.3, 2).eval()
    coder.set_params(transform_algorithm="encoder", encoder=encoder)
    assert (coder.transform(digits) >= 0).all()


# --- encoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_encoders_codes_are_the_fast_path(dtype: Any, digits: np.ndarray) -> None:
    D, alpha = atoms(30, 64), 0.3
    encoder = LISTA.from_dictionary(D, alpha, 4).eval()
    Z = SparseCoder(D, transform_algorithm="encoder", encoder=encoder).transform(
        digits.astype(dtype)
    )
    assert Z.dtype == dtype
    expected, L = np.zeros((400, 30)), np.linalg.eigvalsh(D @ D.T)[-1]
    for _ in range(4):
        U = expected - (expected @ D - digits) @ D.T / L
        expected = np.sign(U) * np.maximum(np.abs(U) - alpha / L, 0)
    np.testing.assert_allclose(Z, expected, atol=1e3 * np.finfo(dtype).eps)


def test_rows_that_do_not_get_there_are_warned_of(digits: np.ndarray) -> None:
    coder = SparseCoder(
        atoms(30, 64), transform_algorithm="ista", transform_alpha=0.3, transform_max_iter=4
    )
    with pytest.warns(ConvergenceWarning, match="of 400 rows are not within transform_tol = 1e-06"):
        coder.transform(digits)


def test_solvers_refine_an_encoders_codes(digits: np.ndarray) -> None:
    D, alpha = atoms(30, 64), 0.3
    encoder = LISTA.from_dictionary(D, alpha, 3)
    train_encoder(
        encoder, torch.tensor(digits), dictionary=torch.tensor(D), alpha=alpha, max_steps=25, seed=0
    )
    encoder.eval()

    def loss(**settings: Any) -> float:
        settings = {"transform_algorithm": "cd", **settings}
        coder = SparseCoder(D, transform_alpha=alpha, **settings)
        return objective(digits, coder.transform(digits), D, alpha)

    best = loss(transform_tol=1e-10)
    losses = [loss(transform_algorithm="encoder", encoder=encoder)]
    losses += [
        loss(transform_algorithm="fista", encoder=encoder, transform_max_iter=k)
        for k in (0, 3, 1000)
    ]
    assert losses[0] == losses[1] > losses[2] > losses[3] >= best - 1e-12
    assert losses[3] - best < 2e-6 * 0.5 * (digits**2).sum(axis=1).mean()
    with pytest.warns(ConvergenceWarning):
        assert losses[2] < loss(transform_algorithm="fista", transform_max_iter=3)


def test_positive_codes_of_any_encoder(digits: np.ndarray) -> None:
    D = atoms(30, 64)
    for encoder in (PSDEncoder.from_dictionary(D), lambda x: (x @ torch.tensor(D.T).to(x)).numpy()):
        signed = SparseCoder(D, transform_algorithm="encoder", encoder=encoder).transform(digits)
        Z = SparseCoder(
            D, transform_algorithm="encoder", encoder=encoder, positive_code=True
        ).transform(digits)
        np.testing.assert_array_equal(Z, np.maximum(signed, 0))
        assert (signed < 0).any()
        coder = SparseCoder(D, transform_algorithm="cd", encoder=encoder, positive_code=True)
        assert (coder.transform(digits) >= 0).all()


def test_clone_and_pickle(digits: np.ndarray) -> None:
    encoder = LISTA.from_dictionary(atoms(30, 64), 0.3, 2).eval()
    coder = SparseCoder(atoms(30, 64), transform_algorithm="encoder", encoder=encoder).fit(digits)
    other = clone(coder)
    assert other.encoder is not encoder
    for model in (other, pickle.loads(pickle.dumps(coder))):
        np.testing.assert_array_equal(model.transform(digits), coder.transform(digits))


def test_the_code_of_an_atom_of_zeros_is_zero() -> None:
    """A dictionary of non-negative atoms may learn atoms of zeros; their codes are zero."""
    atoms = np.random.default_rng(0).random((6, 9))
    X, atoms[[1, 4]] = atoms @ np.ones((9, 9)), 0
    present = np.delete(atoms, [1, 4], axis=0)
    for algorithm in ("cd", "omp", "threshold", "lasso_lars"):
        settings = {"transform_algorithm": algorithm, "transform_alpha": 0.5}
        codes = SparseCoder(atoms, **settings).transform(X)
        assert not codes[:, [1, 4]].any()
        assert codes.any()
        expected = SparseCoder(present, **settings).transform(X)
        np.testing.assert_allclose(np.delete(codes, [1, 4], axis=1), expected, atol=1e-12)


# --- bad input ------------------------------------------------------------------------------------

CD = {"transform_algorithm": "cd"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dictionary": np.zeros((0, 3))},
            "dictionary must have at least one row",
        ),
        ({"dictionary": np.ones(3)}, "Expected 2D array"),
        ({"dictionary": [[1.0, np.nan, 1]]}, "dictionary contains NaN"),
        (
            {"transform_algorithm": "admm"},
            "transform_algorithm must be one of 'fista', 'ista', 'cd'",
        ),
        ({"transform_n_nonzero_coefs": 0}, "transform_n_nonzero_coefs must be an integer >= 1"),
        ({"n_jobs": 1.0}, "n_jobs must be an integer"),
        ({"split_sign": 1}, "split_sign must be a bool"),
        ({"positive_code": True}, "Positive constraint not supported for 'omp' coding method"),
        ({"transform_alpha": -1.0}, "transform_alpha must be"),
        ({"transform_alpha": float("nan")}, "transform_alpha must be"),
        ({"transform_max_iter": -1}, "transform_max_iter must be"),
        ({"transform_tol": -1e-3}, "transform_tol must be"),
        ({"positive_code": 1}, "positive_code must be a bool"),
        ({"encoder": 3}, "encoder must be"),
        ({"transform_algorithm": "encoder"}, "encoder must be given"),
        ({"encoder": abs}, "encoder must be None where transform_algorithm does not start from"),
        ({**CD, "encoder": lambda x: x}, r"encoder must map X to codes of shape \(4, 5\)"),
        (
            {**CD, "encoder": lambda x: x.new_full((len(x), 5), float("nan"))},
            "encoder must give finite codes",
        ),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseCoder(**{"dictionary": atoms(5, 3), **settings}).transform(np.ones((4, 3)))


def test_wrong_data() -> None:
    coder = SparseCoder(atoms(5, 3))
    with pytest.raises(ValueError, match="NaN"):
        coder.transform([[1.0, np.nan, 0]])
    with pytest.raises(ValueError, match="as many columns as dictionary, 3; got n_features = 4"):
        coder.transform(np.ones((2, 4)))
    with pytest.raises(ValueError, match="n_components = 5 columns"):
        coder.inverse_transform(np.ones((2, 4)))
