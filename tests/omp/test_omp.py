"""Orthogonal matching pursuit: every backend finds scikit-learn's codes, and ends a row at the
right time.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import latent_kernels as lk
from latent_kernels.kernels import _core, backends
from tests.processes import run_forked

Tensor = torch.Tensor
encode = lk.orthogonal_matching_pursuit
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_backend = pytest.mark.parametrize("backend", ["cpp", "reference"])
# rows, features, components, atoms: odd ones, one of each, more atoms than a register has lanes
SIZES = [
    (7, 20, 33, 5),
    (1, 1, 1, 1),
    (5, 1, 17, 1),
    (3, 40, 1, 1),
    (9, 60, 64, 25),
    (2, 90, 48, 40),
]


def problem(
    rows: int, features: int, components: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return rows and a dictionary whose atoms have norms between 1/2 and 2."""
    generator = torch.Generator().manual_seed(100 * rows + 10 * features + components)
    d = torch.randn(components, features, generator=generator, dtype=torch.float64)
    d *= (0.5 + 1.5 * torch.rand(components, 1, generator=generator)) / d.norm(dim=1, keepdim=True)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return x.to(dtype), d.to(dtype)


def scikit_learns(x: Tensor, d: Tensor, **options: Any) -> Tensor:
    x, d = x.double(), d.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the warning that it ended early
        found = orthogonal_mp_gram((d @ d.T).numpy(), (d @ x.T).numpy(), **options)
    return torch.from_numpy(found.reshape(len(d), len(x)).T)


