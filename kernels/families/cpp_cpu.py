"""Samples of discrete families on the CPU, in C++ (csrc/families/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import DTYPES, seeds

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
    problem = _core.FamilyProblem(
        dtype=DTYPES[logits.dtype],
        groups=groups,
        samples=samples,
        cols=rows * cols,
        classes=classes,
        antithetic=antithetic,
        logits=logits.data_ptr(),
        seed=seeds(seed),
        offset=offset,
    )
    _core.families_sample(problem, threads=torch.get_num_threads(), z=z.data_ptr())
