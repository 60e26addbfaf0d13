"""Inside Pyro: guides of FusedNormal and of the families converge to exact posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import constraints

import latent_kernels as lk

pyro = pytest.importorskip("pyro", reason="Pyro is not installed")

dist, infer = pyro.distributions, pyro.infer

Tensor = torch.Tensor


class PyroNormal(lk.FusedNormal, dist.torch_distribution.TorchDistributionMixin):
    """FusedNormal with the mixin that Pyro's sample statements need."""


class PyroFamily(lk.FamilyDistribution, dist.torch_distribution.TorchDistributionMixin):
    """FamilyDistribution with the same mixin."""


@pytest.fixture(autouse=True)
def _pyro() -> None:
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def fit(
    model: Callable[[], object],
    guide: Callable[[], object],
    elbo: Any = infer.Trace_ELBO,
    *,
    rate: float = 0.1,
    steps: int = 300,
    particles: int = 64,
) -> None:
    """Maximize the ELBO, with a learning rate that falls to a hundredth."""
    scheduler = pyro.optim.ExponentialLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": rate},
            "gamma": 0.01 ** (1 / steps),
        }
    )
    loss = elbo(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    svi = infer.SVI(model, guide, scheduler, loss)
    for _ in range(steps):
        svi.step()
        scheduler.step()


# --- a Gaussian latent variable -------------------------------------------------------------------
# x_n ~ N(z, s^2), n = 1 ... N, z ~ N(0, 1): z | x ~ N(sum x / (N + s^2), s^2 / (N + s^2)).

X = torch.tensor([[0.5, 2.0, 1.2], [-1.0, 0.3, 0.1]])
S2 = 0.5
MEAN, VARIANCE = X.sum(1) / (3 + S2), torch.full((2,), S2 / (3 + S2))


def gaussian_model() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("x", 3):
        pyro.sample("x_n", dist.Normal(z, S2**0.5).to_event(1), obs=X.T)


def normal_guide() -> None:
    loc = pyro.param("mean", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    pyro.sample("z", PyroNormal(loc, scale).to_event(1))


def gaussian_guide() -> None:
    logvar = pyro.param("logvar", torch.zeros(2))
    pyro.sample("z", PyroFamily(lk.DiagonalGaussian(pyro.param("mean", torch.zeros(2)), logvar)))


@pytest.mark.parametrize(
    "elbo", [infer.Trace_ELBO, infer.TraceGraph_ELBO, infer.TraceMeanField_ELBO]
)
@pytest.mark.parametrize("guide", [normal_guide, gaussian_guide])
def test_a_gaussian_posterior(guide: Callable[[], None], elbo: Any) -> None:
    fit(gaussian_model, guide, elbo)
    store = pyro.get_param_store()
    variance = store["scale"].square() if guide is normal_guide else store["logvar"].exp()
    torch.testing.assert_close(store["mean"].detach(), MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close(variance.detach(), VARIANCE, rtol=0.05, atol=0)


# --- discrete latent variables in a plate ---------------------------------------------------------
# z_n ~ Categorical(PRIOR), x_n | z_n = k ~ N(m_k, 1): posteriors by Bayes' rule.

PRIOR, MEANS, POINTS = (
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([-1.0, 0.0, 2.0]),
    torch.tensor([0.7, -0.4]),
)


def posteriors(prior: Tensor, means: Tensor) -> Tensor:
    return torch.softmax(prior.log() - 0.5 * (POINTS[:, None] - means).square(), -1)


def test_a_categorical_posterior() -> None:
    def model() -> None:
        with pyro.plate("n", 2):
            z = pyro.sample("z", dist.Categorical(PRIOR.expand(1, 3)).to_event(1))
            pyro.sample("x", dist.Normal(MEANS[z[..., 0]], 1.0), obs=POINTS)

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(2, 1, 3))
        with pyro.plate("n", 2):
            pyro.sample("z", PyroFamily(lk.Categorical(logits)))

    fit(model, guide)
    found = torch.softmax(pyro.param("logits").detach(), -1)[:, 0]
    torch.testing.assert_close(found, posteriors(PRIOR, MEANS), rtol=0, atol=0.03)


def test_a_bernoulli_posterior() -> None:
    def model() -> None:
        with pyro.plate("n", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.4])).to_event(1))
            pyro.sample("x", dist.Normal(MEANS[z[..., 0].long()], 1.0), obs=POINTS)

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(2, 1))
        with pyro.plate("n", 2):
            pyro.sample("z", PyroFamily(lk.Bernoulli(logits)))

    fit(model, guide)
    found = torch.sigmoid(pyro.param("logits").detach())[:, 0]
    truth = posteriors(torch.tensor([0.6, 0.4]), MEANS[:2])[:, 1]
    torch.testing.assert_close(found, truth, rtol=0, atol=0.03)


# --- what sample statements do with them ----------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        lk.DiagonalGaussian(torch.zeros(3), torch.zeros(3)),
        lk.Bernoulli(torch.zeros(3)),
        lk.Categorical(torch.zeros(3, 4)),
    ],
    ids=lambda family: family.name,
)
def test_plates_masks_and_replays(family: Any) -> None:
    """A plate draws for each of its elements; a mask removes rows from the density."""

    def model(value: Tensor | None = None) -> Tensor:
        with pyro.plate("n", 5):
            mask = torch.arange(5) < 2
            z: Tensor = pyro.sample("z", PyroFamily(family).mask(mask), obs=value)
            return z

    trace = pyro.poutine.trace(model).get_trace()
    z = trace.nodes["z"]["value"]
    assert z.shape == (5, 3)
    trace.compute_log_prob()
    expected = family.log_prob(z.reshape(5, 3)) * (torch.arange(5) < 2)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)
    replayed = pyro.poutine.replay(model, trace=trace)()
    assert torch.equal(replayed, z)
    observed = pyro.poutine.trace(model).get_trace(z)
    assert float(observed.log_prob_sum()) == pytest.approx(float(trace.log_prob_sum()))
