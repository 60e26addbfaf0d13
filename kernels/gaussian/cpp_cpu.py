"""The Gaussian kernels on the CPU, in C++ (csrc/gaussian/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import DTYPES, seeds

Tensor = torch.Tensor


def _operand(x: Tensor | None, rows: int, cols: int) -> _core.Operand:
    """Return address and strides of an input whose columns are contiguous."""
    if x is None:
        return None
    if x.is_contiguous():
        return x.data_ptr(), rows * cols, 0, cols
    return x.data_ptr(), x.stride(0) if x.dim() == 3 else 0, 0, x.stride(-2)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _problem(
    sizes: tuple[int, int, int, int],
    mean: Tensor | None,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
) -> _core.GaussianProblem:
    groups, samples, rows, cols = sizes
    given = _operand(spread, rows, cols)
    return _core.GaussianProblem(
        dtype=DTYPES[spread.dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        mean=_operand(mean, rows, cols),
        logvar=None if spread_is_scale else given,
        scale=given if spread_is_scale else None,
        prior_mean=_operand(prior_mean, rows, cols),
        prior_logvar=_operand(prior_logvar, rows, cols),
        seed=seeds(seed),
        offset=offset,
    )


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
    _core.gaussian_forward(
        _problem(sizes, mean, spread, prior_mean, prior_logvar, spread_is_scale, seed, offset),
        threads=torch.get_num_threads(),
        z=_address(z),
        kl=_address(kl),
        log_q=_address(log_q),
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
    d_mean, d_spread, d_prior_mean, d_prior_logvar = outputs
    _core.gaussian_backward(
        _problem(sizes, mean, spread, prior_mean, prior_logvar, spread_is_scale, seed, offset),
        threads=torch.get_num_threads(),
        z_gradient=_address(z_gradient),
        kl_gradient=_address(kl_gradient),
        log_q_gradient=_address(log_q_gradient),
        mean_gradient=_address(d_mean),
        logvar_gradient=None if spread_is_scale else _address(d_spread),
        scale_gradient=_address(d_spread) if spread_is_scale else None,
        prior_mean_gradient=_address(d_prior_mean),
        prior_logvar_gradient=_address(d_prior_logvar),
    )


def path_backward(
    sizes: tuple[int, int, int, int],
    logvar: Tensor,
    seed: int | Tensor,
    offset: int,
    log_q_gradient: Tensor,
    z_gradient: Tensor,
) -> None:
    """Write the gradient of z where log q depends on z alone: -eps / sigma times log q's."""
    _core.gaussian_path_backward(
        _problem(sizes, None, logvar, None, None, False, seed, offset),
        threads=torch.get_num_threads(),
        log_q_gradient=log_q_gradient.data_ptr(),
        z_gradient=z_gradient.data_ptr(),
    )
