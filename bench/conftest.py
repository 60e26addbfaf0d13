"""What the timings need of pytest: the helpers beside them, a small JSON file, and the closing
table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).parent)
)  # the helpers, as they also are for `python bench/plots.py`

import report

# what pytest-benchmark's tables show
STATISTICS = [
    "min",
    "max",
    "mean",
    "stddev",
    "rounds",
    "median",
    "iqr",
    "outliers",
    "ops",
    "iterations",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A warning that a peer gives is no failure of ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Gives the number of threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """The project's name, where pytest-benchmark would take the folder's."""
    commit_info["project"] = "latent-kernels"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keeps the statistics and drops the rounds themselves, which are a hundred times larger."""
    for row in output_json["benchmarks"]:
        row["params"] = row["param"] = row["options"] = (
            None  # what they would say stands in extra_info
        )
        stats = {key: x for key, x in row["stats"].items() if key in STATISTICS}
        row["stats"] = {
            key: float(f"{x:.5g}") if isinstance(x, float) else x for key, x in stats.items()
        }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Per op, size and threads: ours, the best peer, and the ratio."""
    for line in report.closing_table():
        terminalreporter.write_line(line)
