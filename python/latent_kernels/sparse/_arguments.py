"""Checks that the functions for sparse codes share, and NumPy's arrays beside tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latent_kernels import _checks

Tensor = torch.Tensor


def number(name: str, value: object) -> float:
    """Return a number >= 0 as a float."""
    try:
        found = _checks.as_float(value)
    except OverflowError:  # an int, perhaps one too long to print
        raise ValueError(
            f"{name} must be a number >= 0 in the range of float64; got an int beyond it"
        ) from None
    if found is None:
        raise TypeError(f"{name} must be a number >= 0; got {value!r}")
    if not found >= 0:
        raise ValueError(f"{name} must be a number >= 0; got {value}")
    return found


def check_shapes(x: Tensor, dictionary: Tensor) -> None:
    """Raise where the rows of x do not go with the dictionary."""
    if dictionary.dim() != 2 or dictionary.size(0) == 0 or dictionary.size(1) == 0:
        expected = "[n_components, n_features], neither of them 0"
        raise ValueError(f"dictionary must have shape {expected}; got {tuple(dictionary.shape)}")
    if x.size(-1) != dictionary.size(1):
        got = f"x {tuple(x.shape)} and dictionary {tuple(dictionary.shape)}"
        raise ValueError(f"x must have the dictionary's n_features as its last size; got {got}")


def as_tensor(x: Any) -> Any:
    """Return an array as a tensor, over its memory if it is writable; all else as it is.

    What is neither float32, float64 nor float16 becomes float64.
    """
    if not isinstance(x, np.ndarray):
        return x
    native = x.dtype.newbyteorder("=")
    dtype = native if native in (np.float32, np.float64, np.float16) else np.dtype(np.float64)
    usable = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x.astype(dtype, copy=not usable))
