"""`latent-kernels variance`: its problems, its statements about a profile, pictures and options."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import latent_kernels as lk
from latent_kernels.cli import digits
from latent_kernels.cli.variance import figures, logistic_regression, problems, results
from latent_kernels.cli.variance.results import default_budget, reached, verdict
from tests.cli.checks import call, check_picture, check_refused, check_unwritable, stop_at


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_estimator_is_unbiased_on_every_problem(name):
    """Every estimator is unbiased; a control variate gains an order of magnitude, and a gradient of
    the log joint two more.

    Close to the optimum this fails: log p(x, z) - log q(z) is almost constant there, so
    leave-one-out has little variance too.
    """
    state = torch.get_rng_state()
    problem = problems.PROBLEMS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    found = lk.profile_variance(
        problem.q,
        problem.log_joint,
        exact_gradient=problem.exact_gradient,
        num_samples=(64,),
        repeats=256,
    )
    assert found.exact_gradient is not None
    assert found.table["bias_p"].min() > 1e-3
    variance = {
        estimator: float(found.rows(estimator)["variance"][0]) for estimator in found.estimators
    }
    assert variance["none"] > 5 * variance["leave_one_out"]
    if name == "linear-gaussian":
        assert variance["leave_one_out"] < variance["reparameterized"]
    elif "reparameterized" in variance:
        assert variance["leave_one_out"] > 20 * variance["reparameterized"]
    assert ("disarm" in variance) == isinstance(problem.q, lk.Bernoulli)


def test_the_mixture_is_what_enumerated_means_give():
    """The log joint equals the integral over the components' means, computed one feature at a time
    on a grid, for a few assignments.
    """
    problem = problems.categorical()
    x = iris()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_prior = -0.5 * grid**2 - 0.5 * math.log(2 * math.pi)
    for z in ([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], [2, 1, 0, 1, 1, 0]):
        expected = -6 * math.log(3)
        for k, feature in itertools.product(range(3), range(4)):
            points = x[torch.tensor(z) == k, feature]
            log_likelihood = -0.5 * (
                (points[:, None] - grid) ** 2 / 0.3 + math.log(2 * math.pi * 0.3)
            ).sum(0)
            expected += float(torch.logsumexp(log_likelihood + log_prior, 0)) + math.log(16 / 4000)
        assert float(problem.log_joint(torch.tensor([z]))[0]) == pytest.approx(expected, rel=1e-4)


def iris():
    from sklearn.datasets import load_iris

    data = torch.as_tensor(load_iris().data)
    return ((data - data.mean(0)) / data.std(0))[::25]


def test_training_the_binary_vae_raises_its_elbo():
    """Training raises the ELBO further than the decoder alone can, so DisARM moves the encoder."""

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


def test_the_linear_gaussian_model_is_close_to_its_optimum():
    """The bound of many samples is log p(x), that of N(0, 2) in each dimension; the ELBO is
    less.
    """
    problem = problems.linear_gaussian(points=5)
    mean, logvar = problem.q.parameters
    x = problem.exact_gradient[0] + 2 * mean
    evidence = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)
    z, log_q = problem.q.rsample_log_prob(20_000, seed=1)
    log_w = problem.log_joint(z) - log_q
    torch.testing.assert_close(lk.importance_bound(log_w), evidence, rtol=0, atol=0.03)
    gap = evidence - lk.elbo(problem.log_joint(z), log_q=log_q)
    exact = lk.gaussian_kl(
        mean, logvar, prior_mean=x / 2, prior_logvar=torch.full_like(x, -math.log(2))
    )
    torch.testing.assert_close(gap, exact, rtol=0, atol=0.03)
    assert 0.05 < exact.mean() < 0.5


# --- logistic regression --------------------------------------------------------------------------


def test_the_quadrature_is_the_elbo():
    """The quadrature agrees with 2^14 samples within four of their standard errors, and for a wide
    q with a fine grid.
    """
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


# --- the sentence ---------------------------------------------------------------------------------


def made(*rows):
    """Return a profile of rows (estimator, S, variance, its interval's factor, seconds)."""
    profile = lk.profile_variance(
        lk.Bernoulli(torch.zeros(1)), lambda z: z[..., 0], num_samples=(1,), repeats=8
    )
    table = np.resize(profile.table, len(rows))
    for line, (name, samples, variance, factor, seconds) in zip(table, rows, strict=True):
        line["estimator"], line["num_samples"], line["repeats"], line["seconds"] = (
            name,
            samples,
            8,
            seconds,
        )
        for prefix, value in (("variance", variance), ("variance_time", variance * seconds)):
            line[prefix], line[f"{prefix}_low"], line[f"{prefix}_high"] = (
                value,
                value / factor,
                value * factor,
            )
    return dataclasses.replace(profile, table=table)


def test_a_clear_winner():
    profile = made(
        ("none", 1, 500.0, 1.1, 1e-3),
        ("none", 4, 100.0, 1.1, 2e-3),
        ("leave_one_out", 4, 2.0, 1.1, 2e-3),
    )
    assert default_budget(profile) == pytest.approx(2e-3)
    assert verdict(profile) == (
        "With 2 ms for a gradient, leave-one-out wins: variance 2 nats² (95%: 1.82 to 2.2) "
        "at S = 4; no control variate 50 times as much."
    )


def test_a_longer_budget_averages_and_a_shorter_one_leaves_out():
    profile = made(
        ("none", 1, 500.0, 1.1, 1e-3),
        ("none", 4, 100.0, 1.1, 2e-3),
        ("leave_one_out", 4, 2.0, 1.1, 2e-3),
    )
    assert [(x.estimator, x.variance) for x in reached(profile, 8e-3)] == [
        ("leave_one_out", pytest.approx(0.5)),
        ("none", pytest.approx(25.0)),
    ]
    assert "at S = 4, 4 times over" in verdict(profile, 8e-3)
    assert verdict(profile, 1.5e-3) == (
        "With 1.5 ms for a gradient, no control variate reaches variance 333 nats² "
        "(95%: 303 to 367) at S = 1, 1.5 times over, without rival."
    )
    assert (
        verdict(profile, 5e-4)
        == "With 0.5 ms for a gradient no estimator finishes: the fastest takes 1 ms."
    )


def test_a_tie_is_called_one():
    rows = (
        ("none", 4, 90.0, 1.1, 0.2),
        ("optimal", 4, 2.0, 1.1, 0.2),
        ("leave_one_out", 4, 2.3, 1.1, 0.2),
    )
    assert verdict(made(*rows)) == (
        "With 0.2 s for a gradient, optimal coefficient (2 nats² at S = 4) and leave-one-out "
        "(2.3 nats² at S = 4) tie for the least variance: their 95% intervals overlap; "
        "no control variate 45 times as much."
    )


def test_nothing_to_compare():
    assert (
        verdict(made(("none", 1, math.nan, 1.1, math.nan)))
        == "Nothing was measured that could be compared."
    )


def test_a_profile_of_nothing_is_drawn(tmp_path):
    """A picture is drawn where no estimator is defined, and where a variance is 0, which a
    logarithmic axis cannot show.
    """
    for rows in ([("none", 1, math.nan, 1.1, math.nan)], [("none", 1, 0.0, 1.1, 1e-3)]):
        figures.draw(made(*rows), "nothing", tmp_path / "v.png")
        assert (tmp_path / "v.png").stat().st_size > 1000


# --- the sentence about signals -------------------------------------------------------------------


def made_signals(*rows):
    """Return a profile of rows (estimator, S, signal to noise, low, high); 0 repeats where that is
    NaN.
    """
    profile = lk.profile_variance(
        lk.Bernoulli(torch.zeros(1)),
        lambda z: z[..., 0],
        objective="importance_bound",
        num_samples=(2,),
        repeats=8,
    )
    table = np.resize(profile.table, len(rows))
    for line, (name, samples, value, low, high) in zip(table, rows, strict=True):
        line["estimator"], line["num_samples"], line["repeats"] = (
            name,
            samples,
            0 if math.isnan(value) else 8,
        )
        line["signal_to_noise"], line["signal_to_noise_low"], line["signal_to_noise_high"] = (
            value,
            low,
            high,
        )
        line["variance"] = line["variance_low"] = line["variance_high"] = (
            math.nan if math.isnan(value) else 1 / samples
        )
    return dataclasses.replace(profile, table=table)


def power(name, slope, sizes, factor=1.1):
    return [
        (name, s, 0.5 * s**slope, 0.5 * s**slope / factor, 0.5 * s**slope * factor) for s in sizes
    ]


def test_the_powers_of_signals_are_fitted():
    """Exact powers are fitted exactly, up to where the signal is lost; scatter beyond the errors
    widens the interval.
    """
    sizes = (1, 4, 16, 64)
    lost = ("iwae", 256, 0.0, 0.0, 0.04)
    by_chance = ("iwae", 1024, 0.2, 0.1, 0.3)
    iwae = results.trend(made_signals(*power("iwae", -0.5, sizes), lost, by_chance).table)
    assert iwae.slope == pytest.approx(-0.5, abs=1e-12)
    spread = math.log(4) * math.sqrt(5)  # sum of (x - mean)^2 over four equidistant points
    assert iwae.reach == pytest.approx(math.log(1.1) / spread, rel=1e-3)
    assert (iwae.first, iwae.last) == (1, 64)
    uneven = [
        ("iwae", s, y, y / 1.01, y * 1.01)
        for s, y in zip(sizes, (0.5, 0.2, 0.14, 0.05), strict=True)
    ]
    assert results.trend(made_signals(*uneven).table).reach > 5 * math.log(1.01) / spread
    assert results.trend(made_signals(*power("iwae", -0.5, (1, 4))).table) is None
    vimco = made_signals(
        ("vimco", 1, math.nan, math.nan, math.nan), *power("vimco", -0.25, (2, 4, 8))
    )
    assert results.trend(vimco.table).slope == pytest.approx(-0.25)  # undefined is not lost


def test_the_highest_signal_wins():
    rows = (
        *power("iwae", -0.5, (1, 4, 16)),
        *power("stl", 0.5, (1, 4, 16)),
        *power("dreg", 0.25, (1, 4, 16)),
    )
    assert verdict(made_signals(*rows)) == (
        "Signal to noise of q's gradient: IWAE goes like S^(-0.50 ± 0.05) from S = 1 to 16; STL "
        "goes like S^(+0.50 ± 0.05) from S = 1 to 16; DReG goes like S^(+0.25 ± 0.05) from S = 1 "
        "to 16. At S = 16, DReG wins with 1 (95%: 0.909 to 1.1); IWAE has 0.125. STL is biased "
        "for S > 1, and not compared."
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("vimco", 4, 0.3, 0.2, 0.4)], "At S = 4, VIMCO reaches 0.3 (95%: 0.2 to 0.4)."),
        (
            [
                ("iwae", 4, 0.3, 0.2, 0.4),
                ("dreg", 4, 0.35, 0.25, 0.45),
                ("vimco", 4, 0.0, 0.0, 0.1),
            ],
            "At S = 4, DReG (0.35) and IWAE (0.3) tie for the highest: their 95% intervals "
            "overlap; VIMCO less than 0.1.",
        ),
        (
            [("iwae", 4, 0.1, 0.0, 0.2)],
            "At S = 4 no unbiased estimator's signal shows above its noise.",
        ),
        (
            [("stl", 1, 0.4, 0.3, 0.5), ("iwae", 1, 0.2, 0.15, 0.25)],
            "At S = 1, STL wins with 0.4 (95%: 0.3 to 0.5); IWAE has 0.2.",
        ),
        (
            [("vimco", 1, math.nan, math.nan, math.nan)],
            "Nothing was measured that could be compared.",
        ),
    ],
)
def test_no_surer_than_the_intervals(rows, sentence):
    assert verdict(made_signals(*rows)) == sentence


