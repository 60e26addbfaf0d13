"""Compiling the spans: once for each dtype of the data, kept in numba's cache on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import types


@functools.cache
def _sources() -> str:
    """A fingerprint of every kernel: numba's cache would look at the file of the outermost function alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@functools.cache
def _compile(function: FunctionType, signature: tuple[Any, ...]) -> Callable[..., Any]:
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__name__}_{_sources()}"  # part of the name of numba's file
    named.__module__ = function.__module__
    return numba.njit(signature, nogil=True, cache=True, error_model="numpy")(named)  # type: ignore[no-any-return]


def compiled(function: Callable[..., Any], X: np.ndarray[Any, Any], *arguments: Any) -> Callable[..., Any]:
    """`function` compiled for data like X, of any strides and read-only or not, and for these other arguments."""
    data = types.Array(numba.from_dtype(X.dtype), 2, "A", readonly=True)
    signature = (data, *(numba.typeof(argument) for argument in arguments))
    return _compile(function, signature)  # type: ignore[arg-type]
