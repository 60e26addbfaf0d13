"""The pytest hooks of the benchmarks: a file of timings, and the closing table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import harness
import machine
import records
import report
import stand_in


def pytest_configure(config: pytest.Config) -> None:
    """Begin the file of timings, so that a folder that cannot be written is known at once."""
    if stand_in.wanted():
        stand_in.select()
    path = config.getoption("--save-rows")
    if path is not None:
        environment = machine.environment()  # its date is the beginning of the run
        harness.output = path if path.suffix else path / machine.file_name(environment)
        records.start(harness.output)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a peer's warning from failing our benchmark."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Restore the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print, by op, size and threads: our time, the best peer's, and the ratio."""
    rows = [row for result in harness.results.values() for row in result.rows.values()]
    for line in report.closing_table(rows):
        terminalreporter.write_line(line)
    if harness.output is not None:
        terminalreporter.write_line(f"wrote {harness.output}")
