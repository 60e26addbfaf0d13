"""Bounds on the CPU, in C++ (csrc/bounds/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES

Tensor = torch.Tensor
Sizes = tuple[int, int, int]  # groups, samples, rows


def forward(sizes: Sizes, log_w: Tensor, out: Tensor, sums: Tensor) -> None:
    """The bound of each row and the sums behind it; see kernels/bounds/reference.py for the
    formulas.
    """
    code, threads = TYPE_CODES[log_w.dtype], torch.get_num_threads()
    _core.bound_forward(code, threads, *sizes, log_w.data_ptr(), out.data_ptr(), sums.data_ptr())


def weights(
    sizes: Sizes, log_w: Tensor, sums: Tensor, gradient: Tensor | None, out: Tensor
) -> None:
    """The normalised weights, times `gradient` [groups, rows] where it is given."""
    _core.bound_weights(
        TYPE_CODES[log_w.dtype],
        torch.get_num_threads(),
        *sizes,
        log_w.data_ptr(),
        sums.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        out.data_ptr(),
    )


def signal(sizes: Sizes, log_w: Tensor, gradient: Tensor, out: Tensor) -> None:
    """VIMCO's learning signal for each sample, times `gradient` [groups, rows]."""
    code, threads = TYPE_CODES[log_w.dtype], torch.get_num_threads()
    _core.bound_signal(code, threads, *sizes, log_w.data_ptr(), gradient.data_ptr(), out.data_ptr())
