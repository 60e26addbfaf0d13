"""The behaviour that all commands share, and `latent-kernels info`."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from latent_kernels import cli
from latent_kernels.cli import app, frame
from latent_kernels.kernels import _core, backends
from tests import processes
from tests.cli.checks import call

COMMANDS = ("info", "demo", "variance", "mixture", "sparse", "bounds")


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()


# --- the frame ------------------------------------------------------------------------------------


def end_of(error):
    """Run a command that raises the error; return its exit status and what it printed."""

    def failing(threads: frame.Threads = 1) -> None:
        raise error

    one = typer.Typer(pretty_exceptions_enable=False)
    one.command()(frame.command(failing))
    result = CliRunner().invoke(one, [])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (frame.Failed("no data"), 1, "no data"),
        (frame.Stopped("a.png is complete"), 130, "stopped; a.png is complete"),
        (KeyboardInterrupt(), 130, "stopped before there was anything to draw"),
        (
            PermissionError(13, "Permission denied", "a.png"),
            1,
            "cannot write to a.png: Permission denied",
        ),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_an_error_becomes_one_line_and_an_exit_status(error, status, line):
    assert end_of(error) == (status, f"latent-kernels: {line}\n")


def test_a_bad_option_is_named():
    status, output = end_of(frame.BadOption("--data", "must be one of iris, wine; got 'x'"))
    assert status == 2
    assert "--data: must be one of iris, wine; got 'x'" in " ".join(
        output.replace("│", " ").split()
    )


def test_a_fault_of_ours_is_not_hidden():
    one = typer.Typer(pretty_exceptions_enable=False)

    @one.command()
    @frame.command
    def failing() -> None:
        raise ValueError("ours")

    assert isinstance(CliRunner().invoke(one, []).exception, ValueError)


def test_a_command_computes_with_the_threads_it_is_given():
    one, seen = typer.Typer(), []

    @one.command()
    @frame.command
    def counting(threads: frame.Threads = 1) -> None:
        seen.append(torch.get_num_threads())

    assert CliRunner().invoke(one, ["--threads", "3"]).exit_code == 0
    assert CliRunner().invoke(one, []).exit_code == 0
    assert seen == [3, 1]


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    frame.write_text(path, "whole")

    def interrupted():
        with frame.complete(path) as part:
            part.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "whole"


def test_a_file_that_cannot_be_completed_is_named(tmp_path):
    """The message names the file even if a write fails with an error that names none, as on a full
    disk.
    """
    code = """
import resource, signal
from pathlib import Path
from latent_kernels.cli import frame
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    frame.write_text(Path("{path}"), 5000 * "x")
except OSError as error:
    print(error.filename)
"""
    path = tmp_path / "a.txt"
    path.write_text("before")
    assert processes.run_forked(code.format(path=path)) == f"{path}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "before"


def test_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    for path in (occupied, occupied / "below"):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # of several kinds
            frame.output_folder(path, ["a.png"])
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught:
        frame.output_file(tmp_path / "nowhere" / "a.png")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        frame.output_file(tmp_path / "folder")
    with pytest.raises(frame.BadOption, match=r"must end in \.png"):
        frame.output_file(tmp_path / "a.bmp", (".png",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_ranges_of_samples():
    assert frame.sample_counts("1:1024") == tuple(2**k for k in range(11))
    assert frame.sample_counts("3:20") == (3, 6, 12, 20)
    assert frame.sample_counts("5:5") == (5,)
    assert frame.sample_counts("16, 4,4") == (4, 16)


# --- every command --------------------------------------------------------------------------------


def test_every_command_is_listed():
    text = call("--help").output
    assert all(f" {name} " in text for name in COMMANDS)
    assert [c.callback.__name__ for c in app.application().registered_commands] == list(COMMANDS)


def test_the_help_prints_on_a_narrow_terminal_without_unicode():
    code = "from latent_kernels.cli import main; main()"
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"}
    result = processes.python("-c", code, "--help", **narrow)
    assert result.returncode == 0, result.stderr
    assert "Compiled kernels" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_forced_backend_is_one_clear_line(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(backends.VARIABLE, "gaussian=fortran")
    result = call(name)
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0
    assert "LATENT_KERNELS_BACKEND must be" in result.output
    assert "got 'gaussian=fortran'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS[1:])
def test_threads_and_seeds_out_of_range_are_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for option, value in (("--threads", 0), ("--seed", -1), ("--seed", 2**32)):
        result = call(name, option, value)
        assert result.exit_code == 2
        assert option in result.output
    assert list(tmp_path.iterdir()) == []


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
    assert reason is None or result.output.count(f"Triton is off: {reason}") == 1
    assert max(map(len, result.output.splitlines())) <= 80


def test_info_says_that_a_processor_is_too_old(monkeypatch):
    monkeypatch.setattr(_core, "simd_builds", list)
    backends.forget()
    result = call("info")
    assert result.exit_code == 0
    assert "SIMD build in use: none" in result.output
    assert result.output.count("C++ is off: this processor lacks") == 1
    assert "op noise: CPU reference" in result.output


def test_info_shows_a_forced_backend(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "gaussian=reference")
    result = call("info")
    assert "op gaussian: CPU reference (forced)" in result.output
    assert "op noise: CPU cpp\n" in result.output or "op noise: CPU cpp;" in result.output
    assert f"{backends.VARIABLE}: gaussian=reference" in result.output


def test_info_shows_a_forced_backend_that_cannot_run(monkeypatch):
    monkeypatch.setattr(backends, "triton_missing", lambda: "a test has hidden it")
    monkeypatch.setenv(backends.VARIABLE, "gaussian=triton,noise=triton")
    result = call("info")
    assert result.exit_code == 0
    for op in ("gaussian", "noise"):
        assert f"op {op}: CPU triton (forced, cannot run)" in result.output
    assert result.output.count("Triton is off: a test has hidden it") == 1
    assert result.output.count("a test has hidden it") == 1


def test_info_shows_a_backend_that_is_forced_on_the_wrong_device(monkeypatch):
    monkeypatch.setattr(backends, "triton_missing", lambda: None)
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    monkeypatch.setenv(backends.VARIABLE, "gaussian=triton")
    result = call("info")
    assert "op gaussian: CPU triton (forced, cannot run)" in result.output
    assert result.output.count("gaussian=triton, which runs on CUDA tensors; got") == 1


def test_info_draws_tables_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = call("info")
    assert result.exit_code == 0
    assert "Backends" in result.output
    assert "op noise:" not in result.output


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


@pytest.mark.parametrize("run", [cli.main, lambda: runpy.run_module("latent_kernels")])
def test_main_runs_the_commands(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latent-kernels", "info"])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 0
    assert "SIMD build in use" in capsys.readouterr().out
