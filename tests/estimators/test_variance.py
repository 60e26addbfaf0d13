"""The variance profiler: exact variances, the coverage of its intervals, its bias test, and its
other promises.
"""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.cli.variance import problems
from latent_kernels.variational import _statistics
from latent_kernels.variational.variance import ESTIMATORS, ProfileInterrupted
from tests.score.laws import FAMILIES, f, family, law, pairs_law
from tests.score.laws import flat as laid_out

TIMES = {"seconds", "variance_time", "variance_time_low", "variance_time_high"}
NUMBERS = [name for name in ("num_samples", "repeats", *_statistics.COLUMNS) if name not in TIMES]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_values_f(q):
    """Return a log joint whose score-function values, log_joint - log q, are f."""
    return lambda z: f(z) + q.log_prob(z)


def profile(q, log_joint=None, **options):
    return lk.profile_variance(q, with_values_f(q) if log_joint is None else log_joint, **options)


def check_variances(rows, truths):
    """Check that all variances are within twice their interval (on the log scale) of the truth, and
    four in five within once.
    """
    inside = []
    for row, truth in zip(rows, truths, strict=True):
        above = np.log(truth / row["variance"]) / np.log(row["variance_high"] / row["variance"])
        below = np.log(truth / row["variance"]) / np.log(row["variance_low"] / row["variance"])
        distance = max(above, below)
        assert distance < 2, (row["estimator"], row["num_samples"], row["variance"], truth)
        inside.append(distance <= 1)
    assert np.mean(inside) >= 0.8


# --- variances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_score_variances_are_the_exact_ones(name):
    """The trace and the parameters' variances are exact: "optimal" with two samples is
    leave-one-out, and with many has the best coefficient.
    """
    of, sizes = law(name), (2, 16, 256)
    found = profile(
        family(name),
        num_samples=sizes,
        repeats=400,
        estimators=["none", "leave_one_out", "optimal"],
    )
    truth = {(e, s): of.variance(e, s) for e in ("none", "leave_one_out") for s in sizes}
    truth |= {
        ("optimal", 2): truth["leave_one_out", 2],
        ("optimal", 256): of.variance("optimal", 256),
    }
    keys = [(str(row["estimator"]), int(row["num_samples"])) for row in found.table]
    rows = [row for row, key in zip(found.table, keys, strict=True) if key in truth]
    check_variances(rows, [float(truth[key].sum()) for key in keys if key in truth])
    means, variances = (
        laid_out(tuple(map(torch.from_numpy, x)))
        for x in (found.parameter_mean, found.parameter_variance)
    )
    assert torch.allclose(
        variances.sum((1, 2)), torch.tensor(found.table["variance"].copy()), rtol=1e-12
    )
    for i, key in enumerate(keys):
        if (
            key in truth and key[1] >= 16
        ):  # nearly normal: the relative error is sqrt(2 / 400) = 0.07, five times it
            torch.testing.assert_close(variances[i], truth[key], rtol=0.35, atol=0)
            assert ((means[i] - of.gradient).abs() < 5 * (truth[key] / 400).sqrt()).all()


def test_disarm_variances_are_the_exact_ones():
    """S evaluations make S / 2 pairs, so the variance is twice the S-th part of one term's."""
    q = family("bernoulli")
    z, weight = pairs_law()
    term = (
        0.5
        * (f(z[:, 0]) - f(z[:, 1]))[:, None]
        * (z[:, 0] - z[:, 1])
        * torch.sigmoid(q.logits.abs())
    )
    mean = weight @ term
    variance = float((weight @ term**2 - mean**2).sum())
    found = profile(q, num_samples=(1, 2, 3, 8, 64), repeats=400, estimators=["disarm"])
    assert found.table["repeats"].tolist() == [0, 400, 0, 400, 400]
    rows = found.table[found.table["repeats"] > 0]
    check_variances(rows, [2 * variance / s for s in (2, 8, 64)])


def test_reparameterized_variances_are_the_exact_ones():
    """On -a z^2 / 2 the gradients' terms are -a z and -a z sigma eps / 2, with z = mean + sigma
    eps.
    """
    problem = problems.quadratic()
    mean, logvar = problem.q.parameters
    a, variance = torch.linspace(0.5, 2.0, 10), logvar.exp()
    of_one = float(
        (a**2 * variance).sum() + (0.25 * a**2 * variance * (mean**2 + 2 * variance)).sum()
    )
    found = profile(
        *problem[:2], num_samples=(1, 4, 64), repeats=400, estimators=["reparameterized"]
    )
    check_variances(found.table, [of_one / s for s in (1, 4, 64)])


