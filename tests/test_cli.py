"""The command line: `info`, `variance`, and what a missing extra or a bad backend comes to."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from command_checks import check_picture, stop_at
from latent_kernels import cli
from latent_kernels.cli.app import application
from latent_kernels.cli.variance import problems
from latent_kernels.kernels import _core, backends


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()


@pytest.fixture
def equal_times(clock):
    """Every gradient takes a millisecond, whatever the machine does: the variance decides."""
    clock.step = 1e-3


def call(*arguments):
    return CliRunner().invoke(application(), [str(a) for a in arguments])


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
