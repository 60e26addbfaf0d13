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
from latent_kernels.examples import digits, measure, measure_bounds, objectives, vae
from latent_kernels.examples.objectives import Objective

DIGITS = digits.load()


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small only wait for a second thread, for seconds where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
@pytest.mark.parametrize("num_samples", [None, 3])
def test_fused_and_plain_torch_are_one_model(likelihood, num_samples, monkeypatch):
    """Given the same noise, both give the same terms and the same gradient of every weight."""
    x, seed = DIGITS.train[:33], 11
    monkeypatch.setattr(torch, "randn_like", lambda like: lk.normal(like.shape, seed=seed))
    fused = vae.FUSED._replace(rsample_kl=lambda *a: lk.rsample_kl(*a, seed=seed))
    terms, gradients = [], []
    for ops in (fused, vae.PLAIN):
        model = small_model(likelihood)
        reconstruction, kl = model.elbo(x, num_samples, ops)
        assert reconstruction.shape == ((33,) if num_samples is None else (3, 33))
        assert kl.shape == (33,)
        (reconstruction.mean() - kl.mean()).backward()
        terms.append((reconstruction, kl))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert all(g.abs().sum() > 0 for g in gradients[0].values())


def test_elbo_stays_below_the_log_evidence():
    """With many samples, log mean exp of the weights estimates log p(x), which the ELBO bounds."""
    model = small_model("gaussian", latent=2)
    for _ in vae.train(model, DIGITS.train, DIGITS.held_out, epochs=3):
        pass
    x = DIGITS.held_out[:50]
    with torch.no_grad():
        mean, logvar = model.encode(x)
        z = lk.rsample(mean, logvar, 2000, seed=1)
        zero = torch.zeros_like(mean)
        log_joint = model.log_likelihood(x, z) + lk.gaussian_log_prob(z, zero, zero)
        log_evidence = (
            torch.logsumexp(log_joint - lk.gaussian_log_prob(z, mean, logvar), 0)
            - torch.tensor(2000).log()
        )
        reconstruction, kl = model.elbo(x, 2000)
    gap = log_evidence - (reconstruction.mean(0) - kl)
    assert (gap > -0.05).all()
    assert gap.mean() > 0.05


@pytest.mark.parametrize(("likelihood", "margin"), [("bernoulli", 10.0), ("gaussian", 20.0)])
@pytest.mark.parametrize("ops", [vae.FUSED, vae.PLAIN], ids=lambda ops: ops.name)
def test_training_raises_the_held_out_elbo(likelihood, margin, ops):
    model = small_model(likelihood)
    before = vae.evaluate(model, DIGITS.held_out, ops=ops).elbo
    history = list(vae.train(model, DIGITS.train, DIGITS.held_out, epochs=12, ops=ops))
    after = history[-1].held_out
    assert after.elbo > before + margin
    assert after.kl > 0.5  # the latent code is in use
    assert abs(after.elbo - history[-1].train.elbo) < 5


def test_the_seed_fixes_every_number():
    def history(seed: int) -> list[vae.Epoch]:
        model = small_model("gaussian", seed)
        return list(vae.train(model, DIGITS.train[:256], DIGITS.held_out, epochs=2))

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


