"""DictionaryLearning: its objective beside scikit-learn's, the laws of its steps, PSD, and
scikit-learn's checks.
"""

from __future__ import annotations

import functools
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import decomposition as sk
from sklearn.base import clone
from sklearn.datasets import load_sample_images
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.utils.estimator_checks import parametrize_with_checks

import latent_kernels as lk
from latent_kernels.sparse import _dictionary_steps, _sparse_codes
from latent_kernels.sparse._dictionary_steps import Learner, Options, Statistics, Visit
from latent_kernels.sparse._sparse_codes import Lasso
from latent_kernels.sparse.dictionary_learning import DictionaryLearning
from latent_kernels.sparse.encoders import LISTA, PSDEncoder
from latent_kernels.sparse.mini_batch_dictionary_learning import MiniBatchDictionaryLearning
from latent_kernels.sparse.sparse_coder import SparseCoder

CHECKED = [
    DictionaryLearning(),
    # transform_tol: the atoms that it learns from two columns, all about 100, are too much alike
    # for 1e-6
    DictionaryLearning(
        4,
        max_iter=3,
        tol=0,
        batch_size=7,
        positive_code=True,
        positive_dict=True,
        fit_algorithm="fista",
        transform_algorithm="lasso_cd",
        transform_tol=1e-4,
    ),
    DictionaryLearning(3, max_iter=3, tol=0, encoder="psd", transform_algorithm="encoder"),
    MiniBatchDictionaryLearning(4, max_iter=5, batch_size=7),
    MiniBatchDictionaryLearning(max_iter=2, transform_algorithm="lasso_lars", split_sign=True),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Return centred 8 x 8 patches [1500, 64]."""
    image = load_sample_images().images[0].mean(axis=2) / 255
    X = extract_patches_2d(image, (8, 8), max_patches=1500, random_state=0).reshape(-1, 64)
    X -= X.mean(axis=1, keepdims=True)
    return X / X.std()


def objective(X: np.ndarray, D: np.ndarray, alpha: float) -> float:
    """Return the objective at the best codes for D, whose atoms are scaled down to the unit
    ball.
    """
    D = D / np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1)
    Z = SparseCoder(D, transform_algorithm="cd", transform_alpha=alpha).transform(X)
    return float((0.5 * ((X - Z @ D) ** 2).sum(axis=1) + alpha * np.abs(Z).sum(axis=1)).mean())


# --- what it reaches ------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_reaches_no_worse_than_scikit_learn(alpha: float, patches: np.ndarray) -> None:
    settings: dict[str, Any] = {"alpha": alpha, "max_iter": 3, "tol": 0.0, "random_state": 0}
    ours = DictionaryLearning(64, **settings).fit(patches)
    online = sk.MiniBatchDictionaryLearning(
        64, fit_algorithm="cd", max_no_improvement=None, **settings
    ).fit(patches)
    assert ours.n_iter_ == online.n_iter_ == 3
    assert objective(patches, ours.components_, alpha) < objective(
        patches, online.components_, alpha
    )


def test_reaches_no_worse_than_scikit_learns_batch_algorithm(patches: np.ndarray) -> None:
    X, settings = patches[:500], {"alpha": 2.0, "max_iter": 5, "tol": 0.0, "random_state": 0}
    ours = DictionaryLearning(32, batch_size=64, **settings).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        whole = sk.DictionaryLearning(32, fit_algorithm="cd", **settings).fit(X)
    assert objective(X, ours.components_, 2.0) < objective(X, whole.components_, 2.0)


@pytest.mark.parametrize("positive", [False, True])
def test_recovers_a_planted_dictionary(positive: bool) -> None:
    generator = np.random.RandomState(0)
    n, m, rows = 40, 20, 2000
    D = generator.standard_normal((n, m))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = np.zeros((rows, n))
    for z in Z:
        z[generator.choice(n, 3, replace=False)] = generator.standard_normal(3)
    Z = np.abs(Z) if positive else Z
    X = Z @ D + 0.01 * generator.standard_normal((rows, m))
    model = DictionaryLearning(n, alpha=0.1, positive_code=positive, random_state=0).fit(X)
    matches = D @ model.components_.T if positive else np.abs(D @ model.components_.T)
    assert (matches.max(axis=1) > 0.95).mean() > 0.9
    assert model.converged_
    assert model.n_iter_ == len(model.objectives_) < 100
    assert model.n_steps_ == 8 * model.n_iter_


def test_stops_by_tol_or_warns(patches: np.ndarray) -> None:
    model = DictionaryLearning(16, alpha=2.0, tol=1e-2, random_state=0).fit(patches)
    *_, before, last = model.objectives_
    assert model.converged_
    assert abs(before - last) <= 1e-2 * before
    assert last < model.objectives_[0]
    with pytest.warns(ConvergenceWarning, match="max_iter = 2 passes"):
        assert (
            not DictionaryLearning(16, alpha=2.0, max_iter=2, random_state=0)
            .fit(patches)
            .converged_
        )


# --- steps ----------------------------------------------------------------------------------------


def test_atoms_are_updated_to_the_minimum_over_each() -> None:
    generator = np.random.RandomState(0)
    Z, X = (
        generator.standard_normal((50, 9)),
        generator.standard_normal((50, 1700)),
    )  # blocks of 4 atoms
    D = _dictionary_steps.directions(generator.standard_normal((9, 1700)), False)
    statistics = Statistics(9, 1700)
    statistics.add(Z, X)
    expected = D.copy()
    for k in range(9):
        v = Z[:, k] @ (X - Z @ expected + np.outer(Z[:, k], expected[k]))
        expected[k] = v / np.linalg.norm(v)
    statistics.update(D, False)
    np.testing.assert_allclose(D, expected, atol=1e-12)


@pytest.mark.parametrize("positive", [False, True])
def test_the_objective_of_all_rows_falls_with_every_step(
    positive: bool, patches: np.ndarray
) -> None:
    X, how = patches[:300], Lasso("cd", 1.0, 1000, 1e-10, positive)
    options, batches = Options(how, positive, 0.0, 0.0), np.split(X, 6)
    D = _dictionary_steps.first_dictionary(X, 24, positive, np.random.RandomState(0))
    learner, visits, last = Learner(D, Statistics(24, 64), None), [], np.inf
    visits = [Visit(_dictionary_steps.csr_array(np.zeros((50, 24))), 1.0, 0)] * 6
    for step in range(24):
        i = step % 6
        learner, codes, _ = learner.step(batches[i], options, visits[i])
        visits[i] = Visit(_dictionary_steps.csr_array(codes), 1.0, step + 1)
        D, codes_of = learner.dictionary, [v.current_codes(learner.statistics) for v in visits]
        total = sum(
            _dictionary_steps.row_losses(b, z, D, 1.0).sum()
            for b, z in zip(batches, codes_of, strict=True)
        )
        assert total <= last * (1 + 1e-9)
        last = total
        np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1, rtol=1e-12)


def test_later_passes_replace_what_earlier_ones_added(
    patches: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    solved = _sparse_codes.solved

    def watched(X: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append((X, solved(X, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(_sparse_codes, "solved", watched)
    model = DictionaryLearning(16, max_iter=3, tol=0.0, batch_size=400, random_state=0).fit(patches)
    A = sum(Z.T @ Z for _, Z in seen[-4:])
    B = sum(Z.T @ X for X, Z in seen[-4:])
    np.testing.assert_allclose(model._statistics.A, A, atol=1e-10 * np.abs(A).max())
    np.testing.assert_allclose(model._statistics.B, B, atol=1e-10 * np.abs(B).max())


@pytest.mark.parametrize("encoder", [None, "psd"])
def test_partial_fit_is_a_first_pass(encoder: str | None, patches: np.ndarray) -> None:
    settings: dict[str, Any] = {
        "n_components": 16,
        "alpha": 1.0,
        "dict_init": patches[:16],
        "encoder": encoder,
    }
    whole = DictionaryLearning(max_iter=1, tol=0, batch_size=200, shuffle=False, **settings).fit(
        patches
    )
    parts = DictionaryLearning(**settings)
    for i in range(0, 1500, 200):
        parts.partial_fit(patches[i : i + 200])
    np.testing.assert_array_equal(parts.components_, whole.components_)
    assert (parts.n_steps_, parts.n_iter_) == (whole.n_steps_, whole.n_iter_) == (8, 1)
    np.testing.assert_allclose(
        np.average(parts.objectives_, weights=[200] * 7 + [100]), whole.objectives_[0]
    )
    if encoder:
        np.testing.assert_array_equal(
            parts.encoder_.weight.detach(), whole.encoder_.weight.detach()
        )
    before = whole.components_
    whole.partial_fit(patches[:100].astype(np.float32))
    assert whole.components_.dtype == np.float64
    assert 0 < np.abs(whole.components_ - before).max() < 0.5


@pytest.mark.parametrize("positive", [False, True])
def test_dead_atoms_are_replaced(positive: bool, patches: np.ndarray) -> None:
    X = np.hstack([np.abs(patches) if positive else patches, np.zeros((1500, 1))])
    start = X[:12].copy()
    start[[3, 7]] = np.eye(65)[64]
    settings: dict[str, Any] = {
        "alpha": 2.0,
        "dict_init": start,
        "tol": 0.0,
        "positive_dict": positive,
    }
    model = DictionaryLearning(12, max_iter=4, random_state=0, batch_size=100, **settings).fit(X)
    np.testing.assert_array_equal(model.components_[:, 64], 0)
    assert model.transform(X).any(axis=0).all()
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1)


def test_more_atoms_than_rows_and_rows_of_zeros() -> None:
    X = np.zeros((6, 4))
    X[0] = [1e-200, 0, 0, 0]
    model = DictionaryLearning(9, tol=0, max_iter=2, random_state=0, positive_dict=True).fit(X)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1)
    assert (model.components_ >= 0).all()
    assert not model.transform(X).any()


# --- precision, signs, randomness, copies ---------------------------------------------------------


@pytest.mark.parametrize("encoder", [None, "psd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_that_of_the_data(dtype: Any, encoder: str | None, patches: np.ndarray) -> None:
    X = patches.astype(dtype)
    model = DictionaryLearning(16, max_iter=2, tol=0, encoder=encoder, random_state=0).fit(X)
    Z = model.transform(X)
    assert model.components_.dtype == Z.dtype == model.inverse_transform(Z).dtype == dtype
    assert model._statistics.A.dtype == model._statistics.B.dtype == np.float64
    np.testing.assert_allclose(
        np.linalg.norm(model.components_, axis=1), 1, rtol=4 * np.finfo(dtype).eps
    )
    if encoder:
        assert model.encoder_.weight.dtype == torch.tensor(X[:1]).dtype
        assert model.set_params(transform_algorithm="encoder").transform(X).dtype == dtype


def test_float32_is_near_float64(patches: np.ndarray) -> None:
    settings: dict[str, Any] = {"alpha": 1.0, "max_iter": 5, "tol": 0, "random_state": 0}
    double = DictionaryLearning(32, **settings).fit(patches)
    single = DictionaryLearning(32, **settings).fit(patches.astype(np.float32))
    np.testing.assert_allclose(single.objectives_, double.objectives_, rtol=1e-4)


def test_signs(patches: np.ndarray) -> None:
    X = np.abs(patches)
    settings: dict[str, Any] = {"max_iter": 2, "tol": 0, "random_state": 0, "encoder": "psd"}
    settings["transform_algorithm"] = "cd"
    model = DictionaryLearning(16, positive_code=True, positive_dict=True, **settings).fit(X)
    assert (model.components_ >= 0).all()
    assert (model.transform(X) >= 0).all()
    assert (model.set_params(transform_algorithm="encoder").transform(X) >= 0).all()
    assert (DictionaryLearning(16, **settings).fit(X).transform(X) < 0).any()


@pytest.mark.parametrize("encoder", [None, "psd"])
def test_the_same_random_state_gives_the_same(encoder: str | None, patches: np.ndarray) -> None:
    def fitted(seed: int) -> DictionaryLearning:
        return DictionaryLearning(16, max_iter=2, tol=0, encoder=encoder, random_state=seed).fit(
            patches
        )

    first, second, other = fitted(0), fitted(0), fitted(1)
    np.testing.assert_array_equal(first.components_, second.components_)
    assert first.objectives_ == second.objectives_ != other.objectives_


def test_clone_and_pickle(patches: np.ndarray) -> None:
    model = DictionaryLearning(
        16, max_iter=2, tol=0, encoder="psd", transform_algorithm="encoder", random_state=0
    )
    assert clone(model).get_params() == model.get_params()
    model.fit(patches)
    assert list(model.get_feature_names_out())[:2] == ["dictionarylearning0", "dictionarylearning1"]
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.transform(patches), model.transform(patches))
    # the copy's optimizer goes on with the copy's encoder
    other.partial_fit(patches[:100])
    model.partial_fit(patches[:100])
    np.testing.assert_array_equal(other.transform(patches), model.transform(patches))


def test_verbose(patches: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    model = DictionaryLearning(8, max_iter=2, tol=0, verbose=1, random_state=0).fit(patches)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"pass 2/2: objective {model.objectives_[-1]:.6g}"
    assert len(err.splitlines()) == 2


# --- scikit-learn's arguments ---------------------------------------------------------------------


def test_arguments_are_scikit_learns() -> None:
    ours, theirs = DictionaryLearning().get_params(), sk.DictionaryLearning().get_params()
    assert set(theirs) <= set(ours)
    other = {"max_iter", "tol", "fit_algorithm", "verbose"}
    assert {k: v for k, v in ours.items() if k in theirs and k not in other} == {
        k: v for k, v in theirs.items() if k not in other
    }
    mini, theirs = (m.MiniBatchDictionaryLearning().get_params() for m in (lk, sk))
    assert {name: mini[name] for name in theirs} == theirs
    assert set(mini) - set(theirs) == {
        "transform_tol",
        "encoder",
        "encoder_weight",
        "encoder_learning_rate",
    }


@pytest.mark.parametrize("model", [DictionaryLearning, MiniBatchDictionaryLearning])
def test_lars_is_another_name_for_the_same_codes(model: Any, patches: np.ndarray) -> None:
    settings: dict[str, Any] = {"max_iter": 2, "tol": 0, "random_state": 0}
    first, second = (model(16, fit_algorithm=a, **settings).fit(patches) for a in ("cd", "lars"))
    np.testing.assert_array_equal(first.components_, second.components_)


def test_transforms_of_a_learned_dictionary(patches: np.ndarray) -> None:
    model = DictionaryLearning(24, alpha=0.7, max_iter=2, tol=0, random_state=0).fit(patches)
    for algorithm in ("omp", "lasso_cd", "threshold"):
        coder = SparseCoder(model.components_, transform_algorithm=algorithm, transform_alpha=0.7)
        Z = model.set_params(transform_algorithm=algorithm).transform(patches)
        np.testing.assert_array_equal(Z, coder.transform(patches))
    model.set_params(transform_algorithm="omp", transform_n_nonzero_coefs=3)
    Z = model.transform(patches)
    assert ((Z != 0).sum(axis=1) == 3).all()
    split = model.set_params(split_sign=True).transform(patches)
    np.testing.assert_array_equal(split[:, :24] - split[:, 24:], Z)
    np.testing.assert_array_equal(model.inverse_transform(split), Z @ model.components_)
    assert len(model.get_feature_names_out()) == 48


def test_code_init_is_where_the_first_pass_starts(patches: np.ndarray) -> None:
    """From good codes a few iterations reach a lower objective; enough iterations correct wrong
    codes.
    """
    X, D = patches[:200], patches[:24]
    settings: dict[str, Any] = {"max_iter": 1, "tol": 0, "dict_init": D, "random_state": 0}
    unit = D / np.linalg.norm(D, axis=1, keepdims=True)
    good = SparseCoder(unit, transform_algorithm="cd", transform_alpha=1.0).transform(X)
    few: dict[str, Any] = {"fit_algorithm": "ista", "transform_max_iter": 2, **settings}
    warm = DictionaryLearning(24, code_init=good, **few).fit(X)
    assert warm.objectives_[0] < DictionaryLearning(24, **few).fit(X).objectives_[0]
    exact = DictionaryLearning(24, transform_tol=1e-12, **settings).fit(X)
    wrong = DictionaryLearning(24, transform_tol=1e-12, code_init=good[::-1], **settings).fit(X)
    np.testing.assert_allclose(wrong.components_, exact.components_, atol=1e-5)


def test_callbacks_and_errors(patches: np.ndarray) -> None:
    seen: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"tol": 0, "callback": seen.append, "random_state": 0}
    model = DictionaryLearning(8, max_iter=7, **settings).fit(patches)
    assert [state["ii"] for state in seen] == [0, 5]
    np.testing.assert_allclose(model.error_, 1500 * np.array(model.objectives_))
    assert seen[1]["current_cost"] == model.error_[5] == seen[1]["errors"][-1]
    assert seen[1]["dictionary"].shape == (8, 64)
    seen.clear()
    mini = MiniBatchDictionaryLearning(
        8, max_iter=2, batch_size=500, max_no_improvement=None, **settings
    ).fit(patches)
    assert [state["i"] for state in seen] == list(range(6))
    np.testing.assert_allclose(
        mini.objectives_, np.mean([[s["batch_cost"] for s in seen[i : i + 3]] for i in (0, 3)], 1)
    )
    np.testing.assert_array_equal(seen[-1]["dictionary"], mini.components_)


# --- mini-batches ---------------------------------------------------------------------------------


def test_mini_batches_are_partial_fits(patches: np.ndarray) -> None:
    whole = MiniBatchDictionaryLearning(
        12, max_iter=2, batch_size=200, shuffle=False, tol=0, max_no_improvement=None,
        dict_init=patches[:12],
    ).fit(patches)  # fmt: skip
    parts = MiniBatchDictionaryLearning(12, dict_init=patches[:12])
    for _ in range(2):
        for i in range(0, 1500, 200):
            parts.partial_fit(patches[i : i + 200])
    np.testing.assert_array_equal(parts.components_, whole.components_)
    assert (whole.n_steps_, whole.n_iter_, parts.n_steps_) == (16, 2, 16)
    assert not whole.converged_


def test_mini_batches_end_by_the_change_of_the_dictionary(patches: np.ndarray) -> None:
    changes: list[np.ndarray] = []
    settings: dict[str, Any] = {"batch_size": 100, "max_no_improvement": None, "random_state": 0}
    model = MiniBatchDictionaryLearning(
        12, tol=4e-3, callback=lambda state: changes.append(state["dictionary"]), **settings
    ).fit(patches)
    assert model.converged_
    assert model.n_steps_ == len(changes) + 1 < 1500
    steps = np.diff([*changes, model.components_], axis=0)[14:]  # after the first pass
    norms = np.linalg.norm(steps.reshape(len(steps), -1), axis=1) / 12
    assert norms[-1] <= 4e-3 < norms[:-1].min()


def test_mini_batches_end_where_the_objective_does_not_fall(patches: np.ndarray) -> None:
    costs: list[float] = []
    model = MiniBatchDictionaryLearning(
        12, tol=0, max_no_improvement=3, batch_size=100, random_state=0,
        callback=lambda state: costs.append(state["batch_cost"]),
    ).fit(patches)  # fmt: skip
    assert model.converged_
    smoothed, weight = costs[15], 100 / 1501
    best, since = smoothed, 0
    for cost in costs[16:]:
        smoothed = smoothed * (1 - weight) + cost * weight
        best, since = (smoothed, 0) if smoothed < best else (best, since + 1)
        assert since < 3
    assert since == 2
    assert model.n_steps_ == len(costs) + 1
    with pytest.raises(ValueError, match="max_no_improvement must be an integer >= 0"):
        model.set_params(max_no_improvement=-1).fit(patches)


def test_mini_batches_reach_no_worse_than_scikit_learns(patches: np.ndarray) -> None:
    settings: dict[str, Any] = {
        "alpha": 1.0, "max_iter": 3, "tol": 0.0, "max_no_improvement": None, "batch_size": 100,
        "random_state": 0, "fit_algorithm": "cd",
    }  # fmt: skip
    ours, theirs = (m.MiniBatchDictionaryLearning(32, **settings).fit(patches) for m in (lk, sk))
    losses = [objective(patches, model.components_, 1.0) for model in (ours, theirs)]
    assert losses[0] < losses[1]


# --- encoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
def test_joint_codes_are_those_of_a_direct_minimization(positive: bool) -> None:
    generator = np.random.RandomState(0)
    X, F = generator.standard_normal((7, 10)), generator.standard_normal((7, 15))
    D = _dictionary_steps.directions(generator.standard_normal((15, 10)), False)
    alpha, kappa = 0.3, 0.7
    step = 1 / (np.linalg.eigvalsh(D @ D.T)[-1] + kappa)
    Z = np.zeros((7, 15))
    for _ in range(3000):  # a proximal gradient step on the sum as it stands
        U = Z - step * ((Z @ D - X) @ D.T + kappa * (Z - F))
        Z = (
            np.maximum(U - step * alpha, 0)
            if positive
            else np.sign(U) * np.maximum(np.abs(U) - step * alpha, 0)
        )
    how = Lasso("cd", alpha, 1000, 1e-14, positive)
    codes = _dictionary_steps.joint_codes(X, D, how, torch.tensor(F), kappa)
    np.testing.assert_allclose(codes, Z, atol=1e-6)


ENCODERS = {
    "psd": ("psd", 0.5),
    "lista": (functools.partial(LISTA.from_dictionary, alpha=1.0, n_layers=3), 0.2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_learns_the_codes(name: str, patches: np.ndarray) -> None:
    encoder, bound = ENCODERS[name]
    X = patches.astype(np.float32)

    def error(passes: int) -> float:
        """Return the error of the fast path, relative to the exact codes."""
        model = DictionaryLearning(
            32, alpha=1.0, encoder=encoder, max_iter=passes, tol=0, batch_size=100, random_state=0
        ).fit(X)
        Z = model.set_params(transform_algorithm="cd").transform(X)
        assert not model.encoder_.training
        fast = model.set_params(transform_algorithm="encoder").transform(X)
        with torch.no_grad():
            np.testing.assert_array_equal(fast, model.encoder_(torch.tensor(X)).numpy())
        if passes > 1:
            assert model.objectives_[-1] < model.objectives_[0]
        return float(((fast - Z) ** 2).sum() / (Z**2).sum())

    assert error(20) < bound < error(1)


def test_an_encoder_that_is_given_is_copied(patches: np.ndarray) -> None:
    encoder = PSDEncoder(64, 16, dictionary=patches[:16].astype(np.float32))
    before = encoder.weight.detach().clone()
    model = DictionaryLearning(16, encoder=encoder, max_iter=1, tol=0, random_state=0).fit(patches)
    assert torch.equal(encoder.weight, before)
    assert model.encoder_.weight.dtype == torch.float64
    assert not torch.equal(model.encoder_.weight.float(), before)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components must be"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"tol": float("nan")}, "tol must be"),
        ({"fit_algorithm": "encoder"}, "fit_algorithm must be one of"),
        ({"fit_algorithm": "omp"}, "fit_algorithm must be one of 'cd', 'lars'"),
        ({"transform_algorithm": "admm"}, "transform_algorithm must be one of"),
        ({"callback": 3}, "callback must be a function or None"),
        (
            {"dict_init": np.ones((2, 3)), "code_init": np.ones((8, 3))},
            r"code_init must have shape \(8, 2\); got \(8, 3\)",
        ),
        ({"transform_alpha": -0.1}, "transform_alpha must be"),
        ({"positive_dict": 1}, "positive_dict must be a bool"),
        ({"encoder": "lista"}, "encoder must be None, 'psd'"),
        ({"encoder": lambda dictionary: dictionary}, "encoder must return a torch.nn.Module"),
        ({"encoder": torch.nn.Identity(), "n_components": 3}, "encoder must have parameters"),
        ({"encoder": torch.nn.Linear(3, 3)}, r"encoder must map X to codes of shape \(8, 2\)"),
        ({"encoder_weight": -1.0}, "encoder_weight must be"),
        ({"dict_init": np.ones((3, 3))}, r"dict_init must have shape \(2, 3\)"),
        ({"dict_init": np.zeros((0, 3))}, "dict_init must have at least one row"),
        ({"dict_init": -np.ones((2, 3)), "positive_dict": True}, "dict_init must be >= 0"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    X = np.random.RandomState(0).standard_normal((8, 3))
    with pytest.raises(ValueError, match=message):
        DictionaryLearning(**{"n_components": 2, **settings}).fit(X)


def test_wrong_data(patches: np.ndarray) -> None:
    model = DictionaryLearning(4, max_iter=1, tol=0, random_state=0)
    with pytest.raises(NotFittedError):
        model.transform(patches)
    with pytest.raises(ValueError, match="NaN"):
        model.fit([[1.0, np.nan]])
    model.fit(patches)
    with pytest.raises(ValueError, match="n_components = 4 columns"):
        model.inverse_transform(np.ones((2, 5)))
    with pytest.raises(ValueError, match="fitted without encoder"):
        clone(model).set_params(transform_algorithm="encoder").fit(patches).transform(patches)
    with pytest.raises(ValueError, match="n_components = 5: set it back"):
        model.set_params(n_components=5).partial_fit(patches)
    with pytest.raises(ValueError, match="encoder must be None where"):
        model.set_params(n_components=4, encoder="psd").partial_fit(patches)
