"""Compile the kernels, once for each dtype of the data, and keep them in numba's cache on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import config, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
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


def compiled(
    function: Callable[..., Any], dtype: np.dtype[Any], X: NDArray[Any], *arguments: Any
) -> Callable[..., Any]:
    """Return `function` compiled for (X, *arguments), for any strides of X, read-only or not.

    For one dtype of X and one that is computed in, callers always pass arguments of the same types,
    except that some may be None.
    """
    key = (function, dtype, X.dtype, tuple(argument is None for argument in arguments))
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
            "NUMBA_DISABLE_JIT is set, but these kernels run only compiled: unset it, or set "
            "LATENT_KERNELS_BACKEND=mixture=reference"
        )
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = (
        f"{function.__name__}_{_key(signature)}"  # part of the name of numba's file
    )
    named.__module__ = function.__module__
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(named)
    with contextlib.suppress(RuntimeError, OSError):  # there may be no place for the cache
        dispatcher._cache = _Cache(named)
    dispatcher.compile(signature)
    entry: Callable[..., Any] = dispatcher.overloads[signature].entry_point
    return entry  # the dispatcher would look for conversions of X at every call


def _key(signature: tuple[Any, ...]) -> str:
    """Return the name of one kernel for one signature and processor.

    Each has files of its own, because numba's index is read, changed and written without a lock: of
    two processes that compile for two signatures, one would overwrite the other's code.
    """
    processor = cpu_target.target_context.codegen().magic_tuple()
    return hashlib.sha256(repr((_fingerprint(), signature, processor)).encode()).hexdigest()[:12]


# --- the cache on disk ----------------------------------------------------------------------------

_Code: Any = CompileResultCacheImpl  # numba has no types for them
_Files: Any = FunctionCache


class _CheckedCode(_Code):  # type: ignore[misc]
    """Compiled code with a checksum, since LLVM ends the process where a byte is wrong."""

    def reduce(self, result: Any) -> tuple[bytes, bytes]:
        """Return (checksum, code) of a compiled function."""
        code = dumps(super().reduce(result))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context: Any, checked: tuple[bytes, bytes]) -> Any:
        """Return the compiled function."""
        checksum, code = checked
        if hashlib.sha256(code).digest() != checksum:
            raise ValueError("the file is damaged")
        return super().rebuild(target_context, pickle.loads(code))


class _Cache(_Files):  # type: ignore[misc]
    """numba's cache, in which a damaged file counts as missing and is replaced.

    Files are replaced whole, under one name for one content, so that any number of processes may
    find the damage and repair it at the same time.
    """

    _impl_class = _CheckedCode

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled function, or None, upon which numba compiles it and saves it."""
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # whatever pickle makes of the bytes
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Save a compiled function if that is possible; it works without, too."""
        with contextlib.suppress(Exception):
            try:
                super().save_overload(signature, result)
            except OSError:  # no space on the disk, or no right to write
                raise
            except Exception:  # the index is damaged, which is read before it is written
                self.flush()
                super().save_overload(signature, result)