@pytest.mark.parametrize("repeats", [64, 256])
def test_the_interval_covers_the_variance(repeats):
    """The interval covers the truth in 400 profiles of normal gradients and of Bernoulli
    score-function gradients; binomial error 1.1%.
    """
    rng = np.random.default_rng(repeats)
    normal = rng.normal(size=(400, repeats, 8)) * np.arange(1, 9)
    of = law("bernoulli")
    q = family("bernoulli", 400 * repeats)
    z = q.sample(16, seed=repeats)
    score = laid_out(lk.score_function_gradient(q, f(z), z)).reshape(400, repeats, 2).numpy()
    for gradients, truth in (
        (normal, 204.0),
        (score, float(of.variance("leave_one_out", 16).sum())),
    ):
        assert 0.92 <= coverage(gradients, truth)[0] <= 0.985


def test_the_interval_holds_up_under_heavy_tails():
    """The interval holds for one sample, no control variate and a Gaussian, where the plain delta
    method covers 83%.
    """
    q = family("gaussian", 400 * 256)
    z = q.sample(1, seed=3)
    gradients = (
        laid_out(lk.score_function_gradient(q, f(z), z, control_variate="none"))
        .reshape(400, 256, 4)
        .numpy()
    )
    ours, delta = coverage(gradients, float(law("gaussian").variance("none", 1).sum()))
    assert ours >= 0.86
    assert ours >= delta + 0.03


def coverage(gradients, truth):
    """Return how often our interval, and the delta method's, cover the truth."""
    repeats = gradients.shape[1]
    deviations = (
        ((gradients - gradients.mean(1, keepdims=True)) ** 2).sum(-1) * repeats / (repeats - 1)
    )
    low, high = np.array([_statistics.interval(x) for x in deviations]).T
    mean, error = deviations.mean(1), deviations.std(1, ddof=1) / math.sqrt(repeats)
    return np.mean((low <= truth) & (truth <= high)), np.mean(
        np.abs(np.log(truth / mean)) <= 1.96 * error / mean
    )


# --- bias -----------------------------------------------------------------------------------------


def test_unbiased_estimators_pass_the_bias_test():
    """Over 150 profiles, p-values below 0.05 come at most one time in twenty, up to three binomial
    errors.
    """
    q = family("categorical")
    options = {
        "num_samples": (4,),
        "repeats": 64,
        "estimators": ["none", "leave_one_out", "optimal"],
    }
    p = np.array([profile(q, seed=seed, **options).table["bias_p"] for seed in range(50)])
    assert np.mean(p < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / p.size)
    assert p.min() > 1e-4
    assert len(np.unique(p[p < 1])) > 20  # it is a test, and not always 1


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_the_exact_gradient_is_enumerated(name):
    found = profile(family(name), num_samples=(2,), repeats=8)
    exact = laid_out(tuple(torch.from_numpy(x)[None] for x in found.exact_gradient))[0]
    torch.testing.assert_close(exact, law(name).gradient, rtol=1e-10, atol=1e-12)


def test_a_batch_is_enumerated_and_its_parameters_all_count():
    """Rows of a batch do not share their gradient, and all their parameters are counted."""
    logits = torch.randn(3, 2, 4, dtype=torch.float64)
    weight = torch.randn(3, 2, 4, dtype=torch.float64)
    found = profile(
        lk.Bernoulli(logits), lambda z: (z * weight).sum(-1), num_samples=np.array([2]), repeats=16
    )
    p = torch.sigmoid(logits)
    torch.testing.assert_close(
        torch.from_numpy(found.exact_gradient[0]), p * (1 - p) * (weight - logits)
    )
    assert found.parameter_variance[0].shape == (4, 3, 2, 4)
    np.testing.assert_allclose(found.parameter_variance[0].sum((1, 2, 3)), found.table["variance"])