def test_samples_for_a_signal_to_noise_ratio():
    """The number of samples is exact for powers of S: between the profiled S, and for the ELBO
    beyond them.
    """
    rows = power("none", 0.5, (1, 4, 16))  # 0.5 sqrt(S), up to 2; its interval a tenth off
    bound = made_signals(*rows)
    elbo = dataclasses.replace(bound, objective="elbo")
    for profile in (bound, elbo):
        assert results.samples_for(profile, 1.5) == (
            "For a signal-to-noise ratio of 1.5: no control variate needs S = 9 (95%: 8 to 11)."
        )
        assert "no control variate has it at S = 1." in results.samples_for(profile, 0.4)
    assert "needs S = 100 (95%: 83 to 121, extrapolated)." in results.samples_for(elbo, 5 - 1e-9)
    assert "does not reach it up to S = 16 (at most 2)." in results.samples_for(bound, 5)
    assert "needs S = 15 (95%: 13 to more)." in results.samples_for(bound, 1.93)
    lost = made_signals(("iwae", 4, 0.1, 0.0, 0.2), *power("dreg", 0.5, (4, 16)))
    assert results.samples_for(lost, 1.5) == (
        "For a signal-to-noise ratio of 1.5: IWAE shows no signal; DReG needs S = 9 (95%: 8 to 11)."
    )


