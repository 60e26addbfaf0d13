"""The command line: `info`, the whole demo at a tiny size, its interruption, and its errors."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

from latent_kernels import cli
from latent_kernels.examples import (
    demo,
    measure,
    problems,
    report,
    sparse_command,
    sparse_problems,
    vae,
)
from latent_kernels.kernels import _core, backends

TINY = demo.Settings(
    epochs=2,
    latents=(2, 5),
    hidden=16,
    compared_latent=5,
    compared_seeds=2,
    held_out_samples=4,
    profiled_samples=(1, 2, 8),
    profiled_repeats=64,
    photographs=sparse_problems.Photographs(
        patches=600, held_out=64, components=20, passes=1, steps=3
    ),
    encoder_layers=2,
    sizes=(measure.Size("demo", 16, None, 5, 16, 3), measure.Size("large", 32, 2, 8, 16, 3)),
)
PICTURES = ["manifold.png", "prior_samples.png", "training_curves.png"]
TABLES = ["comparison.json", "comparison.md"]
LAST = ["variance.png", "mixture.png"]
SPARSE = ["sparse_patches.png"]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(demo, "SETTINGS", TINY)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()
    yield
    monkeypatch.undo()
    backends.forget()
    torch.set_num_threads(threads)


@pytest.fixture
def equal_times(clock):
    """Every gradient takes a millisecond, whatever the machine does: the variance decides."""
    clock.step = 1e-3


def call(*arguments):
    return CliRunner().invoke(cli.application(), [str(a) for a in arguments])


def check_picture(path):
    pixels = imread(path)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    assert pixels[..., :3].std() > 0.02


# --- info -----------------------------------------------------------------------------------------


def test_info_names_what_is_active():
    result = call("info")
    assert result.exit_code == 0
    for expected in (
        f"torch: {torch.__version__}",
        f"SIMD build in use: {_core.simd_build()}, {_core.simd_lanes()} float32 lanes",
        f"threads: {torch.get_num_threads()}",
        f"{backends.VARIABLE}: not set",
        "scikit-learn: ",
        "GPU: ",
        *(f"op {op}: CPU cpp" for op in ("noise", "gaussian")),
    ):
        assert expected in result.output
    reason = backends.triton_missing()
    assert reason is None or f"off: triton: {reason}" in result.output


def test_info_shows_a_forced_backend(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "gaussian=reference")
    result = call("info")
    assert "op gaussian: CPU reference (forced)" in result.output
    assert "op noise: CPU cpp;" in result.output
    assert f"{backends.VARIABLE}: gaussian=reference" in result.output


def test_info_shows_a_forced_backend_that_cannot_run(monkeypatch):
    monkeypatch.setattr(backends, "triton_missing", lambda: "a test has hidden it")
    monkeypatch.setenv(backends.VARIABLE, "gaussian=triton")
    result = call("info")
    assert result.exit_code == 0
    assert "gaussian=triton, which cannot run: a test has hidden it" in result.output


def test_info_draws_tables_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = call("info")
    assert result.exit_code == 0
    assert "Backends" in result.output
    assert "op noise:" not in result.output


@pytest.mark.parametrize("command", ["info", "demo", "variance"])
def test_an_unknown_forced_backend_is_one_clear_line(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(backends.VARIABLE, "gaussian=fortran")
    result = call(command)
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0
    assert "LATENT_KERNELS_BACKEND must be" in result.output
    assert "got 'gaussian=fortran'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["typer", "rich", "matplotlib"])
def test_a_missing_extra_is_one_clear_line(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert (
        message
        == f"latent-kernels: the command line needs {name}: pip install latent-kernels[cli]\n"
    )


def test_main_runs_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latent-kernels", "info"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "SIMD build in use" in capsys.readouterr().out


# --- demo -----------------------------------------------------------------------------------------


def losses(outcome):
    histories = [(run.ops.name, run.seed, run.history) for run in outcome.runs]
    variances = [x.tolist() for x in outcome.profile.parameter_variance[0]]
    return histories, outcome.comparison.ours, outcome.comparison.plain, str(variances)


def test_demo_trains_draws_and_compares(tmp_path, monkeypatch, equal_times):
    outcomes = []
    original = demo.run
    monkeypatch.setattr(demo, "run", lambda *a: outcomes.append(original(*a)) or outcomes[-1])
    for folder in ("first", "second"):
        result = call("demo", "--out", tmp_path / folder, "--seed", 5)
        assert result.exit_code == 0, result.output
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == sorted(
            [*PICTURES, *TABLES, *LAST, *SPARSE]
        )
    for name in (*PICTURES, *LAST, *SPARSE):
        check_picture(tmp_path / "first" / name)

    assert losses(outcomes[0]) == losses(outcomes[1])  # bit for bit
    for name in (*PICTURES, *SPARSE):  # the one of variances has times in it
        assert (imread(tmp_path / "first" / name) == imread(tmp_path / "second" / name)).all()
    other = demo.run(dataclasses.replace(TINY, seed=6), tmp_path / "first", Console(quiet=True))
    assert losses(other) != losses(outcomes[0])

    found = json.loads((tmp_path / "second" / "comparison.json").read_text())
    assert list(found) == ["threads", "latent", "held_out_samples", "costs", "held_out_elbo"]
    assert (
        found["held_out_elbo"]["ours"].keys()
        == found["held_out_elbo"]["plain"].keys()
        == {"5", "6"}
    )
    assert [(c["what"], c["size"]["name"]) for c in found["costs"]] == [
        ("step", "demo"),
        ("ops", "demo"),
        ("step", "large"),
        ("ops", "large"),
    ]
    for cost in found["costs"]:
        for side in ("ours", "plain"):
            assert all(value > 0 for key, value in cost[side].items() if key != "saved_bytes")
        assert cost["plain"]["saved_bytes"] > cost["ours"]["saved_bytes"]
        assert cost["what"] == "step" or cost["ours"]["saved_bytes"] == 0, (
            "the ops keep their inputs and nothing else"
        )
    page = (tmp_path / "second" / "comparison.md").read_text(encoding="utf-8")
    assert outcomes[1].comparison.verdict() in page
    assert "comparison.md" in result.output
    assert "Held-out ELBO: latent-kernels" in result.output
    assert "for a gradient, reparameterized wins" in " ".join(result.output.split())


SHORT = dataclasses.replace(
    TINY, latents=(2,), compared_latent=2, compared_seeds=1, profiled_samples=(1, 2)
)


@pytest.mark.parametrize(("bound", "name"), [("elbo", "ELBO"), ("dreg", "L_3")])
def test_demo_trains_on_the_bound_that_is_asked_for(bound, name, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SETTINGS", SHORT)
    outcomes, original = [], demo.run
    monkeypatch.setattr(demo, "run", lambda *a: outcomes.append(original(*a)) or outcomes[-1])
    result = call("demo", "--bound", bound, "--samples", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*PICTURES, *TABLES, *LAST, *SPARSE]
    )
    check_picture(tmp_path / "training_curves.png")
    (outcome,) = outcomes
    finals = (outcome.comparison.ours[0], outcome.comparison.plain[0])
    epochs = [epoch for run in outcome.runs for epoch in run.history]
    for terms in (
        *finals,
        *(epoch.held_out for epoch in epochs),
        *(epoch.train for epoch in epochs),
    ):
        assert (terms.bound is None) == (bound == "elbo")
    assert f"Held-out {name}: latent-kernels {finals[0].maximized:.2f} nats" in result.output
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["objective"] == {"bound": bound, "samples": 3}
    key = "held_out_elbo" if bound == "elbo" else "held_out_bound"
    assert found[key] == {"ours": {"0": finals[0].maximized}, "plain": {"0": finals[1].maximized}}
    assert [cost["size"]["num_samples"] for cost in found["costs"]] == [3] * 4
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert f"Trained with --bound {bound} --samples 3." in page
    assert f"## Held-out {name}\n" in page
    assert f"from {4 if bound == 'elbo' else 3} samples of z" in page


@pytest.mark.parametrize(
    ("epochs_before", "files"),
    [
        (0, []),
        (
            1,
            ["manifold.png", "prior_samples.png", "training_curves.png"],
        ),  # half of the first model
        (
            12,
            ["comparison.json", "comparison.md", *PICTURES],
        ),  # six models: one seed of ours and of plain torch
    ],
)
def test_ctrl_c_leaves_what_there_is(tmp_path, monkeypatch, epochs_before, files):
    left = [epochs_before]

    def train(*args, **kwargs):
        for epoch in vae.train(*args, **kwargs):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield epoch

    monkeypatch.setattr(demo, "train", train)
    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    for name in files:
        if name.endswith("png"):
            check_picture(tmp_path / name)
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("latent-kernels: stopped")
    assert all(name in last for name in files)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("samples_before", "drawn"), [((), False), ((1, 2), True)])
def test_ctrl_c_while_profiling(tmp_path, monkeypatch, samples_before, drawn):
    """Everything before it is written, and of the profile the numbers of samples that were
    complete.
    """
    stopped = stop_at(len(samples_before), problems.logistic())
    monkeypatch.setitem(problems.PROBLEMS, "logistic-regression", lambda: stopped)
    result = call("demo", "--out", tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    expected = [*TABLES, *PICTURES, *(LAST if drawn else [])]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(expected)
    assert "Traceback" not in result.output


def test_ctrl_c_while_an_encoder_trains(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sparse_command, "compare_patches", interrupt)
    result = call("demo", "--out", tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*TABLES, *PICTURES, *LAST])


def stop_at(complete, problem):
    """The problem with a log joint that is interrupted after so many numbers of samples."""
    seen = []

    def log_joint(z):
        if len(z) != (seen[-1] if seen else None):
            seen.append(len(z))
        if len(seen) > complete + 1:  # the first is a trial, with two samples
            raise KeyboardInterrupt
        return problem.log_joint(z)

    return problem._replace(log_joint=log_joint)


def test_ctrl_c_while_drawing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.pictures, "training_curves", interrupt)
    result = call("demo", "--out", tmp_path, "--epochs", 1)
    assert result.exit_code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifold.png", "prior_samples.png"]
    assert "stopped while writing" in result.output


BAD_OPTIONS = [
    ("--epochs", 0),
    ("--epochs", "many"),
    ("--seed", -1),
    ("--threads", 0),
    ("--bound", "vimco"),
    ("--samples", 0),
    ("--samples", 1001),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_bad_options(option, value, tmp_path):
    result = call("demo", "--out", tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    for out in (occupied, occupied / "below"):
        result = call("demo", "--out", out)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {out}: ")
        assert result.output.count("\n") == 1
    assert occupied.read_text() == "kept"


# --- variance -------------------------------------------------------------------------------------

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
    """How signals go, and which is the highest; with a file of each kind. One sample's exact
    gradient is known.
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
    """Written by hand, so that the help needs no torch."""
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
        ("--threads", 0, ""),
        ("--out", "picture.bmp", "must end in .png"),
    ],
)
def test_variance_refuses_bad_options(option, value, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*QUICK, option, value)
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert option in text
    assert message in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_not_for_the_importance_bound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*QUICK, "--objective", "importance-bound", "--budget", 5)
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "--budget" in text
    assert "is for the objective elbo" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--out", "--csv", "--json"])
