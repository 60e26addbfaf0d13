"""FusedNormal: the checks of torch's own suite for Normal, and samples from the noise stream."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import (
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.categorical import Categorical
from torch.distributions.transforms import ExpTransform

import latent_kernels as lk
from latent_kernels.kernels import _core, backends

Tensor = torch.Tensor
SHAPES = [(), (1,), (5,), (3, 4), (2, 1, 3)]
SAMPLE_SHAPES = [(), (1,), (7,), (2, 3), (0,), (2, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample_shape", SAMPLE_SHAPES)
def test_shapes(shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    loc, scale = torch.randn(shape, requires_grad=True), (torch.rand(shape) + 0.1).requires_grad_()
    ours, theirs = lk.FusedNormal(loc, scale), Normal(loc, scale)
    for name in ("rsample", "sample"):
        x = getattr(ours, name)(sample_shape)
        assert x.shape == getattr(theirs, name)(sample_shape).shape
        assert x.requires_grad == (name == "rsample")
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape == torch.Size()
    assert ours.has_rsample


def test_scalar_parameters() -> None:
    q = lk.FusedNormal(0.0, 1.0)
    assert q.sample().shape == ()
    assert q.sample((4,)).shape == (4,)
    assert q.rsample(torch.Size([2, 3])).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_the_stream(dtype: torch.dtype) -> None:
    loc, scale = torch.randn(3, 4, dtype=dtype), torch.rand(3, 4, dtype=dtype) + 0.1
    torch.manual_seed(6)
    x = lk.FusedNormal(loc, scale).sample((5,))
    torch.manual_seed(6)
    seed = int(torch.randint(2**63 - 1, ()))
    eps = lk.normal((5, 3, 4), seed=seed, dtype=dtype)
    scales, locs = scale.expand_as(x), loc.expand_as(x)
    fused = [
        Fraction(s) * Fraction(e) + Fraction(m)
        for s, e, m in zip(*(x.ravel().tolist() for x in (scales, eps, locs)), strict=True)
    ]
    expected = torch.tensor([float(value) for value in fused], dtype=torch.float64)
    assert torch.equal(x.ravel(), expected.to(dtype))


def test_gradients_are_those_of_the_stream() -> None:
    loc, scale = torch.randn(3, 4, requires_grad=True), (torch.rand(3, 4) + 0.1).requires_grad_()
    x = lk.FusedNormal(loc, scale).rsample((5,))
    eps = (x - loc) / scale
    upstream = torch.randn_like(x)
    d_loc, d_scale = torch.autograd.grad(x, (loc, scale), upstream)
    assert torch.allclose(d_loc, upstream.sum(0), rtol=1e-5, atol=1e-6)
    assert torch.allclose(d_scale, (upstream * eps.detach()).sum(0), rtol=1e-4, atol=1e-5)


def test_gradcheck() -> None:
    loc, scale = (
        torch.randn(3, 4).double().requires_grad_(),
        (torch.rand(3, 4) + 0.1).double().requires_grad_(),
    )

    def run(a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(1)
        return lk.FusedNormal(a, b).rsample((2,))

    assert torch.autograd.gradcheck(run, (loc, scale), nondet_tol=0)
    other = lk.FusedNormal(torch.zeros(4).double(), torch.ones(4).double())
    assert torch.autograd.gradcheck(
        lambda a, b: kl_divergence(lk.FusedNormal(a, b), other), (loc, scale)
    )


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-3.0, 0.1), (10.0, 25.0)])
def test_distribution_of_samples(loc: float, scale: float) -> None:
    torch.manual_seed(2)
    x = lk.FusedNormal(loc, scale).sample((200_000,)).numpy().astype(np.float64)
    assert stats.kstest(x, "norm", args=(loc, scale)).pvalue > 1e-3


def test_inherited_functions_equal_normals() -> None:
    loc, scale = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    ours, theirs = lk.FusedNormal(loc, scale), Normal(loc, scale)
    x = torch.randn(3, 4)
    u = torch.rand(3, 4)
    for name, args in [("log_prob", (x,)), ("cdf", (x,)), ("icdf", (u,)), ("entropy", ())]:
        assert torch.equal(getattr(ours, name)(*args), getattr(theirs, name)(*args))
    for name in ("mean", "mode", "stddev", "variance"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_expand_keeps_the_class() -> None:
    q = lk.FusedNormal(torch.zeros(4), torch.ones(4)).expand((3, 4))
    assert type(q) is lk.FusedNormal
    assert q.batch_shape == (3, 4)
    x = q.rsample((2,))
    assert x.shape == (2, 3, 4)
    assert len(x.unique()) == 24, "an expanded parameter has its own noise in every place"


def test_independent() -> None:
    q = Independent(lk.FusedNormal(torch.randn(3, 4), torch.rand(3, 4) + 0.1), 1)
    p = Independent(lk.FusedNormal(torch.zeros(3, 4), torch.ones(3, 4)), 1)
    assert q.rsample((2,)).shape == (2, 3, 4)
    kl = kl_divergence(q, p)
    assert kl.shape == (3,)
    plain = (
        Independent(Normal(q.base_dist.loc, q.base_dist.scale), 1),
        Independent(Normal(p.base_dist.loc, p.base_dist.scale), 1),
    )
    assert torch.allclose(kl, kl_divergence(*plain), rtol=1e-5, atol=1e-6)
    assert torch.equal(q.log_prob(torch.zeros(3, 4)), plain[0].log_prob(torch.zeros(3, 4)))


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 4), (4,)), ((), (3, 4)), ((), ())])
@pytest.mark.parametrize(
    "classes",
    [(lk.FusedNormal, lk.FusedNormal), (lk.FusedNormal, Normal), (Normal, lk.FusedNormal)],
)
def test_kl(
    shapes: tuple[tuple[int, ...], ...], classes: tuple[type[Normal], type[Normal]]
) -> None:
    parameters = [(torch.randn(s).double(), torch.rand(s).double() + 0.1) for s in shapes]
    ours = kl_divergence(classes[0](*parameters[0]), classes[1](*parameters[1]))
    theirs = kl_divergence(Normal(*parameters[0]), Normal(*parameters[1]))
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_kl_of_close_distributions() -> None:
    """All digits are right where the scales differ in the last few bits; nothing is negative."""
    scale = 1 + torch.arange(-40, 41) * 2.0**-23
    kl = kl_divergence(
        lk.FusedNormal(torch.zeros(81), scale), lk.FusedNormal(torch.zeros(81), torch.ones(81))
    )
    d = 2 * torch.log1p(scale.double() - 1)
    exact = 0.5 * d**2 * (0.5 + d / 6 + d**2 / 24)
    assert torch.allclose(kl.double(), exact, rtol=1e-6, atol=0)
    assert (kl >= 0).all()


@pytest.mark.parametrize("q_scale", [1e-4, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("ratio", [1e-6, 0.3, 0.4999, 0.5, 0.999, 1.0001, 1.01, 2.0, 1e6])
def test_kl_of_scales_far_from_one(q_scale: float, ratio: float) -> None:
    p = torch.tensor([q_scale * ratio], requires_grad=True)
    q = torch.tensor([q_scale])
    kl = kl_divergence(lk.FusedNormal(torch.zeros(1), p), lk.FusedNormal(torch.zeros(1), q))
    log_ratio = torch.log1p((p.detach().double() - q.double()) / q.double())
    exact = 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio)
    assert torch.allclose(kl.detach().double(), exact, rtol=2e-6, atol=0)
    (gradient,) = torch.autograd.grad(kl.sum(), p)
    expected = (p.double() / q.double() ** 2 - 1 / p.double()).detach()
    assert torch.allclose(
        gradient.double(), expected, rtol=1e-4 if abs(ratio - 1) < 0.1 else 1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_by_scales_in_ulp(simd_build: str, dtype: torch.dtype) -> None:
    """The KL is right to 4 units in the last place for scales far apart, close, and powers of two
    apart.
    """
    rng = np.random.default_rng(0)
    far = 10 ** rng.uniform(-15, 15, 1500)
    close = 1 + rng.uniform(-1, 1, 1500) * 10 ** rng.uniform(-7, 0, 1500)
    ratio = np.concatenate([far, np.abs(close), [0.5, 2, 0.25, 4, 1e-18, 1e18]])
    q_scale = torch.tensor(10 ** rng.uniform(-3, 3, ratio.size), dtype=dtype)
    scale = torch.tensor(ratio, dtype=dtype) * q_scale
    zero = torch.zeros_like(scale)
    kl = kl_divergence(lk.FusedNormal(zero, scale), lk.FusedNormal(zero, q_scale))
    unit = np.float32 if dtype == torch.float32 else np.float64
    with mpmath.workdps(60):
        for p, q, found in zip(scale.tolist(), q_scale.tolist(), kl.tolist(), strict=True):
            d = 2 * mpmath.log(mpmath.mpf(p) / mpmath.mpf(q))
            exact = (mpmath.exp(d) - 1 - d) / 2
            allowed = 4 * float(np.spacing(unit(float(exact))))
            assert abs(mpmath.mpf(found) - exact) <= allowed, (p, q)


def test_kl_at_the_ends() -> None:
    """The KL has its limits where scales are 0, infinite or subnormal, where parameters are NaN,
    and for no elements.
    """

    def kl(loc: float, scale: float, q_scale: float) -> float:
        given = [torch.tensor([x]) for x in (loc, scale, 0.0, q_scale)]
        p = lk.FusedNormal(given[0], given[1], validate_args=False)
        return float(kl_divergence(p, lk.FusedNormal(given[2], given[3], validate_args=False)))

    assert kl(0, 0, 1) == kl(0, math.inf, 1) == kl(0, 1, 1e-38) == kl(math.inf, 1, 1) == math.inf
    assert math.isnan(kl(math.nan, 1, 1))
    assert math.isnan(kl(0, math.nan, 1))
    assert math.isnan(kl(0, -1, 1))
    assert kl(0, 1e-40, 1e-40) == 0
    assert kl(0, 1, 1e38) == pytest.approx(38 * math.log(10) - 0.5, rel=1e-6)
    assert kl(0, 1e-40, 1) == pytest.approx(40 * math.log(10) - 0.5, rel=1e-5)  # few digits
    empty = lk.FusedNormal(torch.zeros(0, 3), torch.ones(0, 3))
    assert kl_divergence(empty, empty).shape == (0, 3)


def test_bits_of_the_kl_do_not_depend_on_threads_or_builds() -> None:
    torch.manual_seed(0)
    leaves = [(torch.rand(3, 70001) + 0.1).requires_grad_() for _ in range(4)]

    def both() -> list[Tensor]:
        kl = kl_divergence(lk.FusedNormal(*leaves[:2]), lk.FusedNormal(*leaves[2:]))
        return [kl.detach(), *torch.autograd.grad(kl, leaves, leaves[0].detach())]

    first = None
    for build, threads in itertools.product(_core.simd_builds(), (1, 3)):
        _core.select_simd_build(build)
        torch.set_num_threads(threads)
        found = both()
        first = first or found
        assert all(map(torch.equal, found, first)), (build, threads)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.triton)])
def test_kl_on_other_backends(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Where C++ does not run, torch operations prepare the inputs of the KL kernel."""
    if backend == "triton" and not backends.interpreting():
        pytest.skip("forces Triton on CPU tensors")
    leaves = [torch.randn(5, 7).exp().requires_grad_() for _ in range(4)]

    def both() -> list[Tensor]:
        kl = kl_divergence(lk.FusedNormal(*leaves[:2]), lk.FusedNormal(*leaves[2:]))
        return [kl.detach(), *torch.autograd.grad(kl, leaves, leaves[0].detach())]

    compiled = both()
    monkeypatch.setenv(backends.VARIABLE, f"gaussian={backend}")
    backends.forget()
    for ours, theirs in zip(both(), compiled, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_kl_of_tiny_scales() -> None:
    p, q = torch.tensor([2e-25], requires_grad=True), torch.tensor([1e-25])
    kl = kl_divergence(lk.FusedNormal(torch.tensor([1e-25]), p), lk.FusedNormal(torch.zeros(1), q))
    assert kl.item() == pytest.approx(1.3068528, rel=1e-5)
    assert torch.autograd.grad(kl.sum(), p)[0].isfinite().all()


@pytest.mark.parametrize("which", range(4))
def test_gradients_of_the_kl(which: int) -> None:
    """Gradients are right for one parameter alone and for all, also broadcast ones, for scales near
    and far apart.
    """
    given = [torch.randn(3, 4), torch.rand(3, 4) + 0.1, torch.randn(4), 10 * torch.rand(3, 1)]
    leaves = [x.double().requires_grad_() for x in given]
    inputs = [x if i == which else x.detach() for i, x in enumerate(leaves)]
    ours = kl_divergence(lk.FusedNormal(*inputs[:2]), lk.FusedNormal(*inputs[2:]))
    theirs = kl_divergence(Normal(*leaves[:2]), Normal(*leaves[2:]))
    upstream = torch.randn_like(ours)
    alone = torch.autograd.grad(ours, leaves[which], upstream)[0]
    assert torch.allclose(alone, torch.autograd.grad(theirs, leaves, upstream)[which], rtol=1e-9)
    whole = kl_divergence(lk.FusedNormal(*leaves[:2]), lk.FusedNormal(*leaves[2:]))
    assert torch.equal(torch.autograd.grad(whole, leaves, upstream)[which], alone)


def test_kl_under_vmap_and_compile() -> None:
    def run(loc: Tensor, scale: Tensor) -> Tensor:
        p = lk.FusedNormal(loc, scale, validate_args=False)
        return kl_divergence(p, lk.FusedNormal(scale, scale[0], validate_args=False))

    loc, scale = torch.randn(5, 3, 4), torch.rand(5, 3, 4) + 0.1
    expected = torch.stack([run(*pair) for pair in zip(loc, scale, strict=True)])
    assert torch.equal(torch.func.vmap(run)(loc, scale), expected)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(loc[0], scale[0]), expected[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kl_of_halves_is_computed_wide(dtype: torch.dtype) -> None:
    loc, scale = torch.randn(3, 4).to(dtype), (torch.rand(3, 4) + 0.5).to(dtype)
    found = kl_divergence(lk.FusedNormal(loc, scale), lk.FusedNormal(scale, loc.exp()))
    wide = kl_divergence(
        lk.FusedNormal(loc.float(), scale.float()),
        lk.FusedNormal(scale.float(), loc.exp().float()),
    )
    assert torch.equal(found, wide.to(dtype))


def test_kl_of_other_dtypes() -> None:
    whole = Normal(torch.tensor([0, 1]), torch.tensor([1, 2]), validate_args=False)
    q = lk.FusedNormal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    for p, expected in ((lk.FusedNormal(0.0, 1.0), torch.float64), (whole, torch.float64)):
        assert kl_divergence(p, q).dtype == expected
    assert kl_divergence(whole, lk.FusedNormal(0.0, 1.0)).dtype == torch.float32


def test_kl_keeps_the_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        q = lk.FusedNormal(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
        assert kl_divergence(q, q).dtype == dtype


def test_validation_is_normals() -> None:
    with pytest.raises(ValueError, match="scale"):
        lk.FusedNormal(torch.zeros(2), torch.tensor([1.0, -1.0]), validate_args=True)
    lk.FusedNormal(torch.zeros(2), torch.tensor([1.0, -1.0]), validate_args=False)


def test_works_inside_other_distributions() -> None:
    log_normal = TransformedDistribution(
        lk.FusedNormal(torch.zeros(3), torch.ones(3)), [ExpTransform()]
    )
    assert (log_normal.rsample((5,)) > 0).all()
    mixture = MixtureSameFamily(
        Categorical(torch.ones(2)), lk.FusedNormal(torch.tensor([-9.0, 9.0]), torch.ones(2))
    )
    assert mixture.sample((50,)).abs().min() > 2


def test_copies_and_pickles() -> None:
    q = lk.FusedNormal(torch.randn(3), torch.ones(3))
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert type(other) is lk.FusedNormal
        assert torch.equal(other.loc, q.loc)
    assert repr(q) == repr(Normal(q.loc, q.scale)).replace("Normal", "FusedNormal")
