"""Sparse codes: every algorithm and backend reaches scikit-learn's optimum, and the gaps are
bounds.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import latent_kernels as lk
from latent_kernels.kernels import _core, backends
from latent_kernels.kernels.lasso import reference
from tests.processes import run_forked

Tensor = torch.Tensor
ALGORITHMS = ("cd", "fista", "ista")
DTYPES = (torch.float32, torch.float64)
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# rows, features, components: odd ones, one of each, more than a register, fewer features than
# components
SIZES = [
    (7, 20, 33),
    (1, 1, 1),
    (5, 1, 17),
    (3, 40, 1),
    (9, 30, 64),
    (4, 16, 100),
    (2, 70, 48),
    (6, 3, 5),
]


def problem(
    rows: int, features: int, components: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return rows x and a dictionary whose atoms have norms between 1/2 and 2."""
    generator = torch.Generator().manual_seed(1000 * rows + 100 * features + components)
    d = torch.randn(components, features, generator=generator, dtype=torch.float64)
    d *= (0.5 + 1.5 * torch.rand(components, 1, generator=generator, dtype=torch.float64)) / d.norm(
        dim=1, keepdim=True
    )
    codes = torch.randn(rows, components, generator=generator, dtype=torch.float64)
    codes *= torch.rand(rows, components, generator=generator) < 0.2
    x = codes @ d + 0.1 * torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return x.to(dtype), d.to(dtype)


def objective(x: Tensor, d: Tensor, z: Tensor, alpha: float | Tensor) -> Tensor:
    x, d, z = x.double(), d.double(), z.double()
    return 0.5 * (x - z @ d).square().sum(-1) + alpha * z.abs().sum(-1)


def optimum(
    x: Tensor, d: Tensor, alpha: float, positive: bool = False, tol: float = 1e-14
) -> Tensor:
    """Return the objective values of scikit-learn's solution, whose loss is divided by the number
    of its samples.
    """
    n = d.size(1)
    model = Lasso(
        alpha=alpha / n, fit_intercept=False, tol=tol, max_iter=1_000_000, positive=positive
    )
    z = torch.stack(
        [torch.from_numpy(model.fit(d.double().T.numpy(), row.double().numpy()).coef_) for row in x]
    )
    return objective(x, d, z, alpha)


def forced(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", f"lasso={backend}")
    backends.forget()


def bits(*tensors: Tensor) -> bytes:
    return b"".join(t.contiguous().numpy().tobytes() for t in tensors)


def check(
    x: Tensor,
    d: Tensor,
    alpha: float,
    codes: Tensor,
    gap: Tensor,
    best: Tensor,
    positive: bool = False,
) -> None:
    """Check that the objective is as near the optimum as the tolerance asks, and that the gap is no
    less than the distance left.
    """
    start = 0.5 * x.double().square().sum(-1)
    above = objective(x, d, codes, alpha) - best
    assert bool(
        (above <= 1e-6 * (best if x.dtype == torch.float64 else start) + 1e-13 * start).all()
    ), above / best
    # the best known is itself only so good: rounding of the objective, and scikit-learn's own gap
    assert bool((gap.double() >= above - 1e-13 * start).all()), float((gap - above).min())
    if positive:
        assert bool((codes >= 0).all())


# --- the optimum ----------------------------------------------------------------------------------


@every_algorithm
@every_dtype
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("simd_build")
def test_optimum(
    size: tuple[int, int, int], positive: bool, dtype: torch.dtype, algorithm: str
) -> None:
    x, d = problem(*size, dtype)
    alpha, tol = 0.1, 1e-9 if dtype == torch.float64 else 1e-6
    z, gap = lk.sparse_encode(
        x,
        d,
        algorithm=algorithm,
        alpha=alpha,
        positive=positive,
        tol=tol,
        max_iter=30_000,
        return_gap=True,
    )
    assert z.dtype == gap.dtype == dtype
    reached = gap <= tol * 0.5 * x.double().square().sum(-1) * (1 + 1e-6)
    if algorithm != "ista":  # whose steps are many where atoms are alike
        assert bool((gap <= 2 * tol * 0.5 * x.double().square().sum(-1)).all())
    best = optimum(x, d, alpha, positive)
    check(x[reached], d, alpha, z[reached], gap[reached], best[reached], positive)
    assert bool((gap.double() >= objective(x, d, z, alpha) - best - 1e-13).all())


@every_algorithm
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_backends_agree(monkeypatch: pytest.MonkeyPatch, backend: str, algorithm: str) -> None:
    """The minimum is unique here, and the gap bounds the distance: ||z D - z* D||^2 <= 2 gap."""
    forced(monkeypatch, backend)
    x, d = problem(6, 40, 24)
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "alpha": 0.2,
        "max_iter": 20_000,
        "return_gap": True,
    }
    for positive in (False, True):
        z, gap = lk.sparse_encode(x, d, tol=1e-12, positive=positive, **options)
        best = optimum(x, d, 0.2, positive)
        check(x, d, 0.2, z, gap, best, positive)
        assert bool((gap <= 1e-12 * 0.5 * x.square().sum(-1)).all())
        single, _ = lk.sparse_encode(x.float(), d.float(), positive=positive, **options)
        assert torch.allclose(single.double(), z, atol=5e-3)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str
)
def test_hard_problems(dtype: torch.dtype) -> None:
    """Correlated atoms, twins among them, and supports too large for a working set are solved."""
    tol = 1e-10 if dtype == torch.float64 else 1e-6
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(1, 60, generator=generator, dtype=torch.float64)
    d = common + 0.3 * torch.randn(80, 60, generator=generator, dtype=torch.float64)
    d = torch.cat([d, d[:8], -d[:4]]).to(dtype)
    x = torch.randn(5, 60, generator=generator, dtype=torch.float64).to(dtype)
    for alpha in (1.0, 0.03):
        z, gap = lk.sparse_encode(
            x, d, algorithm="cd", alpha=alpha, tol=tol, max_iter=100_000, return_gap=True
        )
        check(x, d, alpha, z, gap, optimum(x, d, alpha, tol=1e-10))
        # what float32 can tell of correlations whose Gram matrix has an eigenvalue in the thousands
        assert bool(
            (gap <= (tol if dtype == torch.float64 else 1e-4) * 0.5 * x.square().sum(-1)).all()
        )
    x, d = problem(2, 500, 400, dtype)
    z, gap = lk.sparse_encode(
        x, d, algorithm="cd", alpha=1e-3, tol=tol, max_iter=100_000, return_gap=True
    )
    assert bool(((z != 0).sum(-1) > 256).all())
    check(x, d, 1e-3, z, gap, optimum(x, d, 1e-3, tol=1e-10))


