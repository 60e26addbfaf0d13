"""`latent-kernels demo`: the whole command at a tiny size, its interruption, and its errors."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from latent_kernels.cli import timing, vae
from latent_kernels.cli.app import application
from latent_kernels.cli.demo import command, costs, figures, results, study
from latent_kernels.cli.digits import load
from latent_kernels.cli.sparse.problems import Photographs
from latent_kernels.cli.vae import ELBO, Objective
from latent_kernels.cli.variance import problems
from latent_kernels.kernels import backends
from tests.cli.checks import check_picture, stop_at

TINY = results.Settings(
    epochs=2,
    latents=(2, 5),
    hidden=16,
    compared_latent=5,
    compared_seeds=2,
    held_out_samples=4,
    profiled_samples=(1, 2, 8),
    profiled_repeats=64,
    photographs=Photographs(patches=600, held_out=64, components=20, passes=1, steps=3),
    encoder_layers=2,
    sizes=(results.Size("demo", 16, 1, 5, 16), results.Size("large", 32, 2, 8, 16)),
)
MODELS, TABLES = list(figures.FILES[:3]), list(figures.FILES[3:5])
VARIANCE, MIXTURE, SPARSE = figures.FILES[5:]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.setattr(command, "SETTINGS", TINY)
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()


@pytest.fixture
def equal_times(clock):
    """Make every gradient take a millisecond, so that the variance decides."""
    clock.step = 1e-3


@pytest.fixture
def found(monkeypatch):
    """Return the results of the demos that this test has run, in order."""
    kept, original = [], study.run

    def run(found, *arguments):
        kept.append(found)
        original(found, *arguments)

    monkeypatch.setattr(study, "run", run)
    return kept


def leave_out(monkeypatch, *parts):
    """Make these parts of the demo find nothing, for tests of other parts."""
    if "costs" in parts:
        monkeypatch.setattr(costs, "compare", lambda *arguments: [])
    if "profile" in parts:
        monkeypatch.setattr(study.lk, "profile_variance", lambda *arguments, **options: None)
    if "mixture" in parts:
        monkeypatch.setattr(study.mixture, "fit", lambda *arguments: None)
    if "patches" in parts:
        monkeypatch.setattr(study.sparse, "compare_patches", lambda *arguments: None)
    if "pictures" in parts:
        for module, name in (
            *((figures, name) for name in ("manifold", "prior_samples", "training_curves")),
            *((module, "draw") for module in (figures.variance, figures.mixture)),
        ):
            monkeypatch.setattr(module, name, lambda *arguments: arguments[-1].touch())


def demo(out, *options):
    return CliRunner().invoke(application(), ["demo", "--out", str(out), *map(str, options)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers(one):
    """Return all numbers except the times."""
    runs = [(run.model.ops.name, run.seed, run.history, run.final) for run in one.runs]
    variances = [x.tolist() for x in one.profile.parameter_variance[0]]
    return runs, str(variances)


# --- the command ----------------------------------------------------------------------------------


def test_the_demo_trains_draws_and_compares(tmp_path, monkeypatch, equal_times, found):
    result = demo(tmp_path / "first", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "first") == sorted(figures.FILES)
    assert all(name in result.output for name in figures.FILES)
    for name in (*MODELS, VARIANCE, MIXTURE, SPARSE):
        check_picture(tmp_path / "first" / name)

    leave_out(monkeypatch, "costs", "mixture")
    assert demo(tmp_path / "second", "--seed", 5).exit_code == 0
    assert numbers(found[0]) == numbers(found[1])  # bit for bit
    for name in (*MODELS, SPARSE):  # the one of variances has times in it
        assert (imread(tmp_path / "first" / name) == imread(tmp_path / "second" / name)).all()
    held_out = {"ours": found[0].held_out(vae.FUSED), "plain": found[0].held_out(vae.PLAIN)}
    for bounds in held_out.values():
        assert list(bounds) == [5, 6]
        assert bounds[5] != bounds[6]

    content = json.loads((tmp_path / "first" / "comparison.json").read_text())
    assert content["held_out_elbo"] == {
        side: {str(seed): bound for seed, bound in bounds.items()}
        for side, bounds in held_out.items()
    }
    assert content["objective"] == {"bound": "elbo", "samples": 1}
    assert [(c["what"], c["size"]["name"]) for c in content["costs"]] == [
        ("step", "demo"),
        ("ops", "demo"),
        ("step", "large"),
        ("ops", "large"),
    ]
    for cost in content["costs"]:
        for side in ("ours", "plain"):
            assert all(value > 0 for key, value in cost[side].items() if key != "saved_bytes")
        assert cost["plain"]["saved_bytes"] > cost["ours"]["saved_bytes"]
        assert cost["what"] == "step" or cost["ours"]["saved_bytes"] == 0, (
            "the ops keep their inputs and nothing else"
        )
    first, second, *_ = result.output.splitlines()
    assert first == results.about(found[0])  # first of all; then the most interesting result
    assert second == results.headline(found[0])
    page = (tmp_path / "first" / "comparison.md").read_text(encoding="utf-8")
    assert results.verdict(*found[0].bounds().values()) in page
    assert f"{results.summary(found[0])}\n" in result.output
    assert "Held-out ELBO: latent-kernels" in result.output
    assert "for a gradient, reparameterized wins" in result.output


@pytest.mark.parametrize(("bound", "name"), [("elbo", "ELBO"), ("dreg", "L_3")])
def test_the_demo_trains_on_the_bound_that_is_asked_for(bound, name, tmp_path, monkeypatch, found):
    short = dataclasses.replace(
        TINY, latents=(2,), compared_latent=2, compared_seeds=1, sizes=TINY.sizes[:1]
    )
    leave_out(monkeypatch, "profile", "mixture", "patches")
    monkeypatch.setattr(command, "SETTINGS", short)
    result = demo(tmp_path, "--bound", bound, "--samples", 3)
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == sorted([*MODELS, *TABLES])
    check_picture(tmp_path / "training_curves.png")
    (one,) = found
    ours, plain = one.held_out(vae.FUSED)[0], one.held_out(vae.PLAIN)[0]
    epochs = [epoch for run in one.runs for epoch in run.history]
    assert len(epochs) == 6
    finals = [run.final for run in one.runs]
    for terms in (*finals, *(e.held_out for e in epochs), *(e.train for e in epochs)):
        if bound == "elbo":
            assert terms.bound == pytest.approx(terms.elbo, rel=1e-5)
        else:
            assert terms.bound > terms.elbo
    assert f"Held-out {name}: latent-kernels {ours:.2f} nats" in result.output
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["objective"] == {"bound": bound, "samples": 3}
    key = "held_out_elbo" if bound == "elbo" else "held_out_bound"
    assert content[key] == {"ours": {"0": ours}, "plain": {"0": plain}}
    assert [cost["size"]["num_samples"] for cost in content["costs"]] == [3] * 2
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert f"Trained with --bound {bound} --samples 3;" in page
    assert f"## Held-out {name}\n" in page
    assert f"from {4 if bound == 'elbo' else 3} samples of z" in page


@pytest.mark.parametrize(
    ("epochs", "files"),
    [
        (0, TABLES),
        (1, [*TABLES, *MODELS]),  # half of the first model
        (12, [*TABLES, *MODELS]),  # six models: one seed of ours and of plain torch
    ],
)
def test_ctrl_c_leaves_what_there_is(tmp_path, monkeypatch, epochs, files):
    left = [epochs]

    def train(*arguments):
        for epoch in vae.train(*arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield epoch

    monkeypatch.setattr(study, "train", train)
    result = demo(tmp_path)
    assert result.exit_code == 130
    assert names(tmp_path) == sorted(files)
    for name in files:
        if name.endswith("png"):
            check_picture(tmp_path / name)
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("latent-kernels: stopped")
    assert all(name in last for name in files)
    assert "Traceback" not in result.output


def test_ctrl_c_before_there_is_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "compare", interrupt)
    result = demo(tmp_path)
    assert result.exit_code == 130
    assert names(tmp_path) == []
    last = result.output.strip().splitlines()[-1]
    assert last == "latent-kernels: stopped before there was anything to draw"


@pytest.mark.parametrize(("complete", "drawn"), [(0, False), (2, True)])
def test_ctrl_c_while_profiling(tmp_path, monkeypatch, complete, drawn):
    """What came before the profile is written, and of the profile the numbers of samples that were
    complete.
    """
    leave_out(monkeypatch, "costs", "pictures")
    stopped = stop_at(complete, problems.logistic())
    monkeypatch.setitem(problems.PROBLEMS, "logistic-regression", lambda: stopped)
    result = demo(tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    assert names(tmp_path) == sorted([*TABLES, *MODELS, *([VARIANCE] if drawn else [])])
    assert "Traceback" not in result.output


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_ctrl_c_while_an_encoder_trains(tmp_path, monkeypatch):
    leave_out(monkeypatch, "costs", "pictures")
    monkeypatch.setattr(study.sparse, "compare_patches", interrupt)
    result = demo(tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    assert names(tmp_path) == sorted([*TABLES, *MODELS, VARIANCE, MIXTURE])


def test_ctrl_c_while_drawing(tmp_path, monkeypatch):
    leave_out(monkeypatch, "costs", "profile", "mixture", "patches", "pictures")
    monkeypatch.setattr(figures, "training_curves", interrupt)
    result = demo(tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    assert names(tmp_path) == ["manifold.png", "prior_samples.png"]
    last = result.output.strip().splitlines()[-1]
    assert last == f"latent-kernels: stopped; in {tmp_path}: manifold.png, prior_samples.png"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", 0),
        ("--epochs", "many"),
        ("--seed", -1),
        ("--seed", 2**32),
        ("--threads", 0),
        ("--bound", "vimco"),
        ("--samples", 0),
        ("--samples", 1001),
    ],
)
def test_bad_options(option, value, tmp_path):
    result = demo(tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    for out in (occupied, occupied / "below"):
        result = demo(out)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {out}: ")
        assert result.output.count("\n") == 1
    assert occupied.read_text() == "kept"


# --- costs ----------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_held_at_once():
    def run():
        first = torch.zeros(1 << 20)
        second = first + 1
        del first, second
        torch.zeros(1 << 18)

    held = 2 * 4 * (1 << 20)
    assert held <= costs.peak_memory(run, []) <= held + 64  # a scalar or two


def test_saved_bytes_counts_each_storage_once_and_not_what_is_given():
    x = torch.ones(1000, requires_grad=True)

    def run():
        y = x.exp()  # keeps y
        (y * y).sum().backward()  # keeps y twice
        x.grad = None

    assert costs.saved_bytes(run, [x]) == 4000


def test_weighted_ops_are_measured_on_their_own():
    objective = Objective("iwae", 4)
    size = results.Size("large", 32, 2, 3, 16).with_samples(objective)
    assert size[:4] == ("large", 16, 4, 3)  # the same number of samples in total
    demo_size = results.Size("demo", 32, 1, 3, 16)
    assert demo_size.with_samples(objective)[:4] == ("demo", 32, 4, 3)
    assert size.with_samples(ELBO) == size
    own = results.Size("IWAE", 4, 5, 3, 16, "iwae")
    assert own.with_samples(objective) == own
    own_step, _ = costs.compare(own, load().train, ELBO, seed=0)
    assert own_step.size == own
    step, alone = costs.compare(size, load().train, objective, seed=0)
    assert (step.what, alone.what) == ("step", "ops")
    assert alone.ours.saved_bytes < alone.plain.saved_bytes
    assert min(*step.ours, *step.plain, *alone.plain) > 0


def test_verdict_tells_noise_from_a_difference():
    verdict = results.verdict
    assert "+0.10 nats, within the noise" in verdict([60.0, 61.0, 62.0], [59.9, 60.9, 61.9])
    assert "-9.00 nats, outside the noise" in verdict([51.0, 52.0, 53.0], [60.0, 61.0, 62.0])
    assert "one seed" in verdict([1.0], [1.0])
