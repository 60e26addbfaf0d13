"""The Gaussian kernels on the CPU, in C++ (csrc/gaussian/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES, seed_arguments

Tensor = torch.Tensor
_ABSENT = (0, 0, 0)


def _rows(x: Tensor | None, rows: int, cols: int) -> tuple[int, int, int]:
    """Address, group stride and row stride of an input whose columns are contiguous."""
    if x is None:
        return _ABSENT
    if x.is_contiguous():
        return x.data_ptr(), rows * cols, cols
    return x.data_ptr(), x.stride(0) if x.dim() == 3 else 0, x.stride(-2)


def forward(
    sizes: tuple[int, int, int, int],
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
    z: Tensor | None,
    kl: Tensor | None,
    log_q: Tensor | None,
) -> None:
    """z = mean + sigma eps into `z`, KL into `kl`, log q(z) into `log_q`; reference.py has the
    formulas.
    """
    rows, cols = sizes[2:]
    _core.gaussian_forward(
        TYPE_CODES[mean.dtype],
        torch.get_num_threads(),
        *sizes,
        *_rows(mean, rows, cols),
        *_rows(spread, rows, cols),
        *_rows(prior_mean, rows, cols),
        *_rows(prior_logvar, rows, cols),
        spread_is_scale,
        *seed_arguments(seed),
        offset,
        0 if z is None else z.data_ptr(),
        0 if kl is None else kl.data_ptr(),
        0 if log_q is None else log_q.data_ptr(),
    )


def backward(
    sizes: tuple[int, int, int, int],
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
    z_gradient: Tensor | None,
    kl_gradient: Tensor | None,
    log_q_gradient: Tensor | None,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """The gradients of mean, spread, prior_mean and prior_logvar, each where `outputs` has a place
    for it.
    """
    rows, cols = sizes[2:]
    _core.gaussian_backward(
        TYPE_CODES[mean.dtype],
        torch.get_num_threads(),
        *sizes,
        *_rows(mean, rows, cols),
        *_rows(spread, rows, cols),
        *_rows(prior_mean, rows, cols),
        *_rows(prior_logvar, rows, cols),
        spread_is_scale,
        *seed_arguments(seed),
        offset,
        0 if z_gradient is None else z_gradient.data_ptr(),
        0 if kl_gradient is None else kl_gradient.data_ptr(),
        0 if log_q_gradient is None else log_q_gradient.data_ptr(),
        *(0 if x is None else x.data_ptr() for x in outputs),
    )


def path_backward(
    sizes: tuple[int, int, int, int],
    logvar: Tensor,
    seed: int | Tensor,
    offset: int,
    log_q_gradient: Tensor,
    z_gradient: Tensor,
) -> None:
    """The gradient of z where log q depends on z alone, -eps / sigma of log q's, into `z_gradient`."""
    _core.gaussian_path_backward(
        TYPE_CODES[logvar.dtype],
        torch.get_num_threads(),
        *sizes,
        *_rows(logvar, sizes[2], sizes[3]),
        *seed_arguments(seed),
        offset,
        log_q_gradient.data_ptr(),
        z_gradient.data_ptr(),
    )
