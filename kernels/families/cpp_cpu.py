"""Samples of discrete families on the CPU, in C++ (csrc/families/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES, seeds
from latent_kernels.kernels.families.problem import Classes, Problem, Samples, classes_of


def sample(problem: Problem, outputs: Samples | Classes) -> bool:
    """Write samples into `z` by the rules of README.md; return whether all have probabilities."""
    (groups, _, samples, rows, cols, _), logits, seed, offset, antithetic = problem
    asked = _core.FamilyProblem(
        dtype=DTYPES[logits.dtype],
        groups=groups,
        samples=samples,
        cols=rows * cols,
        classes=classes_of(problem, outputs),
        antithetic=antithetic,
        logits=logits.data_ptr(),
        seed=seeds(seed),
        offset=offset,
    )
    return _core.families_sample(asked, threads=torch.get_num_threads(), z=outputs.z.data_ptr())