def test_bias_shows():
    """A bias is found where a log joint hides half its gradient from autograd, and where the exact
    gradient is wrong.
    """
    q, log_joint, exact, _ = problems.quadratic()
    half = lambda z: 0.5 * (log_joint(z) + log_joint(z.detach()))  # noqa: E731
    options = {"num_samples": (16,), "repeats": 64}
    found = profile(q, half, exact_gradient=exact, **options)
    biased = found.table["estimator"] == "reparameterized"
    assert found.table["bias_z"][biased] > 8
    assert found.table["bias_p"][biased] < 1e-12
    assert found.table["bias_p"][~biased].min() > 1e-3
    wrong = (exact[0] + 1, exact[1])
    assert (
        profile(q, log_joint, exact_gradient=wrong, **options).rows("leave_one_out")["bias_z"] > 5
    )
    assert np.isnan(profile(q, log_joint, **options).table["bias_z"]).all()


def test_rounding_is_not_a_bias_and_constants_have_no_variance():
    """For a linear log joint the mean's gradient is the slope, whatever the noise: no bias and no
    variance is reported.
    """
    slope = torch.tensor([0.1, 0.7])
    q = lk.DiagonalGaussian(torch.ones(2), torch.zeros(2))
    exact = (slope, torch.full((2,), 0.5))
    options = {"estimators": ["reparameterized"], "num_samples": (8,), "exact_gradient": exact}
    found = profile(q, lambda z: (z * slope).sum(-1), **options)
    assert found.parameter_variance[0].max() < 1e-13
    assert found.table["bias_p"] > 1e-3


def test_what_is_never_drawn_is_not_tested():
    """A bit that is 1 once in a million shows no variance in the repeats; that must not be taken
    for a bias.
    """
    q = lk.Bernoulli(torch.tensor([-14.0, 0.3]))
    found = profile(q, lambda z: 50 * z[..., 0] + z[..., 1], num_samples=(4,), repeats=64)
    assert found.table["bias_p"].min() > 1e-3
    assert np.isnan(
        profile(lk.Bernoulli(torch.tensor([-14.0])), lambda z: z[..., 0], repeats=8).table["bias_z"]
    ).all()


# --- what it promises -----------------------------------------------------------------------------


def test_columns_agree(clock):
    clock.step = 1.0
    q = family("bernoulli")
    found = profile(q, num_samples=(1, 4), repeats=32)
    table, done = found.table, found.table["repeats"] > 0
    assert found.estimators == ("none", "leave_one_out", "optimal", "disarm")
    undefined = table[~done]
    assert [(r["estimator"], r["num_samples"]) for r in undefined] == [
        (e, 1) for e in found.estimators[1:]
    ]
    assert all(np.isnan(undefined[column]).all() for column in _statistics.COLUMNS)
    table = table[done]
    for low, middle, high in (
        ("variance_low", "variance", "variance_high"),
        ("variance_time_low", "variance_time", "variance_time_high"),
    ):
        assert (table[low] < table[middle]).all()
        assert (table[middle] < table[high]).all()
    np.testing.assert_allclose(table["variance_time"], table["variance"] * table["seconds"])
    wider = (
        table["variance_time_high"] / table["variance_time"]
        >= table["variance_high"] / table["variance"] - 1e-12
    )
    assert wider.all()
    means = found.parameter_mean[0][done]
    signal = (means**2).sum(1) - table["variance"] / 32
    np.testing.assert_allclose(table["signal_to_noise"] ** 2, signal.clip(0) / table["variance"])


def test_seconds_are_the_median_of_one_gradient(clock):
    """The seconds are the median of one gradient, from drawing samples to the gradient; the first
    one is not counted.
    """
    ticks = [50.0, 2.0, 2.0, 90.0, 3.0, 1.0, 70.0, 4.0, 5.0]  # of the first gradient, of repeats

    def slow(z):
        clock.now += passing.pop(0)
        return z.sum(-1)

    q = lk.Bernoulli(torch.zeros(20))  # 2^20 states are not enumerated
    passing = [0.0, *ticks]  # and of the call that tries the log joint
    table = profile(q, slow, estimators=["none"], num_samples=(2,), repeats=8).table
    assert passing == []
    assert table["seconds"].tolist() == [3.5]
    np.testing.assert_allclose(table["variance_time"], table["variance"] * 3.5)
    passing = [2.0] * 1000
    table = profile(q, slow, num_samples=(2, 3), repeats=8).table
    done = table["repeats"] > 0
    assert (table["seconds"][done] >= 2).all()  # of every estimator