def test_samples_for_a_ratio_against_the_closed_form():
    """V = V_1 / S: a ratio r takes S = r^2 V_1 / |E g|^2 samples."""
    problem = problems.quadratic()
    a, (m, l) = torch.linspace(0.5, 2.0, 10), problem.q.parameters
    v = l.exp()
    one = (a * a * v).sum() + (a * a / 4 * (m * m * v + 2 * v * v)).sum()
    square = sum(x.square().sum() for x in problem.exact_gradient)
    needed = float(9 * one / square)
    profile = lk.profile_variance(
        problem.q,
        problem.log_joint,
        estimators=["reparameterized"],
        num_samples=(2, 4, 64),
        repeats=512,
    )
    numbers = re.findall(r"[\d,]+", results.samples_for(profile, 3).split("S = ")[1])
    found, _, low, high = (int(x) for x in numbers[:4])
    assert low <= math.ceil(needed) <= high
    assert abs(found - needed) < 0.1 * needed + 1


def test_signals_that_are_lost_or_not_there_are_drawn(tmp_path):
    lost = ("iwae", 16, 0.0, 0.0, 0.04)
    for rows in (
        [("vimco", 1, math.nan, math.nan, math.nan)],
        [lost],
        [*power("iwae", -0.5, (1, 4)), lost],
    ):
        figures.draw(made_signals(*rows), "nothing", tmp_path / "s.png")
        assert (tmp_path / "s.png").stat().st_size > 1000