@every_dtype
@pytest.mark.usefixtures("simd_build")
def test_gap_of_any_codes(dtype: torch.dtype) -> None:
    """max_iter=0 returns init with its gap, which is a bound for any init and nearly tight at the
    optimum.
    """
    x, d = problem(8, 20, 33, dtype)
    best = optimum(x, d, 0.1)
    near = lk.sparse_encode(x.double(), d.double(), algorithm="cd", alpha=0.1, tol=1e-15)
    for scale in (0.0, 1e-12, 1e-7, 1e-3, 1.0, 100.0):
        init = (near + scale * torch.randn_like(near)).to(dtype)
        for positive in (False, True):
            init = init.abs() if positive else init
            z, gap = lk.sparse_encode(
                x, d, alpha=0.1, init=init, max_iter=0, positive=positive, return_gap=True
            )
            assert torch.equal(z, init)
            above = objective(x, d, z, 0.1) - (optimum(x, d, 0.1, True) if positive else best)
            assert bool((gap.double() >= above - 1e-13 * 0.5 * x.double().square().sum(-1)).all())
            expected = reference.duality_gap(
                x, d, torch.full((8,), 0.1, dtype=torch.float64), init, positive
            )
            assert torch.allclose(gap.double(), expected, rtol=1e-6, atol=1e-12)


def exact(t: Tensor) -> list[Any]:
    return [exact(row) if row.dim() else Fraction(row.item()) for row in t]


def solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction] | None:
    """Solve a linear system by Gauss and Jordan; return None where the matrix is singular."""
    n, rows = len(right), [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for j in range(n):
        pivot = next((i for i in range(j, n) if rows[i][j] != 0), None)
        if pivot is None:
            return None
        rows[j], rows[pivot] = rows[pivot], rows[j]
        rows[j] = [v / rows[j][j] for v in rows[j]]
        for i in set(range(n)) - {j}:
            rows[i] = [v - rows[i][j] * w for v, w in zip(rows[i], rows[j], strict=True)]
    return [row[n] for row in rows]


def exact_objective(
    x: list[Fraction], d: list[list[Fraction]], z: list[Fraction], alpha: Fraction
) -> Fraction:
    r = [v - sum(c * atom[f] for c, atom in zip(z, d, strict=True)) for f, v in enumerate(x)]
    return sum((v * v for v in r), Fraction()) / 2 + alpha * sum(abs(c) for c in z)


def exact_minimum(
    x: list[Fraction], d: list[list[Fraction]], alpha: Fraction, positive: bool
) -> Fraction:
    """Return the least objective over the stationary points of all patterns of signs: the optimum
    is one of them.
    """
    best = exact_objective(x, d, [Fraction()] * len(d), alpha)
    for signs in product((0, 1) if positive else (-1, 0, 1), repeat=len(d)):
        chosen = [k for k, sign in enumerate(signs) if sign]
        gram = [
            [sum((a * b for a, b in zip(d[i], d[j], strict=True)), Fraction()) for j in chosen]
            for i in chosen
        ]
        right = [
            sum((a * b for a, b in zip(d[i], x, strict=True)), Fraction()) - alpha * signs[i]
            for i in chosen
        ]
        found = solve(gram, right)
        if found is None or any(c * signs[k] < 0 for k, c in zip(chosen, found, strict=True)):
            continue
        z = [Fraction()] * len(d)
        for k, c in zip(chosen, found, strict=True):
            z[k] = c
        best = min(best, exact_objective(x, d, z, alpha))
    return best


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 2), (2, 2), (2, 3), (3, 2)], ids=str)
def test_gap_is_a_bound_without_tolerance(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], alpha: float, backend: str
) -> None:
    """The gap is a bound in exact arithmetic, near least squares: r is little but rounding there,
    and the dual's scale s many times 1.
    """
    forced(monkeypatch, backend)
    rows, (features, components) = 24 if max(size) > 1 else 200, size
    x, d = problem(rows, features, components)
    near = x @ torch.linalg.pinv(d)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(near.shape, generator=generator, dtype=near.dtype)
    for scale, positive in ((0.0, False), (0.0, True), (1e-15, False), (1e-9, False)):
        init = near * (1 + scale * noise)
        init = init.clamp(min=0) if positive else init
        for max_iter in (0, 30):
            z, gap = lk.sparse_encode(
                x,
                d,
                algorithm="cd",
                alpha=alpha,
                tol=0,
                max_iter=max_iter,
                init=init,
                positive=positive,
                return_gap=True,
            )
            for row, codes, bound in zip(exact(x), exact(z), exact(gap), strict=True):
                a, atoms = Fraction(alpha), exact(d)
                above = exact_objective(row, atoms, codes, a) - exact_minimum(
                    row, atoms, a, positive
                )
                assert 0 <= above <= bound, float(bound / above)


