"""The log-densities on the CPU, in C++ (csrc/densities/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.densities.problem import (
    GaussianProblem,
    Gradients,
    Outputs,
    Problem,
    inputs_of,
)
from latent_kernels.kernels.noise.cpp_cpu import DTYPES

Tensor = torch.Tensor


def _operand(x: Tensor) -> _core.Operand:
    """Return address and strides of an input; a dimension of one repeats."""
    group, sample, row, _ = x.stride()
    return x.data_ptr(), group, sample if x.size(1) != 1 else 0, row if x.size(2) != 1 else 0


def _problem(problem: Problem) -> _core.DensityProblem:
    groups, samples, rows, cols = problem.sizes
    inputs, is_gaussian = inputs_of(problem), isinstance(problem, GaussianProblem)
    return _core.DensityProblem(
        density=_core.Density.gaussian if is_gaussian else _core.Density.bernoulli,
        dtype=DTYPES[inputs[0].dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        inputs=tuple([_operand(x) for x in inputs]),
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
