"""E-steps that once failed, or could fail: one bad value among many parts, tight components, far
means, forks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels.mixture import matrix_tasks, parts, reference, task
from latent_kernels.mixtures import e_step
from tests.processes import python, run

ROWS = 300_000  # of two or three columns: many parts


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(task, "WORK_PER_PART", 2**17)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def gaussian(kind: str, size: int = 2) -> tuple[Any, ...]:
    covariances = {
        "full": np.stack([np.eye(size)] * 2),
        "tied": np.eye(size),
        "diag": np.ones((2, size)),
    }
    return (
        [0.4, 0.6],
        np.stack([np.zeros(size), np.ones(size)]),
        covariances.get(kind, np.ones(2)),
        kind,
    )


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("row", [0, ROWS // 2, ROWS - 1])
def test_one_missing_value_among_many_parts(kind: str, row: int) -> None:
    """A missing value is found whichever thread reports it, and the other rows do not change."""
    X = np.random.default_rng(0).normal(size=(ROWS, 2)).astype(np.float32)
    complete = lk.gaussian_e_step(np.delete(X, row, axis=0), *gaussian(kind))
    X[row, 1] = np.nan
    alone = lk.gaussian_e_step(X[row : row + 1], *gaussian(kind))
    for _ in range(5):
        got = lk.gaussian_e_step(X, *gaussian(kind))
        expected = complete + alone
        np.testing.assert_allclose(got.to_vector(), expected.to_vector(), rtol=1e-6, atol=1e-2)
        assert got.counts.sum() == pytest.approx(ROWS, rel=1e-6)
        assert got.observed[:, 1].sum() == pytest.approx(
            ROWS - (kind in ("diag", "spherical")), abs=0.4
        )
    parameters = e_step.gaussian_parameters(*gaussian(kind)[:3], kind, 2)
    density, labels, r = e_step.posterior(
        X, parameters, log_density=True, labels=True, responsibilities=True
    )
    assert density is not None
    assert labels is not None
    assert r is not None
    np.testing.assert_allclose(r.sum(axis=1), 1, atol=1e-5)
    expected_density, expected_r = np.empty(3), np.empty((3, 2))
    some = np.array([row, (row + 1) % ROWS, (row + 7) % ROWS])
    reference.posterior(X[some], parameters, expected_density, None, expected_r)
    np.testing.assert_allclose(density[some], expected_density, atol=1e-5)
    np.testing.assert_allclose(r[some], expected_r, atol=1e-5)
    assert labels[row] == expected_r[0].argmax()


@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_one_bad_value_among_many_parts(row: int) -> None:
    X = np.random.default_rng(0).poisson(2, (ROWS, 2)).astype(np.float64)
    X[row, 1] = -1
    for _ in range(5):
        with pytest.raises(ValueError, match=rf"column 1 of X is 'poisson'.*row {row}"):
            lk.exponential_family_e_step(X, [0.5, 0.5], ["poisson"] * 2, [[1, 3]] * 2)


@pytest.mark.parametrize("kind", ["diag", "spherical", "tied", "full"])
@pytest.mark.parametrize(
    ("dtype", "place", "spread"),
    [
        (np.float32, 30.0, 1e-3),
        (np.float32, 30.0, 5e-3),
        (np.float64, 5e5, 1e-3),
        (np.float64, 1e3, 1e-4),
    ],
)
def test_components_much_tighter_than_their_previous_sigma(
    kind: str, dtype: type, place: float, spread: float
) -> None:
    """The new variance has its digits, not those relative to the much larger old one."""
    rng = np.random.default_rng(0)
    side = np.repeat([-place, place], 2000)[:, None]
    X = (side + spread * rng.normal(size=(4000, 2))).astype(dtype)
    weights, _, covariances, _ = gaussian(kind)
    half = X.astype(np.float64).reshape(2, 2000, 2)
    means = half.mean(axis=1)
    got = lk.gaussian_e_step(X, weights, means, covariances, kind).m_step()
    true = np.einsum("kna,knb->kab", half - means[:, None], half - means[:, None]) / 2000
    expected = {
        "full": true,
        "tied": true.mean(axis=0),
        "diag": np.diagonal(true, axis1=1, axis2=2),
        "spherical": np.trace(true, axis1=1, axis2=2) / 2,
    }[kind]
    # float32: data at 30 have steps of 2e-6, which the truth has too; their sums in tiles lose some
    # 1e-5
    np.testing.assert_allclose(got.covariances, expected, rtol=1e-4, atol=1e-4 * spread**2)


@pytest.mark.parametrize("start", ["ones", "correlated"])
def test_correlated_columns_in_float32_keep_the_digits_of_their_difference(start: str) -> None:
    """A tied covariance of condition 1e6, given or found, keeps its digits: float32 sums would be
    0.3% off.
    """
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(4000, 1)) + 1e-3 * rng.normal(size=(4000, 2))).astype(np.float32)
    expected = np.cov(X.astype(np.float64).T, bias=True)
    covariance = np.eye(2) if start == "ones" else expected
    statistics = lk.gaussian_e_step(X, [1.0], np.zeros((1, 2)), covariance, "tied")
    got = statistics.m_step(reg_covar=0).covariances
    least = [np.linalg.eigvalsh(x)[0] for x in (got, expected)]
    assert least[0] == pytest.approx(least[1], rel=1e-6)


def test_tied_float32_is_computed_in_float32_only_near_one_center() -> None:
    X = np.zeros((1, 2), np.float32)
    correlated = np.array([[1, 1 - 1e-6], [1 - 1e-6, 1]])
    for means, covariance, dtype in (
        (1.0, np.eye(2), np.float32),
        (1000.0, np.eye(2), np.float64),
        (1.0, correlated, np.float64),
    ):
        parameters = e_step.gaussian_parameters(
            [0.5, 0.5], means * np.array([[1.0, 1], [-1, -1]]), covariance, "tied", 2
        )
        assert matrix_tasks.Tied(X, parameters).dtype == dtype
        assert matrix_tasks.Tied(X.astype(np.float64), parameters).dtype == np.float64


def test_tied_covariances_far_from_the_center_are_symmetric() -> None:
    """The covariances of the M-step are symmetric, and the E-step accepts them."""
    rng = np.random.default_rng(2)
    for distance in (1e3, 1e5, 1e8):
        means = distance * rng.normal(size=(4, 5))
        X = means[rng.integers(4, size=2000)] + rng.normal(size=(2000, 5))
        got = lk.gaussian_e_step(X, np.full(4, 0.25), means, np.eye(5), "tied").m_step()
        np.testing.assert_array_equal(got.covariances, got.covariances.T)
        lk.gaussian_e_step(X, *got, "tied")


def test_the_statistics_keep_their_own_anchor() -> None:
    X = np.random.default_rng(0).normal(size=(100, 2)) + 5
    means = np.zeros((1, 2))
    statistics = lk.gaussian_e_step(X, [1.0], means, np.ones((1, 2)))
    means[:] = 99
    np.testing.assert_allclose(statistics.m_step().means[0], X.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-46, 1e-42, 1e-20, 1e20, 1e38])
def test_sample_weights_of_any_scale(scale: float) -> None:
    X = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    w = np.random.default_rng(1).uniform(0.5, 2, 1000)
    one = lk.gaussian_e_step(X, *gaussian("diag"), sample_weight=w)
    got = lk.gaussian_e_step(X, *gaussian("diag"), sample_weight=w * scale)
    np.testing.assert_allclose(
        got.to_vector() / scale, one.to_vector(), rtol=1e-5, atol=1e-5 * one.total_weight
    )


def test_masked_arrays_do_not_lose_their_mask() -> None:
    X = np.ma.masked_array(np.zeros((5, 2)), mask=np.eye(5, 2))
    with pytest.raises(TypeError, match=r"masked array: missing values are NaN"):
        lk.gaussian_e_step(X, *gaussian("diag"))


def test_rows_too_far_for_float32() -> None:
    """Rows too far for float32 are computed in float64, which holds their squares."""
    parameters = e_step.gaussian_parameters(*gaussian("diag")[:3], "diag", 2)
    single = np.array([[0, 0], [1e20, 0]], np.float32)
    for X in (single, single.astype(np.float64)):
        density, _, _ = e_step.posterior(X, parameters, log_density=True)
        assert density is not None
        assert density[1] == pytest.approx(-5e39)
    with pytest.raises(ValueError, match=r"so far from every component .* overflow float32"):
        lk.gaussian_e_step(single, *gaussian("diag"))


def test_hard_is_a_truth_value() -> None:
    X = np.random.default_rng(0).normal(size=(10, 2))
    one = lk.gaussian_e_step(X, *gaussian("diag"), hard=True)
    np.testing.assert_array_equal(
        lk.gaussian_e_step(X, *gaussian("diag"), hard=1).counts, one.counts
    )


# --- threads and processes ------------------------------------------------------------------------


def test_an_interrupt_at_any_moment_ends_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt at any moment ends every thread: one between taking a part and working on it
    must not leave the others waiting.
    """
    original = parts._Run.take
    caller = threading.get_ident()

    def take(self: Any) -> Any:
        part = original(self)
        if threading.get_ident() == caller and part is not None and part >= 1:
            raise KeyboardInterrupt
        return part

    X = np.random.default_rng(0).normal(size=(ROWS, 2))
    monkeypatch.setattr(parts._Run, "take", take)
    with pytest.raises(KeyboardInterrupt):
        lk.gaussian_e_step(X, *gaussian("diag"))
    monkeypatch.setattr(parts._Run, "take", original)
    assert lk.gaussian_e_step(X, *gaussian("diag")).counts.sum() == pytest.approx(
        ROWS
    )  # the pool is free again


