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


def _operand(x: Tensor, sizes: Sizes) -> _core.Operand:
    """Return address and strides of an input; a dimension of one repeats."""
    if not x.is_contiguous():
        group, sample, row, _ = x.stride()
        return x.data_ptr(), group, sample if x.size(1) != 1 else 0, row if x.size(2) != 1 else 0
    groups, samples, rows, cols = sizes
    count, row = x.numel(), cols or 1  # no stride of an axis that the input has is 0
    plane = (rows or 1) * row
    if count == groups * samples * rows * cols:
        return x.data_ptr(), samples * plane, plane, row
    return (x.data_ptr(), plane, 0, row) if count > groups * cols else (x.data_ptr(), row, 0, 0)


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
        inputs=tuple([_operand(x, sizes) for x in inputs]),
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
