"""Vector quantization on the CPU, in C++ (csrc/vector_quantize/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES
from latent_kernels.kernels.vector_quantize.problem import (
    Assigned,
    AssignProblem,
    Gradients,
    Outputs,
    Problem,
)

Tensor = torch.Tensor


def _problem(
    problem: AssignProblem | Problem, codes: Tensor | None = None
) -> _core.QuantizeProblem:
    groups, rows, count, cols = problem.sizes
    return _core.QuantizeProblem(
        dtype=DTYPES[problem.z.dtype],
        groups=groups,
        rows=rows,
        codes=count,
        cols=cols,
        z=problem.z.data_ptr(),
        codebook=problem.codebook.data_ptr(),
        assigned=_address(codes),
    )


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def assign(problem: AssignProblem, outputs: Assigned) -> None:
    """Write the codes, their counts and their sums."""
    _core.quantize_assign(
        _problem(problem),
        threads=torch.get_num_threads(),
        codes=outputs.codes.data_ptr(),
        counts=outputs.counts.data_ptr(),
        sums=outputs.sums.data_ptr(),
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the codes' rows of the codebook and the squared distances to them."""
    _core.quantize_forward(
        _problem(problem, problem.codes),
        threads=torch.get_num_threads(),
        quantized=_address(outputs.quantized),
        commitment=_address(outputs.commitment),
        codebook_loss=_address(outputs.codebook_loss),
    )


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of z and of the codebook."""
    _core.quantize_backward(
        _problem(problem, problem.codes),
        threads=torch.get_num_threads(),
        quantized_gradient=_address(upstream.quantized),
        commitment_gradient=_address(upstream.commitment),
        codebook_loss_gradient=_address(upstream.codebook_loss),
        z_gradient=_address(gradients.z),
        codebook_gradient=_address(gradients.codebook),
    )