@every_dtype
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("positive", [False, True])
def test_norms_of_atoms_do_not_matter_to_gradient_steps(
    monkeypatch: pytest.MonkeyPatch, positive: bool, backend: str, dtype: torch.dtype
) -> None:
    """Gradient steps solve for atoms with norms of 1 to 100; steps of one length would hardly move
    their codes.
    """
    forced(monkeypatch, backend)
    x, d = problem(6, 40, 60)
    d *= torch.logspace(0, 2, 60, dtype=torch.float64)[:, None] / d.norm(dim=1, keepdim=True)
    x, d = x.to(dtype), d.to(dtype)
    best = optimum(x, d, 1.0, positive)
    options: dict[str, Any] = {"alpha": 1.0, "positive": positive, "return_gap": True}
    z, gap = lk.sparse_encode(x, d, algorithm="fista", **options)
    check(x, d, 1.0, z, gap, best, positive)
    near = 1e-6 if dtype == torch.float64 else 1e-5  # float32 has no more digits
    assert bool((gap <= near * 0.5 * x.double().square().sum(-1)).all())
    far, _ = lk.sparse_encode(x, d, algorithm="ista", **options)
    assert bool((objective(x, d, far, 1.0) <= 1.05 * best).all())


def test_norms_of_atoms_may_be_any_beside_each_other() -> None:
    """Norms from 1e-6 to 5e5 side by side are solved: only the largest atoms are worth their part
    of the l1 norm.
    """
    x, d = problem(5, 20, 40)
    d /= d.norm(dim=1, keepdim=True)
    powers = 2.0 ** torch.arange(-20, 20, dtype=torch.float64)[:, None]
    z, gap = lk.sparse_encode(x, d * powers, alpha=1e-7, max_iter=50, return_gap=True)
    assert bool(gap.isfinite().all())
    best = lk.sparse_encode(x, d * powers, algorithm="lasso_lars", alpha=1e-7)
    start = 0.5 * x.square().sum(-1)
    above = objective(x, d * powers, z, 1e-7) - objective(x, d * powers, best, 1e-7)
    assert bool((above <= 0.05 * start).all())
    assert bool((gap >= above - 1e-13 * start).all())


@every_algorithm
def test_rows_that_are_not_done_are_warned_of(algorithm: str) -> None:
    x, d = problem(7, 20, 33)
    x[2] = 0  # done at once
    message = r"codes of 6 of 7 rows are not within tol = 1e-06 .* max_iter = 1 iterations of '"
    options: dict[str, Any] = {"algorithm": algorithm, "alpha": 0.01, "max_iter": 1}
    for dtype in (torch.float64, torch.float32):
        with pytest.warns(ConvergenceWarning, match=message + algorithm) as seen:
            lk.sparse_encode(x.to(dtype), d.to(dtype), **options)
        assert [w.filename for w in seen] == [__file__]
        # one who is given the gaps can look, and what is no iteration is no attempt
        lk.sparse_encode(x.to(dtype), d.to(dtype), return_gap=True, **options)
        lk.sparse_encode(x.to(dtype), d.to(dtype), **{**options, "max_iter": 0})
    with pytest.warns(ConvergenceWarning, match=message):
        lk.sparse_encode(x.numpy(), d.numpy(), **options)


@every_algorithm
def test_max_iter_is_honoured(algorithm: str) -> None:
    x, d = problem(9, 30, 64)
    gaps = [
        lk.sparse_encode(x, d, algorithm=algorithm, alpha=0.05, tol=0, max_iter=n, return_gap=True)[
            1
        ].sum()
        for n in (0, 1, 10, 100)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]


@pytest.mark.parametrize("algorithm", ["cd", "fista"])
def test_tolerance_beyond_the_dtype_ends(algorithm: str) -> None:
    x, d = problem(9, 30, 64, torch.float32)
    z, gap = lk.sparse_encode(
        x, d, algorithm=algorithm, alpha=0.1, tol=0, max_iter=3000, return_gap=True
    )
    assert bool((gap < 3e-6 * x.square().sum(-1)).all())
    assert bool(z.isfinite().all())


