"""`latent-kernels bounds`: numbers against plain torch, tables and files, and errors."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re

import pytest
import torch
from matplotlib.image import imread

from latent_kernels.cli import digits, frame, vae
from latent_kernels.cli.bounds import command, figures, results, study
from latent_kernels.kernels import backends
from tests.cli import checks
from tests.cli.checks import check_refused

DIGITS = digits.load()
SMALL = results.Recipe(
    latent=3, hidden=8, epochs=3, batch=480, samples=60, curve_samples=10, points=2
)
ONE_K = re.compile(r"^ +(\d+) +(-\d+\.\d\d) +(-\d+\.\d\d) ± (\d+\.\d\d)(.*)$", re.M)
PROPOSAL = re.compile(r"^ +(\d+) +(\d+\.\d) +(\d+) +(-?\d+\.\d\d) +(\d+)% +\d+\.\d s *$", re.M)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(command, "RECIPE", SMALL)
    monkeypatch.setattr(command, "QUICK", dataclasses.replace(SMALL, epochs=1))
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()
    torch.set_num_threads(1)


def silent(*_):
    return None


call = functools.partial(checks.call, "bounds")


def small_model(seed=0):
    torch.manual_seed(seed)
    return vae.VAE(3, "bernoulli", 8)


def fitted(k=2, seed=0, estimator="iwae", recipe=SMALL):
    return study.fit(
        recipe, k, estimator, seed, DIGITS.train[:960], DIGITS.held_out[:40].round(), silent
    )


def numbers(one):
    """Return all numbers except the times."""
    tensors = (one.bounds, one.effective, one.tails)
    return (
        one.k,
        one.seed,
        one.trained,
        one.held_out,
        one.by_samples,
        one.active_units,
        *(x.tolist() for x in tensors),
    )


# --- the study ------------------------------------------------------------------------------------


def test_binarized_images_have_the_grey_values_as_their_mean():
    grey = DIGITS.train[:3].repeat(4000, 1, 1)
    found = study.binarized(grey, 5)
    assert found.unique().tolist() == [0, 1]
    error = (found.mean(0) - DIGITS.train[:3]).abs()
    assert (error <= 5 * torch.sqrt(DIGITS.train[:3] * (1 - DIGITS.train[:3]) / 4000)).all()
    assert torch.equal(found, study.binarized(grey, 5))
    assert not torch.equal(found, study.binarized(grey, 6))


def test_log_weights_are_those_of_plain_torch():
    model, x = small_model(), DIGITS.held_out[:7].round()
    log_w = study.log_weights(model, x, 4000, 3)
    assert log_w.shape == (4000, 7)
    with torch.no_grad():
        mean, logvar = model.encode(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(4000, *mean.shape)
        q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
        likelihood = torch.distributions.Bernoulli(logits=model.decoder(z)).log_prob(x).sum(-1)
        by_hand = likelihood + (torch.distributions.Normal(0, 1).log_prob(z) - q.log_prob(z)).sum(
            -1
        )
    error = torch.sqrt((log_w.var(0) + by_hand.var(0)) / 4000)
    assert ((log_w.mean(0) - by_hand.mean(0)).abs() < 5 * error).all()
    assert ((log_w.exp().mean(0) / by_hand.exp().mean(0)).log().abs() < 0.1).all()


@pytest.mark.parametrize("chunk", [1, 7, 50, 60, 1000])
def test_the_held_out_bound_is_of_all_samples_whatever_the_chunks(chunk):
    model, x = small_model(), DIGITS.held_out[:5].round()
    log_w = study.log_weights(model, x, 60, 3).double()
    found = study.held_out_bound(model, x, 60, 3, chunk=chunk)
    assert not found.requires_grad
    torch.testing.assert_close(
        found.double(), torch.logsumexp(log_w, 0) - math.log(60), rtol=1e-6, atol=0
    )


def test_bounds_by_samples():
    log_w = torch.randn(60, 4, dtype=torch.float64)
    for s in (1, 2, 7, 60):
        groups = [log_w[i * s : (i + 1) * s].exp().mean(0).log() for i in range(60 // s)]
        assert study.mean_bound(log_w, s) == pytest.approx(
            float(torch.stack(groups).mean()), rel=1e-12
        )
    assert study.sample_sizes(60, 1) == [1, 2, 5, 10, 20, 50, 60]
    assert study.sample_sizes(60, 3) == [1, 2, 3, 5, 10, 20, 50, 60]
    assert study.sample_sizes(60, 60) == study.sample_sizes(60, 61) == study.sample_sizes(60, 1)
    assert study.sample_sizes(5000, 50) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert study.sample_sizes(1, 1) == [1]


def test_active_units_are_those_whose_posterior_mean_varies():
    model, x = small_model(), DIGITS.held_out
    with torch.no_grad():
        last = model.encoder[-1]
        last.weight[0] = 0.0
        last.weight[1] *= 0.05 / float(model.encode(x)[0][:, 1].std())
        last.weight[2] *= 0.15 / float(model.encode(x)[0][:, 2].std())
    assert study.active_units(model, x) == 1  # variances 0, 0.0025 and 0.0225


def test_a_fit_is_what_its_weights_say(monkeypatch):
    kept = []
    original = study.active_units
    monkeypatch.setattr(
        study, "active_units", lambda model, x: kept.append(model) or original(model, x)
    )
    one = fitted()
    x = DIGITS.held_out[:40].round()
    log_w = study.log_weights(kept[0], x, 60, study._EVALUATION_SEED).double()
    weights = torch.softmax(log_w, 0)
    torch.testing.assert_close(
        one.bounds.double(), torch.logsumexp(log_w, 0) - math.log(60), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        one.effective.double(), 1 / weights.square().sum(0), rtol=1e-5, atol=0
    )
    assert one.tails.shape == (40,)
    assert one.elbo == pytest.approx(float(log_w.mean()), rel=1e-6)
    assert one.by_samples[60] == pytest.approx(one.bound, rel=1e-6)
    assert (
        one.by_samples[1] < one.by_samples[2] < one.by_samples[10] < one.by_samples[60]
    )  # groups within groups
    assert list(one.held_out) == [1, 2, 3]
    assert one.held_out[3] > one.held_out[1]
    assert len(one.trained) == 3
    assert one.seconds > 0


def test_the_bound_is_judged_at_the_k_trained_with():
    assert list(fitted(k=7).by_samples) == [1, 2, 5, 7, 10, 20, 50, 60]
    assert list(fitted(k=70).by_samples) == [1, 2, 5, 10, 20, 50, 60]


def test_the_learning_rate_falls_step_by_step(monkeypatch):
    rates = []
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    recipe = dataclasses.replace(SMALL, learning_rate=4e-3, fall=1.2)
    fitted(recipe=recipe)
    # Two minibatches in each of three epochs; the fall is complete after the last.
    assert rates == pytest.approx([4e-3 * 10 ** (-1.2 * done / 6) for done in range(6)], rel=1e-9)


def test_the_decoder_starts_at_the_mean_image(monkeypatch):
    biases = []
    original = vae.Objective.of

    def spy(self, model, x):
        biases.append(model.decoder[-1].bias.detach().clone())
        return original(self, model, x)

    monkeypatch.setattr(vae.Objective, "of", spy)
    fitted()
    mean = DIGITS.train[:960].mean(0)
    assert (mean == 0).any()  # a pixel of the border, whose logit is not finite
    expected = torch.logit(mean.clamp(1e-3, 1 - 1e-3))
    torch.testing.assert_close(biases[0], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(biases[1], biases[0])


def test_the_training_curve_takes_its_own_number_of_samples(monkeypatch):
    asked = []
    original = study.held_out_bound

    def spy(model, x, num_samples, seed):
        found = original(model, x, num_samples, seed)
        asked.append((num_samples, float(found.mean())))
        return found

    monkeypatch.setattr(study, "held_out_bound", spy)
    one = fitted(recipe=dataclasses.replace(SMALL, curve_samples=11))
    assert [samples for samples, _ in asked] == [11, 11, 11]
    assert list(one.held_out.values()) == [bound for _, bound in asked]


@pytest.mark.parametrize("estimator", vae.ESTIMATORS)
def test_a_fit_depends_on_its_seed_alone(estimator):
    assert numbers(fitted(estimator=estimator)) == numbers(fitted(estimator=estimator))
    assert fitted(estimator=estimator).trained != fitted(estimator=estimator, seed=1).trained


def test_every_k_sees_the_same_images_and_starts_from_the_same_weights(monkeypatch):
    seen = []
    original = vae.Objective.of

    def spy(self, model, x):
        seen[-1].append(x)
        if len(seen[-1]) == 1:
            seen[-1].append([p.clone() for p in model.parameters()])
        return original(self, model, x)

    monkeypatch.setattr(vae.Objective, "of", spy)
    for k in (1, 5):
        seen.append([])
        fitted(k)
    (first, start, *rest), (other, other_start, *others) = seen
    assert all(torch.equal(a, b) for a, b in zip(start, other_start, strict=True))
    assert len(rest) == 5  # two minibatches in each of three epochs
    assert all(torch.equal(a, b) for a, b in zip([first, *rest], [other, *others], strict=True))
    epochs = [
        torch.cat(pair) for pair in zip([first, *rest][::2], [first, *rest][1::2], strict=True)
    ]
    assert epochs[0].unique().tolist() == [0, 1]
    assert not torch.equal(epochs[0].sum(0), epochs[1].sum(0))  # the same images, binarized anew


# --- tables ---------------------------------------------------------------------------------------


def fit_with(k, seed, bounds, tails=(0.1, 0.2, 0.9)):
    x = torch.tensor(bounds)
    return results.Fit(
        k,
        seed,
        1.0,
        [0.0],
        {1: 0.0},
        {1: -9.0, 60: float(x.mean())},
        x,
        x * 0 + 3,
        torch.tensor(tails),
        2,
    )


def test_gains_are_paired_by_image_and_their_error_is_of_means_over_seeds():
    fits = [fit_with(1, 0, [-8.0, -6.0, -4.0]), fit_with(5, 0, [-7.0, -5.5, -3.6])]
    fits += [fit_with(1, 1, [-8.2, -6.2, -4.2]), fit_with(5, 1, [-7.0, -5.3, -3.2])]
    first, second = results.Study(SMALL, "iwae", fits).rows()
    assert (first.k, second.k) == (1, 5)
    assert first.gain is None
    gains = torch.tensor([[1.0, 0.5, 0.4], [1.2, 0.9, 1.0]], dtype=torch.float64)
    assert second.gain.mean == pytest.approx(float(gains.mean()), abs=1e-6)
    assert second.gain.error == pytest.approx(float(gains.mean(0).std()) / math.sqrt(3), abs=1e-6)
    assert second.gain.sd == pytest.approx(float(gains.mean(1).std()), abs=1e-6)
    error = math.sqrt(float(gains.mean(0).var()) / 3 + float(gains.mean(1).var()) / 2)
    assert second.gain.z == pytest.approx(float(gains.mean()) / error, rel=1e-5)
    assert second.bound.mean == pytest.approx(-5.2667, abs=1e-4)
    assert second.pareto_k == pytest.approx(0.2)
    assert second.pareto_k_above_threshold == pytest.approx(1 / 3)
    assert (second.active_units, second.effective_sample_size) == (2, 3)
    assert (second.elbo, second.seconds) == (-9, 1)


def test_z_is_over_images_and_over_seeds_where_there_are_several():
    values = torch.tensor(
        [[1.0, 2.0, 4.0], [3.0, 3.0, 5.0], [2.0, 2.5, 3.0], [0.0, 1.0, 1.0]], dtype=torch.float64
    )
    found = results.Estimate.of(values)
    assert found.seeds == 4
    assert found.error == pytest.approx(float(values.mean(0).std()) / math.sqrt(3))
    over_seeds = float(values.mean(1).std()) / math.sqrt(4)
    assert found.z == pytest.approx(
        float(values.mean()) / math.sqrt(found.error**2 + over_seeds**2)
    )
    one = results.Estimate.of(values[:1])
    assert (one.seeds, one.sd) == (1, None)
    assert one.z == pytest.approx(one.mean / one.error)
    constant = torch.ones(1, 3)
    assert [results.Estimate.of(x).z for x in (constant, -constant, 0 * constant)] == [
        math.inf,
        -math.inf,
        0.0,
    ]
    alike = results.Estimate.of(
        torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    )  # images agree, seeds do not
    assert alike.z == pytest.approx(1.5 / 0.5)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        (1, "in standard errors over images, for these models"),
        (2, "in standard errors over images and seeds"),
    ],
)
def test_what_z_is_in_is_said(seeds, text):
    fits = [fit_with(k, s, [-8.0 + k + s, -6.0 + 2 * k]) for s in range(seeds) for k in (1, 2)]
    found = results.Study(SMALL, "iwae", fits)
    assert f"z: {text}; sd" in results.bounds_table(found, found.rows()).caption
    (line,) = results.summary(found.rows())
    assert f"{text})." in line


@pytest.mark.parametrize(
    ("samples", "share", "shown"), [(500, 2 / 4, "0.63"), (5000, 1 / 4, "0.7")]
)
def test_the_share_of_heavy_tails_is_above_what_so_many_samples_can_bear(samples, share, shown):
    recipe = dataclasses.replace(SMALL, samples=samples)
    found = results.Study(
        recipe, "iwae", [fit_with(1, 0, [-8.0, -6.0, -4.0, -5.0], (0.1, 0.62, 0.64, 0.71))]
    )
    (row,) = found.rows()
    assert row.pareto_k_above_threshold == share
    table = results.proposals_table(found, [row])
    assert f"> {shown}" in [column.header for column in table.columns]
    assert f"share of images above {shown}, beyond which {samples} samples" in table.caption
    content = json.loads(results.as_json(found, [row]))
    assert content["pareto_k_threshold"] == pytest.approx(min(1 - 1 / math.log10(samples), 0.7))
    assert content["rows"][0]["pareto_k_above_threshold"] == share


def test_rows_have_the_seeds_that_every_k_has():
    fits = [fit_with(k, seed, [-k - seed, -2.0 - seed]) for seed, k in ((0, 1), (0, 5), (1, 1))]
    rows = results.Study(SMALL, "iwae", fits).rows()
    assert [[one.seed for one in row.fits] for row in rows] == [[0], [0]]
    assert rows[0].bound.sd is None


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (
            [[-8.0, -6.0], [-7.0, -5.5], [-6.0, -5.2]],
            "rises with k: with k = 50 it is +1.40 ± 0.60",
        ),
        (
            [[-8.0, -6.0], [-7.0, -5.5], [-7.2, -5.6]],
            "does not rise to k = 50: with k = 50 it is +0.60 ± 0.20",
        ),
        (
            [[-6.0, -6.0], [-7.0, -6.5], [-7.2, -6.6]],
            "does not rise to k = 5, 50: with k = 50 it is -0.90 ± 0.30",
        ),
    ],
)
def test_the_summary_says_what_the_order_is(bounds, text):
    fits = [fit_with(k, 0, values) for k, values in zip((1, 5, 50), bounds, strict=True)]
    found = results.Study(SMALL, "iwae", fits)
    (line,) = results.summary(found.rows())
    assert text in line
    assert "Seeds move" not in line
    assert results.summary(found.rows()[:1]) == []


# --- the command ----------------------------------------------------------------------------------


def test_the_command_trains_prints_and_writes(tmp_path):
    outcomes = []
    for folder in ("a", "b"):
        out = tmp_path / folder / "below"
        result = call("--quick", "--samples", "4,1", "--seeds", 2, "--seed", 3, "--out", out)
        assert result.exit_code == 0, result.output
        assert sorted(p.name for p in out.iterdir()) == sorted(command.FILES)
        content = json.loads((out / "bounds.json").read_text(encoding="utf-8"))
        for one in (*content["rows"], *content["fits"]):
            assert one.pop("seconds") > 0
        outcomes.append((content, imread(out / "bounds.png")))
    (content, picture), (again, same_picture) = outcomes
    assert content == again
    assert (picture == same_picture).all()
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.02

    assert content["recipe"] == dataclasses.asdict(command.QUICK)
    assert [(one["seed"], one["k"]) for one in content["fits"]] == [(3, 1), (3, 4), (4, 1), (4, 4)]
    header = next(line for line in result.output.splitlines() if "ELBO" in line)
    assert header.split() == ["k", "ELBO", "L_60", "sd", "gain", "z", "sd"]
    rows = ONE_K.findall(result.output)
    assert [int(row[0]) for row in rows] == [1, 4]
    for row, found in zip(rows, content["rows"], strict=True):
        expected = (found["elbo"], found["bound"]["mean"], found["bound"]["error"])
        assert [float(x) for x in row[1:4]] == pytest.approx(expected, abs=0.0051)
    gain, error, z, sd = re.fullmatch(
        r" +\S+ +([+-]\S+) ± (\S+) +(\S+) +(\S+) *", rows[1][4]
    ).groups()
    found = content["rows"][1]["gain"]
    assert [float(gain), float(error), float(sd)] == pytest.approx(
        [found["mean"], found["error"], found["sd"]], abs=0.0051
    )
    assert float(z) == pytest.approx(found["z"], abs=0.051)
    assert found["z"] == pytest.approx(
        found["mean"] / math.hypot(found["error"], found["sd"] / math.sqrt(2))
    )
    assert [list(map(int, one["by_samples"])) for one in content["fits"][:2]] == [
        [1, 2, 5, 10, 20, 50, 60],
        [1, 2, 4, 5, 10, 20, 50, 60],
    ]
    proposals = PROPOSAL.findall(result.output)
    for row, found in zip(proposals, content["rows"], strict=True):
        assert [float(x) for x in row[1:4]] == pytest.approx(
            [found["active_units"], found["effective_sample_size"], found["pareto_k"]], abs=0.51
        )
    assert all(str(out / name) in result.output for name in command.FILES)


def test_options_reach_the_models(tmp_path, monkeypatch):
    given = []

    def fit(recipe, k, estimator, seed, images, held_out, report):
        given.append((recipe, k, estimator, seed, len(images), held_out))
        return fit_with(k, seed, [-8.0 + 0.01 * k, -6.0])

    monkeypatch.setattr(study, "fit", fit)
    result = call(
        "--samples",
        "1,5",
        "--estimator",
        "dreg",
        "--epochs",
        7,
        "--seed",
        2,
        "--seeds",
        1,
        "--out",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    assert [one[:5] for one in given] == [
        (dataclasses.replace(SMALL, epochs=7), k, "dreg", 2, 1437) for k in (1, 5)
    ]
    assert torch.equal(given[0][5], study.binarized(DIGITS.held_out, study.HELD_OUT_SEED))
    assert "7 epochs by dreg, 1 seed each" in result.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--samples", "many", "got 'many'"),
        ("--samples", "0,5", "got '0,5'"),
        ("--samples", "1,1001", "at most 1000; got 1001"),
        ("--samples", "1,2,3,4,5,6,7", "at most six numbers, a colour for each; got 7"),
        ("--estimator", "vimco", "must be one of iwae, stl, dreg; got 'vimco'"),
        ("--seeds", 0, ""),
        ("--epochs", 0, ""),
        ("--seed", -1, ""),
        ("--seed", 2**32, ""),
        ("--threads", 0, ""),
    ],
)
def test_bad_options(option, value, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(tmp_path, option, message, "bounds", option, value)


def test_a_folder_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    (tmp_path / "out" / command.FILES[1]).mkdir(parents=True)
    for out, named in (
        (occupied, occupied),
        (occupied / "below", occupied),
        (tmp_path / "out", tmp_path / "out"),
    ):
        result = call("--quick", "--out", out)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {named}")
        assert result.output.count("\n") == 1
    assert occupied.read_text() == "kept"
    assert call("--quick", "--out", occupied).output.endswith("is not a folder\n")


def test_an_unknown_backend_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(backends.VARIABLE, "bounds=fortran")
    result = call()
    assert result.exit_code == 1
    assert "got 'bounds=fortran'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("complete", "rows", "message"),
    [
        (0, [], "stopped before there was anything to draw"),
        (1, [1], "stopped; the models that were complete are in the files"),
        (3, [1, 2], "stopped; the models that were complete are in the files"),
    ],
)
def test_ctrl_c(complete, rows, message, tmp_path, monkeypatch):
    original, left = study.fit, [complete]

    def fit(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(study, "fit", fit)
    result = call("--quick", "--samples", "1,2", "--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 130
    assert message in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == (sorted(command.FILES) if complete else [])
    assert [int(row[0]) for row in ONE_K.findall(result.output)] == rows


def test_ctrl_c_while_drawing_keeps_the_numbers(tmp_path, monkeypatch):
    def draw(found, rows, path):
        assert (
            json.loads((tmp_path / "bounds.json").read_text(encoding="utf-8"))["rows"][0]["k"] == 1
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw", draw)
    result = call("--quick", "--samples", "1", "--seeds", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert f"stopped; the numbers are in {tmp_path / 'bounds.json'}\n" in result.output
    assert [int(row[0]) for row in ONE_K.findall(result.output)] == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["bounds.json"]


def test_numbers_that_are_not_finite_are_null():
    found = results.Study(
        SMALL, "iwae", [fit_with(1, 0, [-8.0, -6.0]), fit_with(2, 0, [math.nan, -math.inf])]
    )
    rows = json.loads(results.as_json(found, found.rows()), parse_constant=pytest.fail)["rows"]
    assert rows[0]["bound"]["mean"] == -7.0
    assert rows[1]["bound"]["mean"] is None


def test_numbers_that_cannot_be_written_leave_those_of_before(tmp_path, monkeypatch):
    path = tmp_path / "bounds.json"
    path.write_text("before")

    def replace(source, target):
        assert json.loads(source.read_text())["rows"][0]["k"] == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(frame.os, "replace", replace)
    result = call("--quick", "--samples", "1", "--seeds", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["bounds.json"]
    assert path.read_text() == "before"


def test_the_picture_has_a_colour_and_a_ring_for_each_of_six(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.drawing, "save_figure", lambda figure, path: drawn.append(figure))
    fits = [fit_with(k, 0, [-8.0 + k, -6.0]) for k in range(1, 7)]
    fits = [dataclasses.replace(one, by_samples={1: -9.0, one.k: -8.0, 60: -7.0}) for one in fits]
    found = results.Study(SMALL, "iwae", fits)
    figures.draw(found, found.rows(), tmp_path / "p.png")
    (figure,) = drawn
    left = figure.axes[0]
    assert len({line.get_color() for line in left.get_lines()}) == 6
    rings = [line for line in left.get_lines() if line.get_markerfacecolor() == "none"]
    assert [float(line.get_xdata()[0]) for line in rings] == [1, 2, 3, 4, 5, 6]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    assert legend._ncols == 4
