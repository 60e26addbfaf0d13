"""The problems that estimators are profiled on, what a profile is taken to say, and posteriors found without gradients.

Black-box variational inference has to find the mean-field posterior of a logistic regression from values of the log
joint alone. Quadrature knows that posterior; so does a long run on reparameterized gradients.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import latent_kernels as lk
from latent_kernels.examples import digits, logistic_regression, problems, variance_command, variance_pictures
from latent_kernels.examples.variance_verdict import default_budget, reached, verdict


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- problems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_estimator_is_unbiased_on_every_problem(name):
    """And a control variate is worth an order of magnitude, a gradient of the log joint another two."""
    state = torch.get_rng_state()
    problem = problems.PROBLEMS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    found = lk.profile_variance(
        problem.q, problem.log_joint, exact_gradient=problem.exact_gradient, num_samples=(64,), repeats=256
    )
    assert found.exact_gradient is not None
    assert found.table["bias_p"].min() > 1e-3
    variance = {name: float(found.rows(name)["variance"][0]) for name in found.estimators}
    assert variance["none"] > 5 * variance["leave_one_out"]
    if "reparameterized" in variance:
        assert variance["leave_one_out"] > 20 * variance["reparameterized"]
    assert ("disarm" in variance) == isinstance(problem.q, lk.Bernoulli)


def test_the_mixture_is_what_enumerated_means_give():
    """The integral over the components' means, one feature at a time on a grid, for a few assignments."""
    problem = problems.categorical()
    x = iris()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_prior = -0.5 * grid**2 - 0.5 * math.log(2 * math.pi)
    for z in ([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], [2, 1, 0, 1, 1, 0]):
        expected = -6 * math.log(3)
        for k, feature in itertools.product(range(3), range(4)):
            points = x[torch.tensor(z) == k, feature]
            log_likelihood = -0.5 * ((points[:, None] - grid) ** 2 / 0.3 + math.log(2 * math.pi * 0.3)).sum(0)
            expected += float(torch.logsumexp(log_likelihood + log_prior, 0)) + math.log(16 / 4000)
        assert float(problem.log_joint(torch.tensor([z]))[0]) == pytest.approx(expected, rel=1e-4)


def iris():
    from sklearn.datasets import load_iris

    data = torch.as_tensor(load_iris().data)
    return ((data - data.mean(0)) / data.std(0))[::25]


def test_training_the_binary_vae_raises_its_elbo():
    """DisARM moves the encoder: with it held still the decoder alone gets less."""

    @torch.no_grad()
    def elbo(model):
        q = model.q(data.held_out)
        z = q.sample(32, seed=1)
        return float((model.log_joint(data.held_out, z) - q.log_prob(z)).mean())

    data, model, still = digits.load(), problems.BinaryVAE(), problems.BinaryVAE()
    before = elbo(model)
    model.train(data.train, steps=200)
    for parameter in still.encoder:
        parameter.requires_grad_(False)
    still.parameters = still.parameters[2:]
    still.train(data.train, steps=200)
    assert elbo(model) > before + 20
    assert elbo(model) > elbo(still) + 1


# --- logistic regression ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def optimum():
    return logistic_regression.optimum()


def test_the_quadrature_is_the_elbo():
    """Against 2^14 samples, within four of their standard errors; for a wide q, against a fine grid."""
    model = logistic_regression.load()
    mean, logvar = 0.1 * lk.normal(31, seed=1), lk.normal(31, seed=2)
    q = lk.DiagonalGaussian(mean, logvar - 8)
    values = torch.cat([model.log_joint(z) for z in q.sample(2**14, seed=3).split(4096)]).double()
    estimate, error = float(values.mean() + q.entropy()), float(values.std()) / 2**7
    assert abs(estimate - float(model.elbo(*q.parameters))) < 4 * error
    assert error < 0.2

    mean, logvar, rows = mean.double(), logvar.double() - 4, model.signed.double()
    grid = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    weights = torch.softmax(-0.5 * grid**2, 0)
    margins = (rows @ mean)[:, None] + (rows**2 @ logvar.exp()).sqrt()[:, None] * grid
    expected = (F.logsigmoid(margins) @ weights).sum() - lk.gaussian_kl(mean, logvar)
    torch.testing.assert_close(model.elbo(mean, logvar), expected, rtol=0, atol=1e-4)


def test_the_optimum_is_one(optimum):
    model = logistic_regression.load()
    assert all(g.abs().max() < 1e-3 for g in model.elbo_gradient(optimum.q))
    for seed in range(5):
        mean, logvar = (x + 0.02 * lk.normal(31, seed=seed + i).double() for i, x in enumerate(optimum.q.parameters))
        assert float(model.elbo(mean, logvar)) < optimum.elbo


def distance(fit, optimum):
    """The furthest weight's mean from the optimum's, in posterior standard deviations."""
    return float(((fit.q.mean - optimum.q.mean).abs() / (0.5 * optimum.q.logvar).exp()).max())


