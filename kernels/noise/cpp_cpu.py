"""Noise on the CPU, in C++ (csrc/noise/)."""

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
    """Return the seed, or address and stride of one for each group, as the C++ kernels take it."""
    if isinstance(seed, int):
        return seed
    return seed.data_ptr(), 1 if seed.numel() > 1 else 0


def fill(kind: str, out: torch.Tensor, seed: int, offset: int) -> None:
    """Fills contiguous `out` with elements offset, offset + 1, ... of the seed's `kind` ("normal"
    or "uniform").
    """
    function = _core.normal if kind == "normal" else _core.uniform
    function(
        dtype=DTYPES[out.dtype],
        threads=torch.get_num_threads(),
        seed=seed,
        offset=offset,
        n=out.numel(),
        out=out.data_ptr(),
    )
