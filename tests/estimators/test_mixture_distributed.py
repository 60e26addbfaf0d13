"""Mixtures fitted by the processes of a torch.distributed group.

`python -m torch.distributed.run --nproc-per-node=2 -m tests.estimators.test_mixture_distributed
FOLDER` is what the processes run; the test starts it once and compares what they wrote with fits of
one process.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from sklearn.datasets import load_iris

from latent_kernels.mixtures._gaussian_estimator import GaussianEstimator
from latent_kernels.mixtures._processes import device_types
from latent_kernels.mixtures.bayesian_gaussian_mixture import BayesianGaussianMixture
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.mixture_model import MixtureModel
from tests.estimators.test_gaussian_mixture import INITS, TYPES, blobs
from tests.processes import python

IRIS = load_iris().data
PARAMETERS = ["weights_", "means_", "covariances_", "lower_bounds_"]


# --- processes ------------------------------------------------------------------------------------

CUT = 97  # rows of the first process
FAMILIES = ["gaussian", "poisson", "categorical", "bernoulli"]


def _rows() -> tuple[np.ndarray, np.ndarray]:
    """Return X [240, 3] with missing values, and weights [240], some of them 0."""
    X = blobs(2)
    X[5, 0] = X[100] = X[239, 2] = np.nan
    weight = np.random.RandomState(0).uniform(0.5, 2, size=len(X))
    weight[[0, 7, 200]] = 0
    return X, weight


def _mixed_rows() -> np.ndarray:
    """Return a column of each of FAMILIES; only the last rows have the greatest category."""
    generator, labels = np.random.RandomState(1), np.arange(240) % 2
    category = np.where(np.arange(240) < 230, generator.randint(3, size=240), 5)
    X = [6 * labels + generator.standard_normal(240), generator.poisson(2 + 5 * labels), category]
    return np.column_stack([*X, generator.uniform(size=240) < 0.2 + 0.6 * labels]).astype(
        np.float64
    )


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
    """Return every fit that the test compares: of one process's rows, or (rank None) of all
    rows.
    """
    X, weight, mixed = *_rows(), _mixed_rows()
    own = slice(None) if rank is None else slice(0, CUT) if rank == 0 else slice(CUT, None)
    X, weight, mixed = X[own], weight[own], mixed[own]
    fits: dict[str, Any] = {}
    for kind, init in itertools.product(TYPES, INITS):
        model = GaussianMixture(**_settings(kind, init))
        fits[f"{kind} {init}"] = model.fit(X, sample_weight=weight, group=group)
    for kind in TYPES:
        settings = _settings(kind, "kmeans") | {"max_iter": 20}
        fits[f"bayesian {kind}"] = BayesianGaussianMixture(**settings).fit(
            X, sample_weight=weight, group=group
        )
    batches = [(X[:30], weight[:30]), (X[30:30], weight[:0]), (X[30:], weight[30:])]
    fits["batches"] = GaussianMixture(**_settings("full", "kmeans")).fit_batches(
        batches, group=group
    )
    # The second process has all rows: the first has no batch, or no row.
    own_iris = [] if rank == 0 else [IRIS]
    fits["no batch"] = GaussianMixture(3, random_state=0).fit_batches(own_iris, group=group)
    fits["no row"] = GaussianMixture(3, random_state=0).fit(
        IRIS[: 0 if rank == 0 else None], group=group
    )
    fits["mixed"] = MixtureModel(2, families=FAMILIES, random_state=0).fit(mixed, group=group)
    generator = np.random.RandomState(7)
    fits["generator"] = GaussianMixture(3, init_params="random", random_state=generator).fit(
        X, group=group
    )
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


class _Unlike(list[float]):
    """A weights_init that is promised to be the same in all processes, but is wrong in the
    second.
    """

    def __init__(self, rank: int) -> None:
        super().__init__([1.0])
        self.rank = rank

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([1.0 - 0.5 * self.rank], dtype)


class _FailsToStep(GaussianMixture):
    """A model whose third M-step fails in the process where it was given 4 in place of 3."""

    def __init__(self, fails: int = 3, max_iter: int = 100) -> None:
        super().__init__(3, tol=0, max_iter=max_iter, random_state=0)
        self.fails, self.steps = fails, 0

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return ["n_components", "tol", "max_iter"]

    def _m_step(self, statistics: Any, previous: Any) -> Any:
        self.steps += 1
        if self.fails == 4 and self.steps == 3:
            raise ArithmeticError("no third step")
        return super()._m_step(statistics, previous)


def _fitted_in_the_first(rank: int) -> GaussianMixture:
    model = GaussianMixture(2, warm_start=True, random_state=0)
    return model.fit(IRIS) if rank == 0 else model


def _failures(rank: int, group: Any) -> dict[str, str]:
    """Return the error that each process gets when something is wrong in the second process
    alone.
    """
    bad, narrow = IRIS.copy(), IRIS[:, : 4 - rank]
    bad[3, 3] = np.inf if rank == 1 else 0.0
    calls = {
        "infinite": lambda: GaussianMixture(3).fit(bad, group=group),
        "infinite batch": lambda: GaussianMixture(3).fit_batches([IRIS, bad], group=group),
        "columns": lambda: GaussianMixture(3).fit(narrow, group=group),
        "setting": lambda: GaussianMixture(3 - 3 * rank).fit(IRIS, group=group),
        "pass": lambda: GaussianMixture(3).fit_batches(_Breaks(rank), group=group),
        "start": lambda: GaussianMixture(2, reg_covar=0).fit(np.ones((5, 2)), group=group),
        "weights_init": lambda: GaussianMixture(2, weights_init=[0.5, 0.5 - 0.1 * rank]).fit(
            IRIS, group=group
        ),
        "bad weights_init": lambda: GaussianMixture(1, weights_init=_Unlike(rank)).fit(
            IRIS, group=group
        ),
        "warm": lambda: _fitted_in_the_first(rank).fit(IRIS, group=group),
        "components": lambda: GaussianMixture(2 + rank).fit(IRIS, group=group),
        "tol": lambda: GaussianMixture(2, tol=10.0**-rank).fit(IRIS, group=group),
        "m-step": lambda: _FailsToStep(3 + rank).fit(IRIS, group=group),
        "last m-step": lambda: _FailsToStep(3 + rank, max_iter=3).fit(IRIS, group=group),
    }
    errors = {}
    for name, call in calls.items():
        try:
            call()
            errors[name] = "none"
        except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def _count_reductions(rank: int, group: Any) -> tuple[int, int]:
    """Return the numbers of all-reduces and of iterations of a fit."""
    calls, real = [], dist.all_reduce

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return real(*args, **options)

    dist.all_reduce = counted
    model = GaussianMixture(3, random_state=0).fit(IRIS[rank::2], group=group)
    dist.all_reduce = real
    return len(calls), model.n_iter_


def _work(folder: str) -> None:
    """Do the work of one process."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
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


