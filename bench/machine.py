"""Describe the machine, and measure in the same run the ceilings that rows are compared with."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stand_in
from records import Environment

COPY_ELEMENTS = 2**25  # float32: 128 MiB, several times the last-level cache
GEMM_SIDE = 2048


def _processor() -> tuple[str, str]:
    """Return the processor's name without trademarks, and its family-model-stepping."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = dict(reversed(re.findall(r"^([^\t:\n]+?)\s*: (.*)$", text, re.MULTILINE)))
    name = facts.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", "", name)
    numbers = (facts.get(key, "") for key in ("cpu family", "model", "stepping"))
    return " ".join(name.split()), "-".join(filter(None, numbers))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """Return the first line that a command prints, or nothing if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


@functools.cache
def environment() -> Environment:
    """Describe everything that the results of this process depend on."""
    from latent_kernels.kernels import _core

    processor, model = _processor()
    build = _core.simd_build()
    return Environment(
        processor=processor,
        model=model,
        simd=build if build == _core.simd_builds()[-1] else build + stand_in.SUFFIX,
        torch_simd=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        date=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}",
        # results are written while a run goes on, and change nothing that was measured
        commit=_output("git", "rev-parse", "--short=12", "HEAD")
        + ("-dirty" if _output("git", "status", "--porcelain", ":/", ":!results") else ""),
        torch=_version("torch"),
        triton=_version("triton"),
        numba=_version("numba"),
        numpy=_version("numpy"),
        scikit_learn=_version("scikit-learn"),
    )


def _best_seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
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
    """Return the bytes a second, read and written, of the fastest of a few `copy_` of arrays
    beyond the caches.
    """
    torch.set_num_threads(threads)
    count = COPY_ELEMENTS * (8 if device == "cuda" else 1)
    source, target = torch.randn(count, device=device), torch.zeros(count, device=device)
    return 2 * 4 * count / _best_seconds(lambda: target.copy_(source), device, 20)


@functools.cache
def gemm_rate(threads: int, device: str, dtype: str) -> float:
    """Return the operations a second of a large matrix product: the ceiling of rows that compute
    more than they move.
    """
    torch.set_num_threads(threads)
    side = GEMM_SIDE * (4 if device == "cuda" else 1)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    a, b = (torch.randn(side, side, **kind) for _ in range(2))
    out = torch.empty(side, side, **kind)
    return 2 * side**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device, 4)


def file_name(where: Environment) -> str:
    """Return machine/date.csv."""
    device = "cuda" if where.gpu else "cpu"
    machine = re.sub(r"[^a-z0-9]+", "-", where.machine(device).lower()).strip("-")
    return f"{machine}/{where.date.replace(' ', '-').replace(':', '')}.csv"
