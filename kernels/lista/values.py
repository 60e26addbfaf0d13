"""Checks of parameter values in one serial pass: a forked process has none of torch's threads."""

from __future__ import annotations

import math

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.backends import backend_name
from latent_kernels.kernels.extension import DTYPES

Tensor = torch.Tensor


def _least(x: Tensor) -> float:
    """Return the least value, infinity if there is none, NaN if a value is infinite or NaN."""
    if backend_name("lista", x.device) == "cpp":
        return float(_core.least_value(dtype=DTYPES[x.dtype], n=x.numel(), x=x.data_ptr()))
    if not x.numel():
        return math.inf
    low, high = map(float, torch.aminmax(x))
    return low if math.isfinite(low) and math.isfinite(high) else math.nan


def finite(name: str, x: Tensor | None, least: float | None = None) -> None:
    """Raise a ValueError where x is not finite, or has values below `least`.

    Args:
        name: the name of x in the error message.
        x: contiguous float32 or float64. On a GPU nothing is checked, since reading values would
        synchronize.
        least: the least value that is allowed.

    """
    if x is None or not x.is_cpu:
        return
    found = _least(x)
    if math.isnan(found):
        raise ValueError(f"{name} must be finite; got infinite values or NaN")
    if least is not None and found < least:
        raise ValueError(f"{name} must be >= {least}; got {found:.4g}")