@pytest.fixture
def equal_times(clock):
    """Make every gradient take a millisecond, so that the variance decides."""
    clock.step = 1e-3


# --- the command ----------------------------------------------------------------------------------

QUICK = ("variance", "--problem", "quadratic", "--samples", "1:8", "--repeats", 64)


def test_variance_draws_writes_and_says_who_wins(tmp_path, equal_times):
    files = {name: tmp_path / f"v.{name}" for name in ("png", "csv", "json")}
    result = call(
        *QUICK, "--out", files["png"], "--csv", files["csv"], "--json", files["json"], "--seed", 4
    )
    assert result.exit_code == 0, result.output
    check_picture(files["png"])
    rows = files["csv"].read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 4 * 4
    assert [row.split(",")[:2] for row in rows[1:5]] == [["none", s] for s in ("1", "2", "4", "8")]
    content = json.loads(files["json"].read_text(encoding="utf-8"))
    assert content["seed"] == 4
    assert len(content["parameter_variance"]) == 2
    description, files_line, sentence = (x for x in result.output.splitlines() if x)
    assert description == problems.quadratic().description
    assert all(str(path) in files_line for path in files.values())
    assert sentence.startswith("With ")
    assert "reparameterized wins: variance" in sentence
    assert "no control variate" in sentence


def test_variance_says_how_many_samples_a_ratio_needs(tmp_path, equal_times):
    result = call(*QUICK, "--out", tmp_path / "v.png", "--snr", 3)
    assert result.exit_code == 0, result.output
    sentence = result.output.splitlines()[-1]
    assert sentence.startswith("For a signal-to-noise ratio of 3: no control variate ")
    assert "leave-one-out needs S = " in sentence
    assert "reparameterized needs S = " in sentence


@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_variance_knows_every_problem(problem, tmp_path, equal_times):
    options = (
        "--problem",
        problem,
        "--samples",
        "2,6",
        "--repeats",
        64,
        "--estimators",
        "none, leave_one_out",
    )
    result = call("variance", *options, "--out", tmp_path / "v.SVG", "--budget", 1000)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "v.SVG").read_text(encoding="utf-8").startswith("<?xml")
    assert "With 1 s for a gradient, leave-one-out wins" in result.output


