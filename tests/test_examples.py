"""The files of examples/: each runs, and reaches the result that it is meant to show.

Black-box variational inference has to find the mean-field posterior of a logistic regression from
values of the log joint alone; quadrature knows that posterior.
"""

from __future__ import annotations

import math
import runpy

import matplotlib.pyplot as plt
import pytest
import torch

import latent_kernels as lk
from latent_kernels.cli.variance import logistic_regression
from tests import processes

EXAMPLES = processes.ROOT / "examples"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    plt.close("all")


def run(name, function="main"):
    """Return a function of the example."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))[function]


def test_an_example_is_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name


def test_vae(capsys):
    """One epoch reaches -29.1 nats, six -25.4, fifty -24.5."""
    assert -27 < run("vae")(epochs=6) < -24
    assert "epoch   6: ELBO of held-out images -2" in capsys.readouterr().out


def test_importance_weighted_vae(capsys):
    assert -29 < run("importance_weighted_vae")(num_samples=4, epochs=6) < -21
    assert "trained with 4 samples" in capsys.readouterr().out


def test_mixture(capsys):
    bic = run("mixture")(most=4)
    assert sorted(bic.values(), reverse=True) == list(bic.values()), "each component is worth it"
    assert "the least BIC has 4 components" in capsys.readouterr().out


def test_sparse_coding(capsys):
    """Two layers before training, which equal two iterations of ISTA, come within 26%."""
    assert 0 < run("sparse_coding")(count=1500, atoms=64, layers=2, steps=60) < 0.15
    assert "duality gap" in capsys.readouterr().out


def test_linear_vae(capsys):
    """After 600 steps the bound is within some nats of the evidence, and not above it."""
    bounds = run("linear_vae")(steps=600)
    evidence = run("linear_vae", "exact_evidence")()
    assert evidence - 3 < sum(bounds[-50:]) / 50 < evidence + 0.1
    assert "exact evidence" in capsys.readouterr().out


def test_kmeans():
    ours, theirs = run("kmeans")()
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_vq_autoencoder():
    """Of the pixels' variance 55% is lost after ten epochs, 25% after sixty."""
    lost, used = run("vq_autoencoder")(epochs=10)
    assert lost < 0.7
    assert used >= 16


def test_bayesian_mixture(capsys):
    assert run("bayesian_mixture")(iterations=80) == (4, 4)
    assert "components keep their weight" in capsys.readouterr().out


def test_iwae_bounds():
    """The bounds rise with k and stay below the evidence; the gallery continues to 512."""
    bounds = list(run("iwae_bounds")(ks=(1, 2, 4, 8)).values())
    assert bounds == sorted(bounds)
    assert bounds[-1] < run("iwae_bounds", "evidence")


def test_estimator_variance():
    found = run("estimator_variance")(repeats=64)
    assert all(variances[-1] < variances[0] / 16 for variances in found.values())
    assert found["leave_one_out"][-1] < found["none"][-1] / 2


def test_distributed_mixture():
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2")
    result = processes.python(*launch, "examples/distributed_mixture.py", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    lines = [x for x in result.stdout.splitlines() if "differ from one process's" in x]
    assert len(lines) == 3
    assert max(float(line.split()[-1]) for line in lines) < 1e-12


# --- black-box variational inference --------------------------------------------------------------

MODEL = logistic_regression.load()


@pytest.fixture(scope="module")
def fit():
    return run("black_box_vi", "fit")


@pytest.fixture(scope="module")
def optimum():
    """Return the q of the greatest ELBO, which is concave in mean and standard deviation, by
    L-BFGS.
    """
    leaves = tuple(x.double().requires_grad_() for x in MODEL.start().parameters)
    optimizer = torch.optim.LBFGS(
        leaves, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = -MODEL.elbo(*leaves)
        loss.backward()
        return loss

    optimizer.step(closure)
    return lk.DiagonalGaussian(*(x.detach() for x in leaves))


def elbo(q):
    return float(MODEL.elbo(*q.parameters))


def test_its_log_joint_is_the_model_s_but_for_a_constant():
    w = lk.normal((5, 31), seed=1)
    constant = 0.5 * 31 * math.log(2 * math.pi)
    got = run("black_box_vi", "log_joint")(w)
    torch.testing.assert_close(got - constant, MODEL.log_joint(w), rtol=1e-6, atol=1e-3)


def test_the_optimum_is_one(optimum):
    assert all(g.abs().max() < 1e-3 for g in MODEL.elbo_gradient(optimum))
    for seed in range(5):
        near = (
            x + 0.02 * lk.normal(31, seed=seed + i).double()
            for i, x in enumerate(optimum.parameters)
        )
        assert float(MODEL.elbo(*near)) < elbo(optimum)


def test_black_box_inference_finds_the_posterior(fit, optimum):
    found = fit("leave_one_out", 256, 2000)
    deviation = (0.5 * optimum.logvar).exp()
    assert float(((found.mean - optimum.mean).abs() / deviation).max()) < 0.15
    assert 0 <= elbo(optimum) - elbo(found) < 0.1


def test_noise_costs_nats(fit, optimum):
    """With the same number of steps, fewer samples or no control variate end lower, by several nats
    with both.
    """
    kinds = [(name, s) for name in ("leave_one_out", "none") for s in (64, 4)]
    lost = {key: elbo(optimum) - elbo(fit(*key, steps=600)) for key in kinds}
    assert all(x > 0 for x in lost.values())
    assert lost["leave_one_out", 4] > 5 * lost["leave_one_out", 64]
    assert lost["none", 64] > 5 * lost["leave_one_out", 64]
    assert lost["none", 4] > lost["none", 64] + 5


def test_a_fit_follows_from_its_seed(fit):
    fits = [fit("optimal", 8, 20, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(fits[0].mean, fits[1].mean)
    assert not torch.equal(fits[0].mean, fits[2].mean)
