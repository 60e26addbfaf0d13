"""Data of every kind and in several places: arrays, batches, a stream, and the processes of a torch.distributed group.

`python -m torch.distributed.run --nproc-per-node=2 tests/test_mixture_distributed.py FOLDER` is what the processes run;
the test starts it once and compares what they wrote with fits of one process.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from latent_kernels.estimators.gaussian_mixture import GaussianMixture
from latent_kernels.estimators.mixture_model import MixtureModel
from test_gaussian_mixture import INITS, TYPES, agree, blobs

IRIS = load_iris().data
REPOSITORY = Path(__file__).parents[1]
PARAMETERS = ["weights_", "means_", "covariances_", "lower_bounds_"]


# --- arrays of every kind ---------------------------------------------------------------------------------------


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
    kinds = [mapped, frozen, np.asfortranarray(X), wide[::2, ::2], torch.from_numpy(X), X.astype(object), X.tolist()]
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
    assert GaussianMixture()._checked_batch(tensor, None, reset=True)[0].ctypes.data == tensor.data_ptr()


def test_tensors_elsewhere_are_refused() -> None:
    with pytest.raises(TypeError, match="on the CPU"):
        GaussianMixture().fit(torch.zeros(5, 2, device="meta"))
    model = GaussianMixture(random_state=0).fit(torch.randn(20, 2, requires_grad=True))
    assert model.predict(torch.zeros(3, 2, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


# --- data that do not fit in memory -----------------------------------------------------------------------------


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
    settings: dict[str, Any] = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}
    exact = GaussianMixture(**settings, tol=1e-6, max_iter=500).fit(X)
    online = GaussianMixture(**settings)
    for batch in np.split(X, 30):
        online.partial_fit(batch)
    first = GaussianMixture(**settings, max_iter=0).fit(X[:200])
    gap, before = exact.score(X) - online.score(X), exact.score(X) - first.score(X)
    # The free parameters of a fit to n rows lose p / 2n each; the last steps average about 8 batches of 200.
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


# --- processes --------------------------------------------------------------------------------------------------

CUT = 97  # rows of the first process
FAMILIES = ["gaussian", "poisson", "categorical", "bernoulli"]


def _rows() -> tuple[np.ndarray, np.ndarray]:
    """(X [240, 3] with missing values, weights [240], some of them 0)."""
    X = blobs(2)
    X[5, 0] = X[100] = X[239, 2] = np.nan
    weight = np.random.RandomState(0).uniform(0.5, 2, size=len(X))
    weight[[0, 7, 200]] = 0
    return X, weight


def _mixed_rows() -> np.ndarray:
    """A column of each of FAMILIES; only the last rows have the greatest category."""
    generator, labels = np.random.RandomState(1), np.arange(240) % 2
    category = np.where(np.arange(240) < 230, generator.randint(3, size=240), 5)
    X = [6 * labels + generator.standard_normal(240), generator.poisson(2 + 5 * labels), category]
    return np.column_stack([*X, generator.uniform(size=240) < 0.2 + 0.6 * labels]).astype(np.float64)


def _settings(covariance_type: str, init_params: str) -> dict[str, Any]:
    return {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
        "reg_covar": 1e-2,
        "init_size": 90,
        "n_init": 2,
    }


def _cases(rank: int | None, group: Any) -> dict[str, Any]:
    """Every fit that the test compares: of one process's rows, or (rank None) of all of them."""
    X, weight, mixed = *_rows(), _mixed_rows()
    own = slice(None) if rank is None else slice(0, CUT) if rank == 0 else slice(CUT, None)
    X, weight, mixed = X[own], weight[own], mixed[own]
    fits: dict[str, Any] = {}
    for kind, init in itertools.product(TYPES, INITS):
        model = GaussianMixture(**_settings(kind, init))
        fits[f"{kind} {init}"] = model.fit(X, sample_weight=weight, group=group)
    batches = [(X[:30], weight[:30]), (X[30:30], weight[:0]), (X[30:], weight[30:])]
    fits["batches"] = GaussianMixture(**_settings("full", "kmeans")).fit_batches(batches, group=group)
    # All rows are with the second process: the first has no batch, or no row.
    own_iris = [] if rank == 0 else [IRIS]
    fits["no batch"] = GaussianMixture(3, random_state=0).fit_batches(own_iris, group=group)
    fits["no row"] = GaussianMixture(3, random_state=0).fit(IRIS[: 0 if rank == 0 else None], group=group)
    fits["mixed"] = MixtureModel(2, families=FAMILIES, random_state=0).fit(mixed, group=group)
    generator = np.random.RandomState(7)
    fits["generator"] = GaussianMixture(3, init_params="random", random_state=generator).fit(X, group=group)
    warm = GaussianMixture(3, random_state=0, warm_start=True, tol=0.5).fit(X, group=group)
    fits["warm"] = warm.set_params(tol=1e-3).fit(X, group=group)
    return fits