def test_variance_files_that_cannot_be_written(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a.png"
    folder.mkdir()
    for path in (folder, tmp_path / "nowhere" / "a.png"):
        result = call(*QUICK, option, path)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {path}: ")
        assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


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


# --- measurement ----------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_held_at_once():
    def run():
        first = torch.zeros(1 << 20)
        second = first + 1
        del first, second
        torch.zeros(1 << 18)

    held = 2 * 4 * (1 << 20)
    assert held <= measure.peak_memory(measure.Stepper(run, [])) <= held + 64  # a scalar or two


def test_saved_bytes_counts_each_storage_once_and_not_what_is_given():
    x = torch.ones(1000, requires_grad=True)

    def run():
        y = x.exp()  # keeps y
        (y * y).sum().backward()  # keeps y twice
        x.grad = None

    assert measure.saved_bytes(run, [x]) == 4000


def test_interleaved_takes_turns():
    order = []
    measure.interleaved(lambda: order.append("a"), lambda: order.append("b"), rounds=4)
    assert "".join(order[-8:]) in ("abbaabba", "baabbaab")


def test_verdict_tells_noise_from_a_difference():
    def verdict(ours, plain):
        both = (
            {seed: vae.Terms(elbo, 0.0) for seed, elbo in enumerate(side)} for side in (ours, plain)
        )
        return report.Comparison(1, 5, 4, [], *both).verdict()

    assert "+0.10 nats, within the noise" in verdict([60.0, 61.0, 62.0], [59.9, 60.9, 61.9])
    assert "-9.00 nats, outside the noise" in verdict([51.0, 52.0, 53.0], [60.0, 61.0, 62.0])
    assert "one seed" in verdict([1.0], [1.0])
    assert "not compared" in verdict([], [])
