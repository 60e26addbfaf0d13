"""The Triton kernels of the score function and of discrete samples, their PTX interpreted."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.families import cpp_cpu
from latent_kernels.kernels.families import reference as families
from latent_kernels.kernels.families.problem import Problem as FamilyProblem
from latent_kernels.kernels.families.problem import Samples
from latent_kernels.kernels.score import reference
from tests.backends import TRITON, interpreted
from tests.checks import DTYPES, bits_equal
from tests.score.checks import (
    FAMILIES,
    ScoreProblem,
    Sizes,
    check_score,
)

ODD: Sizes = (2, 5, 5, 7, 4)
MANY: Sizes = (1, 77, 1, 5, 3)  # enough samples for several chunks
slow = pytest.mark.slow
# Each family and control compiles kernels of its own.
EACH_CONTROL = [
    "optimal",
    *(pytest.param(control, marks=slow) for control in ("none", "leave_one_out")),
]
# Rows longer than a tile, nothing at all, one element, many classes: as SCORE_SIZES, but small.
SIZES: list[Any] = [
    (1, 16, 24, 20, 3),
    (1, 3, 2, 1100, 2),
    (1, 4, 0, 4, 3),
    (1, 4, 3, 0, 3),
    *(pytest.param(sizes, marks=slow) for sizes in ((1, 2, 3, 1, 2), MANY, (1, 4, 2, 3, 70))),
]
SOME_FAMILIES = [
    "gaussian",
    "categorical",
    *(pytest.param(family, marks=slow) for family in ("bernoulli", "antithetic")),
]


@pytest.fixture
def kernels() -> ModuleType:
    from latent_kernels.kernels.score import triton_gpu

    return triton_gpu


# --- samples --------------------------------------------------------------------------------------


def logits_of(sizes: Sizes, dtype: torch.dtype) -> torch.Tensor:
    """Return logits with a NaN, infinities and certain ones among them."""
    groups, _, rows, cols, classes = sizes
    logits = 3 * torch.randn(
        groups, rows, cols, *([classes] if classes else []), dtype=torch.float64
    )
    edges = torch.tensor([float("nan"), float("-inf"), float("inf"), 90.0, -90.0])[
        : logits.numel() - 1
    ]
    logits.view(-1)[1 : 1 + len(edges)] = edges
    return logits.to(dtype)


def samples_agree(
    sizes: Sizes,
    dtype: torch.dtype,
    *,
    seed: int | torch.Tensor,
    offset: int,
    antithetic: bool = False,
) -> None:
    from latent_kernels.kernels.families import triton_gpu

    groups, samples, rows, cols, classes = sizes
    problem = FamilyProblem(
        (groups, 1 + antithetic, samples, rows, cols, classes),
        logits_of(sizes, dtype),
        seed,
        offset,
        antithetic,
    )
    shape = (groups, *((2,) if antithetic else ()), samples, rows, cols)
    found = []
    for backend in (triton_gpu, cpp_cpu, families):
        z = torch.full(shape, 77, dtype=torch.int64 if classes else dtype)
        backend.sample(problem, Samples(z))
        found.append(z.double())
    ours, compiled, plain = found
    assert bits_equal(ours, compiled)
    assert bits_equal(ours, plain)


@interpreted
@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(t, marks=slow) for t in DTYPES[1:])], ids=str
)
@pytest.mark.parametrize(
    "sizes", [(1, 3, 5, 7, 0), (2, 2, 1, 1030, 0), (1, 1200, 1, 1, 0), (1, 0, 3, 4, 0)], ids=str
)
def test_bernoulli_samples(sizes: Sizes, dtype: torch.dtype) -> None:
    samples_agree(sizes, dtype, seed=5, offset=0)
    samples_agree(sizes, dtype, seed=torch.tensor([2**33 + 1]), offset=3)
    samples_agree(
        sizes, dtype, seed=torch.arange(sizes[0]) * 2**40, offset=2**34 - 5, antithetic=True
    )


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(1, 3, 5, 7, 3), (2, 3, 4, 5, 1), (1, 2, 2, 530, 2), (1, 600, 1, 2, 33), (1, 1, 1, 3, 257)],
    ids=str,
)
def test_categorical_samples(sizes: Sizes, dtype: torch.dtype) -> None:
    samples_agree(sizes, dtype, seed=5, offset=0)
    samples_agree(sizes, dtype, seed=torch.arange(sizes[0]) + 7, offset=2**34 - 5)


# --- gradients ------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_size(family: str, sizes: Sizes) -> None:
    check_score(TRITON, ScoreProblem(family, sizes, torch.float32, "optimal"))


@interpreted
@pytest.mark.parametrize(
    ("sizes", "offset"), [((1, 6, 2, 10, 3), 0), ((1, 6, 2, 10, 3), 3), (ODD, 0)], ids=str
)
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_samples_drawn_again(family: str, sizes: Sizes, offset: int) -> None:
    """Samples are drawn again in every layout of the stream: aligned, shifted, scattered."""
    options = {"from_seed": True, "offset": offset}
    check_score(TRITON, ScoreProblem(family, sizes, torch.float32, "optimal", **options))


@interpreted
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_samples_dealt_to_several_programs(kernels: ModuleType, family: str) -> None:
    for control, per_element, folds in (
        ("none", True, 2),
        ("leave_one_out", False, 2),
        ("optimal", True, 2),
        ("optimal", False, 5),
    ):
        options = {"per_element": per_element, "folds": folds}
        problem = ScoreProblem(family, MANY, torch.float32, control, **options)
        chunks = kernels.plan(problem.problem, True, torch.float32).chunks
        assert chunks > 1 or problem.problem.folds == 5  # which are parts themselves
        check_score(TRITON, problem)


@interpreted
@pytest.mark.parametrize("control", EACH_CONTROL)
@pytest.mark.parametrize("family", ["bernoulli", "categorical", "gaussian"])
def test_many_chunks_of_few_samples(
    kernels: ModuleType, family: str, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LEAST_CHUNK", 1)
    check_score(TRITON, ScoreProblem(family, ODD, torch.float64, control, per_element=True))
    check_score(TRITON, ScoreProblem(family, (1, 17, 1, 3, 40), torch.float32, control))


@interpreted
@pytest.mark.parametrize("control", EACH_CONTROL)
@pytest.mark.parametrize("family", ["bernoulli", "antithetic", "categorical"])
def test_outside_the_support(kernels: ModuleType, family: str, control: str) -> None:
    """A sample outside the support gives NaN in that element's gradient and in no other's."""
    problem = ScoreProblem(family, ODD, torch.float32, control)
    z = problem.problem.z
    assert z is not None
    bad: Any = (-1, 4, 2**62) if family == "categorical" else (0.5, 2.0, float("nan"))
    where = [(0, 0, 1, 3), (1, 4, 0, 6), (1, 2, 4, 2)]
    for (group, sample, row, col), value in zip(where, bad, strict=True):
        z[(group, 1, sample, row, col) if family == "antithetic" else (group, sample, row, col)] = (
            value
        )
    expected = torch.zeros(2, 5, 7, dtype=torch.bool)
    for group, _, row, col in where:
        expected[group, row, col] = True
    for name, found in problem.run(kernels).items():
        nan = found.isnan()
        assert torch.equal(
            nan, expected.unsqueeze(-1).expand(nan.shape) if family == "categorical" else expected
        ), name


@interpreted
@pytest.mark.parametrize("control", EACH_CONTROL)
@pytest.mark.parametrize("family", FAMILIES)
def test_nan_stays_in_its_row(kernels: ModuleType, family: str, control: str) -> None:
    problem = ScoreProblem(family, ODD, torch.float32, control)
    problem.problem.values[(1, *([0] if family == "antithetic" else []), 3, 2)] = torch.nan
    for found in problem.run(kernels).values():
        assert found[1, 2].isnan().all()
        assert found.isnan().sum() == found[1, 2].numel()


@interpreted
@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_sample_has_no_variance(kernels: ModuleType, family: str) -> None:
    problem = ScoreProblem(family, (1, 1, 3, 5, 3), torch.float32, "none")
    found, expected = problem.run(kernels), problem.run(reference)
    for name, x in found.items():
        assert (
            x.isnan().all()
            if name.startswith("variance")
            else torch.allclose(x, expected[name], rtol=1e-5)
        )


@interpreted
@pytest.mark.parametrize("control", EACH_CONTROL)
@pytest.mark.parametrize(
    ("family", "cols"), [("bernoulli", 7), ("antithetic", 7), ("categorical", 2)]
)
def test_extreme_logits(kernels: ModuleType, family: str, cols: int, control: str) -> None:
    """The score keeps its digits where sigmoid and softmax round to 0 or 1."""
    values = [-120.0, -80.0, -30.0, 0.0, 30.0, 80.0, 120.0]
    problem = ScoreProblem(family, (1, 6, 1, cols, 7), torch.float32, control)
    shape = problem.problem.first.shape
    logits = torch.tensor(values).expand(shape).contiguous()
    problem.problem = problem.problem._replace(first=logits)
    truth, _ = problem.formula(torch.float64)
    for name, x in problem.run(kernels).items():
        want = truth[name]
        small = 2.0**-126 if name.startswith("gradient") else 2.0**-60  # squares underflow
        assert (
            (x.double() - want).abs() <= 1e-4 * want.abs() + small + 1e-6 * want.abs().max()
        ).all(), name


@interpreted
def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend forced by the environment variable, the whole path runs: samples, values,
    gradients.
    """
    logits = torch.randn(4, 6, 3)
    found = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv(
            "LATENT_KERNELS_BACKEND", f"families={backend},score={backend},gaussian=triton"
        )
        backends.forget()
        leaf = logits.clone().requires_grad_()
        q = lk.Categorical(leaf)
        z = q.sample(8, seed=3)
        lk.score_function_expectation(q, z.double().sum(-1), seed=3).sum().backward()
        bernoulli = lk.Bernoulli(logits[..., 0])
        pairs = bernoulli.sample_antithetic(5, seed=4)
        found.append([z, leaf.grad, pairs, lk.disarm_gradient(bernoulli, pairs.sum(-1), seed=4)[0]])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_class_probabilities(kernels: ModuleType, classes: int, dtype: torch.dtype) -> None:
    """Probabilities are p and 1 - p, without cancellation for the most probable class; NaN beside
    NaN or infinity.
    """
    logits = 8 * torch.randn(2, 9, classes, dtype=dtype)
    logits[0, 0] = 0.0  # all as likely: one of them takes the others' sum
    logits[0, 1, 0] = 80.0
    logits[0, 2:5, -1] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    p, q = kernels.class_probabilities(logits, dtype)
    # The difference from the largest logit is rounded, as everywhere.
    exact = (logits - logits.amax(-1, keepdim=True)).double().softmax(-1)
    others = exact[..., None, :].expand(2, 9, classes, classes)
    others = others.masked_fill(torch.eye(classes, dtype=torch.bool), 0.0).sum(-1)
    others = others.masked_fill(exact.isnan(), torch.nan)
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 1e-37, "equal_nan": True}
    assert torch.allclose(p.double(), exact, **tolerance)
    likeliest = torch.arange(classes) == logits.argmax(-1, keepdim=True)
    assert torch.allclose(q.double()[likeliest], others[likeliest], **tolerance)
    assert torch.allclose(q[~likeliest], 1 - p[~likeliest], equal_nan=True, rtol=0, atol=0)
