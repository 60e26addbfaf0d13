"""Checks of parameter values that are safe in forked processes: torch's threads are not used."""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor
_SERIAL = 32768  # torch sums fewer elements than this on the calling thread


def finite(name: str, x: Tensor | None, least: float | None = None) -> None:
    """Raise a ValueError where x is not finite, or has values below `least`.

    Args:
        name: the name of x in the error message.
        x: float32 or float64. On a GPU nothing is checked, since reading would wait.
        least: the least value that is allowed.

    """
    if x is None or not x.is_cpu or not x.numel():
        return
    serial = x.numel() < _SERIAL or torch.get_num_threads() == 1
    if least is None and serial and math.isfinite(x.sum().item()):
        return
    array = x.detach().numpy()
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite; got infinite values or NaN")
    if least is not None and low < least:
        raise ValueError(f"{name} must be >= {least}; got {low:.4g}")
