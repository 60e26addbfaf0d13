"""The example VAE: its arithmetic against plain torch, and what training does."""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys

import pytest
import torch

import latent_kernels as lk
from latent_kernels.cli import digits, plain_torch, vae
from latent_kernels.cli.vae import Objective

DIGITS = digits.load()


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread: models this small only wait for a second one, for seconds where the machine
    is busy.
    """
    torch.set_num_threads(1)


def small_model(likelihood: str, seed: int = 0, latent: int = 4, hidden: int = 32) -> vae.VAE:
    torch.manual_seed(seed)
    return vae.VAE(latent, likelihood, hidden)


def test_digits_are_images_in_the_unit_interval_and_no_image_is_on_both_sides():
    assert DIGITS.train.shape == (1437, 64)
    assert DIGITS.held_out.shape == (360, 64)
    together = torch.cat((DIGITS.train, DIGITS.held_out))
    assert together.min() == 0
    assert together.max() == 1
    assert len(together.unique(dim=0)) == 1797
    assert DIGITS.held_out_classes.unique().tolist() == list(range(10))


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_fused_and_plain_torch_are_one_model(likelihood, num_samples, monkeypatch):
    """Given the same noise, both give the same terms and the same gradient of every weight."""
    x, lead = DIGITS.train[:33], () if num_samples == 1 else (num_samples,)
    model, terms, gradients = small_model(likelihood), [], []
    for ops in with_noise(monkeypatch, 11, (*lead, 33, 4)):
        model.ops = ops
        model.zero_grad()
        found = Objective("elbo", num_samples).of(model, x)
        assert found.reconstruction.shape == found.bound.shape == (*lead, 33)
        assert found.kl.shape == (33,)
        found.bound.mean().backward()
        terms.append(found)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert all(g.abs().sum() > 0 for g in gradients[0].values())


def with_noise(monkeypatch, seed, shape):
    """Return the fused ops and those of plain torch, both using the noise of this seed."""
    eps = lk.normal(shape, seed=seed)
    monkeypatch.setattr(plain_torch, "_normal", lambda std, num_samples: eps.to(std.dtype))
    seeded = {
        name: functools.partial(getattr(lk, name), seed=seed)
        for name in ("rsample_kl", "rsample_log_prob")
    }
    return vae.FUSED._replace(**seeded), vae.PLAIN


def test_elbo_stays_below_the_log_evidence():
    """The ELBO is below log p(x), which log mean exp of many weights estimates."""
    model = small_model("gaussian", latent=2)
    for _ in vae.train(model, DIGITS.train, DIGITS.held_out, 3):
        pass
    x = DIGITS.held_out[:50]
    with torch.no_grad():
        mean, logvar = model.encode(x)
        z = lk.rsample(mean, logvar, 2000, seed=1)
        log_joint = model.log_likelihood(x, z) + vae.FUSED.standard_normal_log_prob(z)
        log_evidence = (
            torch.logsumexp(log_joint - lk.gaussian_log_prob(z, mean, logvar), 0)
            - torch.tensor(2000).log()
        )
        elbo = Objective("elbo", 2000).of(model, x).bound.mean(0)
    gap = log_evidence - elbo
    assert (gap > -0.05).all()
    assert gap.mean() > 0.05


@pytest.mark.parametrize(("likelihood", "margin"), [("bernoulli", 10.0), ("gaussian", 20.0)])
@pytest.mark.parametrize("ops", [vae.FUSED, vae.PLAIN], ids=lambda ops: ops.name)
def test_training_raises_the_held_out_elbo(likelihood, margin, ops):
    model = small_model(likelihood)
    model.ops = ops
    before = vae.evaluate(model, DIGITS.held_out).elbo
    history = list(vae.train(model, DIGITS.train, DIGITS.held_out, 12))
    after = history[-1].held_out
    assert after.elbo > before + margin
    assert after.kl > 0.5  # the latent code is in use
    assert abs(after.elbo - history[-1].train.elbo) < 5


def test_the_seed_fixes_every_number():
    def history(seed: int) -> list[vae.Epoch]:
        model = small_model("gaussian", seed)
        return list(vae.train(model, DIGITS.train[:256], DIGITS.held_out, 2))

    assert history(3) == history(3)
    assert history(3) != history(4)


def test_learned_variance_has_the_floor_of_the_grey_levels():
    model = small_model("gaussian")
    with torch.no_grad():
        model.pixel_logvar.fill_(-50.0)
    torch.testing.assert_close(model.logvar().exp(), torch.full((64,), (1 / 16) ** 2 / 12))


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_decoded_images_are_grey_values(likelihood):
    model = small_model(likelihood)
    images = model.decode(10 * lk.normal((5, 3, 4), seed=0))
    assert images.shape == (5, 3, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    assert not images.requires_grad


def test_importing_the_library_loads_nothing_of_the_extras():
    code = (
        "import sys, latent_kernels\nheavy = {'typer', 'rich', 'matplotlib', 'sklearn', 'numba', "
        "'triton'}\nprint(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert found.stdout.strip() == "[]"


# --- importance-weighted bounds -------------------------------------------------------------------


def elbo_training_by_hand(model, images, epochs):
    """Return the mean terms of each epoch, computed by a loop for this objective alone."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    history = []
    for _ in range(epochs):
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in torch.split(torch.randperm(len(images)), 64):
            z, kl = lk.rsample_kl(*model.encode(images[rows]))
            reconstruction = model.log_likelihood(images[rows], z)
            optimizer.zero_grad()
            (kl - reconstruction).mean().backward()
            optimizer.step()
            sums += torch.stack((reconstruction.sum(), kl.sum())).detach()
        with torch.no_grad():  # as many draws as the evaluation after an epoch takes
            lk.rsample_kl(*model.encode(DIGITS.held_out), 8)
        history.append((sums / len(images)).tolist())
    return history


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_the_elbo_of_one_sample_trains_as_by_hand_bit_for_bit(likelihood):
    by_hand = small_model(likelihood, 7)
    expected = elbo_training_by_hand(by_hand, DIGITS.train[:200], 2)
    model = small_model(likelihood, 7)
    history = list(vae.train(model, DIGITS.train[:200], DIGITS.held_out, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(by_hand.parameters(), model.parameters(), strict=True)
    )
    found = [epoch.train for epoch in history]
    assert [list(terms[:2]) for terms in found] == [pytest.approx(e, rel=1e-6) for e in expected]
    assert [terms.bound for terms in found] == pytest.approx([t.elbo for t in found], rel=1e-6)


def test_the_elbo_of_many_samples_is_their_mean():
    model, x = small_model("bernoulli"), DIGITS.train[:20]
    torch.manual_seed(3)
    with torch.no_grad():
        z, kl = lk.rsample_kl(*model.encode(x), 5)
        reconstruction = model.log_likelihood(x, z).mean(0)
    torch.manual_seed(3)
    means = vae.evaluate(model, x, num_samples=5)
    assert means.reconstruction == pytest.approx(float(reconstruction.mean()), rel=1e-6)
    assert means.kl == pytest.approx(float(kl.mean()), rel=1e-6)
    assert means.bound == pytest.approx(float((reconstruction - kl).mean()), rel=1e-6)


def gradient_by_hand(model, x, eps, estimator):
    """Return the gradient in float64 without the bound's own backward: the sum of weights times
    gradients of single log-weights.
    """
    model, x, eps = copy.deepcopy(model).double(), x.double(), eps.double()
    model.ops = vae.PLAIN
    mean, logvar = model.encode(x)
    z = mean + torch.exp(0.5 * logvar) * eps

    def log_w(z, mean, logvar):
        q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
        prior = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
        return model.log_likelihood(x, z) + prior - q.log_prob(z).sum(-1)

    inner = z.detach().requires_grad_()
    fixed = log_w(inner, mean.detach(), logvar.detach())
    (along,) = torch.autograd.grad(fixed.sum(), inner, retain_graph=True)
    weights = torch.softmax(fixed.detach(), 0)
    of_model = (weights * fixed).sum()
    of_path = ((weights**2 if estimator == "dreg" else weights).unsqueeze(-1) * along * z).sum()
    of_density = (
        weights * log_w(z.detach(), mean, logvar)
    ).sum()  # the part that "stl" and "dreg" are without
    encoder, decoder = (
        list(model.encoder.parameters()),
        [p for n, p in model.named_parameters() if "encoder" not in n],
    )
    whole = of_path + of_density if estimator == "iwae" else of_path
    bound = torch.logsumexp(fixed, 0) - math.log(len(eps))
    of_decoder = torch.autograd.grad(of_model, decoder, retain_graph=True)
    gradients = dict(zip(map(id, encoder), torch.autograd.grad(whole, encoder), strict=True))
    gradients.update(zip(map(id, decoder), of_decoder, strict=True))
    return bound.detach(), {name: gradients[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
@pytest.mark.parametrize("estimator", vae.ESTIMATORS)
@pytest.mark.parametrize("samples", [1, 6])
def test_gradients_of_weighted_bounds_are_those_by_hand(
    likelihood, estimator, samples, monkeypatch
):
    model, x, shape = small_model(likelihood), DIGITS.train[:33], (samples, 33, 4)
    bound, exact = gradient_by_hand(model, x, lk.normal(shape, seed=11), estimator)
    for ops in with_noise(monkeypatch, 11, shape):
        model.ops = ops
        model.zero_grad()
        found = Objective(estimator, samples).of(model, x).bound
        found.mean().backward()
        torch.testing.assert_close(found.double(), bound, rtol=1e-5, atol=0)
        for name, p in model.named_parameters():
            # of a sum of some thousand terms in float32, each with the error of a log-weight's
            # rounding
            atol = 1e-5 * float(exact[name].abs().max()) / 33
            torch.testing.assert_close(p.grad.double(), exact[name] / 33, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("ops", [vae.FUSED, vae.PLAIN], ids=lambda ops: ops.name)
def test_the_weighted_bound_of_one_sample_is_an_elbo(ops):
    model = small_model("gaussian")
    model.ops = ops
    found = Objective("iwae", 1).of(model, DIGITS.train[:50])
    torch.testing.assert_close((found.reconstruction - found.kl)[0], found.bound)


@pytest.mark.parametrize("bound", vae.BOUNDS)
def test_training_raises_every_objective(bound):
    model, objective = small_model("bernoulli"), Objective(bound, 4)
    before = vae.evaluate(model, DIGITS.held_out, objective)
    history = list(vae.train(model, DIGITS.train, DIGITS.held_out, 6, objective))
    after = history[-1].held_out
    assert after.bound > before.bound + 8
    assert abs(after.bound - history[-1].train.bound) < 5
    if objective.weighted:
        assert after.bound > after.elbo
        assert objective.name == "L_4"
    else:
        assert after.bound == pytest.approx(after.elbo, rel=1e-6)
        assert objective.name == "ELBO"


def test_evaluation_takes_whole_bounds(monkeypatch):
    calls, original = [], Objective.of
    monkeypatch.setattr(Objective, "of", lambda *a: calls.append(a[0]) or original(*a))
    model, bound = small_model("bernoulli"), Objective("stl", 5)
    for draws, expected in ((1, 1), (9, 1), (10, 2), (24, 4)):
        calls.clear()
        vae.evaluate(model, DIGITS.held_out, bound, draws)
        assert calls == [bound] * expected
    calls.clear()
    vae.evaluate(model, DIGITS.held_out, num_samples=24)
    assert calls == [Objective("elbo", 24)]


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
@pytest.mark.parametrize("wrong", [False, True])
def test_fused_gradients_of_a_weighted_bound_err_no_more_than_those_of_plain_torch(
    likelihood, wrong, monkeypatch
):
    """The error against float64 is at most twice that of plain torch; a wrong density would be
    noticed.
    """
    model, x = small_model(likelihood, latent=3, hidden=16), DIGITS.train[:8]
    fused, plain = with_noise(monkeypatch, 0, (4, 8, 3))
    if wrong:
        prior = fused.standard_normal_log_prob
        fused = fused._replace(standard_normal_log_prob=lambda z: 1.001 * prior(z))

    def gradients(model, x, ops):
        model.ops = ops
        loss = -Objective("iwae", 4).of(model, x).bound.mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    exact = gradients(copy.deepcopy(model).double(), x.double(), plain)
    within = []
    for ours, theirs, e in zip(
        gradients(model, x, fused), gradients(model, x, plain), exact, strict=True
    ):
        # where plain torch happens to be exact
        tiny = 8 * torch.finfo(torch.float32).eps * float(e.abs().max())
        allowed = 2 * float((theirs - e).abs().max()) + tiny
        within.append(float((ours - e).abs().max()) <= allowed)
    assert all(within) != wrong
