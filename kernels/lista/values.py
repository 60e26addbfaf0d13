"""Checks of parameters' values, without torch's threads, which a forked process does not have."""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor
_SERIAL = 32768  # elements below which torch sums on the calling thread


def finite(name: str, x: Tensor | None, least: float | None = None) -> None:
    """Raise a ValueError where x is not finite, or has values below `least`.

    Args:
        name: of x, in the error.
        x: float32 or float64 memory without gradient. Not read on a GPU, which would be waited for.
        least: the smallest value that x may have.

    """
    if x is None or not x.is_cpu or not x.numel():
        return
    serial = x.numel() < _SERIAL or torch.get_num_threads() == 1
    if least is None and serial and math.isfinite(x.sum().item()):
        return
    array = x.numpy()
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite; got infinite values or NaN")
    if least is not None and low < least:
        raise ValueError(f"{name} must be >= {least}; got {low:.4g}")