def test_the_seed_fixes_everything_but_times():
    """The seed fixes all results except times, whatever else is profiled and whatever the state of
    torch's own generator, which does not change.
    """
    q, log_joint, exact, _ = problems.quadratic()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    options = {"repeats": 16, "exact_gradient": exact}
    first = profile(q, log_joint, num_samples=(1, 2, 8), seed=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = profile(
        q,
        log_joint,
        num_samples=(8, 2),
        seed=3,
        estimators=["optimal", "reparameterized"],
        **options,
    )
    other = profile(q, log_joint, num_samples=(8, 2), seed=4, **options)
    assert second.estimators == ("optimal", "reparameterized")
    for name in second.estimators:
        same, different = (x.rows(name)[NUMBERS] for x in (second, other))
        assert first.rows(name)[NUMBERS][1:].tolist() == same.tolist()
        assert not set(same["variance"].tolist()) & set(different["variance"].tolist())


def test_estimators_and_repeats_have_seeds_of_their_own():
    seen = []

    class Watching(lk.Bernoulli):
        def sample(self, num_samples=None, *, seed=None, offset=0):
            seen.append(seed)
            return super().sample(num_samples, seed=seed, offset=offset)

    profile(
        Watching(torch.zeros(20)),
        lambda z: z.sum(-1),
        estimators=["none", "leave_one_out"],
        repeats=16,
    )
    assert len(set(seen)) == (11 + 10) * 16 + 1  # and one to try the log joint


def test_gradients_elsewhere_are_left_alone():
    """Parameters in training get no gradient, and no graph of what the score estimators call is
    kept.
    """
    mean, scale, tracked = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True), []

    def log_joint(z):
        tracked.append((z.requires_grad, torch.is_grad_enabled()))
        return -(scale * z * z).sum(-1)

    profile(lk.DiagonalGaussian(mean, torch.zeros(3)), log_joint, num_samples=(2,), repeats=8)
    assert mean.grad is None
    assert scale.grad is None
    assert set(tracked) == {(False, False), (True, True)}
    profile(lk.Bernoulli(mean), log_joint, num_samples=(2,), repeats=8)
    assert mean.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    q = lk.DiagonalGaussian(torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype))
    found = profile(q, lambda z: -(z.float() ** 2).sum(-1), num_samples=(16,), repeats=64)
    exact = (torch.full((3,), -2.0), torch.full((3,), -0.5))
    assert (found.table["variance"] > 0).all()
    mean = np.stack([x[-1] for x in found.parameter_mean])  # reparameterized
    np.testing.assert_allclose(mean, np.stack(exact), atol=0.35)


def test_values_that_are_not_finite_are_nan():
    found = profile(
        lk.Bernoulli(torch.zeros(2)),
        lambda z: torch.log(z[..., 0] - 0.5),
        num_samples=(8,),
        repeats=8,
    )
    assert np.isnan(found.table["variance"]).all()
    assert np.isnan(found.table["bias_z"]).all()
    assert (found.table["seconds"] > 0).all()


def test_csv_and_json_hold_every_digit(tmp_path):
    found = profile(family("categorical"), num_samples=(1, 4), repeats=8, seed=9)
    found.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == found.table.dtype.names
    kinds = [str, int, int, *[float] * len(_statistics.COLUMNS)]
    again = np.array(
        [tuple(k(x) for k, x in zip(kinds, row, strict=True)) for row in rows],
        dtype=found.table.dtype,
    )
    for name in header:
        np.testing.assert_array_equal(again[name], found.table[name])

    found.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert content["seed"] == 9
    for row, expected in zip(content["rows"], found.table, strict=True):
        assert list(row) == list(found.table.dtype.names)
        for name in header:
            value = expected[name].item()
            assert row[name] == (None if isinstance(value, float) and math.isnan(value) else value)
    for name in ("parameter_mean", "parameter_variance"):
        (values,) = content[name]
        np.testing.assert_array_equal(np.array(values, dtype=float), getattr(found, name)[0])
    np.testing.assert_array_equal(content["exact_gradient"][0], found.exact_gradient[0])


def test_interruption_keeps_what_was_complete():
    """Interruption keeps the complete results: the first number of samples takes 8 repeats of two
    estimators, the second 8 of three.
    """
    for after, sizes in ((15, None), (16, [1]), (39, [1]), (40, [1, 4])):

        def progress(done, total, after=after):
            assert total == 16 + 3 * 16
            if done == after + 1:
                raise KeyboardInterrupt

        q, log_joint, _, _ = problems.quadratic()
        options = {
            "estimators": ["none", "reparameterized", "leave_one_out"],
            "num_samples": (1, 4, 8),
            "repeats": 8,
        }
        with pytest.raises(ProfileInterrupted) as stop:
            profile(q, log_joint, progress=progress, **options)
        if sizes is None:
            assert stop.value.profile is None
        else:
            assert stop.value.profile.rows("none")["num_samples"].tolist() == sizes
            assert len(stop.value.profile.table) == 3 * len(sizes)


