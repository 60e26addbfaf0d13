"""Bounds on the CPU, in C++ (csrc/bounds)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.bounds.problem import Gradients, Outputs, Problem
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES


def _problem(p: Problem) -> tuple[int, ...]:
    return TYPE_CODES[p.log_w.dtype], torch.get_num_threads(), *p.sizes, p.log_w.data_ptr()


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the bound of each row and the sums behind it; reference.py has the formulas."""
    assert outputs.bound is not None
    _core.bound_forward(*_problem(problem), outputs.bound.data_ptr(), outputs.sums.data_ptr())


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the normalised weights and VIMCO's signal, times the bound's gradient."""
    given, arguments = upstream.bound, _problem(problem)
    address = 0 if given is None else given.data_ptr()
    if gradients.log_w is not None:
        places = upstream.sums.data_ptr(), address, gradients.log_w.data_ptr()
        _core.bound_weights(*arguments, *places)
    if gradients.log_q is not None:
        _core.bound_signal(*arguments, address, gradients.log_q.data_ptr())
