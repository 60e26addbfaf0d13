"""Unrolled soft-thresholding on the CPU, in C++ (csrc/lista.hpp)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor
Tape = _core.ListaTape | None


def plan(tensors: Tensors, choices: Choices) -> _core.ListaPlan:
    """Return the call for these parameters, which it reads at their addresses.

    Each call is given its x and initial codes.
    """
    x, weight, threshold, _, recurrent, _, step, _ = tensors
    n = weight.size(-1)
    flags = (  # csrc/lista.cpp, Plan
        choices.positive
        | (weight.dim() == 3) << 1
        | (recurrent is not None and recurrent.dim() == 3) << 2
        | (step is not None and step.dim() == 1) << 3
        | (threshold.dim() == 2) << 4
        | (threshold.dim() > 0 and threshold.size(-1) == n) << 5
    )
    code = 1 if x.dtype == torch.float64 else 0
    addresses = [_address(t) for t in tensors[1:-1]]
    return _core.ListaPlan(
        code, x.size(1), n, choices.layers, flags, addresses, choices.select or ()
    )


def _address(x: Tensor | None) -> int:
    """Return the address of a tensor, 0 for None.

    An empty tensor has no address but must differ from None: any other number serves.
    """
    return 0 if x is None else x.data_ptr() or 1


def forward(
    tensors: Tensors, choices: Choices, with_tape: bool = False, with_drive: bool = False
) -> tuple[Tensor, Tape]:
    """Return the codes and, where `with_tape`, what the backward pass needs of all layers' codes.

    Args:
        tensors: contiguous.
        choices: the options.
        with_tape: a backward pass will follow.
        with_drive: it will want the gradient of the steps.

    """
    x = tensors.x
    z = x.new_empty((x.size(0), tensors.components))
    addresses = _address(x), _address(tensors.initial), _address(z)
    tape = plan(tensors, choices).forward(
        torch.get_num_threads(), x.size(0), *addresses, with_tape, with_drive
    )
    return z, tape


def backward(
    tensors: Tensors, choices: Choices, tape: Tape, upstream: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients of the wanted tensors, in the order of `Tensors`.

    Without a tape the forward pass runs again.
    """
    x = tensors.x
    gradients = [
        torch.empty_like(t) if t is not None and w else None
        for t, w in zip(tensors, wanted, strict=True)
    ]
    plan(tensors, choices).backward(
        torch.get_num_threads(),
        x.size(0),
        _address(x),
        _address(tensors.initial),
        tape,
        _address(upstream),
        [_address(g) for g in gradients],
    )
    return gradients
