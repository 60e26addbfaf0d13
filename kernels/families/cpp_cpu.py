"""Samples of discrete families on the CPU, in C++ (csrc/families/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES, seed_arguments

Tensor = torch.Tensor


def sample(
    sizes: tuple[int, int, int, int, int],
    logits: Tensor,
    antithetic: bool,
    seed: int | Tensor,
    offset: int,
    z: Tensor,
) -> None:
    """Writes samples into `z`; see kernels/families/reference.py for shapes and rules."""
    groups, samples, rows, cols, classes = sizes
    _core.families_sample(
        TYPE_CODES[logits.dtype],
        torch.get_num_threads(),
        groups,
        samples,
        rows * cols,
        classes,
        antithetic,
        logits.data_ptr(),
        *seed_arguments(seed),
        offset,
        z.data_ptr(),
    )
