"""Processes of their own for tests: of Python code, and of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Only for what hangs: many times what any of these processes takes on a busy machine.
TIME_LIMIT = 900


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what came of a Python process with these arguments, however it ended.

    It finds the tests' modules, and Triton as it is without the interpreter that conftest.py asks
    for.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"} | environment
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT,
    )


def run(code: str, **environment: str) -> str:
    """Return what the code prints in a process that must end by itself, well and without a word on
    its standard error; warnings are errors.
    """
    result = python("-W", "error", "-c", code, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout
