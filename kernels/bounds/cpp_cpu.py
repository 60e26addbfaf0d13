"""Bounds on the CPU, in C++ (csrc/bounds/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.bounds.problem import Gradients, Outputs, Problem
from latent_kernels.kernels.extension import DTYPES


def _problem(problem: Problem) -> _core.BoundProblem:
    (groups, samples, rows), log_w, _ = problem
    return _core.BoundProblem(
        dtype=DTYPES[log_w.dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        log_w=log_w.data_ptr(),
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the bound of each row, and the sums; reference.py has the formulas."""
    bound, sums = outputs
    _core.bound_forward(
        _problem(problem),
        threads=torch.get_num_threads(),
        bound=None if bound is None else bound.data_ptr(),
        sums=sums.data_ptr(),
    )


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the normalised weights and VIMCO's signal, times the bound's gradient."""
    asked, threads = _problem(problem), torch.get_num_threads()
    gradient = None if upstream.bound is None else upstream.bound.data_ptr()
    if gradients.log_w is not None:
        sums, out = upstream.sums.data_ptr(), gradients.log_w.data_ptr()
        _core.bound_weights(asked, threads=threads, sums=sums, gradient=gradient, out=out)
    if gradients.log_q is not None:
        out = gradients.log_q.data_ptr()
        _core.bound_signal(asked, threads=threads, gradient=gradient, out=out)