def _run(*arguments: str) -> str:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments)
    done = python(*command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of the two processes."""
    folder = tmp_path_factory.mktemp("processes")
    _run("-m", __name__, str(folder))
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def _arrays(model: Any) -> list[np.ndarray]:
    if isinstance(model, GaussianEstimator):
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
    pairs = [
        (processes[0]["fits"][name], processes[1]["fits"][name]) for name in processes[0]["fits"]
    ]
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
        assert first[name].startswith(
            "RuntimeError: process 1 of the group failed: Input X contains infinity"
        )
    assert first["columns"] == second["columns"]
    assert "the same number of columns in every process; got [3, 4]" in first["columns"]
    assert "n_components must be an integer >= 1; got 0" in first["setting"]
    assert second["setting"].startswith("ValueError: n_components")
    assert first["pass"].startswith("RuntimeError: another process of the group failed")
    assert second["pass"] == "OSError: the disk is gone"
    assert first["start"].startswith("ValueError")
    assert second["start"].startswith("RuntimeError: process 0 of the group failed")
    for name, message in (
        (
            "weights_init",
            "weights_init must be the same in every process of the group; "
            "got [0.5, 0.5], [0.5, 0.4]",
        ),
        (
            "warm",
            "being fitted already, with warm_start, must be the same in every process of the "
            "group; got True, False",
        ),
        ("components", "n_components must be the same in every process of the group; got 2, 3"),
        ("tol", "tol must be the same in every process of the group; got 1.0, 0.1"),
    ):
        assert first[name] == second[name] == f"ValueError: {message}"
    assert first["bad weights_init"].startswith(
        "RuntimeError: process 1 of the group failed: weights_init must have"
    )
    assert second["bad weights_init"].startswith("ValueError: weights_init must have")
    assert second["m-step"] == second["last m-step"] == "ArithmeticError: no third step"
    assert first["m-step"].startswith("RuntimeError: another process of the group failed")
    assert first["last m-step"] == "RuntimeError: process 1 of the group failed: no third step"


def test_sums_go_through_a_device_that_the_group_has() -> None:
    assert device_types("cpu:gloo,cuda:nccl") == {"cpu", "cuda"}
    assert device_types("cuda:nccl") == {"cuda"}


if __name__ == "__main__":
    _work(sys.argv[1])
