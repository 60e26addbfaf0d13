"""The interface of the compiled extension: wrong keywords and types raise errors that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latent_kernels.kernels import _core

OUT = np.empty(8, np.float32)
NOISE: dict[str, Any] = {
    "dtype": _core.Dtype.float32,
    "threads": 1,
    "seed": 1,
    "offset": 0,
    "n": 8,
    "out": OUT.ctypes.data,
}
PROBLEM: dict[str, Any] = {
    "dtype": _core.Dtype.float32,
    "groups": 1,
    "samples": 0,
    "rows": 0,
    "cols": 4,
    "mean": (OUT.ctypes.data, 0, 0, 4),
    "logvar": (OUT.ctypes.data, 0, 0, 4),
    "scale": None,
    "prior_mean": None,
    "prior_logvar": None,
    "seed": 1,
    "offset": 0,
    "dependence": 0,
    "directions": None,
}


def test_order_of_keywords_does_not_matter() -> None:
    _core.normal(**NOISE)
    expected = OUT.copy()
    OUT[:] = 0
    _core.normal(**dict(reversed(NOISE.items())))
    assert np.array_equal(OUT, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 0}, r"normal\(\): 'dtype' must be Dtype, got 0"),
        ({"dtype": _core.Density.gaussian}, r"'dtype' must be Dtype, got <Density.gaussian: 0>"),
        ({"threads": 1.0}, r"'threads' must be int, got 1.0"),
        ({"threads": 2**40}, r"'threads' must be int, got 1099511627776"),
        ({"n": None}, r"'n' must be int, got None"),
        ({"seed": -1}, r"'seed' must be int, got -1"),
        ({"out": OUT}, r"'out' must be an address \(int\) or None, got array"),
        ({"size": 8}, r"normal\(\) has no argument 'size'"),
    ],
)
def test_a_wrong_argument_of_a_function(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _core.normal(**{**NOISE, **change})


def test_every_argument_is_needed() -> None:
    for name in NOISE:
        with pytest.raises(TypeError, match=rf"normal\(\) lacks the argument '{name}'"):
            _core.normal(**{k: v for k, v in NOISE.items() if k != name})
    with pytest.raises(TypeError, match=r"normal\(\) takes 0 positional arguments, got 1"):
        _core.normal(1, **NOISE)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": OUT.ctypes.data}, r"GaussianProblem\(\): 'mean' must be \(address, group"),
        ({"mean": (OUT.ctypes.data, 0, 4)}, r"'mean' must be \(address, group stride, sample"),
        ({"logvar": (OUT.ctypes.data, 0, 0, None)}, r"'logvar' must be \(address, group"),
        ({"seed": (OUT.ctypes.data, 1, 0)}, r"'seed' must be int or \(address, stride\)"),
        ({"seed": None}, r"'seed' must be int or \(address, stride\), got None"),
    ],
)
def test_a_wrong_field_of_a_problem(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _core.GaussianProblem(**{**PROBLEM, **change})


def test_a_wrong_problem() -> None:
    problem = _core.GaussianProblem(**PROBLEM)
    _core.gaussian_forward(problem, threads=1, z=None, kl=None, log_q=None)
    with pytest.raises(TypeError, match=r"densities_forward\(\): argument 1 must be DensityProb"):
        _core.densities_forward(problem, threads=1, out=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not safe"):
        object.__new__(_core.GaussianProblem)


def test_tuples_have_a_longest_length() -> None:
    given = {"density": _core.Density.gaussian, "dtype": _core.Dtype.float32, "groups": 0}
    given |= {"samples": 0, "rows": 0, "cols": 0}
    _core.DensityProblem(**given, inputs=(None, None))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'inputs' must be tuple of at most 3, each \(address"):
        _core.DensityProblem(**given, inputs=(None,) * 4)  # type: ignore[arg-type]
