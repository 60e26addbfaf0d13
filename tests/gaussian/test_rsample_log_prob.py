"""`rsample_log_prob`: its two derivatives against the formula, the bits it shares with `rsample`.

The kernels' values and gradients in every dtype, size and build are held to the formula by
`checks.check`, beside those of z and the KL; what is here is what remains when log q stands alone,
and the path derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.gaussian.problem import ANTITHETIC, SOBOL
from tests.backends import CPP, Backend, on_every_backend
from tests.checks import DTYPES, INTERPRETED, SIZES, Sizes, bits_equal
from tests.gaussian.checks import (
    LogQProblem,
    Problem,
    check,
    leaves,
    log_q_formula,
    of_points,
)

Tensor = torch.Tensor


# --- values and gradients -------------------------------------------------------------------------


@on_every_backend([*SIZES, (1, 16, 100, 64)], interpreted=INTERPRETED)
def test_without_kl(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check(backend, LogQProblem(sizes, dtype))
    check(backend, LogQProblem(sizes, dtype, offset=3))
    check(backend, LogQProblem(sizes, dtype, dependence=ANTITHETIC))
    check(backend, LogQProblem(of_points(sizes), dtype, dependence=SOBOL))


def test_long_rows_without_kl() -> None:
    check(CPP, LogQProblem((1, 20, 3, 40000), torch.float32))
    check(CPP, LogQProblem((1, 21, 3, 40000), torch.float32, dependence=ANTITHETIC))
    check(CPP, LogQProblem((1, 16, 3, 20000), torch.float32, dependence=SOBOL))


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_samples", [None, 1, 3])
@pytest.mark.parametrize("shape", [(64, 20), (5,), (3, 5, 7), (2, 1500)])
def test_samples_are_those_of_rsample(
    shape: tuple[int, ...], num_samples: int | None, dtype: torch.dtype, path: bool
) -> None:
    mean, logvar = leaves(*shape, dtype=dtype)
    z, log_q = lk.rsample_log_prob(
        mean, logvar, num_samples, seed=3, offset=5, path_derivative=path
    )
    assert bits_equal(z, lk.rsample(mean, logvar, num_samples, seed=3, offset=5))
    assert bits_equal(log_q, lk.rsample_log_prob(mean, logvar, num_samples, seed=3, offset=5)[1])
    assert log_q.shape == z.shape[:-1]
    assert log_q.dtype == row_dtype(dtype)
    q = lk.DiagonalGaussian(mean, logvar)
    ours = q.rsample_log_prob(num_samples, seed=3, offset=5, path_derivative=path)
    assert bits_equal(ours[0], z)
    assert bits_equal(ours[1], log_q)


def test_half_loses_nothing_to_the_rounding_of_z() -> None:
    """log q keeps its digits where sigma is far below the spacing of bfloat16 near the mean; from
    the rounded z it would have none.
    """
    mean, logvar = torch.full((8, 16), 100.0), torch.full((8, 16), -10.0)
    _, log_q = lk.rsample_log_prob(mean.bfloat16(), logvar.bfloat16(), seed=2)
    eps = lk.normal((8, 16), seed=2).double()
    expected = -0.5 * (math.log(2 * math.pi) + logvar.double() + eps**2).sum(-1)
    assert torch.allclose(log_q.double(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(64, 20), (5,), (3, 5, 7), (2, 1500)])
def test_log_q_is_the_density_of_z(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Both density's t = (z - mean) / sigma and its sum are rounded: t by half a unit of z over
    sigma and three of its own, which its square doubles; a sum of D over 16 lanes by its terms,
    once for each of D / 16 + 5 additions.
    """
    mean, logvar = (x.detach() for x in leaves(*shape, dtype=dtype))
    z, log_q = lk.rsample_log_prob(mean, logvar, 3, seed=3)
    difference = (log_q - lk.DiagonalGaussian(mean, logvar).log_prob(z)).abs()
    eps, over_sigma = (
        lk.normal((3, *shape), seed=3).double().abs(),
        torch.exp(-0.5 * logvar.double()),
    )
    of_t = (eps * (0.5 * z.abs() * over_sigma + 3 * eps)).sum(-1)
    terms = 0.5 * (eps**2 + (logvar + math.log(2 * math.pi)).abs()).sum(-1)
    assert (difference <= torch.finfo(dtype).eps * (of_t + (shape[-1] / 16 + 5) * terms)).all()


