"""Noise on the CPU, in C++ (csrc/noise/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core

# csrc/common.hpp, enum Type
TYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def seed_arguments(seed: int | torch.Tensor) -> tuple[int, int, int]:
    """The seed, or the address and stride of one for each group, as the C++ kernels take it."""
    if isinstance(seed, int):
        return seed, 0, 0
    return 0, seed.data_ptr(), 1 if seed.numel() > 1 else 0


def fill(kind: str, out: torch.Tensor, seed: int, offset: int) -> None:
    """Fills contiguous `out` with elements offset, offset + 1, ... of the seed's `kind` ("normal"
    or "uniform").
    """
    function = _core.normal if kind == "normal" else _core.uniform
    function(
        TYPE_CODES[out.dtype], torch.get_num_threads(), seed, offset, out.numel(), out.data_ptr()
    )
