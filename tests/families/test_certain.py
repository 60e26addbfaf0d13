"""Probabilities of 0 and 1: certain Bernoulli variables, masked classes, and their gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import latent_kernels as lk
from tests.checks import DTYPES

Tensor = torch.Tensor
INF = math.inf
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def plogp(p: float, r: float) -> float:
    """Return p ln(p / r), with its limits at 0."""
    return 0 if p == 0 else INF if r == 0 else p * math.log(p / r)


def is_close(x: Tensor, expected: Tensor | float, dtype: torch.dtype) -> None:
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * (dtype != torch.float64))
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert torch.allclose(x.double(), expected, rtol=4 * eps, atol=4 * eps), (x, expected)


# --- Bernoulli ------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("by", ["logits", "probabilities"])
def test_certain_bernoulli_variables(by: str, dtype: torch.dtype) -> None:
    """Entropy, KL of every pair and their gradients are the limits; one such dimension does not
    spoil its row.
    """
    ends = [0.0, 0.25, 0.5, 0.75, 1.0]
    pairs = torch.tensor(list(itertools.product(ends, ends)), dtype=torch.float64)
    given = [
        (x if by == "probabilities" else torch.logit(x)).unsqueeze(1).to(dtype).requires_grad_()
        for x in pairs.unbind(1)
    ]
    make = lk.Bernoulli if by == "logits" else lk.Bernoulli.from_mean_parameters
    q, other = (make(x) for x in given)
    entropy, kl = q.entropy(), q.kl(other)
    of_entropy, of_kl = (
        torch.autograd.grad(y.sum(), given[0], retain_graph=True)[0] for y in (entropy, kl)
    )
    (of_other,) = torch.autograd.grad(kl.sum(), given[1])
    for i, (p, r) in enumerate(pairs.tolist()):
        is_close(entropy[i], -plogp(p, 1) - plogp(1 - p, 1), dtype)
        is_close(kl[i], plogp(p, r) + plogp(1 - p, 1 - r), dtype)
        if kl[i].isinf():
            continue
        # by the logits; by the probabilities it is divided by p (1 - p), and 0 at their ends
        slope, other_slope = p * (1 - p), r * (1 - r)
        units = (
            (1.0, 1.0)
            if by == "logits"
            else (1 / slope if slope else 0, 1 / other_slope if other_slope else 0)
        )
        l, m = (math.log(x / (1 - x)) if 0 < x < 1 else 0.0 for x in (p, r))
        is_close(of_entropy[i], -slope * l * units[0], dtype)
        is_close(of_kl[i], slope * (l - m) * units[0], dtype)
        is_close(of_other[i], (r - p) * units[1], dtype)
    assert bool(of_kl.isfinite().all())
    assert bool(of_other.isfinite().all())


@pytest.mark.parametrize(
    ("dtype", "logit"),
    [
        (torch.float32, 18.0),
        (torch.float32, -200.0),
        (torch.float64, 40.0),
        (torch.float64, -800.0),
        (torch.float16, 9.0),
        (torch.float16, -20.0),
        (torch.bfloat16, 9.0),
        (torch.bfloat16, -200.0),
    ],
    ids=str,
)
def test_a_saturated_sigmoid(dtype: torch.dtype, logit: float) -> None:
    x = torch.tensor([logit, 0.5], dtype=dtype, requires_grad=True)
    p = torch.sigmoid(x)
    assert p[0].item() in (0, 1)
    q, half = lk.Bernoulli.from_mean_parameters(p), lk.Bernoulli(torch.zeros(2, dtype=dtype))
    alone = lk.Bernoulli(torch.logit(p.detach()[1:]))
    assert torch.equal(q.entropy(), alone.entropy())
    assert q.kl(q).item() == 0
    is_close(q.kl(half), alone.kl(lk.Bernoulli(half.logits[1:])) + math.log(2), dtype)
    assert half.kl(q).item() == INF
    for y in (q.entropy(), q.kl(half), q.kl(q), q.kl(lk.Bernoulli(q.logits.detach()))):
        (gradient,) = torch.autograd.grad(y, x, retain_graph=True)
        assert gradient[0] == 0
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_beside_certain_variables(dtype: torch.dtype) -> None:
    a = torch.tensor([INF, -INF, 0.0, torch.nan], dtype=dtype).unsqueeze(1)
    for x in a:
        for y in a:
            kl = lk.Bernoulli(x).kl(lk.Bernoulli(y))
            assert kl.isnan().item() == bool(x.isnan() or y.isnan())
    assert lk.Bernoulli(a).entropy().isnan().tolist() == [False, False, False, True]


def test_softplus_keeps_the_digits_of_float64() -> None:
    for l in (5.0, 19.9, 20.5, 25.0, 36.0, 60.0):
        q = lk.Bernoulli(torch.tensor([l], dtype=torch.float64))
        assert q.log_partition().item() == pytest.approx(l + math.log1p(math.exp(-l)), rel=1e-15)
        certain = lk.Bernoulli(torch.tensor([-INF], dtype=torch.float64))
        assert certain.kl(q).item() == q.log_partition().item()


# --- Categorical ----------------------------------------------------------------------------------


@every_dtype
def test_a_class_masked_in_both(dtype: torch.dtype) -> None:
    """A class masked in both has probability 0, adds 0 and has gradient 0; values and gradients are
    those of the other classes alone.
    """
    a = torch.tensor([[0.5, 1.0, -INF]], dtype=dtype, requires_grad=True)
    b = torch.tensor([[0.125, 0.25, -INF]], dtype=dtype, requires_grad=True)
    found, alone = (
        lk.Categorical(x).kl(lk.Categorical(y)) for x, y in ((a, b), (a[:, :2], b[:, :2]))
    )
    assert torch.equal(found, alone)
    for got, expected in zip(
        *(torch.autograd.grad(y, (a, b)) for y in (found, alone)), strict=True
    ):
        assert torch.allclose(got, expected, rtol=4 * torch.finfo(dtype).eps)
        assert got[0, 2] == 0
    q = lk.Categorical(a)
    for other in (q, lk.Categorical(a.detach())):
        kl = q.kl(other)
        assert kl.item() == 0
        assert torch.autograd.grad(kl, a)[0].tolist() == [[0, 0, 0]]


@every_dtype
def test_classes_of_probability_0(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.25, 0.75, 0.0]], dtype=dtype, requires_grad=True)
    q, flat = lk.Categorical.from_mean_parameters(p), lk.Categorical(torch.zeros(1, 3, dtype=dtype))
    entropy = -sum(plogp(x, 1) for x in (0.25, 0.75))
    is_close(q.entropy(), entropy, dtype)
    is_close(q.kl(flat), math.log(3) - entropy, dtype)
    assert q.kl(q).item() == 0
    assert flat.kl(q).item() == INF
    for y in (q.entropy(), q.kl(flat), q.kl(q)):
        (gradient,) = torch.autograd.grad(y, p, retain_graph=True)
        assert gradient[0, 2] == 0
        assert bool(gradient.isfinite().all())
    certain = lk.Categorical.from_mean_parameters(torch.tensor([[0, 1, 0]]))  # one-hot, integers
    assert certain.kl(certain).item() == 0
    assert certain.entropy().item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_classes_that_are_all_but_masked(dtype: torch.dtype) -> None:
    """Masks of -1e9 work, and log-probabilities so far apart that their ratio overflows."""
    for l, m, expected in (
        ([-100.0, 0.0], [0.0, -100.0], 100.0),
        ([-200.0, 0.0], [0.0, -200.0], 200.0),
        ([-1000.0, 0.0], [0.0, -1000.0], 1000.0),
        ([-1e9, 0.0], [0.0, 0.0], math.log(2)),
        ([-1e9, 0.0, 1.0], [-1e9, 0.0, 1.0], 0.0),
        ([0.0, -1e9], [0.0, -INF], 0.0),  # a probability that rounds to 0 is one
        ([0.0, 0.0], [0.0, -INF], INF),
    ):
        a, b = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (l, m))
        kl = lk.Categorical(a).kl(lk.Categorical(b))
        assert kl.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
        for gradient in torch.autograd.grad(kl, (a, b)):
            assert bool(gradient.isfinite().all())


# --- under torch's transformations ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_under_vmap_and_compile(name: str) -> None:
    if name == "bernoulli":
        p = torch.tensor([[0.0, 1.0, 0.25], [0.5, 0.0, 1.0]])
        family: Any = lk.Bernoulli
    else:
        p = torch.tensor([[[0.0, 1.0]], [[0.25, 0.75]]])
        family = lk.Categorical

    def objective(p: Tensor) -> Tensor:
        q = family.from_mean_parameters(p)
        return q.entropy() + q.kl(q) + q.kl(family(torch.zeros_like(p)))

    leaf = p.clone().requires_grad_()
    (eager,) = torch.autograd.grad(objective(leaf).sum(), leaf)
    assert bool(eager.isfinite().all())
    assert torch.allclose(torch.func.vmap(torch.func.grad(objective))(p), eager)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(leaf).sum(), leaf)
    assert torch.allclose(found, eager)