class Public(Problem):
    """A problem for the public function with either derivative: gradients by the parameters, and by
    z where log q has one.
    """

    path = False

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """Return what the other problems' `run` returns, through autograd."""
        _, samples, rows, _ = self.sizes
        mean, logvar = (x[0].clone().requires_grad_() for x in (self.mean, self.spread))
        number = samples if samples > 1 else None
        z, log_q = lk.rsample_log_prob(
            mean, logvar, number, seed=5, offset=self.options[0], path_derivative=self.path
        )
        of_z = (z,) if self.path else ()
        upstream = (self.gz.reshape(z.shape), self.gq.reshape(log_q.shape))
        gradients = torch.autograd.grad((z, log_q), (mean, logvar, *of_z), upstream)
        found = dict(zip(("d_mean", "d_logvar", "d_z"), gradients, strict=False))
        if self.path:
            found["d_z"] = found["d_z"].reshape(self.sizes[1:])
        return {
            "z": z.detach().reshape(self.sizes),
            "log_q": log_q.detach().reshape(1, samples, rows),
            **found,
        }

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what the other problems' `formula` returns, by autograd through z."""
        mean, logvar = (x[0].to(dtype).requires_grad_() for x in (self.mean, self.spread))
        eps = self.noise(5)[0].to(dtype)
        z, log_q = log_q_formula(mean, logvar, eps, path=self.path)
        of_z = (z,) if self.path else ()
        upstream = (self.gz[0].to(dtype), self.gq[0].to(dtype))
        gradients = torch.autograd.grad((z, log_q), (mean, logvar, *of_z), upstream)
        found = dict(zip(("d_mean", "d_logvar", "d_z"), gradients, strict=False))
        return {"z": z.detach().unsqueeze(0), "log_q": log_q.detach().unsqueeze(0), **found}


class PublicPath(Public):
    """The same problem with path_derivative=True."""

    path = True


@pytest.mark.parametrize("problem", [Public, PublicPath])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [s for s in SIZES if s[0] == 1 and s[1] > 0], ids=str)
def test_gradients(sizes: Sizes, dtype: torch.dtype, problem: type[Public]) -> None:
    """Gradients agree with float64 autograd of the formula: total derivatives, and those of log q
    with the parameters held fixed.
    """
    check(CPP, problem(sizes, dtype))
    check(CPP, problem(sizes, dtype, offset=3))


# --- the path derivative --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_samples", [None, 8])
def test_sticking_the_landing(dtype: torch.dtype, num_samples: int | None) -> None:
    """Where p = q, log p(z) - log q(z) does not depend on z, so each sample's path derivative
    vanishes; the total derivative does not.

    log p's gradient comes from z, ours from eps: they differ by z's rounding over sigma^2, and a
    few of their own.
    """
    mean, logvar = leaves(50, 20, dtype=dtype)
    p = lk.DiagonalGaussian(mean.detach(), logvar.detach())
    for path in (True, False):
        z, log_q = lk.rsample_log_prob(mean, logvar, num_samples, seed=6, path_derivative=path)
        (of_z,) = torch.autograd.grad((p.log_prob(z) - log_q).sum(), z, retain_graph=True)
        by_mean, by_logvar = torch.autograd.grad((p.log_prob(z) - log_q).sum(), (mean, logvar))
        sigma = torch.exp(0.5 * logvar.detach())
        eps = (z.detach() - mean.detach()) / sigma
        bound = torch.finfo(dtype).eps * (z.detach().abs() / sigma + 8 * eps.abs()) / sigma
        summed = bound if num_samples is None else bound.sum(0)
        if path:
            assert (of_z.abs() <= bound).all()
            assert (by_mean.abs() <= summed).all()
            assert (by_logvar.abs() <= (bound * sigma * 7).reshape(-1, 50, 20).sum(0)).all()
        else:
            assert (by_mean.abs() > 1e3 * summed).float().mean() > 0.9


