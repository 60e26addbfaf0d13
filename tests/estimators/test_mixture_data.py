"""Data of every kind for the mixture estimators: arrays, batches and a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from torch.utils.data import DataLoader, TensorDataset

from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from tests.estimators.test_gaussian_mixture import INITS, TYPES, agree, blobs

IRIS = load_iris().data
PARAMETERS = ["weights_", "means_", "covariances_", "lower_bounds_"]


# --- arrays of every kind -------------------------------------------------------------------------


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    X = blobs(8)
    settings: dict[str, Any] = {"n_components": 3, "random_state": 0}
    plain = GaussianMixture(**settings).fit(X)
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", dtype=np.float64, mode="r", shape=X.shape)
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.zeros((480, 6))
    wide[::2, ::2] = X
    kinds = [
        mapped,
        frozen,
        np.asfortranarray(X),
        wide[::2, ::2],
        torch.from_numpy(X),
        X.astype(object),
        X.tolist(),
    ]
    for other in kinds:
        model = GaussianMixture(**settings).fit(other)
        agree(model, plain, 1e-12)
        assert (model.predict(other) == plain.predict(X)).all()


def test_data_are_not_copied(tmp_path: Path) -> None:
    X = np.asfortranarray(blobs(8).astype(np.float32))
    data, weight = GaussianMixture()._checked_batch(X, None, reset=True)
    assert np.shares_memory(data, X)
    assert weight is None
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", dtype=np.float32, mode="r", shape=(240, 3))
    assert np.shares_memory(GaussianMixture()._checked_batch(mapped, None, reset=True)[0], mapped)
    tensor = torch.zeros(4, 3)
    assert (
        GaussianMixture()._checked_batch(tensor, None, reset=True)[0].ctypes.data
        == tensor.data_ptr()
    )


def test_tensors_elsewhere_are_refused() -> None:
    with pytest.raises(TypeError, match="on the CPU"):
        GaussianMixture().fit(torch.zeros(5, 2, device="meta"))
    model = GaussianMixture(random_state=0).fit(torch.randn(20, 2, requires_grad=True))
    assert model.predict(torch.zeros(3, 2, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


# --- data that do not fit in memory ---------------------------------------------------------------


class _Again:
    def __init__(self, items: list[Any]) -> None:
        self.items, self.passes = items, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.items)


@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_batches_are_the_whole(covariance_type: str, init_params: str) -> None:
    X = blobs(2)
    X[5, 0] = X[100] = np.nan
    weight = np.random.RandomState(0).uniform(0.5, 2, size=len(X))
    weight[[0, 7, 200]] = 0
    settings: dict[str, Any] = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
        "reg_covar": 1e-2,
        "init_size": 90,
    }
    whole = GaussianMixture(**settings).fit(X, sample_weight=weight)
    cuts = [0, 1, 90, 90, 163, 240]
    items = [(X[a:b], weight[a:b]) for a, b in itertools.pairwise(cuts)]
    for source in (items, _Again(items), lambda: iter(items)):
        batches = GaussianMixture(**settings).fit_batches(source)
        agree(batches, whole, 1e-10)
        np.testing.assert_allclose(batches.lower_bounds_, whole.lower_bounds_, rtol=1e-10)


def test_batches_of_a_data_loader() -> None:
    X, weight = torch.from_numpy(IRIS), torch.linspace(0.5, 2, 150, dtype=torch.float64)
    settings: dict[str, Any] = {"n_components": 3, "random_state": 0}
    for tensors in ((X,), (X, weight)):
        loader = DataLoader(TensorDataset(*tensors), batch_size=40)
        assert isinstance(next(iter(loader)), list)
        agree(
            GaussianMixture(**settings).fit_batches(loader),
            GaussianMixture(**settings).fit(X, None, *tensors[1:]),
            1e-9,
        )
    lists = [IRIS[:2].tolist(), [IRIS[2:].tolist(), np.ones(148).tolist()]]
    agree(GaussianMixture(**settings).fit_batches(lists), GaussianMixture(**settings).fit(X), 1e-9)


def test_each_iteration_is_one_pass() -> None:
    source = _Again([IRIS[:70], IRIS[70:]])
    model = GaussianMixture(3, random_state=0).fit_batches(source)
    assert source.passes == model.n_iter_ + 2
    assert model.predict(IRIS).shape == (150,)


def test_batches_that_cannot_be_used() -> None:
    model = GaussianMixture(2, random_state=0)
    with pytest.raises(TypeError, match="only once"):
        model.fit_batches(iter([IRIS]))
    with pytest.raises(TypeError, match="only once"):
        model.fit_batches(x for x in [IRIS])
    for array in (IRIS, torch.from_numpy(IRIS)):
        with pytest.raises(TypeError, match=r"wrap it in a list, \[X\]"):
            model.fit_batches(array)
    for item in (
        [],
        (),
        IRIS[None],
        (IRIS, None, None),
        IRIS[0],
        3,
        (IRIS[0], IRIS[0]),
        [[1.0], [1.0, 2.0]],
    ):
        with pytest.raises(ValueError, match=r"as a tuple or list; batch 1 is a"):
            model.fit_batches([IRIS, item])
    with pytest.raises(TypeError, match="iterable or a callable"):
        model.fit_batches(3)
    with pytest.raises(ValueError, match="150 rows in its first pass and 0 in a later"):
        model.fit_batches(iter([IRIS]).__iter__)
    with pytest.raises(ValueError, match="features"):
        model.fit_batches([IRIS, IRIS[:, :2]])
    with pytest.raises(ValueError, match="n_samples = 0"):
        model.fit_batches([])
    with pytest.raises(ValueError, match="infinity"):
        model.fit_batches([IRIS, np.full((3, 4), np.inf)])


def test_initialization_looks_at_a_sample() -> None:
    X = blobs(4, n=3000)
    settings: dict[str, Any] = {"n_components": 3, "random_state": 0, "max_iter": 0}
    a, b = GaussianMixture(**settings, init_size=50).fit(X), GaussianMixture(**settings).fit(X)
    assert not np.allclose(np.sort(a.means_, axis=0), np.sort(b.means_, axis=0), rtol=1e-6)
    # The least weight is that of one of 50 rows.
    assert np.allclose(a.weights_ * 50, np.round(a.weights_ * 50), atol=1e-9)
    np.testing.assert_array_equal(a.means_, GaussianMixture(**settings, init_size=50).fit(X).means_)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_online_em_approaches_the_fit(covariance_type: str) -> None:
    X = blobs(6, n=6000)
    settings: dict[str, Any] = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "random_state": 0,
    }
    exact = GaussianMixture(**settings, tol=1e-6, max_iter=500).fit(X)
    online = GaussianMixture(**settings)
    for batch in np.split(X, 30):
        online.partial_fit(batch)
    first = GaussianMixture(**settings, max_iter=0).fit(X[:200])
    gap, before = exact.score(X) - online.score(X), exact.score(X) - first.score(X)
    # The free parameters of a fit to n rows lose p / 2n each; the last steps average about 8
    # batches of 200.
    assert gap < 3 * exact._n_parameters() / (2 * 1600)
    assert gap < before
    assert online.n_iter_ == len(online.lower_bounds_) == 30


def test_online_em_after_a_fit_moves_a_step() -> None:
    X = blobs(7)
    model = GaussianMixture(3, random_state=0, tol=1e-8, max_iter=1000).fit(X)
    before = model.means_.copy()
    model.partial_fit(X)
    # The same rows again are at the fixed point already.
    np.testing.assert_allclose(model.means_, before, atol=1e-2)
    model.partial_fit(X + 10)
    assert np.abs(model.means_ - before).max() > 1


def test_the_first_step_of_online_em_is_one_of_em() -> None:
    online = GaussianMixture(3, random_state=0).partial_fit(IRIS)
    one = GaussianMixture(3, random_state=0, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        one.fit(IRIS)
    agree(online, one, 1e-13)