@every_algorithm
def test_warm_start(algorithm: str) -> None:
    """From the solution nothing moves; from a near point it takes fewer iterations."""
    x, d = problem(9, 30, 64)
    options: dict[str, Any] = {"algorithm": algorithm, "alpha": 0.1, "return_gap": True}
    z, gap = lk.sparse_encode(x, d, max_iter=50_000, **options)
    again, same = lk.sparse_encode(x, d, init=z, **options)
    assert torch.equal(again, z)
    assert torch.equal(same, gap)
    near = z + 1e-4 * torch.randn_like(z) * (z != 0)
    options |= {"max_iter": 3, "tol": 0.0}
    assert (
        lk.sparse_encode(x, d, init=near, **options)[1].sum()
        < lk.sparse_encode(x, d, **options)[1].sum()
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of ista
@every_algorithm
def test_alpha_of_each_row(algorithm: str) -> None:
    x, d = problem(6, 20, 33)
    alpha = torch.tensor([0.05, 0.1, 0.3, 1.0, 10.0, 1e4])
    z, gap = lk.sparse_encode(x, d, algorithm=algorithm, alpha=alpha, return_gap=True)
    for i, a in enumerate(alpha.double().tolist()):
        assert torch.equal(lk.sparse_encode(x[i], d, algorithm=algorithm, alpha=a), z[i])
    assert bool((z[4:] == 0).all())
    assert bool((gap[4:] < 1e-12).all())
    columns = lk.sparse_encode(x.reshape(2, 3, 20), d, algorithm=algorithm, alpha=alpha[:2, None])
    assert torch.equal(
        columns[0, 1], lk.sparse_encode(x[1], d, algorithm=algorithm, alpha=alpha[0])
    )


def test_alpha_zero_is_least_squares() -> None:
    x, d = problem(4, 40, 10)
    z, gap = lk.sparse_encode(x, d, algorithm="cd", alpha=0.0, return_gap=True)
    assert torch.allclose(z, torch.linalg.lstsq(d.T, x.T).solution.T, atol=1e-8)
    assert bool((gap >= 0.5 * (x - z @ d).square().sum(-1)).all())


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    features=st.integers(1, 40),
    components=st.integers(1, 70),
    algorithm=st.sampled_from(ALGORITHMS),
    dtype=st.sampled_from(DTYPES),
    alpha=st.floats(1e-2, 3.0),
    positive=st.booleans(),
)
def test_every_shape(
    rows: int,
    features: int,
    components: int,
    algorithm: str,
    dtype: torch.dtype,
    alpha: float,
    positive: bool,
) -> None:
    """Every shape is solved: the gap bounds the distance of any codes from a tight solution in
    float64, which hardly moves the minimum.
    """
    x, d = problem(rows, features, components, dtype)
    options: dict[str, Any] = {"alpha": alpha, "positive": positive, "return_gap": True}
    z, gap = lk.sparse_encode(x, d, algorithm=algorithm, max_iter=500, **options)
    best, left = lk.sparse_encode(
        x.double(), d.double(), algorithm="cd", tol=1e-14, max_iter=20_000, **options
    )
    start = 0.5 * x.double().square().sum(-1)
    above = objective(x, d, z, alpha) - objective(x, d, best, alpha)
    assert z.shape == (rows, components)
    assert bool((gap.double() >= above - 1e-14 * start).all())
    assert bool((above >= -left - 1e-14 * start).all())


# --- what a row's result depends on ---------------------------------------------------------------


@every_algorithm
@every_dtype
def test_bits_depend_on_the_row_alone(dtype: torch.dtype, algorithm: str) -> None:
    """The bits of a row do not depend on threads, on the other rows of the batch, on strides or on
    the SIMD build.
    """
    x, d = problem(203, 30, 65, dtype)
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "alpha": 0.1,
        "max_iter": 200,
        "return_gap": True,
    }
    torch.set_num_threads(1)
    expected = lk.sparse_encode(x, d, **options)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert bits(*lk.sparse_encode(x, d, **options)) == bits(*expected)
    for rows in (slice(0, 1), slice(7, 12), slice(50, 203, 3)):
        part = lk.sparse_encode(x[rows], d, **options)
        assert bits(*part) == bits(*(t[rows] for t in expected))
    for build in _core.simd_builds():
        _core.select_simd_build(build)
        assert bits(*lk.sparse_encode(x, d, **options)) == bits(*expected)
    wide_x, wide_d = torch.zeros(30, 406, dtype=dtype), torch.zeros(65, 60, dtype=dtype)
    wide_x[:, ::2], wide_d[:, 1::2] = x.T, d
    assert bits(*lk.sparse_encode(wide_x[:, ::2].T, wide_d[:, 1::2], **options)) == bits(*expected)


