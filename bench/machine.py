"""The machine: its description, and the ceilings that a row is held against, measured in the same
run.

`python bench/machine.py` prints a name for a results file: the date, the time and the processor.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

COPY_ELEMENTS = 2**25  # float32: 128 MiB, several times the last-level cache
GEMM_SIDE = 2048


def cpu_model() -> str:
    """The processor's name, without the characters that only trademark lawyers read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.*)", text)
    name = found.group(1) if found else platform.processor() or platform.machine()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)|CPU|@.*", "", name)).strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, where nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def describe() -> dict[str, Any]:
    """What the figures depend on; pytest-benchmark saves it as machine_info."""
    from latent_kernels.kernels import _core

    packages = ("latent-kernels", "torch", "triton", "numba", "numpy", "pytest-benchmark")
    packages += ("scikit-learn", "daal4py")
    return {
        # pytest-benchmark compares these two with those of a saved run
        "cpu": {"brand_raw": cpu_model(), "count": os.cpu_count()},
        "machine": platform.machine(),
        "system": platform.system(),
        "python_version": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "node": "",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "threads": torch.get_num_threads(),
        "simd_build": _core.simd_build(),
        "simd_builds": _core.simd_builds(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in packages},
    }


def _best_seconds(call: Any, device: str, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def copy_bandwidth(threads: int, device: str) -> float:
    """Bytes a second, read and written, of the fastest of a few `copy_` of arrays beyond the
    caches.
    """
    torch.set_num_threads(threads)
    count = COPY_ELEMENTS * (8 if device == "cuda" else 1)
    source, target = torch.randn(count, device=device), torch.zeros(count, device=device)
    return 2 * 4 * count / _best_seconds(lambda: target.copy_(source), device, 20)


@functools.cache
def gemm_rate(threads: int, device: str, dtype: str) -> float:
    """Operations a second of a large matrix product: the ceiling of rows that compute more than
    they move.
    """
    torch.set_num_threads(threads)
    side = GEMM_SIDE * (4 if device == "cuda" else 1)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    a, b, out = (
        torch.randn(side, side, **kind),
        torch.randn(side, side, **kind),
        torch.empty(side, side, **kind),
    )
    return 2 * side**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device, 4)


def results_name() -> str:
    """The date, the time and the processor, as a file name."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{datetime.datetime.now():%Y-%m-%d-%H%M}-{cpu}"


if __name__ == "__main__":
    print(results_name())
