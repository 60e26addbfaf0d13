"""How Triton kernels are launched: options and tile sizes, in one place.

The sizes are a safe default chosen by counting (8 to 16 elements a thread, 16-byte accesses), not
yet tuned on a device. There is no autotuning: a first call compiles one kernel and nothing else.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Kernels say themselves where a product and a sum are fused (tl.fma), and nothing else is: noise
# stream v2 and bits equal to the CPU's rest on it.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}

TILE = 1024  # elements of one program; half as many in float64, which needs twice the registers
WANTED_PROGRAMS = (
    2048  # below this, samples are dealt to several programs; by shape alone, so bits do not change
)
_AS_IT_IS = nullcontext()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. triton.cdiv, which serves kernels too, takes microseconds."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def tile_shape(rows: int, cols: int, dtype: torch.dtype, *, small: bool = False) -> tuple[int, int]:
    """Rows and columns of one program's tile; a `small` one for kernels that need many registers an
    element.
    """
    tile = TILE // 2 if small or dtype == torch.float64 else TILE
    block_cols = min(tile, max(4, next_power_of_two(max(cols, 1))))
    return max(1, min(tile // block_cols, next_power_of_two(max(rows, 1)))), block_cols


@functools.cache
def _several_devices() -> bool:
    return torch.cuda.device_count() > 1


def on_device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """Make current the tensor's device, on which Triton launches; a lone one always is."""
    return torch.cuda.device(x.device) if x.is_cuda and _several_devices() else _AS_IT_IS
