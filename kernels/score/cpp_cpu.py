"""Score-function gradients on the CPU, in C++ (csrc/score/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES, seed_arguments
from latent_kernels.kernels.score.problem import Problem

Tensor = torch.Tensor

# csrc/score/problem.hpp, enums Family and Control
_FAMILIES = {"gaussian": 0, "bernoulli": 1, "antithetic": 2, "categorical": 3}
_CONTROLS = {"none": 0, "leave_one_out": 1, "optimal": 2}


def _pair(tensors: tuple[Tensor, ...] | None) -> tuple[int, int]:
    if tensors is None:
        return 0, 0
    return tensors[0].data_ptr(), tensors[1].data_ptr() if len(tensors) > 1 else 0


def gradient(
    problem: Problem,
    parameters: tuple[Tensor, ...],
    z: Tensor | None,
    seed: int | Tensor,
    offset: int,
    values: Tensor,
    baseline: Tensor | None,
    upstream: Tensor | None,
    gradients: tuple[Tensor, ...],
    variances: tuple[Tensor, ...] | None,
) -> bool:
    """Writes gradients and variances; see kernels/score/reference.py for shapes and formulas."""
    dtype = parameters[0].dtype
    return _core.score_gradient(
        TYPE_CODES[dtype],
        torch.get_num_threads(),
        _FAMILIES[problem.family],
        _CONTROLS[problem.control],
        *problem.sizes,
        problem.folds,
        problem.per_element,
        values.dtype == torch.float64 and dtype != torch.float64,
        *_pair(parameters),
        0 if z is None else z.data_ptr(),
        *seed_arguments(seed),
        offset,
        values.data_ptr(),
        0 if baseline is None else baseline.data_ptr(),
        baseline is not None and baseline.numel() == values.numel(),
        0 if upstream is None else upstream.data_ptr(),
        *_pair(gradients),
        *_pair(variances),
    )
