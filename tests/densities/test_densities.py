"""The log-densities on the CPU: every build against float64, sharing, accuracy, extremes, layouts,
bits.
"""

from __future__ import annotations

import math
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.densities import cpp_cpu, reference
from latent_kernels.kernels.densities.problem import BernoulliGradients, BernoulliProblem, Outputs
from tests.backends import CPP, Backend, on_every_backend
from tests.checks import DTYPES, INTERPRETED, SIZES, Sizes, bits_equal, is_half
from tests.densities.checks import (
    INPUTS,
    PLAIN,
    USUAL,
    DensityProblem,
    Sharing,
    check_density,
    every_sharing,
)
from tests.elementary import elementary

Tensor = torch.Tensor
INF = math.inf
DENSITIES = ["gaussian", "bernoulli"]
PUBLIC = {"gaussian": lk.gaussian_log_prob, "bernoulli": lk.bernoulli_log_prob}
# Besides: several blocks of rows and samples whose sums of a single row meet, and rows of several
# tiles in them.
MANY_ROWS: list[Sizes] = [(1, 3, 1500, 33), (2, 70, 17, 64), (1, 2, 90, 1100)]


# --- every build, every dtype, every size, every way to share -------------------------------------


@pytest.mark.parametrize("density", DENSITIES)
@on_every_backend(SIZES + MANY_ROWS, interpreted=INTERPRETED, always=1)
def test_results(backend: Backend, sizes: Sizes, dtype: torch.dtype, density: str) -> None:
    for sharing in USUAL[density]:
        check_density(backend, DensityProblem(density, sizes, dtype, sharing))


SOME_SIZES: list[Sizes] = [
    (2, 3, 5, 7),
    (1, 4, 63, 17),
    (2, 2, 3, 1500),
    (1, 0, 3, 4),
    (1, 2, 0, 4),
    (3, 2, 1, 5),
]


@on_every_backend(
    SOME_SIZES, [torch.float32, torch.bfloat16], interpreted=[(2, 2, 33, 17)], always=0, also=[]
)
@pytest.mark.parametrize(
    ("density", "sharing"), [(d, s) for d in DENSITIES for s in every_sharing(d)], ids=str
)
def test_every_sharing(
    backend: Backend, sizes: Sizes, dtype: torch.dtype, density: str, sharing: Sharing
) -> None:
    """All gradients are right, and each of them alone; the PTX interpreter runs the last case
    only.
    """
    problem = DensityProblem(density, sizes, dtype, sharing)
    check_density(backend, problem)
    for j in range(len(sharing))[-1 if backend.interprets else 0 :]:
        check_density(backend, problem, wanted=tuple(j == k for k in range(len(sharing))))


@given(
    density=st.sampled_from(DENSITIES),
    sizes=st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 40), st.integers(0, 70)),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
@settings(max_examples=80)
def test_cpp_on_any_shape(
    density: str, sizes: Sizes, dtype: torch.dtype, data: st.DataObject
) -> None:
    problem = DensityProblem(
        density, sizes, dtype, data.draw(st.sampled_from(every_sharing(density)))
    )
    check_density(CPP, problem)


def test_a_shared_variance_has_the_bits_of_a_repeated_one(simd_build: str) -> None:
    """A shared variance gives the same bits as a repeated one, although its elementary functions
    are computed once and not for each element.
    """
    for cols in (5, 784, 1500):
        z, mean, logvar = torch.randn(6, cols), torch.randn(4, 6, cols), torch.randn(cols)
        shared = lk.gaussian_log_prob(z, mean, logvar)
        assert bits_equal(shared, lk.gaussian_log_prob(z, mean, logvar.expand(4, 6, cols).clone()))
        assert bits_equal(shared, lk.gaussian_log_prob(z, mean, logvar.expand(6, cols).clone()))
        assert bits_equal(
            lk.bernoulli_log_prob(mean, logvar),
            lk.bernoulli_log_prob(mean, logvar.expand(4, 6, cols)),
        )


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_in_ulp(simd_build: str, dtype: type) -> None:
    """ln(1 + e) over [0, 1] has a small relative error, also where e is tiny;
    kernels/densities/README.md states the bound.
    """
    rng = np.random.default_rng(0)
    powers = 2.0 ** -np.arange(0, 120.0)
    spread = np.concatenate(
        [rng.uniform(0, 1, 4000), 10 ** rng.uniform(-38, 0, 4000), powers, powers * 0.999, [1e-45]]
    )
    e = spread.astype(dtype)
    e = np.concatenate([e[e > 0], [0]]).astype(dtype)
    found = elementary("log1p", e)
    assert found[-1] == 0
    with mpmath.workdps(40):
        for x, y in zip(e[:-1].tolist(), found[:-1].tolist(), strict=True):
            exact = mpmath.log1p(mpmath.mpf(x))
            unit = mpmath.mpf(float(np.spacing(dtype(float(exact)))))
            assert abs(mpmath.mpf(y) - exact) / unit < 1.5, x


