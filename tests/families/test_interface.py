"""The interface shared with torch.distributions: probabilities, moments, expand, to, repr, KL."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import distributions as td

import latent_kernels as lk
from tests.checks import DTYPES
from tests.families.test_families import MAKE, close, every_family, peer

Tensor = torch.Tensor
INF = math.inf


@every_family
@pytest.mark.parametrize("shape", [(4,), (3, 5, 4)], ids=str)
def test_moments_equal_those_of_torch(name: str, shape: tuple[int, ...]) -> None:
    q = MAKE[name](shape)
    names = ("mean", "mode", "variance", "stddev") + ("probs",) * (name != "gaussian")
    for of in names:
        got, expected = getattr(q, of), getattr(peer(q), of)
        if name == "categorical" and of != "probs" and of != "mode":
            assert got.shape == q.logits.shape[:-1]
            assert bool(got.isnan().all())
            assert got.dtype == q.dtype
            continue
        close(got, expected)
    assert q.mode.dtype == (torch.int64 if name == "categorical" else q.dtype)


def test_moments_of_ties_and_certain_variables() -> None:
    logits = torch.tensor([0.0, INF, -INF, torch.nan, 100.0], requires_grad=True)
    q = lk.Bernoulli(logits)
    assert torch.equal(q.mode.nan_to_num(nan=7), torch.tensor([7.0, 1, 0, 7, 1]))
    assert q.variance.tolist()[:3] == [0.25, 0, 0]
    assert q.stddev.tolist()[:3] == [0.5, 0, 0]
    assert q.stddev[4].item() == pytest.approx(math.exp(-50), rel=1e-5)
    (gradient,) = torch.autograd.grad(q.stddev[[0, 1, 2, 4]].sum(), logits)
    assert bool(gradient[[0, 1, 2, 4]].isfinite().all())
    assert lk.Categorical(torch.tensor([[1.0, 3.0, 3.0, -INF]])).mode.tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_in_place_of_logits(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0, 0.125, 0.5, 1.0]], dtype=dtype)
    q, by_logits = lk.Bernoulli(probs=p), lk.Bernoulli(torch.logit(p))
    assert torch.equal(q.logits, by_logits.logits)
    assert torch.equal(q.logits, lk.Bernoulli.from_mean_parameters(p).logits)
    close(q.probs, p, rtol=2 * torch.finfo(dtype).eps)
    p = torch.tensor([[[0.25, 0.75, 0.0]], [[3.0, 1.0, 4.0]]], dtype=dtype)  # up to a factor
    c = lk.Categorical(probs=p)
    assert torch.equal(c.logits, torch.log(p))
    assert torch.equal(c.logits, lk.Categorical.from_mean_parameters(p).logits)
    close(c.probs, p / p.sum(-1, keepdim=True), rtol=4 * torch.finfo(dtype).eps)
    hot = torch.nn.functional.one_hot(torch.tensor([[2, 0]]), 3)  # integers
    assert lk.Categorical(probs=hot).sample(seed=1).tolist() == [[2, 0]]
    assert lk.Bernoulli(probs=hot[0, 0]).sample(seed=1).tolist() == [0, 0, 1]
    assert lk.Bernoulli(probs=torch.full((2,), torch.nan)).logits.isnan().all()


@every_family
def test_expand(name: str) -> None:
    q = MAKE[name]((3, 1, 4))
    wide = q.expand((2, 3, 5))
    assert type(wide) is type(q)
    assert (wide.batch_shape, wide.cols, wide.classes) == ((2, 3, 5), 4, q.classes)
    for x, y in zip(wide.parameters, q.parameters, strict=True):
        assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert torch.equal(wide.entropy(), q.entropy().expand(2, 3, 5))
    assert q.expand(torch.Size((3, 1))).batch_shape == (3, 1)
    for wrong in ((3,), (4, 1), (2, 3, 0, 5)):
        with pytest.raises(
            ValueError, match=r"batch_shape must be one that \(3, 1\) broadcasts to"
        ):
            q.expand(wrong)


@every_family
def test_to(name: str) -> None:
    q = MAKE[name]((3, 4))
    half = q.to(torch.bfloat16)
    assert type(half) is type(q)
    assert half.dtype == torch.bfloat16
    assert q.to("meta").device.type == "meta"
    assert q.to(device="cpu", dtype=torch.float32).dtype == torch.float32
    leaf = q.parameters[0].requires_grad_()
    assert torch.autograd.grad(q.to(torch.float32).log_partition().sum(), leaf)[0].any()
    with pytest.raises(TypeError, match="must have dtype"):
        q.to(torch.int64)


def test_repr() -> None:
    mean = torch.zeros(3, 4)
    for q, expected in (
        (lk.DiagonalGaussian(mean, mean[0]), "mean: (3, 4), logvar: (3, 4), torch.float32, cpu"),
        (lk.Bernoulli(mean.double()), "logits: (3, 4), torch.float64, cpu"),
        (lk.Categorical(mean), "logits: (3, 4), torch.float32, cpu"),
    ):
        assert repr(q) == f"{type(q).__name__}({expected})"


@every_family
def test_kl_divergence_of_torch(name: str) -> None:
    q, other = MAKE[name]((3, 4)), MAKE[name]((3, 4))
    assert torch.equal(td.kl_divergence(q, other), q.kl(other))
    with pytest.raises(NotImplementedError):
        td.kl_divergence(q, next(MAKE[x]((3, 4)) for x in MAKE if x != name))
    with pytest.raises(NotImplementedError):
        td.kl_divergence(q, td.Independent(td.Poisson(torch.ones(3, 4)), 1))


def test_kl_divergence_between_ours_and_a_normal_of_torch() -> None:
    q, other = MAKE["gaussian"]((3, 4)), MAKE["gaussian"]((3, 4))
    theirs: Any = td.Independent(peer(other), 1)
    close(td.kl_divergence(q, theirs), q.kl(other))
    close(td.kl_divergence(theirs, q), other.kl(q))
    with pytest.raises(NotImplementedError):  # its KL would have another shape
        td.kl_divergence(q, peer(other))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lk.Bernoulli(), ValueError, "either logits or probs must be given; got neither"),
        (
            lambda: lk.Categorical(torch.zeros(2, 3), probs=torch.ones(2, 3)),
            ValueError,
            "either logits or probs must be given; got both",
        ),
        (lambda: lk.Bernoulli(probs=0.5), TypeError, "probs must be a torch.Tensor; got float"),
        (lambda: lk.Bernoulli(probs=torch.tensor(0.5)), ValueError, "probs must have shape"),
        (
            lambda: lk.Bernoulli(probs=torch.tensor([0.5, 1.5])),
            ValueError,
            r"probs must hold values in \[0, 1\]; got 0\.5 to 1\.5",
        ),
        (
            lambda: lk.Bernoulli.from_mean_parameters(torch.tensor([-0.5])),
            ValueError,
            r"probabilities must hold values in \[0, 1\]; got -0\.5",
        ),
        (
            lambda: lk.Categorical(probs=torch.tensor([[-1.0, 2.0]])),
            ValueError,
            r"probs must hold values in \[0, inf\]; got -1\.0 to 2\.0",
        ),
    ],
)
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
