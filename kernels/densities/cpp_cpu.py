"""The log-densities on the CPU, in C++ (csrc/densities/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.densities.problem import (
    GaussianProblem,
    Gradients,
    Outputs,
    Problem,
    Sizes,
)
from latent_kernels.kernels.extension import DTYPES

Tensor = torch.Tensor
_GAUSSIAN, _BERNOULLI = _core.Density.gaussian, _core.Density.bernoulli


def _operands(inputs: list[Tensor], sizes: Sizes) -> tuple[_core.Operand, ...]:
    """Return address and strides of inputs; a dimension of one repeats."""
    groups, samples, rows, cols = sizes
    row = cols or 1  # no stride of an axis that the input has is 0
    plane = (rows or 1) * row
    found: list[_core.Operand] = []
    for x in inputs:
        if not x.is_contiguous():
            group, sample, own, _ = x.stride()
            sample, own = sample if x.size(1) != 1 else 0, own if x.size(2) != 1 else 0
            found.append((x.data_ptr(), group, sample, own))
        elif x.numel() == groups * samples * rows * cols:
            found.append((x.data_ptr(), samples * plane, plane, row))
        elif x.numel() > groups * cols:
            found.append((x.data_ptr(), plane, 0, row))
        else:
            found.append((x.data_ptr(), row, 0, 0))
    return tuple(found)


def _problem(problem: Problem) -> _core.DensityProblem:
    sizes, *inputs = problem
    groups, samples, rows, cols = sizes
    return _core.DensityProblem(
        density=_GAUSSIAN if isinstance(problem, GaussianProblem) else _BERNOULLI,
        dtype=DTYPES[inputs[0].dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        inputs=_operands(inputs, sizes),
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the log-density of each row; reference.py has the formulas."""
    _core.densities_forward(
        _problem(problem), threads=torch.get_num_threads(), out=outputs.log_prob.data_ptr()
    )


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of the inputs."""
    _core.densities_backward(
        _problem(problem),
        threads=torch.get_num_threads(),
        gradient=upstream.log_prob.data_ptr(),
        input_gradients=tuple([None if x is None else x.data_ptr() for x in gradients]),
    )