@every_algorithm
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_in_its_row(
    monkeypatch: pytest.MonkeyPatch, bad: float, backend: str, algorithm: str
) -> None:
    forced(monkeypatch, backend)
    x, d = problem(9, 30, 64)
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "alpha": 0.1,
        "max_iter": 50,
        "return_gap": True,
    }
    expected = lk.sparse_encode(x, d, **options)
    x[4, 7] = bad
    z, gap = lk.sparse_encode(x, d, **options)
    assert (
        z.isnan().all(-1).nonzero().flatten().tolist()
        == gap.isnan().nonzero().flatten().tolist()
        == [4]
    )
    others = torch.arange(9) != 4
    assert torch.allclose(z[others], expected[0][others], atol=1e-12)
    assert torch.allclose(gap[others], expected[1][others], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_code_of_an_atom_of_zeros_is_zero(
    algorithm: str, positive: bool, dtype: torch.dtype
) -> None:
    """The other codes and the gap are those of the dictionary without it, bit for bit."""
    x, d = lk.normal((9, 8), seed=1).to(dtype), lk.normal((12, 8), seed=2).to(dtype)
    d[[0, 5, 11]] = 0
    present = d.any(-1)
    init = lk.normal((9, 12), seed=3).abs().to(dtype)
    options: Any = {"alpha": 0.25, "algorithm": algorithm, "positive": positive}
    options |= {"return_gap": True, "max_iter": 30}
    codes, gap = lk.sparse_encode(x, d, init=init, **options)
    expected, its_gap = lk.sparse_encode(x, d[present], init=init[:, present], **options)
    assert bool((codes[:, ~present] == 0).all())
    assert torch.equal(codes[:, present], expected)
    assert torch.equal(gap, its_gap)


def test_rows_that_are_lost_stay_so_beside_atoms_of_zeros() -> None:
    x, d = torch.ones(3, 4), torch.eye(5, 4)
    x[1, 2] = torch.nan
    for dictionary in (d, torch.zeros(5, 4)):
        codes, gap = lk.sparse_encode(x, dictionary, alpha=0.5, return_gap=True)
        assert gap.isnan().tolist() == [False, True, False]
        assert codes.isnan().all(-1).tolist() == [False, True, False]
        assert codes.isnan().any(-1).tolist() == [False, True, False]
    codes, gap = lk.sparse_encode(x[[0, 2]], torch.zeros(5, 4), alpha=0.5, return_gap=True)
    assert not codes.any()
    assert not gap.any()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of ista
@every_algorithm
def test_rows_of_zeros_and_extreme_scales(algorithm: str) -> None:
    x, d = problem(4, 30, 64, torch.float32)
    x[1] = 0
    z, gap = lk.sparse_encode(x, d, algorithm=algorithm, alpha=0.1, return_gap=True)
    assert bool((z[1] == 0).all())
    assert gap[1] == 0
    for scale in (2.0**-40, 2.0**40):
        # the same problem, whose every number is exact: x and alpha scaled, D not
        scaled, _ = lk.sparse_encode(
            x.double() * scale, d.double(), algorithm=algorithm, alpha=0.1 * scale, return_gap=True
        )
        same = lk.sparse_encode(x.double(), d.double(), algorithm=algorithm, alpha=0.1)
        assert torch.allclose(scaled / scale, same, rtol=1e-6, atol=1e-9)


@every_algorithm
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_scales_beyond_float32(
    monkeypatch: pytest.MonkeyPatch, backend: str, algorithm: str
) -> None:
    """Scales beyond float32 give NaN in both results, or a gap that shows the error."""
    forced(monkeypatch, backend)
    x, d = problem(4, 30, 64, torch.float32)
    for scale in (1e25, 1e19, 1e-25):
        z, gap = lk.sparse_encode(
            x * scale, d, algorithm=algorithm, alpha=0.1 * scale, max_iter=50, return_gap=True
        )
        lost = gap.isnan()
        assert torch.equal(z.isnan().any(-1), lost)
        assert bool((gap.isfinite() | lost).all())
        above = objective(x * scale, d, z, 0.1 * scale) - optimum(x, d, 0.1) * float(scale) ** 2
        assert bool((gap.double() >= above * (1 - 1e-6))[~lost].all())
    assert bool((lk.sparse_encode(x, d, algorithm=algorithm, alpha=3e38) == 0).all())


@every_algorithm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_atoms(dtype: torch.dtype, algorithm: str) -> None:
    """Atoms may be small, down to the least squared norm that is a normal number."""
    x, d = problem(4, 30, 64, dtype)
    expected = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1)
    d[5] *= 1e-18 if dtype == torch.float32 else 1e-153
    z, gap = lk.sparse_encode(
        x, d, algorithm=algorithm, alpha=0.1, max_iter=10_000, return_gap=True
    )
    assert bool((z[:, 5] == 0).all())
    assert bool((gap <= 2e-6 * 0.5 * x.square().sum(-1)).all()) or algorithm == "ista"
    others = (expected[:, 5] == 0) & (gap <= 1e-6 * 0.5 * x.square().sum(-1))
    assert torch.allclose(z[others], expected[others], atol=1e-1)


@every_algorithm
def test_shapes(algorithm: str) -> None:
    x, d = problem(6, 20, 33)
    z, gap = lk.sparse_encode(x, d, algorithm=algorithm, alpha=0.1, return_gap=True)
    for shape in ((2, 3), (6, 1), (1, 2, 3)):
        again, same = lk.sparse_encode(
            x.reshape(*shape, 20), d, algorithm=algorithm, alpha=0.1, return_gap=True
        )
        assert torch.equal(again, z.reshape(*shape, 33))
        assert torch.equal(same, gap.reshape(shape))
    assert lk.sparse_encode(x[0], d, alpha=0.1).shape == (33,)
    for empty in ((0,), (3, 0), (0, 2)):
        again, same = lk.sparse_encode(
            x.new_zeros(*empty, 20), d, algorithm=algorithm, return_gap=True
        )
        assert again.shape == (*empty, 33)
        assert same.shape == empty


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """Codes of half precision are computed in float32; the gap is float32, too, and that of the
    codes as they are returned.
    """
    x, d = (t.to(dtype) for t in problem(9, 30, 64))
    z, gap = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1, return_gap=True)
    assert (z.dtype, gap.dtype) == (dtype, torch.float32)
    assert torch.equal(
        z, lk.sparse_encode(x.float(), d.float(), algorithm="cd", alpha=0.1).to(dtype)
    )
    above = objective(x, d, z, 0.1) - optimum(x, d, 0.1)
    assert bool((gap >= above).all())
    assert bool((gap < 0.1 * x.float().square().sum(-1)).all())
    mixed = lk.sparse_encode(x, d.double(), algorithm="cd", alpha=0.1)
    assert mixed.dtype == torch.float64