def test_a_black_box_is_not_reparameterized():
    q = lk.DiagonalGaussian(torch.zeros(2), torch.zeros(2))
    boxes = {
        "RuntimeError": lambda z: torch.from_numpy(-(z.numpy() ** 2).sum(-1)),
        "does not depend on z": lambda z: torch.ones(len(z)),
    }
    for reason, box in boxes.items():
        assert profile(q, box, num_samples=(2,), repeats=8).estimators == (
            "none",
            "leave_one_out",
            "optimal",
        )
        with pytest.raises(
            ValueError, match=rf"estimators has 'reparameterized', which does not apply: .*{reason}"
        ):
            profile(q, box, estimators=["reparameterized"])


G, B = lk.DiagonalGaussian(torch.zeros(3), torch.zeros(3)), lk.Bernoulli(torch.zeros(2, 3))
BAD = [
    (
        {"q": torch.zeros(3)},
        TypeError,
        r"q must be a DiagonalGaussian, Bernoulli or Categorical; got Tensor",
    ),
    (
        {"q": lk.Bernoulli(torch.zeros(2, 0))},
        ValueError,
        r"q must have at least one element.*\(2, 0\)",
    ),
    (
        {"estimators": ["elbo"]},
        ValueError,
        rf"estimators must be among {', '.join(ESTIMATORS)}; got 'elbo'",
    ),
    (
        {"estimators": "none"},
        ValueError,
        r"estimators must be a sequence of names or None; got 'none'",
    ),
    ({"estimators": []}, ValueError, r"estimators must be a sequence of names or None; got \[\]"),
    (
        {"estimators": ["disarm"]},
        ValueError,
        r"'disarm', which does not apply: it is for a Bernoulli; q is a Diag",
    ),
    (
        {"q": B, "estimators": ["reparameterized"]},
        ValueError,
        r"'reparameterized', which .* q is a Bernoulli",
    ),
    ({"num_samples": []}, ValueError, r"num_samples must hold ints >= 1; got \[\]"),
    ({"num_samples": [0, 1]}, ValueError, r"num_samples must hold ints >= 1; got \[0, 1\]"),
    ({"num_samples": 4}, ValueError, r"num_samples must hold ints >= 1; got 4"),
    ({"num_samples": [1.5]}, ValueError, r"num_samples must hold ints >= 1; got \[1\.5\]"),
    ({"repeats": 7}, ValueError, r"repeats must be an int >= 8; got 7"),
    ({"repeats": 16.0}, TypeError, r"repeats must be an int >= 8; got 16\.0"),
    ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
    ({"seed": 2**63}, ValueError, r"seed must lie in"),
    ({"log_joint": lambda z: 1.0}, TypeError, r"log_joint must return a torch.Tensor; got float"),
    (
        {"log_joint": lambda z: z},
        ValueError,
        r"log_joint must return .* shape \(2,\) for z .*\(2, 3\); got .*\(2, 3\)",
    ),
    (
        {"q": B, "log_joint": lambda z: z.sum((-1, -2))},
        ValueError,
        r"log_joint must return .* shape \(2, 2\)",
    ),
    (
        {"log_joint": lambda z: z.sum(-1).long()},
        ValueError,
        r"log_joint must return floating values.*int64",
    ),
    ({"exact_gradient": torch.zeros(3)}, ValueError, r"exact_gradient must hold 2 tensors"),
    ({"exact_gradient": (torch.zeros(3),)}, ValueError, r"exact_gradient must hold 2 tensors"),
    (
        {"exact_gradient": (torch.zeros(3), 0.0)},
        TypeError,
        r"exact_gradient must hold tensors; got float",
    ),
    (
        {"exact_gradient": (torch.zeros(3), torch.zeros(2))},
        ValueError,
        r"exact_gradient .*: \(3,\); got \(2,\)",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        lk.profile_variance(**({"q": G, "log_joint": lambda z: z.sum(-1)} | options))


def test_an_unknown_row():
    with pytest.raises(ValueError, match=r"estimator must be one of none, .*; got 'disarm'"):
        profile(family("gaussian"), num_samples=(2,), repeats=8).rows("disarm")