def elbo_training_as_it_was(model, images, held_out, epochs):
    """The loop before there were other objectives, to hold the default to."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    history = []
    for _ in range(epochs):
        sums = torch.zeros(2)
        for rows in torch.split(torch.randperm(len(images)), 64):
            reconstruction, kl = model.elbo(images[rows])
            loss = (kl - reconstruction).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += torch.stack((reconstruction.sum(), kl.sum())).detach()
        with torch.no_grad():
            reconstruction, kl = model.elbo(held_out, 8)
        found = vae.Terms(float(reconstruction.mean()), float(kl.mean()))
        history.append(vae.Epoch(vae.Terms(*(sums / len(images)).tolist()), found))
    return history


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_the_elbo_of_one_sample_trains_as_before_bit_for_bit(likelihood):
    model = small_model(likelihood, 7)
    before = elbo_training_as_it_was(model, DIGITS.train[:200], DIGITS.held_out, 2)
    weights = [p.clone() for p in model.parameters()]
    for objective in (objectives.ELBO, Objective("elbo", 1)):
        model = small_model(likelihood, 7)
        assert (
            list(
                vae.train(model, DIGITS.train[:200], DIGITS.held_out, epochs=2, objective=objective)
            )
            == before
        )
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert before[0].train.bound is None
    assert before[0].train.maximized == before[0].train.elbo


def test_the_elbo_of_many_samples_is_their_mean():
    model, x = small_model("bernoulli"), DIGITS.train[:20]
    torch.manual_seed(3)
    loss, terms = Objective("elbo", 5).loss_and_terms(model, x, vae.FUSED)
    torch.manual_seed(3)
    reconstruction, kl = model.elbo(x, 5)
    assert reconstruction.shape == (5, 20)
    torch.testing.assert_close(loss, (kl - reconstruction.mean(0)).mean())
    torch.testing.assert_close(terms, torch.stack((reconstruction.mean(0).sum(), kl.sum())))


def with_noise(monkeypatch, seed, shape):
    """Both versions draw the same: that of this seed."""
    eps = lk.normal(shape, seed=seed)
    for name, sample, option in (
        (vae.FUSED.name, lk.rsample_log_prob, {"seed": seed}),
        (vae.PLAIN.name, objectives.plain_rsample_log_prob, {"noise": lambda like: eps}),
    ):
        ops = objectives.WEIGHTED_OPS[name]
        changed = ops._replace(rsample_log_prob=functools.partial(sample, **option))
        monkeypatch.setitem(objectives.WEIGHTED_OPS, name, changed)
    return eps


def gradient_by_hand(model, x, eps, estimator):
    """In float64 and without the bound's own backward: weights times the gradients of single
    log-weights.
    """
    model, x, eps = copy.deepcopy(model).double(), x.double(), eps.double()
    mean, logvar = model.encode(x)
    z = mean + torch.exp(0.5 * logvar) * eps

    def log_w(z, mean, logvar):
        q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
        prior = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
        return model.log_likelihood(x, z, vae.PLAIN) + prior - q.log_prob(z).sum(-1)

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
@pytest.mark.parametrize("estimator", objectives.ESTIMATORS)
@pytest.mark.parametrize("samples", [1, 6])
def test_gradients_of_weighted_bounds_are_those_by_hand(
    likelihood, estimator, samples, monkeypatch
):
    model, x = small_model(likelihood), DIGITS.train[:33]
    eps = with_noise(monkeypatch, 11, (samples, 33, 4))
    bound, exact = gradient_by_hand(model, x, eps, estimator)
    for ops in (vae.FUSED, vae.PLAIN):
        model.zero_grad()
        loss, terms = Objective(estimator, samples).loss_and_terms(model, x, ops)
        loss.backward()
        torch.testing.assert_close(loss.double(), -bound.mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(terms[2].double(), bound.sum(), rtol=1e-5, atol=0)
        for name, p in model.named_parameters():
            # of a sum of some thousand terms in float32, each with the error of a log-weight's
            # rounding
            atol = 1e-5 * float(exact[name].abs().max()) / 33
            torch.testing.assert_close(p.grad.double(), -exact[name] / 33, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("ops", [vae.FUSED, vae.PLAIN], ids=lambda ops: ops.name)
def test_the_weighted_bound_of_one_sample_is_an_elbo(ops):
    loss, terms = Objective("iwae", 1).loss_and_terms(
        small_model("gaussian"), DIGITS.train[:50], ops
    )
    torch.testing.assert_close(terms[0] - terms[1], terms[2])
    torch.testing.assert_close(loss, -terms[2] / 50)


@pytest.mark.parametrize("bound", objectives.BOUNDS)
def test_training_raises_every_objective(bound):
    model, objective = small_model("bernoulli"), Objective(bound, 4)
    before = vae.evaluate(model, DIGITS.held_out, objective=objective)
    history = list(vae.train(model, DIGITS.train, DIGITS.held_out, epochs=6, objective=objective))
    after = history[-1].held_out
    assert after.maximized > before.maximized + 8
    assert abs(after.maximized - history[-1].train.maximized) < 5
    if objective.weighted:
        assert after.maximized == after.bound > after.elbo
        assert objective.name == "L_4"
    else:
        assert after.bound is None
        assert objective.name == "ELBO"


def test_evaluation_takes_whole_bounds(monkeypatch):
    calls = []
    original = Objective.loss_and_terms
    monkeypatch.setattr(Objective, "loss_and_terms", lambda *a: calls.append(a) or original(*a))
    for draws, expected in ((1, 1), (9, 1), (10, 2), (24, 4)):
        calls.clear()
        vae.evaluate(
            small_model("bernoulli"),
            DIGITS.held_out,
            num_samples=draws,
            objective=Objective("stl", 5),
        )
        assert len(calls) == expected


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_measuring_a_weighted_step_checks_its_answers(likelihood, monkeypatch):
    size = measure.Size("tiny", 8, 4, 3, 16, 1)
    (found,) = measure_bounds.compare(size, likelihood, DIGITS.train)
    assert (found.likelihood, found.rival) == (likelihood, "plain torch")
    assert min(found[2:]) > 0
    ops = objectives.WEIGHTED_OPS[vae.FUSED.name]
    wrong = ops._replace(log_prior=lambda z: 1.001 * objectives.fused_log_prior(z))
    monkeypatch.setitem(objectives.WEIGHTED_OPS, vae.FUSED.name, wrong)
    with pytest.raises(AssertionError, match=f"latent-kernels, {likelihood}: the gradient of"):
        measure_bounds.compare(size, likelihood, DIGITS.train)


def test_weighted_ops_are_measured_on_their_own():
    objective = Objective("iwae", 4)
    size = measure.Size("large", 32, 2, 3, 16, 1).with_samples(objective)
    assert size[:4] == ("large", 16, 4, 3)  # as many samples in all
    assert measure.Size("demo", 32, None, 3, 16, 1).with_samples(objective)[:4] == (
        "demo",
        32,
        4,
        3,
    )
    assert size.with_samples(objectives.ELBO) == size
    step, alone = measure.compare(size, DIGITS.train, seed=0, objective=objective)
    assert (step.what, alone.what) == ("step", "ops")
    assert alone.ours.saved_bytes < alone.plain.saved_bytes
    assert min(*step.ours, *step.plain, *alone.plain) > 0