# --- torch ----------------------------------------------------------------------------------------


def test_codes_beyond_float16_are_its_largest_number() -> None:
    """The gap is that of the returned codes: cutting a code of 6 million off costs 1/2 (6e6 -
    65504)^2 / 1e4.
    """
    x, d = torch.full((1, 3), 6e4).half(), (torch.eye(3) * 0.01).half()
    x[0, 1] = 60
    for algorithm in ALGORITHMS:
        codes, gap = lk.sparse_encode(x, d, algorithm=algorithm, alpha=1e-4, return_gap=True)
        assert codes[0, [0, 2]].tolist() == [65504, 65504]
        assert codes[0, 1].item() == pytest.approx(60 / 0.01, rel=1e-3)
        lost = objective(x, d.double(), codes, 1e-4) - 1e-4 * 1.2e7  # all but zero at the optimum
        assert gap.item() == pytest.approx(lost.item(), rel=1e-3)
    lost = -x
    lost[0, 1] = torch.nan
    codes, gap = lk.sparse_encode(torch.cat([-x, lost]), d, alpha=1e-4, return_gap=True)
    assert codes[0, 0] == -65504
    assert bool(codes[1].isnan().all())
    assert gap.isnan().tolist() == [False, True]
    codes = lk.orthogonal_matching_pursuit(x, d, n_nonzero_coefs=3)
    assert codes[0, [0, 2]].tolist() == [65504, 65504]


def test_no_gradient_and_danskin() -> None:
    """The codes are detached; with the codes held fixed, the minimum's gradient in D is right
    (Danskin's theorem).
    """
    x, d = problem(5, 20, 12)
    d.requires_grad_()
    z = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1, tol=1e-14)
    assert not z.requires_grad
    (0.5 * (x - z @ d).square().sum() + 0.1 * z.abs().sum()).backward()
    assert d.grad is not None
    step = torch.randn_like(d)
    values = []
    for sign in (-1, 1):
        moved = (d + sign * 1e-5 * step).detach()
        values.append(
            objective(
                x, moved, lk.sparse_encode(x, moved, algorithm="cd", alpha=0.1, tol=1e-14), 0.1
            ).sum()
        )
    assert torch.isclose((values[1] - values[0]) / 2e-5, (d.grad * step).sum(), rtol=1e-5)


@every_algorithm
def test_compile(algorithm: str) -> None:
    torch._dynamo.reset()
    x, d = problem(5, 20, 33)

    def both(x: Tensor, d: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        z, gap = lk.sparse_encode(x, d, algorithm=algorithm, alpha=alpha, return_gap=True)  # type: ignore[call-overload]
        return 2 * z, gap

    alpha = torch.full((5,), 0.1)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    d.requires_grad_()
    for got, expected in zip(compiled(x, d, alpha), both(x, d, alpha), strict=True):
        assert torch.equal(got, expected)
        assert not got.requires_grad


def test_functorch_fake_tensors_and_opcheck() -> None:
    x, d = problem(6, 20, 33)
    expected = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1)
    assert torch.equal(
        torch.vmap(lambda r: lk.sparse_encode(r, d, algorithm="cd", alpha=0.1))(x), expected
    )
    pair = torch.stack([d, 2 * d], -1)
    found = torch.vmap(
        lambda e: lk.sparse_encode(x, e, algorithm="cd", alpha=0.1, init=expected), -1
    )(pair)
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert torch.equal(
        found[1], lk.sparse_encode(x, 2 * d, algorithm="cd", alpha=0.1, init=expected)
    )
    value = torch.func.grad(
        lambda e: (lk.sparse_encode(x, e, algorithm="cd", alpha=0.1) @ e).sum()
    )(d)
    assert torch.allclose(value, expected.sum(0)[:, None].expand_as(d))
    with FakeTensorMode() as mode:
        z, gap = lk.sparse_encode(
            mode.from_tensor(x).half(), mode.from_tensor(d).half(), return_gap=True
        )
        assert (z.shape, z.dtype, gap.shape, gap.dtype) == (
            (6, 33),
            torch.float16,
            (6,),
            torch.float32,
        )
    assert lk.sparse_encode(x.to("meta"), d.to("meta")).shape == (6, 33)
    arguments = (
        x,
        d,
        torch.full((6,), 0.1, dtype=torch.float64),
        None,
        "cd",
        50,
        1e-6,
        False,
        [True, True],
    )
    assert set(opcheck(torch.ops.latent_kernels.sparse_encode, arguments).values()) == {"SUCCESS"}


# --- processes ------------------------------------------------------------------------------------


@every_algorithm
def test_fork_after_use(algorithm: str) -> None:
    """A child of a process whose pool has run uses a pool of its own, and no threads of torch's."""
    code = (
        f"algorithm = {algorithm!r}"
        + """
import os, torch, numpy as np, latent_kernels as lk
torch.set_num_threads(3)
g = np.random.default_rng(0)
x, d = (torch.from_numpy(g.standard_normal(s).astype(np.float32)) for s in ((600, 32), (64, 32)))
def draw(): return lk.sparse_encode(x, d, algorithm=algorithm, alpha=5.0).numpy().tobytes()
expected = draw()
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # torch's threads run too
pid = os.fork()
if pid == 0:
    os._exit(0 if draw() == expected else 1)
assert os.waitpid(pid, 0)[1] == 0
assert draw() == expected
"""
    )
    run_forked(code)


