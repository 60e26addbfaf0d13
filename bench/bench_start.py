"""Time what a process pays once: importing the package, and the first call of the mixture kernels.

Each measurement is a process of its own, whose whole time is the row; what the part in question
takes is printed, and saved as a row without peers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harness

IMPORT = """
import time, torch
a = time.perf_counter(); import latent_kernels
b = time.perf_counter(); print(b - a)
"""
# What numba loads only at a first call (its registries of NumPy functions) is in the call's time;
# importing numba and scipy.special, which the call would do too, is not.
FIRST_CALL = """
import time, numba, scipy.special
import numpy as np, latent_kernels as lk
X, w = np.ones((1000, 8), np.float32), [.5, .5]
m, c = np.arange(16.).reshape(2, 8), np.ones((2, 8))
a = time.perf_counter(); lk.gaussian_e_step(X, w, m, c)
b = time.perf_counter(); lk.gaussian_e_step(X, w, m, c)
c = time.perf_counter(); print(b - a, c - b)
"""


def _measure(
    benchmark: Any, code: str, ops: tuple[str, ...], rounds: int, environment: dict[str, str]
) -> str:
    """Run `code` in new processes; record the seconds that it prints, and return their medians as
    text.
    """
    found: list[list[float]] = []

    def call() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        found.append([float(x) for x in done.stdout.split()])

    benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1 if rounds > 1 else 0)
    texts = []
    for op, seconds in zip(ops, zip(*found[-rounds:], strict=True), strict=True):
        harness.record(op, seconds)
        texts.append(f"{op} {1e3 * statistics.median(seconds):.3g} ms")
    return ", ".join(texts)


def test_import(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Time `import latent_kernels` after `import torch`."""
    found = _measure(benchmark, IMPORT, ("import latent_kernels",), 3, {})
    with capsys.disabled():
        print("\n" + found)


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_mixture_first_call(
    benchmark: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, state: str
) -> None:
    """Time an E-step without numba's cache on disk, and with it; then a second in that process."""
    rounds, cache = (1 if state == "cold" else 3), {"NUMBA_CACHE_DIR": str(tmp_path)}
    ops = tuple(f"mixture {n} call, {state} cache" for n in ("first", "second"))
    found = _measure(benchmark, FIRST_CALL, ops, rounds, cache)
    with capsys.disabled():
        print("\n" + found)
