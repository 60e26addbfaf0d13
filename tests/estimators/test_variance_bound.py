"""Profiles of gradients of importance-weighted bounds: exact gradients, the bias of STL, the signal
and its interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.cli.variance import figures, problems, results
from latent_kernels.variational import _statistics, variance
from tests.bounds.linear_gaussian import Parameters, hermite
from tests.score.laws import CLASS_LOGITS, LOGITS, f, family

BOUND = {"objective": "importance_bound"}
NUMBERS = [
    name
    for name in ("num_samples", "repeats", *_statistics.COLUMNS)
    if "time" not in name and name != "seconds"
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def line(dtype=torch.float64):
    values = ([0.9], [-0.3], [[0.8], [-0.5]], [0.3, -0.1], 0.2)
    return Parameters(*(torch.tensor(x, dtype=dtype) for x in values)), torch.tensor(
        [0.4, -1.1], dtype=dtype
    )


def exact_line(samples):
    """Return the gradient of E[L_S] by quadrature, or None for S > 3."""
    if samples > 3:
        return None
    p, x = line()
    p = p.tracked()
    eps, weight = hermite(48, samples)
    z = p.mean + torch.exp(0.5 * p.logvar) * eps
    bound = torch.logsumexp(p.log_joint(x, z) - p.log_q(z), 0) - math.log(samples)
    return torch.autograd.grad(bound @ weight, (p.mean, p.logvar))


def profile_line(rows=1, **options):
    """Profile so many equal rows of q."""
    p, x = line()
    q = lk.DiagonalGaussian(p.mean.expand(rows, 1), p.logvar.expand(rows, 1))

    def exact(samples):
        found = exact_line(samples)
        return None if found is None else tuple(g.expand(rows, 1) for g in found)

    return lk.profile_variance(
        q, lambda z: p.log_joint(x, z), exact_gradient=exact, **(BOUND | options)
    )


# --- exact gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_tuples_of_states_are_enumerated(name):
    """The exact gradient is a written-out sum over tuples of states, for a batch of two; VIMCO has
    no bias.
    """
    logits = LOGITS if name == "bernoulli" else CLASS_LOGITS
    q = family(name, 2)
    found = lk.profile_variance(q, f, num_samples=(1, 2, 3, 8), repeats=200, **BOUND)
    classes = 2 if name == "bernoulli" else 3
    for s in (1, 2, 3):
        leaf, total = logits.clone().requires_grad_(), 0.0
        law = (
            torch.distributions.Bernoulli
            if name == "bernoulli"
            else torch.distributions.Categorical
        )
        for states in itertools.product(itertools.product(range(classes), repeat=2), repeat=s):
            z = torch.tensor(states, dtype=torch.float64 if name == "bernoulli" else torch.long)
            log_q = law(logits=leaf).log_prob(z).sum(-1)
            total = total + log_q.sum().exp() * (torch.logsumexp(f(z) - log_q, 0) - math.log(s))
        (expected,) = torch.autograd.grad(total, leaf)
        (row,) = found.exact_gradient[0][found.table["num_samples"] == s]
        np.testing.assert_allclose(row, np.stack([expected.numpy()] * 2), rtol=1e-10, atol=1e-12)
    assert found.estimators == ("vimco",)
    table = found.rows("vimco")
    assert table["repeats"].tolist() == [0, 200, 200, 200]
    assert (table["bias_p"][1:3] > 1e-3).all()
    assert np.isnan(found.exact_gradient[0][3]).all()  # 4^8 and 9^8 are too many
    assert np.isnan(table["bias_p"][3])


def test_the_bias_column_knows_which_are_biased():
    """Only STL is called biased, and only for S > 1; without an exact gradient the column is
    empty.
    """
    found = profile_line(16, num_samples=(1, 2, 3, 4), repeats=400)
    for name in found.estimators:
        rows = found.rows(name)
        known = rows["bias_p"][:3][rows["repeats"][:3] > 0]
        if name == "stl":
            assert known[0] > 1e-3
            assert known[1:].max() < 1e-9
        else:
            assert known.min() > 1e-3
        assert np.isnan(rows["bias_p"][3])
    assert found.exact_gradient[0].shape == (16, 16, 1)
    for s, row in zip(found.table["num_samples"], found.exact_gradient[1], strict=True):
        assert np.isnan(row).all() if s == 4 else (row == exact_line(int(s))[1].numpy()).all()
    assert profile_line(num_samples=(4,), repeats=8).exact_gradient is None


def test_one_sample_is_the_elbo():
    """At one sample the exact gradient is the ELBO's, and the estimators of either objective
    agree.
    """
    problem = problems.linear_gaussian(points=3)
    exact = {"exact_gradient": lambda s: problem.exact_gradient if s == 1 else None}
    found = lk.profile_variance(*problem[:2], num_samples=(1,), repeats=1000, **exact, **BOUND)
    assert found.estimators == ("iwae", "stl", "dreg", "vimco")
    assert np.nanmin(found.table["bias_p"]) > 1e-3
    assert np.isnan(found.table["bias_p"]).tolist() == [False, False, False, True]  # VIMCO compares
    elbo = lk.profile_variance(
        *problem[:2], num_samples=(1,), repeats=8, exact_gradient=problem.exact_gradient
    )
    for ours, its in zip(found.exact_gradient, elbo.exact_gradient, strict=True):
        np.testing.assert_array_equal(ours[0], its)


# --- signal and noise -----------------------------------------------------------------------------


def test_the_signal_goes_like_the_powers_it_should():
    """The power is -1/2 for IWAE, as long as its signal shows; +1/2 for STL and, past the first few
    S, for DReG.
    """
    problem = problems.linear_gaussian()
    found = lk.profile_variance(
        *problem[:2], num_samples=(1, 2, 4, 8, 16, 32, 64), repeats=200, **BOUND
    )
    trends = {name: results.trend(found.rows(name)) for name in found.estimators}
    assert -0.55 < trends["iwae"].slope < -0.35
    assert trends["iwae"].reach < 0.15
    assert 0.4 < trends["stl"].slope < 0.5
    assert 0.3 < trends["dreg"].slope < 0.5
    assert trends["vimco"].slope < -0.1
    later = results.trend(found.rows("dreg")[3:])
    assert abs(later.slope - 0.5) < 0.1
    assert "At S = 64, DReG wins with 4." in results.verdict(found)


def test_the_interval_of_the_signal_is_a_jackknife():
    """The interval equals a jackknife that leaves out one gradient at a time."""
    gradients = np.random.default_rng(1).normal(size=(20, 3)) * (1, 2, 3) + 1.5

    def ratio(x):
        trace = x.var(0, ddof=1).sum()
        return ((x.mean(0) ** 2).sum() - trace / len(x)) / trace

    left_out = np.array([ratio(np.delete(gradients, r, 0)) for r in range(20)])
    reach = 1.959964 * math.sqrt(19 / 20 * ((left_out - left_out.mean()) ** 2).sum())
    expected = np.sqrt(ratio(gradients) + np.array([0.0, -reach, reach]))
    np.testing.assert_allclose(signal(gradients), expected, rtol=1e-12)


def signal(gradients):
    mean = gradients.mean(0)
    deviations = ((gradients - mean) ** 2).sum(1) * len(gradients) / (len(gradients) - 1)
    return _statistics.signal_to_noise(gradients, mean, deviations)


@pytest.mark.parametrize(("repeats", "truth"), [(64, 0.1), (64, 3.0), (256, 0.05), (256, 30.0)])
def test_the_interval_covers_the_signal(repeats, truth):
    """The interval covers the signal in 400 profiles of normal gradients, with eight parameters of
    unequal noise; binomial error 1.1%.
    """
    scale = np.sqrt(np.arange(1, 9))
    gradients = np.random.default_rng(repeats).normal(size=(400, repeats, 8)) * scale
    gradients += truth * math.sqrt((scale**2).sum() / 8)
    low, high = np.array([signal(x)[1:] for x in gradients]).T
    assert 0.915 <= np.mean((low <= truth) & (truth <= high)) <= 0.995


def test_no_signal_is_not_found():
    gradients = np.random.default_rng(0).normal(size=(300, 64, 5))
    assert np.mean([signal(x)[1] > 0 for x in gradients]) < 0.05
    assert signal(np.ones((8, 2))) == (math.inf, math.inf, math.inf)
    assert signal(np.zeros((8, 2))) == (0.0, 0.0, 0.0)
    outlier = np.ones((8, 1))
    outlier[3] = 2.0
    value, low, high = signal(outlier)
    assert low == 0
    assert high > 1e3 * value > 1e3


# --- what it promises -----------------------------------------------------------------------------


def test_noise_seeds_stay_what_they_were():
    """Seeds keep their values, so that existing results can be reproduced: each name has a fixed
    position, and each position its seed.
    """
    assert variance.ESTIMATORS[:5] == (
        "none",
        "leave_one_out",
        "optimal",
        "disarm",
        "reparameterized",
    )
    assert variance.ESTIMATORS[5:] == ("iwae", "stl", "dreg", "vimco")
    assert variance._seeds(0, "none", 4, 2) == [7575695657427336472, 3762239956094573896]
    assert variance._seeds(3, "reparameterized", 2, 1) == [1867032126034796109]
    assert variance._seeds(0, "iwae", 4, 1) == [3094223986343747656]


def test_gradients_are_those_of_the_bound():
    """The gradients equal those of the public functions with the profile's own seeds."""
    found = profile_line(num_samples=(4,), repeats=8, seed=3)
    p, x = line()
    for row, name in enumerate(found.estimators):
        gradients = []
        for seed in variance._seeds(3, name, 4, 8):
            q = lk.DiagonalGaussian(*(x.clone().requires_grad_() for x in p.q.parameters))
            z, log_q = q.rsample_log_prob(4, seed=seed, path_derivative=name in ("stl", "dreg"))
            if name == "vimco":
                z = z.detach()
                log_q = q.log_prob(z)
            options = {"dreg": {"z": z}, "vimco": {"log_q": log_q}}.get(name, {})
            bound = lk.importance_bound(p.log_joint(x, z) - log_q, estimator=name, **options)
            gradients.append(torch.cat(torch.autograd.grad(bound, q.parameters)))
        expected = torch.stack(gradients).mean(0)
        np.testing.assert_allclose(
            [part[row, 0, 0] for part in found.parameter_mean], expected, rtol=1e-10
        )