def test_hooks_on_z_see_log_q_and_may_scale_it() -> None:
    """A hook on z sees log q's gradient and can scale it, as a doubly reparameterized estimator
    needs.
    """
    mean, logvar = leaves(6, 5, dtype=torch.float64)
    weights = torch.rand(3, 6, 1, dtype=torch.float64)
    eps = lk.normal((3, 6, 5), seed=1).double()
    found = []
    for ours in (True, False):
        if ours:
            z, log_q = lk.rsample_log_prob(mean, logvar, 3, seed=1, path_derivative=True)
        else:
            z, log_q = log_q_formula(mean, logvar, eps, path=True)
        seen: list[Tensor] = []

        def scale(gradient: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(gradient)
            return gradient * weights

        z.register_hook(scale)
        found.append([*torch.autograd.grad((z**2).sum() - 3 * log_q.sum(), (mean, logvar)), *seen])
        assert len(seen) == 1
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_total_derivative_has_nothing_by_z() -> None:
    mean, logvar = leaves(6, 5)
    z, log_q = lk.rsample_log_prob(mean, logvar, 3, seed=1)
    assert torch.autograd.grad(log_q.sum(), z, allow_unused=True, retain_graph=True) == (None,)
    by_mean, by_logvar = torch.autograd.grad(log_q.sum(), (mean, logvar))
    assert torch.equal(by_mean, torch.zeros(6, 5))
    assert torch.equal(by_logvar, torch.full((6, 5), -1.5))


def test_log_q_can_be_changed_in_place() -> None:
    """log q is a result of its own, not a view, so it can be changed in place."""
    mean, logvar = leaves(6, 5)
    for path in (False, True):
        _, log_q = lk.rsample_log_prob(mean, logvar, seed=1, path_derivative=path)
        expected = torch.autograd.grad((2 * log_q).sum(), logvar, retain_graph=True)[0]
        log_q *= 2
        assert torch.equal(torch.autograd.grad(log_q.sum(), logvar)[0], expected)


# --- what autograd keeps, and refuses -------------------------------------------------------------


@pytest.mark.parametrize("path", [False, True])
def test_saves_no_noise(path: bool) -> None:
    mean, logvar = leaves(50, 20)
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        z, _ = lk.rsample_log_prob(mean, logvar, 8, path_derivative=path)
    assert set(saved) == {mean.data_ptr(), logvar.data_ptr(), *([z.data_ptr()] if path else [])}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("path", [False, True])
def test_only_wanted_gradients_are_made(path: bool, which: int) -> None:
    given, both = ([x.detach().requires_grad_() for x in leaves(4, 5)] for _ in range(2))
    given[1 - which].requires_grad_(False)
    found = []
    for inputs in (given, both):
        z, log_q = lk.rsample_log_prob(*inputs, 3, seed=3, path_derivative=path)
        (z.sum() + (log_q**2).sum()).backward()
        found.append(inputs[which].grad)
    assert torch.equal(*found)  # type: ignore[arg-type]
    assert given[1 - which].grad is None


def test_without_gradients() -> None:
    x = torch.randn(3, 4)
    for path in (False, True):
        assert not lk.rsample_log_prob(x, x, path_derivative=path)[1].requires_grad
        with torch.inference_mode():
            assert lk.rsample_log_prob(x, x, path_derivative=path)[1].is_inference()


# --- NaN, layouts, shapes -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("name", ["mean", "logvar"])
def test_nan_stays_in_its_row(simd_build: str, name: str, path: bool) -> None:
    """log q does not depend on the mean, and a NaN there reaches z alone."""
    mean, logvar = leaves(9, 37)
    with torch.no_grad():
        (mean if name == "mean" else logvar)[4, 11] = torch.nan
    z, log_q = lk.rsample_log_prob(mean, logvar, 2, seed=1, path_derivative=path)
    assert log_q.isnan().nonzero().tolist() == ([] if name == "mean" else [[0, 4], [1, 4]])
    assert z.isnan().nonzero().tolist() == [[0, 4, 11], [1, 4, 11]]
    for gradient in torch.autograd.grad(z.sum() + log_q.sum(), (mean, logvar)):
        assert set(gradient.isnan().nonzero()[:, 0].tolist()) <= {4}
    upstream = torch.zeros(2, 9)
    upstream[1, 3] = torch.nan
    mean, logvar = leaves(9, 37)
    _, log_q = lk.rsample_log_prob(mean, logvar, 2, seed=1, path_derivative=path)
    (gradient,) = torch.autograd.grad(log_q, logvar, upstream)
    assert gradient.isnan().all(1).nonzero().flatten().tolist() == [3]
    assert not gradient[4:].isnan().any()


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("kind", ["transposed", "sliced", "repeated"])
def test_strides(kind: str, path: bool) -> None:
    def strided(x: Tensor) -> Tensor:
        if kind == "repeated":
            return x[..., :1, :].expand(x.shape)
        return (
            x.transpose(0, -1).contiguous().transpose(0, -1)
            if kind == "transposed"
            else x.repeat(2, 1)[: len(x)]
        )

    found = []
    for contiguous in (True, False):
        parameters = [strided(x.detach()) for x in leaves(6, 7)]
        mean, logvar = (
            x.clone(memory_format=torch.contiguous_format) if contiguous else x for x in parameters
        )
        mean, logvar = mean.requires_grad_(), logvar.requires_grad_()
        upstream = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)).t()
        z, log_q = lk.rsample_log_prob(mean, logvar, 3, seed=2, path_derivative=path)
        upstream = upstream.contiguous() if contiguous else upstream
        found.append([z, log_q, *torch.autograd.grad(log_q, (mean, logvar), upstream)])
    for a, b in zip(*found, strict=True):
        assert bits_equal(a, b)


