"""The example VAE: its arithmetic against plain torch, and what training does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import latent_kernels as lk
from latent_kernels.examples import digits, vae

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
        log_evidence = torch.logsumexp(log_joint - lk.gaussian_log_prob(z, mean, logvar), 0) - torch.tensor(2000).log()
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
        "import sys, latent_kernels\n"
        "print([m for m in ('typer', 'rich', 'matplotlib', 'sklearn', 'numba', 'triton') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