class _Breaks:
    """Batches whose third pass fails in the second process."""

    def __init__(self, rank: int) -> None:
        self.rank, self.passes = rank, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        if self.rank == 1 and self.passes == 3:
            raise OSError("the disk is gone")
        return iter([IRIS])


def _failures(rank: int, group: Any) -> dict[str, str]:
    """The error that each process gets where something is wrong in the second alone."""
    bad, narrow = IRIS.copy(), IRIS[:, : 4 - rank]
    bad[3, 3] = np.inf if rank == 1 else 0.0
    calls = {
        "infinite": lambda: GaussianMixture(3).fit(bad, group=group),
        "infinite batch": lambda: GaussianMixture(3).fit_batches([IRIS, bad], group=group),
        "columns": lambda: GaussianMixture(3).fit(narrow, group=group),
        "setting": lambda: GaussianMixture(3 - 3 * rank).fit(IRIS, group=group),
        "pass": lambda: GaussianMixture(3).fit_batches(_Breaks(rank), group=group),
        "start": lambda: GaussianMixture(2, reg_covar=0).fit(np.ones((5, 2)), group=group),
    }
    errors = {}
    for name, call in calls.items():
        try:
            call()
            errors[name] = "none"
        except (ValueError, OSError, RuntimeError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def _count_reductions(rank: int, group: Any) -> tuple[int, int]:
    """(all-reduces of a fit, its iterations)."""
    calls, real = [], dist.all_reduce

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return real(*args, **options)

    dist.all_reduce = counted
    model = GaussianMixture(3, random_state=0).fit(IRIS[rank::2], group=group)
    dist.all_reduce = real
    return len(calls), model.n_iter_


def _work(folder: str) -> None:
    """What each process does."""
    dist.init_process_group("gloo")
    rank, group = dist.get_rank(), dist.group.WORLD
    result = {
        "fits": _cases(rank, group),
        "unseeded": GaussianMixture(3, init_params="random").fit(IRIS[rank::2], group=group),
        "failures": _failures(rank, group),
        "reductions": _count_reductions(rank, group),
    }
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _run(*arguments: str, timeout: int = 300) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    _run(str(Path(__file__)), str(folder))
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def _arrays(model: Any) -> list[np.ndarray]:
    if isinstance(model, GaussianMixture):
        return [np.asarray(getattr(model, name)) for name in PARAMETERS]
    columns = [np.stack(p) if isinstance(p, tuple) else p for p in model.parameters_]
    return [model.weights_, np.asarray(model.lower_bounds_), *columns]


def test_two_processes_are_one(processes: list[dict[str, Any]]) -> None:
    alone = _cases(None, None)
    assert alone.keys() == processes[0]["fits"].keys()
    for name, model in alone.items():
        for found in processes:
            there = found["fits"][name]
            assert (there.n_iter_, there.converged_, there.n_features_in_) == (
                model.n_iter_,
                model.converged_,
                model.n_features_in_,
            ), name
            for a, b in zip(_arrays(there), _arrays(model), strict=True):
                assert a.shape == b.shape, name
                assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max(), name
    assert alone["mixed"].n_categories_.tolist() == [0, 0, 6, 0]


def test_processes_have_the_same_bits(processes: list[dict[str, Any]]) -> None:
    pairs = [(processes[0]["fits"][name], processes[1]["fits"][name]) for name in processes[0]["fits"]]
    pairs.append((processes[0]["unseeded"], processes[1]["unseeded"]))
    for one, other in pairs:
        for a, b in zip(_arrays(one), _arrays(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_iteration_is_one_all_reduce(processes: list[dict[str, Any]]) -> None:
    for found in processes:
        reductions, iterations = found["reductions"]
        assert reductions == iterations + 1  # one for the rows that the initialization looks at
        assert iterations > 3


def test_an_error_in_one_process_is_raised_in_all(processes: list[dict[str, Any]]) -> None:
    first, second = processes[0]["failures"], processes[1]["failures"]
    for name in ("infinite", "infinite batch"):
        assert "ValueError: Input X contains infinity" in second[name]
        assert first[name].startswith("RuntimeError: process 1 of the group failed: Input X contains infinity")
    assert first["columns"] == second["columns"]
    assert "the same number of columns in every process; got [3, 4]" in first["columns"]
    assert "n_components must be an integer >= 1; got 0" in first["setting"]
    assert second["setting"].startswith("ValueError: n_components")
    assert first["pass"].startswith("RuntimeError: another process of the group failed")
    assert second["pass"] == "OSError: the disk is gone"
    assert first["start"].startswith("ValueError")
    assert second["start"].startswith("RuntimeError: process 0 of the group failed")


def test_the_example_runs() -> None:
    out = _run("-m", "latent_kernels.examples.distributed_mixture")
    apart = [float(line.split()[-1]) for line in out.splitlines() if "differ from one process's" in line]
    assert len(apart) == 3
    assert max(apart) < 1e-12


if __name__ == "__main__":
    _work(sys.argv[1])
