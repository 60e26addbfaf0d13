"""Bounds on the CPU, in C++ (csrc/bounds/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import DTYPES

Tensor = torch.Tensor
Sizes = tuple[int, int, int]  # groups, samples, rows


def _problem(sizes: Sizes, log_w: Tensor) -> _core.BoundProblem:
    groups, samples, rows = sizes
    return _core.BoundProblem(
        dtype=DTYPES[log_w.dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        log_w=log_w.data_ptr(),
    )


def forward(sizes: Sizes, log_w: Tensor, out: Tensor, sums: Tensor) -> None:
    """The bound of each row and the sums behind it; see kernels/bounds/reference.py for the
    formulas.
    """
    _core.bound_forward(
        _problem(sizes, log_w),
        threads=torch.get_num_threads(),
        bound=out.data_ptr(),
        sums=sums.data_ptr(),
    )


def weights(
    sizes: Sizes, log_w: Tensor, sums: Tensor, gradient: Tensor | None, out: Tensor
) -> None:
    """The normalised weights, times `gradient` [groups, rows] where it is given."""
    _core.bound_weights(
        _problem(sizes, log_w),
        threads=torch.get_num_threads(),
        sums=sums.data_ptr(),
        gradient=None if gradient is None else gradient.data_ptr(),
        out=out.data_ptr(),
    )


def signal(sizes: Sizes, log_w: Tensor, gradient: Tensor, out: Tensor) -> None:
    """VIMCO's learning signal for each sample, times `gradient` [groups, rows]."""
    _core.bound_signal(
        _problem(sizes, log_w),
        threads=torch.get_num_threads(),
        gradient=gradient.data_ptr(),
        out=out.data_ptr(),
    )