@pytest.mark.parametrize("path", [False, True])
def test_broadcasting(path: bool) -> None:
    mean, logvar = torch.randn(4, 1, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    z, log_q = lk.rsample_log_prob(mean, logvar, 2, seed=1, path_derivative=path)
    full = [x.expand(4, 6, 5).clone() for x in (mean, logvar)]
    z2, log_q2 = lk.rsample_log_prob(*full, 2, seed=1, path_derivative=path)
    assert torch.equal(z, z2)
    assert torch.equal(log_q, log_q2)
    ours = torch.autograd.grad((z**2).sum() + (log_q**2).sum(), (mean, logvar))
    theirs = torch.autograd.grad((z2**2).sum() + (log_q2**2).sum(), (mean, logvar))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize(("shape", "of_rows"), [((0, 4), (0,)), ((3, 0), (3,)), ((0,), ())])
def test_empty(shape: tuple[int, ...], of_rows: tuple[int, ...], path: bool) -> None:
    for num_samples in (None, 2):
        mean, logvar = (
            torch.randn(shape, requires_grad=True),
            torch.randn(shape, requires_grad=True),
        )
        z, log_q = lk.rsample_log_prob(mean, logvar, num_samples, seed=1, path_derivative=path)
        assert z.shape == (*(() if num_samples is None else (2,)), *shape)
        assert log_q.shape == (*(() if num_samples is None else (2,)), *of_rows)
        assert not log_q.any()
        log_q.sum().backward()
        assert logvar.grad is not None
        assert logvar.grad.shape == shape


def test_promotion_and_meta() -> None:
    z, log_q = lk.rsample_log_prob(
        torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(4), path_derivative=True
    )
    assert z.dtype == log_q.dtype == torch.float32
    x = torch.empty(1 << 20, 1 << 20, device="meta", requires_grad=True)
    for path in (False, True):
        z, log_q = lk.rsample_log_prob(x, x, 100, path_derivative=path)
        assert z.shape == (100, 1 << 20, 1 << 20)
        assert log_q.shape == (100, 1 << 20)
        assert log_q.is_meta


X = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lk.rsample_log_prob(X, torch.zeros(4, 3)),
            ValueError,
            r"mean and logvar .*\(4, 5\).*4, 3",
        ),
        (
            lambda: lk.rsample_log_prob(X, "1.0"),
            TypeError,
            r"logvar must be a torch.Tensor; got str",
        ),
        (
            lambda: lk.rsample_log_prob(X.int(), X),
            TypeError,
            r"mean must have dtype float32.*int32",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, 0),
            ValueError,
            r"num_samples must be an int >= 1 or None; got 0",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, seed=-1),
            ValueError,
            r"seed must lie in \[0, 2\^63\); got -1",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, seed=torch.tensor(-1)),
            ValueError,
            r"seed must lie.*-1",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, 2, seed=1, offset=2**63 - 39),
            ValueError,
            r"offset \+ 40 elements",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, path_derivative=1),
            TypeError,
            r"path_derivative must be .*; got 1",
        ),
        (
            lambda: lk.rsample_log_prob(X, X, path_derivative=None),
            TypeError,
            r"path_derivative must be .*; got None",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
