"""Dtypes and seeds in the form in which every `cpp_cpu.py` passes them to the C++ extension."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core

DTYPES = {
    torch.float32: _core.Dtype.float32,
    torch.float64: _core.Dtype.float64,
    torch.bfloat16: _core.Dtype.bfloat16,
    torch.float16: _core.Dtype.float16,
}


def seeds(seed: int | torch.Tensor) -> _core.Seeds:
    """Return the seed, or the address and stride of a tensor with one for each group."""
    if isinstance(seed, int):
        return seed
    return seed.data_ptr(), 1 if seed.numel() > 1 else 0
