"""The tests in compiled/, in a process in which Triton compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends import interpreted
from tests.processes import python

FILES = sorted(Path(__file__).with_name("compiled").glob("test_*.py"))


@interpreted
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_machine_code(file: Path, pytestconfig: pytest.Config) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--no-header"]
    options += ["--slow"] if pytestconfig.getoption("--slow") else []
    result = python("-m", "pytest", str(file), *options)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
