"""The direction numbers of Sobol' points, which every backend reads."""

from __future__ import annotations

import functools

import torch
from torch.quasirandom import SobolEngine

LARGEST_BITS = 16  # for up to 2^16 points; csrc/noise/sobol.hpp has the same number
LARGEST_COLS: int = SobolEngine.MAXDIM


def bits_of(points: int) -> int:
    """Return the number of direction numbers that 2^bits points need."""
    return max(points, 1).bit_length() - 1


@functools.cache  # for good: the C++ kernels hold addresses alone
def directions(cols: int, device: torch.device) -> torch.Tensor:
    """Return the direction numbers of each column, [LARGEST_BITS, cols], as the bits of int32.

    torch has those of Joe and Kuo, "Constructing Sobol' sequences with better two-dimensional
    projections" (2008), for 21,201 columns, as numbers of 30 bits.
    """
    table = SobolEngine(max(cols, 1)).sobolstate[:cols, :LARGEST_BITS].T << 2
    return torch.where(table < 2**31, table, table - 2**32).to(device, torch.int32).contiguous()
