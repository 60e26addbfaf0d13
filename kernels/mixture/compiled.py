"""Compile the kernels, once for each dtype of the data, and keep them in numba's cache on disk."""

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
def _fingerprint() -> str:
    """Return a fingerprint of the sources of all kernels.

    numba's own cache would look at the file of the outermost function alone.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_functions: dict[tuple[Any, ...], Callable[..., Any]] = {}
_lock = threading.RLock()
# The process must not fork while another thread compiles: numba's own lock would stay taken in the
# child for ever.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def compiled(function: Callable[..., Any], X: NDArray[Any], *arguments: Any) -> Callable[..., Any]:
    """Return `function` compiled for (X, *arguments), for any strides of X, read-only or not.

    For one dtype of X, callers always pass arguments of the same types, except that some may be
    None.
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
            "NUMBA_DISABLE_JIT is set, and these kernels are no Python; "
            "LATENT_KERNELS_BACKEND=mixture=reference is"
        )
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__name__}_{_fingerprint()}"  # part of the name of numba's file
    named.__module__ = function.__module__
    try:
        overload = _dispatcher(named, signature, cache=True).overloads[signature]
    except (RuntimeError, KeyError, OSError):
        # There is no place for the cache, or another process is writing the file.
        overload = _dispatcher(named, signature, cache=False).overloads[signature]
    entry: Callable[..., Any] = overload.entry_point
    return entry  # the dispatcher would look for conversions of X at every call


def _dispatcher(function: FunctionType, signature: tuple[Any, ...], cache: bool) -> Any:
    return numba.njit(signature, nogil=True, cache=cache, error_model="numpy")(function)
