"""The suite's flags: `pytest` runs the tests, with `--slow` the long ones too; `pytest --benchmark`
times bench/.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import stand_in

BENCH = Path(__file__).parent / "bench"

if stand_in.wanted():
    stand_in.limit()

# The workers of pytest-xdist share the cores. Read as torch and NumPy are imported, later.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    _threads = str(max((os.cpu_count() or 1) // _workers, 1))
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, _threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags."""
    group = parser.getgroup("latent-kernels")
    group.addoption(
        "--benchmark", action="store_true", help="run the timings in bench/ and no tests"
    )
    group.addoption(
        "--save-rows",
        type=Path,
        metavar="PATH",
        help="write the timings as CSV: to a file, or in a folder to machine/date.csv",
    )
    group.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    """Under --benchmark: bench/ in place of the tests, and a table that fits a terminal."""
    if not config.getoption("--benchmark"):
        return
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(BENCH)]
    if getattr(config.option, "benchmark_columns", ()) is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds", "iterations"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, with the reason, what was not asked for or cannot run here."""
    benchmark, slow = config.getoption("--benchmark"), config.getoption("--slow")
    for item in items:
        if not benchmark and BENCH in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a timing; run with --benchmark"))
        if not slow and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="torch finds no GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
