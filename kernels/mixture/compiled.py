"""Compiling the spans: once for each dtype of the data, kept in numba's cache on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba.core import config, types
from numpy.typing import NDArray


@functools.cache
def _sources() -> str:
    """A fingerprint of every kernel: numba's cache would look at the file of the outermost function
    alone.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_functions: dict[tuple[Any, ...], Callable[..., Any]] = {}
_lock = threading.RLock()
# A child must not be born while another thread compiles: numba's own lock would stay taken in it
# for ever.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def compiled(function: Callable[..., Any], X: NDArray[Any], *arguments: Any) -> Callable[..., Any]:
    """`function` compiled for (X, *arguments), whatever the strides of X and whether it is
    read-only or not.

    Callers pass arguments of the same types for the same dtype of X, but that some may be None.
    """
    key = (function, X.dtype, tuple(argument is None for argument in arguments))
    found = _functions.get(key)
    if found is None:
        with _lock:
            data = types.Array(numba.from_dtype(X.dtype), 2, "A", readonly=True)
            signature = (data, *map(numba.typeof, arguments))
            found = _functions[key] = _compile(function, signature)  # type: ignore[arg-type]
    return found


def _compile(function: FunctionType, signature: tuple[Any, ...]) -> Callable[..., Any]:
    if getattr(config, "DISABLE_JIT", False):
        raise RuntimeError(
            "NUMBA_DISABLE_JIT is set, and these kernels are no Python; LATENT_KERNELS_BACKEND=mixture=reference is"
        )
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__name__}_{_sources()}"  # part of the name of numba's file
    named.__module__ = function.__module__
    try:
        overload = _dispatcher(named, signature, cache=True).overloads[signature]
    except (
        RuntimeError,
        KeyError,
        OSError,
    ):  # nowhere to keep it, or a file that another process is writing
        overload = _dispatcher(named, signature, cache=False).overloads[signature]
    entry: Callable[..., Any] = overload.entry_point
    return entry  # the dispatcher would look for conversions of X at every call


def _dispatcher(function: FunctionType, signature: tuple[Any, ...], cache: bool) -> Any:
    return numba.njit(signature, nogil=True, cache=cache, error_model="numpy")(function)
