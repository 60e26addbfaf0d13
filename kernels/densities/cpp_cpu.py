"""The log-densities on the CPU, in C++ (csrc/densities/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import DTYPES

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # groups, samples, rows, cols
_DENSITIES = {
    "gaussian": _core.Density.gaussian,
    "bernoulli": _core.Density.bernoulli,
}


def _operand(x: Tensor) -> _core.Operand:
    """Return address and strides of an input; a dimension of one repeats."""
    group, sample, row, _ = x.stride()
    return x.data_ptr(), group, sample if x.size(1) != 1 else 0, row if x.size(2) != 1 else 0


def _problem(density: str, sizes: Sizes, inputs: tuple[Tensor, ...]) -> _core.DensityProblem:
    groups, samples, rows, cols = sizes
    return _core.DensityProblem(
        density=_DENSITIES[density],
        dtype=DTYPES[inputs[0].dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        inputs=tuple([_operand(x) for x in inputs]),
    )


def forward(density: str, sizes: Sizes, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    """The log-density into `out`; see kernels/densities/reference.py."""
    _core.densities_forward(
        _problem(density, sizes, inputs), threads=torch.get_num_threads(), out=out.data_ptr()
    )


def backward(
    density: str,
    sizes: Sizes,
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    outputs: tuple[Tensor | None, ...],
) -> None:
    """The gradient of each input where `outputs` has a place for it."""
    _core.densities_backward(
        _problem(density, sizes, inputs),
        threads=torch.get_num_threads(),
        gradient=gradient.data_ptr(),
        input_gradients=tuple([None if x is None else x.data_ptr() for x in outputs]),
    )
