"""Tests in Triton's interpreter: TRITON_INTERPRET is read when Triton is imported, hence a process
of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from latent_kernels.kernels import backends

INTERPRETING = backends.interpreting()
interpreted = pytest.mark.skipif(
    not INTERPRETING, reason="run by test_in_the_interpreter, in a process of its own"
)
outside = pytest.mark.skipif(INTERPRETING, reason="this is that process")


def run_in_the_interpreter(file: str) -> None:
    """A second pytest on the file, with TRITON_INTERPRET=1."""
    command = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider", "--no-header"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
