"""Compiling the spans: once for each dtype of the data, kept in numba's cache on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba.core import types
from numpy.typing import NDArray


@functools.cache
def _sources() -> str:
    """A fingerprint of every kernel: numba's cache would look at the file of the outermost function alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_functions: dict[tuple[Any, ...], Callable[..., Any]] = {}


def compiled(function: Callable[..., Any], X: NDArray[Any], *arguments: Any) -> Callable[..., Any]:
    """`function` compiled for (X, *arguments), whatever the strides of X and whether it is read-only or not.

    The dtype of X and which arguments are None are taken to settle the types of all arguments.
    """
    key = (function, X.dtype, tuple(argument is None for argument in arguments))
    if key not in _functions:
        data = types.Array(numba.from_dtype(X.dtype), 2, "A", readonly=True)
        _functions[key] = _compile(function, (data, *map(numba.typeof, arguments)))  # type: ignore[arg-type]
    return _functions[key]


def _compile(function: FunctionType, signature: tuple[Any, ...]) -> Callable[..., Any]:
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__name__}_{_sources()}"  # part of the name of numba's file
    named.__module__ = function.__module__
    dispatcher = numba.njit(signature, nogil=True, cache=True, error_model="numpy")(named)
    (overload,) = dispatcher.overloads.values()
    entry: Callable[..., Any] = overload.entry_point  # type: ignore[attr-defined]
    return entry  # the dispatcher would look for conversions of X at every call
