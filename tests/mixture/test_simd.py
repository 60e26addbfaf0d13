"""Registers as a numba type: arithmetic, exp and log against NumPy; and the E-step for every width
of register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from latent_kernels.kernels.mixture import simd, vector_math
from tests.processes import run

FLOATS = [np.float32, np.float64]


@numba.njit
def exps(x, out):
    for i in range(0, len(x), simd.lanes(x)):
        simd.store(out, i, vector_math.exp(simd.load(x, i)))


@numba.njit
def logs(x, out):
    for i in range(0, len(x), simd.lanes(x)):
        simd.store(out, i, vector_math.log(simd.load(x, i)))


@numba.njit
def arithmetic(a, b, c, out):
    for i in range(0, len(a), simd.lanes(a)):
        x, y, z = simd.load(a, i), simd.load(b, i), simd.load(c, i)
        value = (x + y) * z - simd.broadcast(c, 3) / simd.full_like(x, 4.0)
        value = simd.select_less(x, y, value, z)
        simd.store(out, i, simd.select_equal(z, z, value, x))


def apply(function: Callable[..., None], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    padded = np.ones(len(x) + -len(x) % 16, x.dtype)
    padded[: len(x)] = x
    out = np.full_like(padded, 7)
    function(padded, out)
    return out[: len(x)]


def ulps(
    got: np.ndarray[Any, Any], x: np.ndarray[Any, Any], function: Callable[[Any], Any]
) -> float:
    """Return the greatest error in units in the last place of the true value, computed in long
    double.
    """
    true = function(x.astype(np.longdouble))
    return float((abs(got - true) / np.spacing(abs(true).astype(x.dtype))).max())


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp(dtype: type) -> None:
    least = -87 if dtype is np.float32 else -708
    x = np.concatenate([np.linspace(least, 0, 100_001), -np.geomspace(1e-30, 1, 10_000)]).astype(
        dtype
    )
    assert ulps(apply(exps, x), x, np.exp) <= 2
    edges = np.array([0.0, -0.0, least - 0.01, -1e30, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(apply(exps, edges), np.array([1, 1, 0, 0, 0, np.nan], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_log(dtype: type) -> None:
    near_one = 1 + np.concatenate([-np.geomspace(1e-7, 0.3, 1000), np.geomspace(1e-7, 0.5, 1000)])
    x = np.concatenate([np.geomspace(1e-30, 1e30, 100_001), np.arange(1, 1000), near_one]).astype(
        dtype
    )
    # half an ulp each for m + 1, the quotient, the series, two products: 2.5, and the series itself
    assert ulps(apply(logs, x), x, np.log) <= 3
    np.testing.assert_array_equal(
        apply(logs, np.array([1, np.nan], dtype)), np.array([0, np.nan], dtype)
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic(dtype: type) -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 64)).astype(dtype)
    c[5], c[20] = np.nan, np.nan
    out = np.empty(64, dtype)
    arithmetic(a, b, c, out)
    value = np.where(a < b, (a + b) * c - c[3] / dtype(4), c)
    # The compiler may not fuse: these bits are those of separate operations.
    np.testing.assert_array_equal(out, np.where(np.isnan(c), a, value))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_sums_of_registers(dtype: type, count: int) -> None:
    """Sums are exact for small integers, for which every order of addition gives the same bits."""

    @numba.njit
    def one(x, out):
        simd.store_sums(out, 1, (simd.load(x, 0),))

    @numba.njit
    def two(x, out):
        n = simd.lanes(x)
        simd.store_sums(out, 1, (simd.load(x, 0), simd.load(x, n)))

    @numba.njit
    def four(x, out):
        n = simd.lanes(x)
        simd.store_sums(
            out, 1, (simd.load(x, 0), simd.load(x, n), simd.load(x, 2 * n), simd.load(x, 3 * n))
        )

    @numba.njit
    def sixteen(x, out):
        n = simd.lanes(x)
        a, b, c, d = simd.load(x, 0), simd.load(x, n), simd.load(x, 2 * n), simd.load(x, 3 * n)
        e, f, g, h = (
            simd.load(x, 4 * n),
            simd.load(x, 5 * n),
            simd.load(x, 6 * n),
            simd.load(x, 7 * n),
        )
        i, j, k, o = (
            simd.load(x, 8 * n),
            simd.load(x, 9 * n),
            simd.load(x, 10 * n),
            simd.load(x, 11 * n),
        )
        p, q, r, s = (
            simd.load(x, 12 * n),
            simd.load(x, 13 * n),
            simd.load(x, 14 * n),
            simd.load(x, 15 * n),
        )
        simd.store_sums(out, 1, (a, b, c, d, e, f, g, h, i, j, k, o, p, q, r, s))

    lanes = simd.LANES[np.dtype(dtype).itemsize]
    x = np.random.default_rng(count).integers(-100, 100, (16, lanes)).astype(dtype)
    out = np.full(18, 0.5, dtype)
    {1: one, 2: two, 4: four, 16: sixteen}[count](x.ravel(), out)
    np.testing.assert_array_equal(out[1 : count + 1], x.sum(axis=1)[:count])
    assert out[0] == 0.5
    assert (out[count + 1 :] == 0.5).all()


WIDTHS = """
import numpy as np
from latent_kernels.kernels.mixture import numba_cpu, reference, simd
from latent_kernels.mixtures import e_step
print(simd.WIDTH)
rng = np.random.default_rng(0)
for kind, dtype in (("diag", np.float32), ("full", np.float64), ("tied", np.float64)):
    n, d, k = 700, 5, 6
    X = rng.normal(size=(n, d)).astype(dtype)
    if kind == "diag":
        X[300:, 2] = np.nan  # the first tile takes the fast form, the others the direct one
    a = rng.normal(size=(k, d, d))
    s = a @ a.swapaxes(1, 2) / d + 0.3 * np.eye(d)
    covariances = {"full": s, "tied": s[0], "diag": rng.uniform(0.5, 2, (k, d))}[kind]
    weights, means = rng.dirichlet(np.ones(k)), rng.normal(size=(k, d))
    p = e_step.gaussian_parameters(weights, means, covariances, kind, d)
    got = numba_cpu.statistics(X, p, None, False)
    expected = reference.statistics(X, p, None, False)
    # float32: a row's log density is good to some 1e-6, a sum of 700 rows of random errors to
    # better than that
    tolerance = 3e-6 if dtype is np.float32 else 1e-13
    for name, x, y in zip(got._fields, got, expected):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape
        assert abs(x - y).max(initial=0) <= tolerance * (1 + abs(y).max(initial=0)), (kind, name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "features", "width"),
    [("x86-64", "+sse2", 16), ("haswell", "+avx,+avx2,+fma,+sse4.2", 32)],
)
def test_narrower_registers(cpu: str, features: str, width: int) -> None:
    """The tests pass as numba compiles for lesser machines; the other tests run this machine's
    width.
    """
    if width == 32 and simd.WIDTH < 32:
        pytest.skip("this machine has no AVX")
    found = run(WIDTHS, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    assert int(found) == width
