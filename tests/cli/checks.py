"""What the tests of several commands look at or provoke."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.image import imread

from latent_kernels.cli.variance.problems import Problem


def check_picture(path: Path) -> None:
    """Check that the file is a picture with something in it."""
    pixels = imread(path)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    assert pixels[..., :3].std() > 0.02


def stop_at(complete: int, problem: Problem) -> Problem:
    """Return the problem with a log joint interrupted after so many numbers of samples."""
    seen: list[int] = []

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        if len(z) != (seen[-1] if seen else None):
            seen.append(len(z))
        if len(seen) > complete + 1:  # the first is a trial, with two samples
            raise KeyboardInterrupt
        return problem.log_joint(z)

    return problem._replace(log_joint=log_joint)