def test_the_seed_fixes_everything_but_times():
    options = {"repeats": 16, "seed": 3}
    first = profile_line(num_samples=(1, 2, 8), **options)
    second = profile_line(num_samples=(8, 2), estimators=["vimco", "iwae"], **options)
    for name in second.estimators:
        for column in NUMBERS:
            np.testing.assert_array_equal(first.rows(name)[column][1:], second.rows(name)[column])


def test_what_applies_to_what():
    """For a black box only VIMCO applies, also with a discrete q; no gradient is left in any
    tensor.
    """
    mean, weight = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    q = lk.DiagonalGaussian(mean, torch.zeros(2))
    options = {"num_samples": (2,), "repeats": 8} | BOUND
    box = lambda z: torch.from_numpy(-(z.detach().numpy() ** 2).sum(-1))  # noqa: E731
    assert lk.profile_variance(q, box, **options).estimators == ("vimco",)
    found = lk.profile_variance(q, lambda z: -(weight * z * z).sum(-1), **options)
    assert found.estimators == ("iwae", "stl", "dreg", "vimco")
    assert mean.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    p, x = line(torch.float32)
    q = lk.DiagonalGaussian(*(v.to(dtype).expand(128, 1) for v in p.q.parameters))
    found = lk.profile_variance(
        q, lambda z: p.log_joint(x, z.float()), num_samples=(3,), repeats=16, **BOUND
    )
    exact = torch.cat(exact_line(3)).numpy()
    for row, name in enumerate(found.estimators):
        mean = np.stack([part[row].mean() for part in found.parameter_mean])
        error = np.sqrt(
            np.stack([part[row].mean() for part in found.parameter_variance]) / (16 * 128)
        )
        if name != "stl":
            np.testing.assert_array_less(np.abs(mean - exact), 4 * error + 0.01)