# --- bad input ------------------------------------------------------------------------------------

X, D = torch.ones(4, 5), torch.eye(3, 5)
encode = lk.sparse_encode
BAD = [
    (lambda: encode([1.0], D), TypeError, r"x must be a torch.Tensor; got list"),
    (lambda: encode(X.long(), D), TypeError, r"x must have dtype float32.*int64"),
    (lambda: encode(torch.tensor(1.0), D), ValueError, r"x must have shape"),
    (lambda: encode(X, D.bool()), TypeError, r"dictionary must have dtype"),
    (lambda: encode(X, D[0]), ValueError,
     r"dictionary must have shape \[n_components, n_features\].*got \(5,\)"),
    (lambda: encode(X, D[:0]), ValueError, r"dictionary must have shape .*got \(0, 5\)"),
    (lambda: encode(X[:, :4], D), ValueError, r"x must have .*n_features.*\(4, 4\).*\(3, 5\)"),
    (lambda: encode(X, D.to("meta")), ValueError,
     r"dictionary must be on the device of x, cpu; got meta"),
    (lambda: encode(X, D * torch.tensor([1.0, 1, 1e-20])[:, None]), ValueError,
     r"dictionary .*1\.18e-38.*row 2"),
    (lambda: encode(X.double(), D.double() * 1e-160), ValueError,
     r"dictionary .*2\.23e-308.*row 0"),
    (lambda: encode(X, D * 1e20), ValueError, r"dictionary must be finite"),
    (lambda: encode(X.double(), D.double() * 1.2e154), ValueError,
     r"dictionary must be finite, and the sum"),
    (lambda: encode(X, D * math.nan), ValueError, r"dictionary must be finite"),
    (lambda: encode(X, D / 0), ValueError, r"dictionary must be finite"),
    (lambda: encode(X, D, algorithm="admm"), ValueError,
     r"algorithm must be one of 'fista', 'ista', 'cd', .*'threshold'; got 'admm'"),
    (lambda: encode(X, D, alpha=-1), ValueError, r"alpha must be a number >= 0; got -1"),
    (lambda: encode(X, D, alpha=math.nan), ValueError, r"alpha must be .*got nan"),
    (lambda: encode(X, D, alpha=math.inf), ValueError, r"alpha must be finite and >= 0; got inf"),
    (lambda: encode(X, D, alpha=1e39), ValueError,
     r"alpha must be at most 3\.4e\+38, .*float32; got 1e\+39"),
    (lambda: encode(X, D.half(), alpha=1e39), ValueError,
     r"alpha must be at most 3\.4e\+38, .*float32; got 1e\+39"),
    (lambda: encode(X, D, alpha=torch.tensor(1e39, dtype=torch.float64)), ValueError,
     r"alpha must be at most 3\.4e"),
    (lambda: encode(X, D, alpha=10**400), ValueError, r"alpha must be a number >= 0 in the range"),
    (lambda: encode(X, D, alpha=-(10**5000)), ValueError,
     r"alpha must be a number >= 0 in the range"),
    (lambda: encode(X, D, alpha="1"), TypeError, r"alpha must be a number >= 0; got '1'"),
    (lambda: encode(X, D, alpha=torch.tensor([1.0, -2, 1, 1])), ValueError,
     r"alpha must be finite and >= 0; got -2"),
    (lambda: encode(X, D, alpha=torch.tensor(math.nan)), ValueError,
     r"alpha must be finite and >= 0; got nan"),
    (lambda: encode(X, D, alpha=torch.ones(3)), ValueError,
     r"alpha must broadcast to .*\(4,\); got \(3,\)"),
    (lambda: encode(X, D, alpha=torch.ones(4).long()), TypeError,
     r"alpha must be a number or a floating.*int64"),
    (lambda: encode(X, D, alpha=torch.ones(4, device="meta")), ValueError,
     r"alpha must be on the device of x"),
    (lambda: encode(X, D, max_iter=-1), ValueError, r"max_iter must be an int >= 0; got -1"),
    (lambda: encode(X, D, max_iter=1.5), TypeError, r"max_iter must be an int >= 0; got 1\.5"),
    (lambda: encode(X, D, max_iter=2**63), ValueError, r"max_iter"),
    (lambda: encode(X, D, tol=-1e-3), ValueError, r"tol must be a number >= 0; got -0\.001"),
    (lambda: encode(X, D, tol=math.nan), ValueError, r"tol must be .*nan"),
    (lambda: encode(X, D, tol=10**400), ValueError, r"tol must be a number >= 0 in the range"),
    (lambda: encode(X, D, tol="x"), TypeError, r"tol must be a number"),
    (lambda: encode(X, D, positive=1), TypeError, r"positive must be True or False; got 1"),
    (lambda: encode(X, D, init=torch.zeros(4, 4)), ValueError,
     r"init must have the shape of the codes, \(4, 3\)"),
    (lambda: encode(X, D, init=torch.full((4, 3), math.nan)), ValueError, r"init must be finite"),
    (lambda: encode(X, D, init=-torch.ones(4, 3), positive=True), ValueError,
     r"init must be >= 0 .*got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- arrays, and scikit-learn's other kinds of codes ----------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays(dtype: Any) -> None:
    x, d = problem(6, 20, 33)
    X, D = x.numpy().astype(dtype), d.numpy().astype(dtype)
    options: dict[str, Any] = {"algorithm": "cd", "alpha": 0.2, "return_gap": True}
    expected = lk.sparse_encode(torch.from_numpy(X), torch.from_numpy(D), **options)
    X.flags.writeable = False
    back = X[::-1].copy()[::-1]
    for rows in (X, np.asfortranarray(X), back, X.astype(X.dtype.newbyteorder())):
        found = lk.sparse_encode(rows, D, **options)
        for array, tensor in zip(found, expected, strict=True):
            assert type(array) is np.ndarray
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, tensor.numpy())
    alphas = np.linspace(0.1, 1, 6)
    warm = lk.sparse_encode(X, D, algorithm="lasso_cd", alpha=alphas, init=found[0])
    for z, row, alpha in zip(warm, X, alphas, strict=True):
        np.testing.assert_allclose(
            z, lk.sparse_encode(row, D, algorithm="cd", alpha=alpha), atol=1e-3
        )
    whole = lk.sparse_encode(np.eye(3, dtype=np.int8), np.eye(3, dtype=bool), alpha=0.25)
    np.testing.assert_allclose(whole, 0.75 * np.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_other_kinds_of_codes(dtype: torch.dtype) -> None:
    x, d = (t.to(dtype) for t in problem(6, 20, 33))
    tolerance = 64 * torch.finfo(dtype).eps
    q = x.double() @ d.double().T
    z = lk.sparse_encode(x, d, algorithm="threshold", alpha=0.3)
    assert z.dtype == dtype
    assert torch.allclose(z.double(), torch.sign(q) * (q.abs() - 0.3).clamp_min(0), atol=tolerance)
    z = lk.sparse_encode(x, d, algorithm="threshold", alpha=0.3, positive=True)
    assert torch.allclose(z.double(), (q - 0.3).clamp_min(0), atol=tolerance)
    z = lk.sparse_encode(x.view(2, 3, 20), d, algorithm="omp", n_nonzero_coefs=4)
    expected = lk.orthogonal_matching_pursuit(x, d, n_nonzero_coefs=4)
    assert torch.equal(z, expected.view(2, 3, 33))
    z = lk.sparse_encode(x.view(2, 3, 20), d, algorithm="lars", n_nonzero_coefs=np.int64(4))
    assert z.shape == (2, 3, 33)
    assert z.dtype == dtype
    assert bool(((z != 0).sum(-1) == 4).all())
    assert lk.sparse_encode(x[:0], d, algorithm="lars").shape == (0, 33)
    assert not lk.sparse_encode(x.requires_grad_(), d, algorithm="threshold").requires_grad


def test_lasso_lars_is_the_optimum() -> None:
    """Lars finds the optimum, also where coordinate descent would take too long; the gap bounds the
    distance left.
    """
    x, d = problem(5, 20, 60)
    for positive, alpha in product((False, True), (1.0, 1e-2, 1e-5)):
        options: dict[str, Any] = {"alpha": alpha, "positive": positive, "return_gap": True}
        z, gap = lk.sparse_encode(x, d, algorithm="lasso_lars", **options)
        assert bool((gap <= 1e-8 * objective(x, d, z, alpha)).all())
        assert bool(((z != 0).sum(-1) <= 20).all())
    x[1, 3] = math.nan
    z, gap = lk.sparse_encode(x, d, algorithm="lasso_lars", alpha=1e-2, return_gap=True)
    assert z.isnan().any(-1).tolist() == gap.isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "omp", "positive": True}, "Positive constraint not supported for 'omp'"),
        ({"algorithm": "lars", "positive": True}, "Positive constraint not supported for 'lars'"),
        ({"algorithm": "omp", "return_gap": True}, "return_gap must be False where algorithm is"),
        ({"algorithm": "lasso_lars", "init": torch.ones(4, 3)}, "init must be None where"),
        ({"algorithm": "lars", "n_nonzero_coefs": 0}, "n_nonzero_coefs must be an int >= 1"),
        ({"algorithm": "threshold", "alpha": -1.0}, "alpha must be a number >= 0"),
    ],
)
def test_options_of_other_kinds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(X, D, **options)


@pytest.mark.parametrize("kind", [np.array, np.float64, torch.tensor], ids=lambda k: k.__name__)
def test_numbers_that_change_in_their_place(kind: Any) -> None:
    """Each call uses the present value of alpha, even if it is the same object or in the same
    memory as that of the call before.
    """
    x, d = problem(4, 20, 33)
    alpha = kind(0.0)
    for value in (0.1, 0.7, 0.2):
        if isinstance(alpha, np.float64):
            alpha = np.float64(value)
        else:
            alpha[...] = value
        given = alpha.double() if isinstance(alpha, Tensor) else alpha
        for algorithm in ("cd", "threshold"):
            found = lk.sparse_encode(x, d, algorithm=algorithm, alpha=given)
            expected = lk.sparse_encode(x, d, algorithm=algorithm, alpha=float(alpha))
            assert torch.equal(found, expected)