LOGITS = [s * m * 10.0**e for e in range(-9, 4) for m in (1, 2.3, 7) for s in (-1, 1)] + [
    0.0,
    17.3,
    -17.3,
    88.0,
    -100.0,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("x", [0.0, 1.0, 0.25, 0.7, 1e-6])
def test_bernoulli_in_ulp(simd_build: str, x: float, dtype: torch.dtype) -> None:
    """Value and gradient of single elements agree with mpmath, whatever the logit."""
    logits = torch.tensor(LOGITS, dtype=dtype).unsqueeze(1).requires_grad_()
    values = torch.full_like(logits, x).detach()
    out = lk.bernoulli_log_prob(values, logits)
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    eps, least = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    v = mpmath.mpf(values[0, 0].item())
    with mpmath.workdps(60):
        for l, got, slope in zip(
            logits.flatten().tolist(), out.tolist(), gradient.flatten().tolist(), strict=True
        ):
            e, weight = mpmath.exp(-abs(mpmath.mpf(l))), v if l <= 0 else 1 - v
            exact = -(weight * abs(l) + mpmath.log1p(e))
            assert abs(mpmath.mpf(got) - exact) <= 3 * eps * abs(exact) + least, l
            tail = e / (1 + e)
            exact = weight - tail if l <= 0 else tail - weight
            # of two terms that are subtracted each is right to a few roundings; where x is 0 or 1
            # the difference is
            scale = abs(exact) if x in (0, 1) else tail + weight
            assert abs(mpmath.mpf(slope) - exact) <= 3 * eps * scale + least, l


def test_bernoulli_is_better_than_torchs_cross_entropy() -> None:
    x, logits = torch.rand(300, 784), 6 * torch.randn(300, 784)
    truth = PLAIN["bernoulli"](x.double(), logits.double())
    ours = lk.bernoulli_log_prob(x, logits)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    assert (ours.double() - truth).abs().max() <= 2 * (-loss.sum(-1).double() - truth).abs().max()


# --- extremes, NaN --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-170.0, -90.0, -80.0, 80.0, 88.0])
def test_extreme_variances(simd_build: str, value: float) -> None:
    """A point at the mean has a density where 1 / sigma^2 overflows but its root does not."""
    zero, logvar = torch.zeros(2, 5), torch.full((2, 5), value, requires_grad=True)
    density = lk.gaussian_log_prob(zero, zero, logvar)
    assert torch.allclose(density, torch.full((2,), -2.5 * (math.log(2 * math.pi) + value)))
    (gradient,) = torch.autograd.grad(density.sum(), logvar)
    assert torch.equal(gradient, torch.full((2, 5), -0.5))


@pytest.mark.parametrize(
    "module", [cpp_cpu, reference], ids=lambda m: m.__name__.rsplit(".", 1)[-1]
)
def test_extreme_logits(module: ModuleType) -> None:
    """The limits (x, logit, value, gradient) hold, also where x l and ln(1 + e^l) are both
    infinite.
    """
    table = [
        (1.0, 1e4, 0, 0), (0.0, -1e4, 0, 0), (0.0, 1e4, -1e4, -1), (1.0, -1e4, -1e4, 1),
        (0.5, 1e4, -5e3, -0.5),
        (1.0, INF, 0, 0), (0.0, -INF, 0, 0), (0.0, INF, -INF, -1), (1.0, -INF, -INF, 1),
        (0.5, INF, -INF, -0.5), (0.5, -INF, -INF, 0.5), (1.0, 0.0, -math.log(2), 0.5),
        (2.0, 1.0, 2 - math.log1p(math.e), 2 - 1 / (1 + 1 / math.e)),
    ]  # fmt: skip
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, logits, value, gradient = (
            torch.tensor(column, dtype=torch.float64) for column in zip(*table, strict=True)
        )
        shape = (1, 1, len(table), 1)
        inputs = (x.to(dtype).reshape(shape), logits.to(dtype).reshape(shape))
        out = torch.empty(
            shape[:3], dtype=torch.float64 if dtype == torch.float64 else torch.float32
        )
        d_x, d_logits = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        problem, upstream = BernoulliProblem(shape, *inputs), Outputs(torch.ones_like(out))
        module.forward(problem, Outputs(out))
        module.backward(problem, upstream, BernoulliGradients(d_x, d_logits))
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert torch.allclose(out.flatten().double(), value, rtol=tolerance, atol=0)
        assert torch.allclose(d_logits.flatten().double(), gradient, rtol=tolerance, atol=0)
        assert torch.equal(d_x, inputs[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("density", "name"), [(d, n) for d in DENSITIES for n in INPUTS[d]])
def test_nan_stays_in_its_row(simd_build: str, density: str, name: str, dtype: torch.dtype) -> None:
    for cols in (37, 1500):
        inputs = {k: torch.rand(9, cols, dtype=dtype, requires_grad=True) for k in INPUTS[density]}
        with torch.no_grad():
            inputs[name][4, 11] = math.nan
        out = PUBLIC[density](*inputs.values())
        assert out.isnan().nonzero().flatten().tolist() == [4]
        for gradient in torch.autograd.grad(out.sum(), list(inputs.values())):
            assert set(map(tuple, gradient.isnan().nonzero().tolist())) <= {(4, 11)}


@pytest.mark.parametrize("density", DENSITIES)
def test_nan_of_a_shared_row_stays_in_its_column(simd_build: str, density: str) -> None:
    full, row = torch.rand(5, 70, requires_grad=True), torch.rand(70)
    row[3] = math.nan
    row.requires_grad_()
    out = (
        PUBLIC[density](full, row)
        if density == "bernoulli"
        else lk.gaussian_log_prob(full, full.detach(), row)
    )
    assert out.isnan().all()
    (of_full, of_row) = torch.autograd.grad(out.sum(), (full, row))
    assert of_row.isnan().nonzero().flatten().tolist() == [3]
    assert set(of_full.isnan().nonzero()[:, 1].tolist()) <= {3}


# --- public functions: broadcasting, dtypes, layouts ----------------------------------------------


@pytest.mark.parametrize(
    ("z_shape", "mean_shape", "logvar_shape"),
    [
        ((4, 6, 5), (6, 5), (6, 5)),
        ((4, 6, 5), (6, 5), (5,)),
        ((6, 5), (4, 6, 5), (4, 6, 5)),
        ((6, 5), (4, 6, 5), (5,)),
        ((6, 5), (4, 6, 5), (1,)),
        ((6, 5), (4, 6, 5), (1, 1)),
        ((2, 4, 6, 5), (4, 6, 5), (6, 5)),
        ((6, 5), (6, 5), (6, 5)),
        ((5,), (5,), (1,)),
        ((1, 5), (5,), (1,)),
        ((5,), (6, 1), (1, 6, 5)),
        ((4, 1, 5), (6, 5), (6, 1)),
        ((0, 6, 5), (6, 5), (6, 5)),
        ((0, 6, 5), (6, 5), (5,)),
        ((4, 0, 5), (0, 5), (0, 5)),
        ((4, 0, 5), (0, 5), (5,)),
        ((4, 6, 0), (6, 0), (0,)),
        ((4, 6, 5), (6, 5), (4, 6, 5)),
        ((4, 6, 5), (6, 5), (1, 1, 5)),
        ((1, 1, 5), (4, 6, 5), (6, 5)),
        ((1, 6, 5), (6, 5), (4, 6, 5)),
        ((4, 6, 1), (5,), (6, 5)),
    ],
)
def test_broadcasting(
    z_shape: tuple[int, ...], mean_shape: tuple[int, ...], logvar_shape: tuple[int, ...]
) -> None:
    leaves = [
        torch.rand(s, dtype=torch.float64, requires_grad=True)
        for s in (z_shape, mean_shape, logvar_shape)
    ]
    for density, inputs in (
        ("gaussian", leaves),
        ("bernoulli", leaves[:2]),
        ("bernoulli", leaves[:0:-1]),
    ):
        ours, theirs = PUBLIC[density](*inputs), PLAIN[density](*inputs)
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-12)
        upstream = torch.randn_like(ours)
        found, expected = (torch.autograd.grad(out, inputs, upstream) for out in (ours, theirs))
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def strided(x: Tensor, kind: str) -> Tensor:
    """Return the same values in another memory layout."""
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    if kind == "negative":
        return torch._neg_view(-x)
    padded = torch.rand(*x.shape[:-1], x.shape[-1] + 3)
    padded[..., 1:-2] = x
    return padded[..., 1:-2]


@pytest.mark.parametrize("kind", ["transposed", "sliced", "padded", "negative"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    "shapes", [((6, 5, 7), (5, 7), (7,)), ((5, 7), (6, 5, 7), (7,)), ((5, 7), (5, 7), (5, 7))]
)
def test_strides(density: str, shapes: list[tuple[int, ...]], kind: str) -> None:
    inputs = [torch.rand(s) for s, _ in zip(shapes, INPUTS[density], strict=False)]
    upstream = torch.randn(PUBLIC[density](*inputs).shape)

    def run(arguments: list[Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in arguments]
        out = PUBLIC[density](*leaves)
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    plain = run(inputs, upstream)
    for a, b in zip(
        plain, run([strided(x, kind) for x in inputs], strided(upstream, kind)), strict=True
    ):
        assert bits_equal(a, b)


def test_halves_of_a_layer_are_read_where_they_lie() -> None:
    """Inputs by `chunk`, whose columns have a gap between rows, are read without a copy, in any
    number of dimensions.
    """
    mean, logvar = torch.rand(3, 6, 14).chunk(2, -1)
    z = torch.rand(6, 7)
    for a, b in ((mean, logvar), (mean[0], logvar[0])):
        ours = lk.gaussian_log_prob(z, a, b)
        assert bits_equal(ours, lk.gaussian_log_prob(z, a.contiguous(), b.contiguous()))


@pytest.mark.parametrize("density", DENSITIES)
def test_repeated_rows_have_a_gradient_each(density: str) -> None:
    rest = [torch.rand(6, 5) for _ in INPUTS[density][1:]]
    x = torch.rand(5).expand(4, 6, 5).detach().requires_grad_()
    upstream = torch.randn(4, 6)
    (ours,) = torch.autograd.grad(PUBLIC[density](x, *rest), x, upstream)
    full = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(PLAIN[density](full, *rest), full, upstream)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_dtypes() -> None:
    for dtype in DTYPES:
        x = torch.zeros(3, 4, dtype=dtype)
        for out in (lk.gaussian_log_prob(x, x, x), lk.bernoulli_log_prob(x, x)):
            assert out.dtype == (torch.float32 if is_half(dtype) else dtype)
        mixed = lk.bernoulli_log_prob(
            torch.zeros(3, 4, dtype=torch.float64, requires_grad=True), x.requires_grad_()
        )
        assert mixed.dtype == torch.float64
        assert torch.autograd.grad(mixed.sum(), x)[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("of", DTYPES, ids=str)
def test_bits_and_bytes_as_values(dtype: torch.dtype, of: torch.dtype) -> None:
    x = (torch.rand(5, 9) < 0.5).to(dtype)
    logits = torch.randn(3, 5, 9).to(of)
    assert bits_equal(lk.bernoulli_log_prob(x, logits), lk.bernoulli_log_prob(x.to(of), logits))


def test_only_wanted_gradients_are_made() -> None:
    for density in DENSITIES:
        inputs = [torch.rand(4, 5) for _ in INPUTS[density]]
        everything = [x.clone().requires_grad_() for x in inputs]
        PUBLIC[density](*everything).sum().backward()
        for which in range(len(inputs)):
            leaves = [x.clone() for x in inputs]
            leaves[which].requires_grad_()
            PUBLIC[density](*leaves).sum().backward()
            assert torch.equal(leaves[which].grad, everything[which].grad)  # type: ignore[arg-type]
            assert all(x.grad is None for i, x in enumerate(leaves) if i != which)


def test_saves_nothing_but_inputs() -> None:
    x, mean, logvar = (torch.rand(s, requires_grad=True) for s in ((5, 20), (3, 5, 20), (20,)))
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lk.gaussian_log_prob(x, mean, logvar)
        lk.bernoulli_log_prob(x, mean)
    assert set(saved) == {x.data_ptr(), mean.data_ptr(), logvar.data_ptr()}


def test_against_torch_distributions() -> None:
    z, mean, logvar = (
        torch.randn(4, 6, 5).double(),
        torch.randn(6, 5).double(),
        torch.randn(6, 5).double(),
    )
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    assert torch.allclose(
        lk.gaussian_log_prob(z, mean, logvar), normal.log_prob(z).sum(-1), rtol=1e-12
    )
    bernoulli = torch.distributions.Bernoulli(logits=mean)
    x = bernoulli.sample((4,))
    assert torch.allclose(lk.bernoulli_log_prob(x, mean), bernoulli.log_prob(x).sum(-1), rtol=1e-12)
    assert torch.allclose(
        lk.bernoulli_log_prob(x, mean), lk.Bernoulli(mean).log_prob(x), rtol=1e-12
    )


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """With 64-bit indexing, the last rows of a tensor past 2^31 elements have the same densities as
    alone. Takes 4 GB.
    """
    rows, cols = (1 << 25) + 1, 64
    torch.use_deterministic_algorithms(False)  # no need to poison so much memory first
    logits = torch.zeros(rows, cols, dtype=torch.bfloat16)
    logits[-5:] = torch.randn(5, cols).bfloat16()
    x = torch.rand(cols).bfloat16()
    assert bits_equal(lk.bernoulli_log_prob(x, logits)[-5:], lk.bernoulli_log_prob(x, logits[-5:]))


# --- what the public functions make of shapes, on every backend -----------------------------------


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("z_shape", "mean_shape", "logvar_shape"),
    [
        ((2, 5, 4), (2, 5, 4), (2, 5, 4)),
        ((3, 2, 5, 4), (2, 5, 4), (4,)),
        ((3, 5, 4), (1, 5, 4), (1, 1, 1)),
        ((4,), (4,), (1,)),
    ],
)
def test_gradients_have_the_shapes_of_inputs(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    z_shape: tuple[int, ...],
    mean_shape: tuple[int, ...],
    logvar_shape: tuple[int, ...],
) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", f"densities={backend}")
    backends.forget()
    inputs = [
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in (z_shape, mean_shape, logvar_shape)
    ]
    z, mean, logvar = inputs
    plain = -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)
    value = lk.gaussian_log_prob(*inputs)
    torch.testing.assert_close(value, plain)
    upstream = torch.randn_like(value)
    torch.testing.assert_close(
        torch.autograd.grad(value, inputs, upstream), torch.autograd.grad(plain, inputs, upstream)
    )


def test_a_single_leading_one_is_read_where_it_lies() -> None:
    """The samples share [1, B, D] under [S, B, D]; it is not repeated in memory for each."""
    z, mean = torch.randn(50, 3, 4), torch.randn(1, 3, 4, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        lk.gaussian_log_prob(z, mean, mean)
    assert sum(x.numel() for x in saved if x.data_ptr() != z.data_ptr()) <= 2 * mean.numel()


def test_compiles_for_changing_shapes() -> None:
    function = torch.compile(
        lambda z, m: lk.gaussian_log_prob(z, m, m),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for batch in (4, 6, 9):
        z, m = torch.randn(5, batch, 3), torch.randn(batch, 3)
        assert torch.equal(function(z, m), lk.gaussian_log_prob(z, m, m))