START = """
import os, threading
import numpy as np, torch
import latent_kernels as lk
X = np.random.default_rng(0).normal(size=(1000, 2))
def step():
    return lk.gaussian_e_step(X, [0.5, 0.5], np.eye(2), np.ones((2, 2))).counts.sum()
"""


def test_fork_while_another_thread_compiles(tmp_path: Any) -> None:
    code = (
        START
        + """
from numba.core import event
compiling = threading.Event()
class Listener(event.Listener):
    def on_start(self, event): compiling.set()
    def on_end(self, event): pass
event.register("numba:compile", Listener())
thread = threading.Thread(target=step)
thread.start()
assert compiling.wait(600)
child = os.fork()
if child == 0:
    import signal
    signal.alarm(600)
    os._exit(0 if abs(step() - 1000) < 1e-6 else 1)
thread.join()
print(os.waitpid(child, 0)[1])
"""
    )
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "0"


def test_without_a_place_for_the_cache(tmp_path: Any) -> None:
    """Without a place for the cache, as in a read-only installation without a home, kernels are
    compiled anew.
    """
    code = (
        START
        + """
from numba.core import caching
caching.CacheImpl._locator_classes = []
print(step())
"""
    )
    assert float(run(code)) == pytest.approx(1000)


def test_numba_that_is_told_not_to_compile() -> None:
    result = python("-c", START + "step()", NUMBA_DISABLE_JIT="1")
    assert "LATENT_KERNELS_BACKEND=mixture=reference" in result.stderr
