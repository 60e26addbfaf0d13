"""The Gaussian kernels on the CPU, in C++ (csrc/gaussian/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES, seeds
from latent_kernels.kernels.gaussian import scale_kl
from latent_kernels.kernels.gaussian.problem import (
    SOBOL,
    Gradients,
    Outputs,
    PathGradients,
    PathOutputs,
    PathProblem,
    Problem,
    Sizes,
)
from latent_kernels.kernels.noise.sobol import directions

Tensor = torch.Tensor


def _operand(x: Tensor, sizes: Sizes) -> _core.Operand:
    """Return address and strides of an input whose columns are contiguous."""
    if x.is_contiguous():
        return x.data_ptr(), sizes[2] * sizes[3], 0, sizes[3]
    return x.data_ptr(), x.stride(0) if x.dim() == 3 else 0, 0, x.stride(-2)


def _directions(sizes: Sizes, dependence: int) -> _core.Address:
    """Return the address of the direction numbers of Sobol' points, if those are wanted."""
    if dependence != SOBOL:
        return None
    return directions(sizes[3], torch.device("cpu")).data_ptr()


def _problem(problem: Problem) -> _core.GaussianProblem:
    sizes, mean, logvar, scale, prior_mean, prior_logvar, seed, offset, dependence = problem
    groups, samples, rows, cols = sizes
    return _core.GaussianProblem(
        dtype=DTYPES[mean.dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        mean=_operand(mean, sizes),
        logvar=None if logvar is None else _operand(logvar, sizes),
        scale=None if scale is None else _operand(scale, sizes),
        prior_mean=None if prior_mean is None else _operand(prior_mean, sizes),
        prior_logvar=None if prior_logvar is None else _operand(prior_logvar, sizes),
        seed=seeds(seed),
        offset=offset,
        dependence=dependence,
        directions=_directions(sizes, dependence),
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write z = mean + sigma eps, KL and log q(z); reference.py has the formulas."""
    z, kl, log_q = outputs
    _core.gaussian_forward(
        _problem(problem),
        threads=torch.get_num_threads(),
        z=None if z is None else z.data_ptr(),
        kl=None if kl is None else kl.data_ptr(),
        log_q=None if log_q is None else log_q.data_ptr(),
    )


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of the inputs."""
    z, kl, log_q = upstream
    mean, logvar, scale, prior_mean, prior_logvar = gradients
    _core.gaussian_backward(
        _problem(problem),
        threads=torch.get_num_threads(),
        z_gradient=None if z is None else z.data_ptr(),
        kl_gradient=None if kl is None else kl.data_ptr(),
        log_q_gradient=None if log_q is None else log_q.data_ptr(),
        mean_gradient=None if mean is None else mean.data_ptr(),
        logvar_gradient=None if logvar is None else logvar.data_ptr(),
        scale_gradient=None if scale is None else scale.data_ptr(),
        prior_mean_gradient=None if prior_mean is None else prior_mean.data_ptr(),
        prior_logvar_gradient=None if prior_logvar is None else prior_logvar.data_ptr(),
    )


def path_backward(problem: PathProblem, upstream: PathOutputs, gradients: PathGradients) -> None:
    """Write the gradient of z where log q depends on z alone."""
    log_q, z = upstream.log_q, gradients.z
    groups, samples, rows, cols = problem.sizes
    _core.gaussian_path_backward(
        _core.GaussianProblem(
            dtype=DTYPES[problem.logvar.dtype],
            groups=groups,
            samples=samples,
            rows=rows,
            cols=cols,
            mean=None,
            logvar=_operand(problem.logvar, problem.sizes),
            scale=None,
            prior_mean=None,
            prior_logvar=None,
            seed=seeds(problem.seed),
            offset=problem.offset,
            dependence=problem.dependence,
            directions=_directions(problem.sizes, problem.dependence),
        ),
        threads=torch.get_num_threads(),
        log_q_gradient=log_q.data_ptr(),
        z_gradient=None if z is None else z.data_ptr(),
    )


def _pairs(problem: scale_kl.Problem) -> _core.ScaleKlProblem:
    _, loc, scale, q_loc, q_scale = problem
    return _core.ScaleKlProblem(
        dtype=DTYPES[loc.dtype],
        n=loc.numel(),
        loc=loc.data_ptr(),
        scale=scale.data_ptr(),
        q_loc=q_loc.data_ptr(),
        q_scale=q_scale.data_ptr(),
    )


def scale_kl_forward(problem: scale_kl.Problem, outputs: scale_kl.Outputs) -> None:
    """Write the KL of each pair of Gaussians given by their scales."""
    threads, kl = torch.get_num_threads(), outputs.kl.data_ptr()
    _core.gaussian_scale_kl(_pairs(problem), threads=threads, kl=kl)


def scale_kl_backward(
    problem: scale_kl.Problem, upstream: scale_kl.Outputs, gradients: scale_kl.Gradients
) -> None:
    """Write the gradients of its inputs."""
    loc, scale, q_loc, q_scale = gradients
    _core.gaussian_scale_kl_backward(
        _pairs(problem),
        threads=torch.get_num_threads(),
        kl_gradient=upstream.kl.data_ptr(),
        loc_gradient=None if loc is None else loc.data_ptr(),
        scale_gradient=None if scale is None else scale.data_ptr(),
        q_loc_gradient=None if q_loc is None else q_loc.data_ptr(),
        q_scale_gradient=None if q_scale is None else q_scale.data_ptr(),
    )