def forced(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", f"omp={backend}")
    backends.forget()


# --- the codes ------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("simd_build")
def test_codes_are_scikit_learns(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, d = problem(*size[:3], dtype)
    codes = encode(x, d, n_nonzero_coefs=size[3])
    expected = scikit_learns(x, d, n_nonzero_coefs=size[3])
    assert codes.dtype == dtype
    assert bool(((codes != 0) == (expected != 0)).all())
    # least squares over many atoms is as good as its condition lets it be
    assert torch.allclose(codes.double(), expected, atol=5e4 * torch.finfo(dtype).eps)


@every_backend
@every_dtype
def test_a_row_ends_by_its_squared_residual(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, backend: str
) -> None:
    forced(monkeypatch, backend)
    x, d = problem(30, 20, 40, dtype)
    squares = x.double().square().sum(-1)
    for tol in (0.05, 3.0, 30.0):
        codes = encode(x, d, tol=tol)
        expected = scikit_learns(x, d, tol=tol, norms_squared=squares.numpy())
        expected[squares <= tol] = 0  # scikit-learn looks at the residual after the first atom
        assert bool(((codes != 0) == (expected != 0)).all())
        assert torch.allclose(codes.double(), expected, atol=1e4 * torch.finfo(dtype).eps)
    assert set((encode(x, d, tol=30.0) != 0).sum(-1).tolist()) >= {0, 1}
    # what comes first ends it
    both, few = encode(x, d, tol=3.0, n_nonzero_coefs=2), encode(x, d, n_nonzero_coefs=2)
    enough = (encode(x, d, tol=3.0) != 0).sum(-1) <= 2
    assert torch.equal(both[~enough], few[~enough])
    assert torch.equal(both[enough], encode(x, d, tol=3.0)[enough])


@every_backend
@every_dtype
def test_more_atoms_than_can_help_end_early(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, backend: str
) -> None:
    """A row ends early when more atoms cannot help: rows made of three atoms, a dictionary with
    twins and of rank 6, and one feature too many.
    """
    forced(monkeypatch, backend)
    _, d = problem(1, 40, 10, dtype)
    weights = torch.tensor([[1.0, -2, 3], [2, 2, 1]], dtype=dtype)
    codes = encode(weights @ d[:3], d, n_nonzero_coefs=9)
    assert torch.allclose(codes[:, :3], weights, atol=100 * torch.finfo(dtype).eps)
    assert not codes[:, 3:].any()
    x, d = problem(12, 6, 9, dtype)
    d = torch.cat([d, d[:4], -2 * d[4:6]])
    codes = encode(x, d, n_nonzero_coefs=15)
    assert bool(((codes != 0).sum(-1) == 6).all())
    # as good as its dtype and the condition of the atoms that it chose
    assert torch.allclose(codes @ d, x, atol=1e3 * torch.finfo(dtype).eps)


@every_backend
def test_units_do_not_matter(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The results scale with the units, where scikit-learn compares with a fixed number and finds
    nothing.
    """
    forced(monkeypatch, backend)
    x, d = problem(5, 20, 33)
    codes = encode(x, d, n_nonzero_coefs=4)
    for unit in (2.0**-40, 2.0**40):
        assert torch.equal(encode(unit * x, d, n_nonzero_coefs=4), unit * codes)
        assert torch.equal(encode(x, unit * d, n_nonzero_coefs=4), codes / unit)


@every_backend
def test_rows_and_atoms_of_zeros_and_rows_that_are_lost(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    forced(monkeypatch, backend)
    x, d = problem(6, 20, 33, torch.float32)
    d[[0, 32]] = 0
    x[1], x[2, 3], x[4, 19] = 0, math.nan, math.inf
    codes = encode(x, d, n_nonzero_coefs=3)
    assert not codes[1].any()
    assert bool(codes[[2, 4]].isnan().all())
    assert bool((codes[[0, 3, 5]] != 0).sum(-1).eq(3).all())
    assert not codes[[0, 3, 5]][:, [0, 32]].any()
    assert not encode(x[:1], torch.zeros(4, 20)).any()
    huge = encode(torch.full((1, 20), 1e30), 1e-15 * d)  # codes of 1e45
    assert bool(huge.isnan().all())


def test_the_first_of_equal_atoms_is_chosen() -> None:
    x, d = problem(4, 20, 40)
    twins = torch.cat([d, d, -d])
    codes = encode(x, twins, n_nonzero_coefs=5)
    assert not codes[:, 40:].any()
    assert torch.equal(codes[:, :40], encode(x, d, n_nonzero_coefs=5))


def test_number_of_atoms_by_default() -> None:
    for features, components, atoms in ((60, 80, 6), (5, 80, 1), (60, 4, 4)):
        codes = encode(*problem(3, features, components))
        assert bool(((codes != 0).sum(-1) == atoms).all())


@every_dtype
def test_bits_depend_on_the_row_alone(dtype: torch.dtype) -> None:
    x, d = problem(201, 30, 70, dtype)
    expected = None
    for build in _core.simd_builds():
        for threads in (1, 3):
            assert _core.select_simd_build(build)
            torch.set_num_threads(threads)
            codes = encode(x, d, n_nonzero_coefs=9)
            expected = codes if expected is None else expected
            assert torch.equal(codes, expected)
    assert torch.equal(encode(x[17:18], d, n_nonzero_coefs=9), codes[17:18])


# --- callers --------------------------------------------------------------------------------------


def test_shapes_dtypes_and_arrays() -> None:
    x, d = problem(6, 20, 33)
    codes = encode(x, d, n_nonzero_coefs=3)
    assert torch.equal(encode(x[0], d, n_nonzero_coefs=3), codes[0])
    assert torch.equal(encode(x.view(2, 3, 20), d, n_nonzero_coefs=3), codes.view(2, 3, 33))
    assert encode(x[:0], d).shape == (0, 33)
    assert torch.equal(encode(x.T.contiguous().T, d.T.contiguous().T, n_nonzero_coefs=3), codes)
    for dtype in (torch.float16, torch.bfloat16):
        half = encode(x.to(dtype), d.to(dtype), n_nonzero_coefs=3)
        wide = encode(x.to(dtype).float(), d.to(dtype).float(), n_nonzero_coefs=3)
        assert torch.equal(half, wide.to(dtype))
    X, D = x.numpy()[::-1], d.numpy()
    X.flags.writeable = D.flags.writeable = False
    found = encode(X, D, n_nonzero_coefs=np.int32(3))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found[::-1], codes.numpy())
    whole = encode(np.eye(3, dtype=int), np.eye(3, dtype=int))
    np.testing.assert_array_equal(whole, np.eye(3))
    assert whole.dtype == np.float64


def test_torch_transforms() -> None:
    x, d = problem(6, 20, 33)
    expected = encode(x, d, n_nonzero_coefs=3)
    assert not encode(x.requires_grad_(), d, n_nonzero_coefs=3).requires_grad
    x = x.detach()
    assert torch.equal(torch.vmap(lambda r: encode(r, d, n_nonzero_coefs=3))(x), expected)
    with FakeTensorMode() as mode:
        assert encode(mode.from_tensor(x).half(), mode.from_tensor(d).half()).shape == (6, 33)
    arguments = (x, d, 3, -math.inf)
    name = torch.ops.latent_kernels.orthogonal_matching_pursuit
    assert set(opcheck(name, (*arguments, [True])).values()) == {"SUCCESS"}
    compiled = torch.compile(
        lambda a, b: 2 * encode(a, b, n_nonzero_coefs=3), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x, d), 2 * expected)


def test_fork_after_use() -> None:
    run_forked("""
import os, torch, numpy as np, latent_kernels as lk
torch.set_num_threads(3)
X, D = np.random.default_rng(0).standard_normal((2000, 30)), np.eye(30)
expected = lk.orthogonal_matching_pursuit(X, D, n_nonzero_coefs=5)
pid = os.fork()
if pid == 0:
    same = np.array_equal(lk.orthogonal_matching_pursuit(X, D, n_nonzero_coefs=5), expected)
    os._exit(0 if same else 1)
assert os.waitpid(pid, 0)[1] == 0
""")


# --- bad input ------------------------------------------------------------------------------------

X, D = torch.ones(4, 5), torch.eye(3, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], D), {}, TypeError, r"x must be a torch.Tensor; got list"),
        ((X, D[0]), {}, ValueError, r"dictionary must have shape .*got \(5,\)"),
        ((X, D[:, :4]), {}, ValueError, "x must have the dictionary's n_features"),
        ((X, D * math.inf), {}, ValueError, "dictionary must be finite"),
        ((X, D * 1e-30), {}, ValueError, "dictionary must have rows whose squared norm is 0 or"),
        ((X, D), {"n_nonzero_coefs": 0}, ValueError, "n_nonzero_coefs must be an int >= 1"),
        ((X, D), {"n_nonzero_coefs": 2.0}, TypeError, "n_nonzero_coefs must be an int >= 1"),
        ((X, D), {"n_nonzero_coefs": True}, TypeError, "n_nonzero_coefs must be an int >= 1"),
        ((X, D), {"tol": -1.0}, ValueError, "tol must be a number >= 0"),
        ((X, D), {"tol": math.nan}, ValueError, "tol must be a number >= 0"),
        ((X, D), {"tol": "0"}, TypeError, "tol must be a number >= 0"),
    ],
)
def test_bad_input(
    arguments: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(*arguments, **options)
