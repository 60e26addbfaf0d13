"""Helpers that the tests of several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from latent_kernels.cli.app import application
from latent_kernels.cli.variance.problems import Problem


def call(*arguments: object) -> Any:
    """Return the outcome of `latent-kernels` with these arguments."""
    return CliRunner().invoke(application(), [str(a) for a in arguments])


def check_refused(folder: Path, option: str, message: str, *arguments: object) -> None:
    """Check that the message names the bad option, and that nothing is written to the current
    folder before.
    """
    result = call(*arguments)
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert option in text
    assert message in text
    assert "Traceback" not in text
    assert list(folder.iterdir()) == []


def check_unwritable(folder: Path, *arguments: object) -> None:
    """Check that a file as the last option is refused in one line where it cannot be written."""
    occupied = folder / "a.png"
    occupied.mkdir()
    for path in (occupied, folder / "nowhere" / "a.png"):
        result = call(*arguments, path)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {path}: ")
        assert result.output.count("\n") == 1
    assert list(folder.iterdir()) == [occupied]


def check_picture(path: Path) -> None:
    """Check that the file is a picture that is not blank."""
    pixels = imread(path)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    assert pixels[..., :3].std() > 0.02


def stop_at(complete: int, problem: Problem) -> Problem:
    """Return the problem with a log joint that is interrupted after so many numbers of samples."""
    seen: list[int] = []

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        if len(z) != (seen[-1] if seen else None):
            seen.append(len(z))
        if len(seen) > complete + 1:  # the first is a trial, with two samples
            raise KeyboardInterrupt
        return problem.log_joint(z)

    return problem._replace(log_joint=log_joint)