def test_files_hold_the_objective_and_an_exact_gradient_for_each_row(tmp_path):
    found = profile_line(num_samples=(1, 4), repeats=8, estimators=["iwae"])
    assert found.objective == "importance_bound"
    found.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert content["objective"] == "importance_bound"
    assert content["exact_gradient"][0] == [[[float(exact_line(1)[0])]], [[None]]]
    assert content["rows"][0]["signal_to_noise_low"] == found.table["signal_to_noise_low"][0]


def test_interruption_keeps_what_was_complete():
    def progress(done, total):
        assert total == 3 * 8 + 4 * 8
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(variance.ProfileInterrupted) as stop:
        profile_line(num_samples=(1, 2), repeats=8, progress=progress)
    assert stop.value.profile.table["num_samples"].tolist() == [1] * 4
    assert stop.value.profile.exact_gradient[0].shape == (4, 1, 1)


GAUSSIAN, BERNOULLI = (
    lk.DiagonalGaussian(torch.zeros(3), torch.zeros(3)),
    lk.Bernoulli(torch.zeros(2, 3)),
)
BAD = [
    (
        {"objective": "iwae"},
        ValueError,
        r"objective must be one of 'elbo', 'importance_bound'; got 'iwae'",
    ),
    (
        {"estimators": ["none"]},
        ValueError,
        r"'none', which does not apply: it is for the objective 'elbo'; got obj",
    ),
    (
        {"objective": "elbo", "estimators": ["vimco"]},
        ValueError,
        r"'vimco', which does not apply: it is for the objective 'importance_bound'; "
        r"got objective 'elbo'",
    ),
    (
        {"q": BERNOULLI, "estimators": ["dreg"]},
        ValueError,
        r"'dreg', which does not .* a DiagonalGaussian; q is a Ber",
    ),
    (
        {"exact_gradient": (torch.zeros(3),)},
        TypeError,
        r"exact_gradient must be a function of S .*; got tuple",
    ),
    (
        {"objective": "elbo", "exact_gradient": exact_line},
        ValueError,
        r"exact_gradient must hold 2 .*; got function",
    ),
    (
        {"exact_gradient": lambda s: (torch.zeros(3),)},
        ValueError,
        r"exact_gradient must hold 2 tensors",
    ),
    (
        {"exact_gradient": lambda s: (torch.zeros(3), torch.zeros(2))},
        ValueError,
        r"exact_gradient .*: \(3,\); got",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    given = {"q": GAUSSIAN, "log_joint": lambda z: z.sum(-1), "repeats": 8} | BOUND | options
    with pytest.raises(error, match=message):
        lk.profile_variance(**given)


def profile_of(*estimators, num_samples=(1, 4, 16, 64)):
    """Return the profile of a Gaussian's location, with a clear signal everywhere."""
    q = lk.DiagonalGaussian(torch.zeros(2), torch.zeros(2))
    return lk.profile_variance(
        q,
        lambda z: -((z - 2.0) ** 2).sum(-1),
        estimators=estimators,
        num_samples=num_samples,
        repeats=64,
        **BOUND,
    )


def test_that_no_unbiased_estimator_was_profiled_is_said():
    found = results.verdict(profile_of("stl", num_samples=(2, 4)))
    assert (
        found
        == "At S = 4 no unbiased estimator was profiled. STL is biased for S > 1, and not compared."
    )
    assert "STL reaches" in results.verdict(profile_of("stl", num_samples=(1,)))
    assert "no unbiased estimator was profiled" not in results.verdict(profile_of("stl", "dreg"))


def test_a_lost_signal_interrupts_the_line_and_its_band(tmp_path, monkeypatch):
    found = profile_of("iwae")
    assert len(results.clear(found.table)) == 4
    table = found.table.copy()
    table["signal_to_noise"][1] = table["signal_to_noise_low"][1] = 0.0
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw(dataclasses.replace(found, table=table), "lost", tmp_path / "s.png")
    left = drawn[0].axes[0]
    line = np.asarray(left.get_lines()[0].get_ydata())
    assert np.isnan(line).tolist() == [False, True, False, False]
    assert (line[2:] == table["signal_to_noise"][2:]).all()
    corners = np.concatenate([path.vertices[:, 0] for path in left.collections[0].get_paths()])
    assert set(corners.tolist()) == {1.0, 16.0, 64.0}
    assert len(left.collections[0].get_paths()) == 2
