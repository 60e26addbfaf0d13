"""Relaxed samples: every backend against float64, their distribution, their edges, and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import latent_kernels as lk
from latent_kernels.kernels.noise import reference as noise
from latent_kernels.kernels.relaxed import cpp_cpu, reference
from latent_kernels.kernels.relaxed.problem import (
    BernoulliOutputs,
    CategoricalOutputs,
    CategoricalProblem,
)
from tests.backends import Backend, Sizes, on_every_backend
from tests.checks import DTYPES, INTERPRETED, SIZES, bits_equal
from tests.relaxed.checks import CATEGORICAL_SIZES, SEED, RelaxedProblem, check_relaxed

Tensor = torch.Tensor
INF = math.inf
FAMILIES = ["bernoulli", "categorical"]
each_family = pytest.mark.parametrize("name", FAMILIES)


def family(name: str, logits: Tensor) -> lk.Bernoulli | lk.Categorical:
    """Return a Bernoulli, or a Categorical over the last axis."""
    return lk.Bernoulli(logits) if name == "bernoulli" else lk.Categorical(logits)


# --- every build, every dtype, every size ---------------------------------------------------------


@on_every_backend(SIZES, interpreted=INTERPRETED[:3], always=1)
def test_bernoulli(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check_relaxed(backend, sizes, dtype)


@on_every_backend(
    CATEGORICAL_SIZES,
    interpreted=[(2, 3, 5, 7, 3), (1, 2, 1, 2, 1500), (1, 2, 2, 3, 8), (1, 1, 3, 1, 1)],
    always=1,
)
def test_categorical(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check_relaxed(backend, sizes, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_samples_of_a_bernoulli_are_those_of_sample(
    simd_build: str, dtype: torch.dtype
) -> None:
    q = lk.Bernoulli(3 * torch.randn(40, 7).to(dtype))
    for samples in (None, 1, 6):
        for seed, offset in ((1, 0), (2**40, 5)):
            z = q.sample(samples, seed=seed, offset=offset)
            hard = q.rsample_relaxed(samples, tau=0.3, hard=True, seed=seed, offset=offset)
            assert torch.equal(hard, z)
            relaxed = q.rsample_relaxed(samples, tau=0.3, seed=seed, offset=offset)
            assert torch.equal((relaxed > 0.5)[relaxed != 0.5], z.bool()[relaxed != 0.5])


@pytest.mark.parametrize("classes", [2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hard_samples_have_the_gradient_of_relaxed_ones(dtype: torch.dtype, classes: int) -> None:
    """The gradients have the same bits, although one is made of kept samples, and the other of
    samples drawn again.
    """
    for name in FAMILIES:
        logits = torch.randn(9, 5, classes, dtype=dtype, requires_grad=True)
        g, found = torch.randn(3, 9, 5, classes, dtype=dtype), []
        for hard in (False, True):
            y = family(name, logits).rsample_relaxed(3, tau=0.4, hard=hard, seed=2)
            found.append(torch.autograd.grad(y, logits, g)[0])
        assert bits_equal(*found)


# --- the distribution -----------------------------------------------------------------------------


def test_exponential_keeps_every_digit() -> None:
    """-ln(1 - u) is right to 1 ulp, and to 2.5 ulp where 1 - u is rounded and not near 1."""
    ends = [2.0**-33, 2.0**-32, 1e-7, 0.2928, 0.29289323, 0.293, 0.5, 1 - 2.0**-24]
    u = np.concatenate([np.float32(ends), np.geomspace(1e-9, 0.999, 30_000).astype(np.float32)])
    found = reference.exponential(u).astype(np.float64)
    exact = -np.log1p(-u.astype(np.float64))
    error = np.abs(found - exact) / np.spacing(exact.astype(np.float32))
    rounded = (u > 0.29289) & (u < 0.5)
    assert error[~rounded].max() < 1
    assert error[rounded].max() < 2.5
    assert (found > 0).all()


def test_the_noise_is_gumbel_to_its_tails() -> None:
    """Beyond 6, where one of 400 lies, g has the law of its tail, and hardly two are equal."""
    u = noise.uniform(2**18, seed=3)
    g = -noise.ln(reference.exponential(u)).astype(np.float64)
    assert stats.kstest(g, stats.gumbel_r.cdf).pvalue > 1e-4
    large = g[g > 6]
    upper = -np.expm1(-np.exp(-6.0))
    assert abs(len(large) - len(g) * upper) < 5 * math.sqrt(len(g) * upper)
    tail = -np.expm1(-np.exp(-large)) / upper  # P(G > g) given G > 6: uniform
    assert stats.kstest(tail, "uniform").pvalue > 1e-4
    assert len(np.unique(large)) > 0.99 * len(large)


@pytest.mark.parametrize("classes", [1, 2, 5, 40])
def test_hard_samples_have_the_probabilities_of_q(classes: int) -> None:
    logits = 1.5 * torch.randn(3, classes)
    counts = lk.Categorical(logits).rsample_relaxed(1 << 16, tau=1.0, hard=True, seed=5).sum(0)
    expected = torch.softmax(logits.double(), -1) * (1 << 16)
    for found, wanted in zip(counts.double(), expected, strict=True):
        assert found.sum() == 1 << 16
        if classes > 1:
            assert stats.chisquare(found.numpy(), wanted.numpy()).pvalue > 1e-6


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_two_classes_are_a_bernoulli_in_law(tau: float) -> None:
    count = 1 << 15
    logits = torch.tensor([0.7])
    binary = lk.Bernoulli(logits).rsample_relaxed(count, tau=tau, seed=6)[:, 0]
    q = lk.Categorical(torch.stack([logits, torch.zeros(1)], -1))
    y = q.rsample_relaxed(count, tau=tau, seed=7)[:, 0]
    assert stats.ks_2samp(binary.numpy(), y[:, 0].numpy()).pvalue > 1e-4


@each_family
def test_seeds_and_offsets(name: str) -> None:
    q = family(name, torch.randn(3, 5))

    def draw(samples: int | None, **stream: Any) -> Tensor:
        return q.rsample_relaxed(samples, tau=0.5, **stream)

    y = draw(8, seed=11)
    assert torch.equal(draw(8, seed=torch.tensor(11)), y)
    assert torch.equal(draw(3, seed=11, offset=15 * 5), y[5:])
    assert torch.equal(draw(None, seed=11), y[0])
    torch.manual_seed(3)
    fresh = draw(2), draw(2)
    torch.manual_seed(3)
    assert torch.equal(draw(2), fresh[0])
    assert not torch.equal(*fresh)
    generator = torch.Generator().manual_seed(4)
    first = draw(2, generator=generator)
    assert torch.equal(draw(2, generator=generator.manual_seed(4)), first)


@pytest.mark.parametrize("hard", [False, True])
@each_family
def test_the_formula_has_the_noise_of_the_kernels(name: str, hard: bool) -> None:
    """Derivatives by plain torch are those at the very samples that the kernels return."""
    sizes = (1, 50, 20, 8) if name == "bernoulli" else (1, 50, 20, 2, 4)
    problem = RelaxedProblem(sizes, torch.float64, hard=hard).problem()
    problem = problem._replace(seed=torch.tensor([SEED]))
    outputs = (BernoulliOutputs if name == "bernoulli" else CategoricalOutputs)(
        torch.empty(sizes, dtype=torch.float64), torch.empty(0)
    )
    cpp_cpu.forward(problem, outputs)
    y = reference.formula(problem, outputs).y
    assert torch.allclose(y, outputs.y, rtol=1e-12, atol=1e-12)


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tau", [1e-3, 1e-30, 1e-300, 1e30])
def test_extreme_temperatures(simd_build: str, tau: float, dtype: torch.dtype) -> None:
    """Nothing is NaN; a small tau gives discrete samples, a large one equal ones."""
    for name, classes in (("bernoulli", 7), ("categorical", 7), ("categorical", 50)):
        logits = (5 * torch.randn(20, 3, classes)).to(dtype).requires_grad_()
        y = family(name, logits).rsample_relaxed(4, tau=tau, seed=1)
        hard = family(name, logits).rsample_relaxed(4, tau=tau, hard=True, seed=1)
        for x in (y, hard):
            (gradient,) = torch.autograd.grad(x, logits, torch.randn_like(x))
            assert not gradient.isnan().any()
        if tau < 1e-20:
            assert torch.equal(y, hard)
        elif tau < 1:
            assert ((y - hard).abs() < 1e-2).double().mean() > 0.99
        else:
            level = 0.5 if name == "bernoulli" else 1 / classes
            assert torch.allclose(y, torch.full_like(y, level), rtol=1e-2)


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_ruled_out(simd_build: str, dtype: torch.dtype, hard: bool, classes: int) -> None:
    """A class of logit -inf has probability 0 and gradient 0, also beside a single possible one."""
    logits = torch.randn(6, 3, classes).to(dtype)
    logits[..., 1] = -INF
    logits[2, 1] = -INF
    logits[2, 1, 3] = 2.0
    for tau in (1e-3, 1.0):
        leaf = logits.clone().requires_grad_()
        y = lk.Categorical(leaf).rsample_relaxed(50, tau=tau, hard=hard, seed=1)
        (gradient,) = torch.autograd.grad(y, leaf, torch.randn_like(y))
        assert not y.isnan().any()
        assert not gradient.isnan().any()
        assert (y[..., 1] == 0).all()
        assert (gradient[..., 1] == 0).all()
        assert (y[:, 2, 1, 3] == 1).all()
        assert (gradient[2, 1] == 0).all()


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("hard", [False, True])
def test_variables_without_probabilities_are_nan(simd_build: str, hard: bool, classes: int) -> None:
    """NaN or inf among the logits, or -inf for every class, gives NaN in that variable alone."""
    logits = torch.zeros(4, 3, classes)
    logits[0, 1, 2], logits[1, 2, 4], logits[2, 0] = torch.nan, INF, -INF
    expected = torch.zeros(4, 3, dtype=torch.bool)
    expected[0, 1] = expected[1, 2] = expected[2, 0] = True
    leaf = logits.clone().requires_grad_()
    y = lk.Categorical(leaf).rsample_relaxed(3, tau=0.5, hard=hard, seed=1)
    (gradient,) = torch.autograd.grad(y, leaf, torch.randn_like(y))
    for x in (*y, gradient):
        assert torch.equal(x.isnan(), expected[..., None].expand(4, 3, classes))
    out = torch.empty(1, 3, 4, 3, classes)
    problem = reference_problem(logits, 3, hard)
    reference.forward(problem, CategoricalOutputs(out, None))
    assert torch.equal(out[0].isnan(), y.isnan())


def reference_problem(logits: Tensor, samples: int, hard: bool) -> Any:
    sizes = (1, samples, *logits.shape)
    return CategoricalProblem(sizes, logits, 1, 0, 0.5, hard)


@pytest.mark.parametrize("hard", [False, True])
def test_certain_and_undefined_bernoulli_variables(simd_build: str, hard: bool) -> None:
    leaf = torch.tensor([INF, -INF, 1e4, -1e4, torch.nan, 0.0], requires_grad=True)
    y = lk.Bernoulli(leaf).rsample_relaxed(9, tau=0.5, hard=hard, seed=1)
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(y[:, :4], torch.tensor([1.0, 0, 1, 0]).expand(9, 4))
    assert torch.equal(gradient[:4], torch.zeros(4))
    assert y[:, 4].isnan().all()
    assert gradient[4].isnan()
    assert not y[:, 5].isnan().any()


@each_family
def test_layouts(name: str) -> None:
    base = torch.randn(4, 6, 5)
    for x in (base.transpose(0, 1), base[:, :1].expand(4, 6, 5), torch._neg_view(base)):
        leaf = x.detach().requires_grad_()
        plain = x.contiguous().clone().requires_grad_()
        found = []
        for logits in (leaf, plain):
            y = family(name, logits).rsample_relaxed(2, tau=0.5, seed=3)
            g = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
            found.append((y, torch.autograd.grad(y, logits, g)[0]))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


@each_family
def test_errors_name_the_argument(name: str) -> None:
    q = family(name, torch.zeros(3, 4))
    for tau in (0, -1.0, math.nan, INF):
        with pytest.raises(ValueError, match="tau must be a finite number > 0; got"):
            q.rsample_relaxed(tau=tau)
    for other in ("1", None, True, [0.5]):
        with pytest.raises(TypeError, match="tau must be a number > 0; got"):
            q.rsample_relaxed(tau=other)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hard must be True or False; got 1"):
        q.rsample_relaxed(tau=1, hard=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples must be an int >= 1 or None; got 0"):
        q.rsample_relaxed(0, tau=1)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^63\); got -1"):
        q.rsample_relaxed(tau=1, seed=-1)
    with pytest.raises(ValueError, match="offset must be >= 0"):
        q.rsample_relaxed(tau=1, offset=2**63)
    assert torch.equal(
        q.rsample_relaxed(tau=torch.tensor(0.5), seed=1),  # type: ignore[arg-type]
        q.rsample_relaxed(tau=np.float32(0.5), seed=1),  # type: ignore[arg-type]
    )


# --- torch ----------------------------------------------------------------------------------------


@each_family
def test_gradients_agree_with_finite_differences(name: str) -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def draw(x: Tensor) -> Tensor:
        return family(name, x).rsample_relaxed(2, tau=0.7, seed=3)

    assert gradcheck(draw, (logits,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(draw, (logits,), check_batched_grad=True)


@each_family
def test_opcheck(name: str) -> None:
    logits = torch.randn(2, 3, 5, *([4] if name == "categorical" else []), requires_grad=True)
    seeds = torch.tensor([7])
    arguments = logits, seeds, 3, 0, 0.5, False
    forward = getattr(torch.ops.latent_kernels, f"{name}_relaxed")
    opcheck(forward.default, (*arguments, [1, 0]))
    y = forward(*arguments, [1, 0])[0].detach()
    backward = getattr(torch.ops.latent_kernels, f"{name}_relaxed_backward")
    opcheck(backward.default, (torch.randn_like(y), y, logits.detach(), *arguments[1:], [True]))


@pytest.mark.parametrize("hard", [False, True])
@each_family
def test_vmap(name: str, hard: bool) -> None:
    """A batch joins the groups, each with its own seed or all with one."""
    logits, seeds = torch.randn(4, 3, 5), torch.tensor([3, 2**40, 7, 3])

    def loss(x: Tensor, seed: Tensor) -> Tensor:
        y = family(name, x).rsample_relaxed(2, tau=0.5, hard=hard, seed=seed)
        return (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()

    gradient = torch.func.grad(loss)
    found = torch.func.vmap(gradient)(logits, seeds)
    expected = torch.stack([gradient(x, s) for x, s in zip(logits, seeds, strict=True)])
    assert torch.equal(found, expected)
    y = torch.func.vmap(lambda x: family(name, x).rsample_relaxed(tau=0.5, hard=hard, seed=3))(
        logits
    )
    for x, one in zip(logits, y, strict=True):
        assert torch.equal(family(name, x).rsample_relaxed(tau=0.5, hard=hard, seed=3), one)


@pytest.mark.parametrize(("name", "hard"), [("bernoulli", True), ("categorical", False)])
def test_compiled(name: str, hard: bool) -> None:
    """Compiled steps have the same bits, also as tau changes."""
    torch._dynamo.reset()

    def step(logits: Tensor, tau: float) -> Tensor:
        y = family(name, logits).rsample_relaxed(2, tau=tau, hard=hard, seed=4)
        return (y * logits.cos()).sum()

    logits = torch.randn(3, 6, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for tau in (1.0, 0.7, 0.4):
        expected = torch.autograd.grad(step(logits, tau), logits)[0]
        assert torch.equal(torch.autograd.grad(compiled(logits, tau), logits)[0], expected)


def test_samples_that_were_changed_are_not_differentiated() -> None:
    """Relaxed samples are kept for their gradient, so that torch notices a change of them."""
    logits = torch.randn(3, 4, requires_grad=True)
    y = lk.Categorical(logits).rsample_relaxed(tau=1.0)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
