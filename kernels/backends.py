"""The choice of an op's backend: by the tensors' device, unless LATENT_KERNELS_BACKEND forces one.

The variable is `reference`, for every op, or `op=backend,...` with the ops and backends of
`BACKENDS`. A forced backend that cannot run raises; the automatic choice falls back to the
reference.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from latent_kernels.kernels import _core

_PACKAGE = "latent_kernels.kernels"
VARIABLE = "LATENT_KERNELS_BACKEND"
BACKENDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("noise", "gaussian", "densities", "families", "relaxed", "score", "bounds"),
            "vector_quantize",
        ),
        ("cpp", "triton", "reference"),
    ),
    "lista": ("cpp", "reference"),
    "mixture": ("numba", "reference"),
    "lasso": ("cpp", "reference"),
    "omp": ("cpp", "reference"),
}
_MODULES = {
    "cpp": "cpp_cpu",
    "numba": "numba_cpu",
    "triton": "triton_gpu",
    "reference": "reference",
}


_remembered: list[Any] = []  # functions whose results depend on the choice, until `forget`


def remember(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the results of a function that depends on the choice of backends; a decorator."""
    cached = functools.lru_cache(maxsize=1024)(function)
    _remembered.append(cached)
    return cached


@functools.cache
def _module(op: str, backend: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{op}.{_MODULES[backend]}")


def interpreting() -> bool:
    """Return whether Triton runs in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def cpp_missing() -> str | None:
    """Return why the C++ kernels cannot run, or None where they can."""
    return None if _core.simd_builds() else "this processor lacks the instructions AVX2 and FMA"


@functools.cache
def triton_missing() -> str | None:
    """Return why Triton cannot be used, or None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not interpreting() and not torch.cuda.is_available():
        return "torch finds no GPU (TRITON_INTERPRET=1 runs Triton's interpreter)"
    return None


@functools.cache
def forced() -> dict[str, str]:
    """Return the backends that LATENT_KERNELS_BACKEND asks for, which is read once."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return {}
    if text == "reference":
        return dict.fromkeys(BACKENDS, "reference")
    choice = {}
    for item in text.split(","):
        op, _, backend = item.strip().partition("=")
        if op not in BACKENDS or backend not in BACKENDS[op]:
            known = ", ".join(f"{op}={{{','.join(names)}}}" for op, names in BACKENDS.items())
            raise ValueError(f"{VARIABLE} must be 'reference' or a list of {known}; got {text!r}")
        choice[op] = backend
    return choice


def _check_forced(op: str, backend: str, device: torch.device) -> None:
    missing = {"cpp": cpp_missing, "triton": triton_missing}.get(backend, lambda: None)()
    if missing is not None:
        raise RuntimeError(f"{VARIABLE} forces {op}={backend}, which cannot run: {missing}")
    if backend == "cpp" and device.type != "cpu":
        raise RuntimeError(
            f"{VARIABLE} forces {op}=cpp, which runs on CPU tensors; got a tensor on {device}"
        )
    if backend == "triton" and device.type == "cpu" and not interpreting():
        raise RuntimeError(
            f"{VARIABLE} forces {op}=triton, which runs on CUDA tensors; got a tensor on {device}"
        )


def backend_name(op: str, device: torch.device) -> str:
    """Return the name of the backend that `op` uses on `device`."""
    choice = forced()
    if op in choice:
        _check_forced(op, choice[op], device)
        return choice[op]
    if device.type == "cpu":
        first = BACKENDS[op][0]
        return "reference" if first == "cpp" and cpp_missing() is not None else first
    if device.type == "cuda" and "triton" in BACKENDS[op] and triton_missing() is None:
        return "triton"
    return "reference"


@functools.cache
def backend(op: str, device: torch.device) -> ModuleType:
    """Return the module of kernels that `op` uses on `device`."""
    return _module(op, backend_name(op, device))


@functools.cache
def function(op: str, name: str, device: torch.device) -> Callable[..., None]:
    """Return a function of the module of kernels that `op` uses on `device`.

    Nothing is recorded in a graph: autograd would record the reference, which is plain torch.
    """
    found: Callable[..., None] = getattr(backend(op, device), name)
    return torch.no_grad()(found) if backend_name(op, device) == "reference" else found


def reference(op: str, name: str) -> Callable[..., Any]:
    """Return a function of an op's reference, which torch may differentiate and compile."""
    _load_reference(op)
    folder: Any = sys.modules[f"{_PACKAGE}.{op}"]
    found: Callable[..., Any] = getattr(folder.reference, name)
    return found


def _load_reference(op: str) -> None:
    _module(op, "reference")


# torch.compile calls it as it traces, and does not trace into importlib.
_load_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forget() -> None:
    """Forget every choice, so that the environment is read again (for tests)."""
    for cached in (cpp_missing, triton_missing, forced, backend, function, *_remembered):
        cached.cache_clear()
