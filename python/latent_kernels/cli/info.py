"""`latent-kernels info`: what is active on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.table import Table

from latent_kernels.cli.frame import Screen
from latent_kernels.kernels import _core, backends

_PACKAGES = ("numpy", "numba", "triton", "scikit-learn")


def info() -> None:
    """Show what is active: backends, SIMD width, threads, versions, GPU; why a backend is off."""
    screen = Screen()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = [(op, *(_used(op, device) for device in devices)) for op in backends.BACKENDS]
    if not screen.console.is_terminal:
        for name, value in _facts():
            print(f"{name}: {value}")
        for op, *used in rows:
            named = zip(devices, used, strict=True)
            print(f"op {op}: {'; '.join(f'{device.upper()} {name}' for device, name in named)}")
    else:
        table = Table(show_header=False, title="latent-kernels")
        for fact in _facts():
            table.add_row(*fact)
        backends_table = Table("op", *(f"on {d.upper()}" for d in devices), title="Backends")
        for row in rows:
            backends_table.add_row(*row)
        screen.say(table, backends_table)
    for problem in _problems(devices):
        screen.say(problem)


def _facts() -> list[tuple[str, str]]:
    facts = [("latent-kernels", version("latent-kernels")), ("Python", sys.version.split()[0])]
    facts.append(("torch", torch.__version__))  # it names the build, as 2.6.0+cu124
    facts += [(package, _version(package)) for package in _PACKAGES]
    return [
        *facts,
        ("SIMD builds this CPU runs", ", ".join(_core.simd_builds()) or "none"),
        ("SIMD build in use", _simd_build()),
        ("threads", str(torch.get_num_threads())),
        ("GPU", _gpu()),
        (backends.VARIABLE, os.environ.get(backends.VARIABLE) or "not set"),
    ]


def _simd_build() -> str:
    if backends.cpp_missing():
        return "none"
    return f"{_core.simd_build()}, {_core.simd_lanes()} float32 lanes"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return f"{', '.join(names)}; driver {_driver()}, CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    return f"none: torch (built for CUDA {torch.version.cuda}) finds no GPU"


def _driver() -> str:
    """Return the version of the GPU driver, which torch does not report."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "of unknown version"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "of unknown version"
    return found[0] if found else "of unknown version"


def _used(op: str, device: str) -> str:
    """Return the name of the backend that `op` uses on a device."""
    forced = backends.forced().get(op)
    if _refused(op, device):
        return f"{forced} (forced, cannot run)"
    return f"{backends.backend_name(op, torch.device(device))}{' (forced)' if forced else ''}"


def _refused(op: str, device: str) -> str | None:
    """Return why the backend forced for `op` cannot run on a device, or None."""
    try:
        backends.backend_name(op, torch.device(device))
    except RuntimeError as error:
        return str(error)
    return None


def _problems(devices: list[str]) -> list[str]:
    """Return one line for each cause, however many ops it affects."""
    off = {"C++": backends.cpp_missing(), "Triton": backends.triton_missing()}
    lines = [f"{name} is off: {why}" for name, why in off.items() if why]
    refused = [_refused(op, device) for op in backends.BACKENDS for device in devices]
    known = tuple(why for why in off.values() if why)
    return lines + [why for why in refused if why and not why.endswith(known)]
