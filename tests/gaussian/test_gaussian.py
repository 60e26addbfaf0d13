"""The Gaussian op on the CPU: builds against float64, accuracy of the KL, layouts, bad input."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latent_kernels as lk
from latent_kernels.kernels.gaussian import cpp_cpu, reference
from latent_kernels.kernels.gaussian.problem import ANTITHETIC, INDEPENDENT, SOBOL
from latent_kernels.kernels.noise import reference as noise
from tests.backends import CPP, Backend, on_every_backend
from tests.checks import DTYPES, INTERPRETED, SIZES, Sizes, bits_equal, is_half
from tests.gaussian.checks import Problem, check, check_near_overflow, of_points

Tensor = torch.Tensor


# --- every backend, every dtype, every size ------------------------------------------------------


@on_every_backend(SIZES, interpreted=INTERPRETED)
def test_results(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check(backend, Problem(sizes, dtype))
    check(backend, Problem(sizes, dtype, prior=False, offset=3))
    check(backend, Problem(sizes, dtype, prior=False, scale=True))
    check(backend, Problem(sizes, dtype, offset=3, dependence=ANTITHETIC))
    check(backend, Problem(of_points(sizes), dtype, offset=3, dependence=SOBOL))


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 40), st.integers(0, 70)),
    dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 9),
    prior=st.booleans(),
    dependence=st.sampled_from([INDEPENDENT, ANTITHETIC, SOBOL]),
)
@settings(max_examples=80)
def test_cpp_on_any_shape(
    sizes: Sizes, dtype: torch.dtype, offset: int, prior: bool, dependence: int
) -> None:
    sizes = of_points(sizes) if dependence == SOBOL else sizes
    problem = Problem(sizes, dtype, prior=prior, offset=offset, dependence=dependence)
    check(CPP, problem, roundings=4)


def test_noise_is_the_stream(simd_build: str) -> None:
    """Mean 0 and sigma 1 give the stream itself, in the order [S, ..., D] from `offset` on."""
    zero = torch.zeros(7, 5, 3)
    z = lk.rsample(zero, zero, 4, seed=9, offset=10)
    assert torch.equal(z, lk.normal((4, 7, 5, 3), seed=9, offset=10))
    assert torch.equal(lk.rsample(zero, zero, seed=9, offset=10), z[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_samples", [None, 1, 3])
@pytest.mark.parametrize("shape", [(64, 20), (5,), (3, 5, 7), (2, 1500)])
def test_backward_noise_is_forward_noise(
    simd_build: str, shape: tuple[int, ...], num_samples: int | None, dtype: torch.dtype
) -> None:
    """With scale 1, gradient 1 on one sample and 0 elsewhere, d scale is that sample's eps, bit for
    bit.
    """
    from latent_kernels.variational.gaussian import rsample_scale

    mean, scale = (
        torch.zeros(shape, dtype=dtype),
        torch.ones(shape, dtype=dtype, requires_grad=True),
    )
    z = rsample_scale(mean, scale, num_samples, seed=3, offset=1)
    samples = [z] if num_samples is None else list(z)
    for s, sample in enumerate(samples):
        one = torch.zeros_like(z)
        (one if num_samples is None else one[s]).fill_(1)
        (gradient,) = torch.autograd.grad(z, scale, one, retain_graph=True)
        assert bits_equal(gradient + 0, sample.detach() + 0)


# --- accuracy of the KL ---------------------------------------------------------------------------

LOGVARS = [s * m * 10.0**e for e in range(-8, 2) for m in (1, 2, 3.7, 8) for s in (-1, 1)] + [
    80.0,
    -80.0,
    1.0,
    -1.0,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_in_ulp(simd_build: str, dtype: torch.dtype) -> None:
    """The KL errs by a few ulp for every logvar and is never negative; the table is in
    kernels/gaussian/README.md.
    """
    logvar = torch.tensor(LOGVARS, dtype=dtype).unsqueeze(1)
    kl = lk.gaussian_kl(torch.zeros_like(logvar), logvar)
    assert bool((kl > 0).all())
    numpy_type = np.float32 if dtype == torch.float32 else np.float64
    with mpmath.workdps(50):
        for value, l in zip(kl.tolist(), logvar.squeeze(1).tolist(), strict=True):
            exact = (mpmath.exp(l) - 1 - mpmath.mpf(l)) / 2
            unit = mpmath.mpf(float(np.spacing(numpy_type(float(exact)))))
            assert abs(mpmath.mpf(value) - exact) / unit < 4, l


@given(st.floats(-88, 88, width=32), st.floats(-80, 80, width=32), st.floats(-1e3, 1e3, width=32))
@settings(max_examples=300)
def test_kl_is_never_negative(logvar: float, prior_logvar: float, mean: float) -> None:
    m, l, p = (torch.tensor([[x]]) for x in (mean, logvar, prior_logvar))
    assert lk.gaussian_kl(m, l).item() >= 0
    assert lk.gaussian_kl(m, l, prior_mean=m, prior_logvar=p).item() >= 0
    assert lk.gaussian_kl(m, l, prior_mean=m, prior_logvar=l).item() == 0


def test_gradient_of_kl_near_the_prior(simd_build: str) -> None:
    """The gradient expm1(d) / 2 keeps its digits where e^d - 1 has none."""
    logvar = torch.tensor([[1e-7, -1e-7, 3e-5, 0.3, -0.999, 1.001, 20.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        lk.gaussian_kl(torch.zeros_like(logvar), logvar).sum(), logvar
    )
    assert torch.allclose(
        gradient.double(), 0.5 * torch.expm1(logvar.detach().double()), rtol=4e-7, atol=0
    )


@pytest.mark.parametrize(
    "value", [-200.0, -104.0, -95.0, 87.9, 88.8, 100.0, float("inf"), float("-inf")]
)
def test_extreme_logvar_is_what_torch_gives(simd_build: str, value: float) -> None:
    """Subnormal, overflowing and infinite sigma give the rounded result of the formula in
    float64.
    """
    logvar = torch.full((3, 17), value)
    z = lk.rsample(torch.ones(3, 17), logvar, seed=1)
    eps = torch.from_numpy(noise.normal(51, 1).copy()).double().reshape(3, 17)
    expected = (1 + torch.exp(0.5 * logvar.double()) * eps).float()
    assert torch.allclose(z, expected, rtol=1e-6, atol=0)


# --- NaN, layouts, broadcasting -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean", "logvar", "prior_mean", "prior_logvar"])
def test_nan_stays_in_its_row(simd_build: str, name: str) -> None:
    inputs = {k: torch.randn(9, 37) for k in ("mean", "logvar", "prior_mean", "prior_logvar")}
    inputs[name][4, 11] = float("nan")
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    z, kl = lk.rsample_kl(
        leaves["mean"],
        leaves["logvar"],
        prior_mean=leaves["prior_mean"],
        prior_logvar=leaves["prior_logvar"],
        seed=1,
    )
    assert kl.isnan().nonzero().flatten().tolist() == [4]
    assert z.isnan().nonzero().tolist() == ([[4, 11]] if not name.startswith("prior") else [])
    for gradient in torch.autograd.grad(z.sum() + kl.sum(), list(leaves.values())):
        assert set(gradient.isnan().nonzero()[:, 0].tolist()) <= {4}


def strided(x: Tensor, kind: str) -> Tensor:
    """Return the same values in another memory layout."""
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    padded = torch.randn(*x.shape[:-1], x.shape[-1] + 3)
    padded[..., 1:-2] = x
    return padded[..., 1:-2]


@pytest.mark.parametrize("kind", ["transposed", "sliced", "padded"])
def test_strides(kind: str) -> None:
    mean, logvar, gz = torch.randn(6, 5, 7), torch.randn(6, 5, 7), torch.randn(3, 6, 5, 7)
    gkl = torch.randn(6, 5)

    def run(m: Tensor, l: Tensor, g: Tensor, gk: Tensor) -> list[Tensor]:
        m, l = m.detach().requires_grad_(), l.detach().requires_grad_()
        z, kl = lk.rsample_kl(m, l, 3, seed=2)
        return [z, kl, *torch.autograd.grad([z, kl], [m, l], [g, gk])]

    plain = run(mean, logvar, gz, gkl)
    other = run(strided(mean, kind), strided(logvar, kind), strided(gz, kind), strided(gkl, kind))
    for a, b in zip(plain, other, strict=True):
        assert bits_equal(a, b)


@pytest.mark.parametrize(
    ("mean_shape", "logvar_shape"),
    [((6, 5), (5,)), ((5,), (6, 5)), ((6, 5), (1,)), ((4, 1, 5), (6, 5)), ((6, 1), (6, 5))],
)
def test_broadcasting(mean_shape: tuple[int, ...], logvar_shape: tuple[int, ...]) -> None:
    mean, logvar = (
        torch.randn(mean_shape, requires_grad=True),
        torch.randn(logvar_shape, requires_grad=True),
    )
    shape = torch.broadcast_shapes(mean_shape, logvar_shape)
    z, kl = lk.rsample_kl(mean, logvar, 2, seed=1)
    full = [x.expand(shape).clone() for x in (mean, logvar)]
    z2, kl2 = lk.rsample_kl(*full, 2, seed=1)
    assert torch.equal(z, z2)
    assert torch.equal(kl, kl2)
    assert z.shape == (2, *shape)
    a = torch.autograd.grad(z.sum() + kl.sum(), (mean, logvar))
    b = torch.autograd.grad(z2.sum() + kl2.sum(), (mean, logvar))
    for x, y in zip(a, b, strict=True):
        assert torch.allclose(x, y, rtol=1e-6, atol=1e-6)


def test_broadcast_prior_and_its_gradient() -> None:
    mean, logvar = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    prior_mean, prior_logvar = (
        torch.randn(5).double().requires_grad_(),
        torch.randn(()).double().requires_grad_(),
    )
    kl = lk.gaussian_kl(mean, logvar, prior_mean=prior_mean, prior_logvar=prior_logvar.reshape(1))
    expected = reference.gaussian_kl(mean, logvar, prior_mean, prior_logvar)
    assert torch.allclose(kl, expected, rtol=1e-12)
    ours = torch.autograd.grad(kl.sum(), (prior_mean, prior_logvar))
    theirs = torch.autograd.grad(expected.sum(), (prior_mean, prior_logvar))
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("value", [-170.0, -90.0, -80.0, 80.0, 88.0])
def test_extreme_variances_of_the_prior(simd_build: str, value: float) -> None:
    """The KL of a prior to itself is 0 even where 1 / sigma^2 overflows, but its root does not."""
    zero, logvar = torch.zeros(2, 5), torch.full((2, 5), value)
    assert lk.gaussian_kl(zero, logvar, prior_mean=zero, prior_logvar=logvar).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1.0, 20.0, 60.0])
def test_kl_to_a_prior_in_ulp(simd_build: str, scale: float) -> None:
    """Random pairs agree with mpmath: the rounding of logvar - prior_logvar is compensated."""
    logvar, prior = (scale * (2 * torch.rand(300, 1) - 1) for _ in range(2))
    kl = lk.gaussian_kl(
        torch.zeros(300, 1), logvar, prior_mean=torch.zeros(300, 1), prior_logvar=prior
    )
    with mpmath.workdps(50):
        for value, l, l0 in zip(
            kl.tolist(), logvar.flatten().tolist(), prior.flatten().tolist(), strict=True
        ):
            d = mpmath.mpf(l) - mpmath.mpf(l0)
            exact = (mpmath.exp(d) - 1 - d) / 2
            if exact > 3e38:
                continue
            assert abs(mpmath.mpf(value) - exact) / exact < 5 * 2.0**-24, (l, l0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_near_overflow(simd_build: str, dtype: torch.dtype) -> None:
    check_near_overflow(cpp_cpu, dtype)
    check_near_overflow(reference, dtype)
    kl = lk.gaussian_kl(
        torch.tensor([95.6]), torch.tensor([-80.0]), prior_logvar=torch.tensor([-80.0])
    )
    assert kl.item() == pytest.approx(2.53189e38, rel=1e-5)


def test_views_with_a_sign_bit() -> None:
    one = torch.ones(2, 3)
    zero = torch.zeros(2, 3)
    assert torch.equal(
        lk.rsample(torch._neg_view(one), zero, seed=1), lk.rsample(-one, zero, seed=1)
    )


def test_default_device_does_not_move_the_seed() -> None:
    x = torch.zeros(3, 4)
    torch.manual_seed(1)
    expected = lk.rsample(x, x)
    torch.manual_seed(1)
    with torch.device("meta"):
        assert torch.equal(lk.rsample(x, x), expected)


def test_meta_tensors_cost_nothing() -> None:
    x = torch.empty(1 << 20, 1 << 20, device="meta", requires_grad=True)
    z, kl = lk.rsample_kl(x, x, 100)
    assert z.shape == (100, 1 << 20, 1 << 20)
    assert kl.is_meta
    assert (
        lk.gaussian_log_prob(z, x, x).shape == lk.bernoulli_log_prob(x, z).shape == (100, 1 << 20)
    )
    assert lk.normal((1 << 20, 1 << 20), seed=1, device="meta").is_meta


def test_mixed_dtypes_promote_as_torch_does() -> None:
    z, kl = lk.rsample_kl(torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3, 4), seed=1)
    assert z.dtype == kl.dtype == torch.float32
    z, kl = lk.rsample_kl(
        torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3, 4, dtype=torch.float16), seed=1
    )
    assert z.dtype == torch.float32
    mean = torch.zeros(3, 4, requires_grad=True)
    z, kl = lk.rsample_kl(mean, torch.zeros(3, 4, dtype=torch.float64), seed=1)
    assert z.dtype == torch.float64
    assert torch.autograd.grad(z.sum(), mean)[0].dtype == torch.float32


def test_half_keeps_kl_in_float32() -> None:
    for dtype in DTYPES:
        z, kl = lk.rsample_kl(torch.zeros(3, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype), seed=1)
        assert z.dtype == dtype
        assert kl.dtype == (torch.float32 if is_half(dtype) else dtype)


def test_empty_batches_let_gradients_flow() -> None:
    mean, logvar = torch.randn(0, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    z, kl = lk.rsample_kl(mean, logvar, 3, seed=1)
    assert z.shape == (3, 0, 4)
    assert kl.shape == (0,)
    (z.sum() + kl.sum()).backward()
    assert mean.grad is not None
    assert mean.grad.shape == (0, 4)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """With 64-bit indexing, the last rows of a tensor past 2^31 elements are those of the stream.
    Takes 5 GB.
    """
    rows, cols = (1 << 25) + 1, 64
    zero = torch.zeros(1, cols, dtype=torch.bfloat16).expand(rows, cols)
    torch.use_deterministic_algorithms(False)  # no need to poison so much memory first
    z = lk.rsample(zero, zero, seed=3)
    expected = lk.normal((5, cols), seed=3, offset=(rows - 5) * cols, dtype=torch.bfloat16)
    assert torch.equal(z[-5:], expected)


def test_only_wanted_gradients_are_made() -> None:
    mean, logvar = torch.randn(4, 5), torch.randn(4, 5)
    for which in range(2):
        leaves = [mean.clone(), logvar.clone()]
        leaves[which].requires_grad_()
        z, kl = lk.rsample_kl(*leaves, seed=3)
        both = [x.clone().requires_grad_() for x in (mean, logvar)]
        z2, kl2 = lk.rsample_kl(*both, seed=3)
        (z.sum() + kl.sum()).backward()
        (z2.sum() + kl2.sum()).backward()
        assert torch.equal(leaves[which].grad, both[which].grad)  # type: ignore[arg-type]
        assert leaves[1 - which].grad is None


@pytest.mark.parametrize("used", ["z", "kl"])
def test_one_output_unused(used: str) -> None:
    mean, logvar = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    prior = torch.randn(4, 5, requires_grad=True)
    z, kl = lk.rsample_kl(mean, logvar, 2, prior_mean=prior, seed=3)
    single = (
        lk.rsample(mean, logvar, 2, seed=3)
        if used == "z"
        else lk.gaussian_kl(mean, logvar, prior_mean=prior)
    )
    both = z if used == "z" else kl
    assert torch.equal(single, both)
    for x, y in zip(
        torch.autograd.grad(both.sum(), (mean, logvar)),
        torch.autograd.grad(single.sum(), (mean, logvar)),
        strict=True,
    ):
        assert torch.equal(x, y)


def test_saves_nothing_but_inputs() -> None:
    """Forward keeps only mean and logvar themselves: no eps, no z, no copy."""
    mean, logvar = torch.randn(50, 20, requires_grad=True), torch.randn(50, 20, requires_grad=True)
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        lk.rsample_kl(mean, logvar, 8)
    assert set(saved) == {mean.data_ptr(), logvar.data_ptr()}
