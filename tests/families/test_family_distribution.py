"""FamilyDistribution: the interface that torch.distributions requires, with the family's
numbers.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions
from torch.distributions import Distribution, Independent, Normal, kl_divergence

import latent_kernels as lk

Tensor = torch.Tensor
FAMILIES = ("gaussian", "bernoulli", "categorical")


def pair(
    name: str, batch: tuple[int, ...] = (3,), cols: int = 2, seed: int = 0
) -> tuple[lk.FamilyDistribution, Independent]:
    """Return ours and torch's distribution of the same parameters."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, cols, 4) if name == "categorical" else (*batch, cols)
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    if name == "gaussian":
        ours: lk.DiagonalGaussian | lk.Bernoulli | lk.Categorical = lk.DiagonalGaussian(
            first, second
        )
        theirs: Distribution = Normal(first, torch.exp(0.5 * second))
    elif name == "bernoulli":
        ours, theirs = lk.Bernoulli(first), distributions.Bernoulli(logits=first)
    else:
        ours, theirs = lk.Categorical(first), distributions.Categorical(logits=first)
    return lk.FamilyDistribution(ours, validate_args=True), Independent(
        theirs, 1, validate_args=False
    )


@given(
    name=st.sampled_from(FAMILIES),
    batch=st.sampled_from([(), (1,), (3,), (2, 3)]),
    cols=st.integers(1, 4),
    sample_shape=st.sampled_from([(), (1,), (5,), (2, 3), (0,), (2, 0)]),
)
def test_it_does_what_torch_does(
    name: str, batch: tuple[int, ...], cols: int, sample_shape: tuple[int, ...]
) -> None:
    ours, theirs = pair(name, batch, cols)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.has_rsample == theirs.has_rsample
    z = ours.sample(sample_shape)
    assert z.shape == (*sample_shape, *batch, cols)
    assert not z.requires_grad
    log_prob = ours.log_prob(z)
    assert log_prob.shape == (*sample_shape, *batch)
    if z.numel():  # torch's Independent does not accept empty ones
        assert ours.support.check(z).all()
        torch.testing.assert_close(log_prob, theirs.log_prob(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-5, atol=1e-5)
    for value in ("mean", "variance", "mode"):
        torch.testing.assert_close(
            getattr(ours, value), getattr(theirs, value).to(getattr(ours, value)), equal_nan=True
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_the_familys(name: str) -> None:
    ours, _ = pair(name)
    torch.manual_seed(5)
    z = ours.sample((2, 4))
    torch.manual_seed(5)
    assert torch.equal(z, ours.family.sample(8).reshape(2, 4, 3, 2))


def test_reparameterized_samples() -> None:
    mean = torch.zeros(3, requires_grad=True)
    q = lk.FamilyDistribution(lk.DiagonalGaussian(mean, torch.zeros(3)))
    for sample_shape in ((), (2, 3), (0,)):
        (gradient,) = torch.autograd.grad(q.rsample(sample_shape).sum(), mean)
        assert gradient.tolist() == [math.prod(sample_shape)] * 3
    with pytest.raises(NotImplementedError, match="a Bernoulli has no reparameterization"):
        pair("bernoulli")[0].rsample()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("batch", "value"), [((3,), (2,)), ((3,), (1, 2)), ((1,), (4, 5, 2)), ((1, 3), (6, 1, 2))]
)
def test_values_broadcast_as_torchs(
    name: str, batch: tuple[int, ...], value: tuple[int, ...]
) -> None:
    ours, theirs = pair(name, batch)
    z = torch.randint(0, 2, value).to(ours.sample().dtype)
    assert ours.log_prob(z).shape == theirs.log_prob(z).shape
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_expand_keeps_the_class(name: str) -> None:
    class Own(lk.FamilyDistribution):
        """A distribution class derived as Pyro's mixin derives one."""

    q = Own(pair(name)[0].family).expand((4, 3))
    assert type(q) is Own
    assert q.batch_shape == (4, 3)
    assert q.sample((2,)).shape == (2, 4, 3, 2)
    assert (
        len(lk.FamilyDistribution(lk.Bernoulli(torch.zeros(1))).expand((64,)).sample().unique())
        == 2
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_kl(name: str) -> None:
    (p, their_p), (q, their_q) = pair(name), pair(name, seed=1)
    expected = kl_divergence(their_p, their_q)
    for a, b in ((p, q), (p, their_q), (their_p, q)):
        torch.testing.assert_close(kl_divergence(a, b), expected, rtol=1e-4, atol=1e-6)


def test_kl_of_different_kinds() -> None:
    p, q = pair("gaussian")[0], pair("bernoulli")[0]
    for other in (q, q.family, Independent(distributions.Laplace(torch.zeros(3, 2), 1.0), 1)):
        with pytest.raises(NotImplementedError):
            kl_divergence(p, other)


def test_copies_and_pickles() -> None:
    q = pair("categorical")[0]
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert repr(other) == repr(q)
        assert torch.equal(other.family.logits, q.family.logits)
    assert repr(q).startswith("FamilyDistribution(Categorical(logits: (3, 2, 4), ")


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"family must be a DiagonalGaussian, .* got Normal"):
        lk.FamilyDistribution(Normal(0.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="support"):
        pair("bernoulli")[0].log_prob(torch.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="batch_shape must be one that"):
        pair("bernoulli")[0].expand((4,))
