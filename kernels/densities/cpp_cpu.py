"""The log-densities on the CPU, in C++ (csrc/densities/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # groups, samples, rows, cols
_DENSITIES = {"gaussian": 0, "bernoulli": 1}
_ABSENT = (0, 0, 0, 0)


def _problem(density: str, sizes: Sizes, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The arguments that forward and backward share."""
    places: tuple[int, ...] = ()
    for x in inputs:
        group, sample, row, _ = x.stride()
        places += (
            x.data_ptr(),
            group,
            sample if x.size(1) != 1 else 0,
            row if x.size(2) != 1 else 0,
        )
    if len(inputs) == 2:
        places += _ABSENT
    return (
        TYPE_CODES[inputs[0].dtype],
        torch.get_num_threads(),
        _DENSITIES[density],
        *sizes,
        *places,
    )


def forward(density: str, sizes: Sizes, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    """The log-density into `out`; see kernels/densities/reference.py."""
    _core.densities_forward(*_problem(density, sizes, inputs), out.data_ptr())


def backward(
    density: str,
    sizes: Sizes,
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    outputs: tuple[Tensor | None, ...],
) -> None:
    """The gradient of each input where `outputs` has a place for it."""
    places = [0 if x is None else x.data_ptr() for x in outputs]
    _core.densities_backward(
        *_problem(density, sizes, inputs),
        gradient.data_ptr(),
        *places,
        *(0 for _ in range(3 - len(places))),
    )