@pytest.mark.parametrize("problem", ["linear-gaussian", "categorical"])
def test_variance_of_the_importance_bound(problem, tmp_path):
    """The command says how signals change and which is the highest, with a file of each kind. The
    exact gradient of one sample is known.
    """
    files = {name: tmp_path / f"v.{name}" for name in ("png", "csv", "json")}
    options = (
        "--problem",
        problem,
        "--objective",
        "importance-bound",
        "--samples",
        "1:8",
        "--repeats",
        64,
    )
    result = call(
        "variance", *options, "--out", files["png"], "--csv", files["csv"], "--json", files["json"]
    )
    assert result.exit_code == 0, result.output
    check_picture(files["png"])
    content = json.loads(files["json"].read_text(encoding="utf-8"))
    assert content["objective"] == "importance_bound"
    assert files["csv"].read_text(encoding="utf-8").count("\n") == 1 + len(content["rows"])
    one = {
        row["estimator"]: row["bias_p"] is not None
        for row in content["rows"]
        if row["num_samples"] == 1
    }
    assert all(row["bias_p"] is None for row in content["rows"] if row["num_samples"] > 1)
    sentence = result.output.splitlines()[-1]
    assert "At S = 8" in sentence
    if problem == "categorical":
        assert one == {"vimco": False}
        return
    assert one == {"iwae": True, "stl": True, "dreg": True, "vimco": False}
    assert sentence.startswith("Signal to noise of q's gradient: IWAE goes like S^(-0.")
    assert "At S = 8, DReG wins with 1." in sentence


def test_variance_help_names_problems_and_estimators():
    text = " ".join(call("variance", "--help").output.replace("│", " ").split())
    for name in (*problems.PROBLEMS, "elbo", "importance-bound"):
        assert name in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--problem", "rosenbrock", "must be one of quadratic, linear-gaussian"),
        ("--objective", "importance", "must be one of elbo, importance-bound; got 'importance'"),
        ("--estimators", "none,rebar", "got 'rebar'"),
        (
            "--estimators",
            "none,vimco",
            "'vimco', which does not apply: it is for the objective 'importance_bound'",
        ),
        ("--estimators", "disarm", "does not apply: it is for a Bernoulli"),
        ("--estimators", "", "got ''"),
        ("--samples", "8:1", "got '8:1'"),
        ("--samples", "0:4", "got '0:4'"),
        ("--samples", "1:", "got '1:'"),
        ("--samples", "many", "got 'many'"),
        ("--samples", "4,-1", "got '4,-1'"),
        ("--repeats", 7, ""),
        ("--seed", -1, ""),
        ("--budget", 0, ""),
        ("--snr", 0, ""),
        ("--snr", "nan", ""),
        ("--threads", 0, ""),
        ("--out", "picture.bmp", "must end in .png"),
    ],
)
def test_variance_refuses_bad_options(option, value, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(tmp_path, option, message, *QUICK, option, value)


def test_a_budget_is_not_for_the_importance_bound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--objective", "importance-bound", "--budget", 5)
    check_refused(tmp_path, "--budget", "is for the objective elbo", *QUICK, *options)


@pytest.mark.parametrize("option", ["--out", "--csv", "--json"])
def test_variance_files_that_cannot_be_written(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_unwritable(tmp_path, *QUICK, option)


@pytest.mark.parametrize(
    ("complete", "code_line"), [(0, "stopped before there"), (2, "stopped; the numbers")]
)
def test_ctrl_c_in_variance(complete, code_line, tmp_path, monkeypatch):
    stopped = stop_at(complete, problems.quadratic())
    monkeypatch.setitem(problems.PROBLEMS, "quadratic", lambda: stopped)
    result = call(
        *QUICK, "--estimators", "none", "--out", tmp_path / "v.png", "--csv", tmp_path / "v.csv"
    )
    assert result.exit_code == 130
    assert code_line in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == (["v.csv", "v.png"] if complete else [])
    if complete:
        assert (tmp_path / "v.csv").read_text(encoding="utf-8").count("\n") == 1 + complete