def test_black_box_inference_finds_the_posterior(optimum):
    """Leave-one-out with 256 samples ends where a long reparameterized run ends: at the optimum."""
    reference = logistic_regression.fit("reparameterized", 64, 3000)
    assert distance(reference, optimum) < 0.05
    found = logistic_regression.fit("leave_one_out", 256, 2000)
    assert distance(found, reference) < 0.15
    assert distance(found, optimum) < 0.15
    assert 0 <= optimum.elbo - found.elbo < 0.1


def test_noise_costs_nats(optimum):
    """With the same steps: fewer samples, or no control variate, end lower, several nats where both are lacking."""
    steps = {"steps": 600}
    lost = {
        key: optimum.elbo - logistic_regression.fit(*key, **steps).elbo
        for key in (("reparameterized", 4), ("leave_one_out", 64), ("leave_one_out", 4), ("none", 64), ("none", 4))
    }
    assert all(x > 0 for x in lost.values())
    assert lost["reparameterized", 4] < 0.3
    assert lost["leave_one_out", 64] > 2 * lost["reparameterized", 4]
    assert lost["leave_one_out", 4] > 5 * lost["leave_one_out", 64]
    assert lost["none", 64] > 5 * lost["leave_one_out", 64]
    assert lost["none", 4] > lost["none", 64] + 5


def test_a_fit_follows_from_its_seed():
    fits = [logistic_regression.fit("optimal", 8, 20, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(fits[0].q.mean, fits[1].q.mean)
    assert not torch.equal(fits[0].q.mean, fits[2].q.mean)


# --- the sentence -----------------------------------------------------------------------------------------------


def made(*rows):
    """A profile of rows (estimator, S, variance, its interval's factor, seconds)."""
    profile = lk.profile_variance(lk.Bernoulli(torch.zeros(1)), lambda z: z[..., 0], num_samples=(1,), repeats=8)
    table = np.resize(profile.table, len(rows))
    for line, (name, samples, variance, factor, seconds) in zip(table, rows, strict=True):
        line["estimator"], line["num_samples"], line["repeats"], line["seconds"] = name, samples, 8, seconds
        for prefix, value in (("variance", variance), ("variance_time", variance * seconds)):
            line[prefix], line[f"{prefix}_low"], line[f"{prefix}_high"] = value, value / factor, value * factor
    return dataclasses.replace(profile, table=table)


def test_a_clear_winner():
    profile = made(("none", 1, 500.0, 1.1, 1e-3), ("none", 4, 100.0, 1.1, 2e-3), ("leave_one_out", 4, 2.0, 1.1, 2e-3))
    assert default_budget(profile) == pytest.approx(2e-3)
    assert verdict(profile) == (
        "With 2 ms for a gradient, leave-one-out wins: variance 2 nats² (95%: 1.82 to 2.2) at S = 4; "
        "no control variate 50 times as much."
    )


def test_a_longer_budget_averages_and_a_shorter_one_leaves_out():
    profile = made(("none", 1, 500.0, 1.1, 1e-3), ("none", 4, 100.0, 1.1, 2e-3), ("leave_one_out", 4, 2.0, 1.1, 2e-3))
    assert [(x.estimator, x.variance) for x in reached(profile, 8e-3)] == [
        ("leave_one_out", pytest.approx(0.5)),
        ("none", pytest.approx(25.0)),
    ]
    assert "at S = 4, 4 times over" in verdict(profile, 8e-3)
    assert verdict(profile, 1.5e-3) == (
        "With 1.5 ms for a gradient, no control variate reaches variance 333 nats² (95%: 303 to 367) at S = 1, "
        "1.5 times over, without rival."
    )
    assert verdict(profile, 5e-4) == "With 0.5 ms for a gradient no estimator finishes: the fastest takes 1 ms."


def test_a_tie_is_called_one():
    rows = (("none", 4, 90.0, 1.1, 0.2), ("optimal", 4, 2.0, 1.1, 0.2), ("leave_one_out", 4, 2.3, 1.1, 0.2))
    assert verdict(made(*rows)) == (
        "With 0.2 s for a gradient, optimal coefficient (2 nats² at S = 4) and leave-one-out (2.3 nats² at S = 4) tie "
        "for the least variance: their 95% intervals overlap; no control variate 45 times as much."
    )


def test_nothing_to_compare():
    assert verdict(made(("none", 1, math.nan, 1.1, math.nan))) == "Nothing was measured that could be compared."


def test_ranges_of_samples():
    parse = variance_command.parse_samples
    assert parse("1:1024") == tuple(2**k for k in range(11))
    assert parse("3:20") == (3, 6, 12, 20)
    assert parse("5:5") == (5,)
    assert parse("16, 4,4") == (4, 16)


def test_a_profile_of_nothing_is_drawn(tmp_path):
    """Where no estimator is defined; and where a variance is 0, which has no place on a logarithmic axis."""
    for rows in ([("none", 1, math.nan, 1.1, math.nan)], [("none", 1, 0.0, 1.1, 1e-3)]):
        variance_pictures.draw(made(*rows), "nothing", tmp_path / "v.png")
        assert (tmp_path / "v.png").stat().st_size > 1000
