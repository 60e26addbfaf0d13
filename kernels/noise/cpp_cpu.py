"""Noise on the CPU, in C++ (csrc/noise/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES

_FILLS = {"normal": _core.normal, "uniform": _core.uniform}


def fill(kind: str, out: torch.Tensor, seed: int, offset: int) -> None:
    """Fill contiguous `out` with elements offset, offset + 1, ... of the seed's `kind` ("normal"
    or "uniform").
    """
    _FILLS[kind](
        dtype=DTYPES[out.dtype],
        threads=torch.get_num_threads(),
        seed=seed,
        offset=offset,
        n=out.numel(),
        out=out.data_ptr(),
    )
