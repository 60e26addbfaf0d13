"""Unrolled soft-thresholding on the CPU, in C++ (csrc/lista/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor
Tape = _core.ListaTape | None


def plan(tensors: Tensors, choices: Choices) -> _core.ListaPlan:
    """A call for these parameters, by their addresses; x and initial are given to each call."""
    x, weight, threshold, _, recurrent, _, step, _ = tensors
    n = weight.size(-1)
    flags = (  # csrc/lista/bindings.cpp, Plan
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
    """Where a tensor lies; 0 for none. An empty one lies nowhere, yet is given: any other address
    will do.
    """
    return 0 if x is None else x.data_ptr() or 1


def forward(
    tensors: Tensors, choices: Choices, with_tape: bool = False, with_drive: bool = False
) -> tuple[Tensor, Tape]:
    """The codes, and the supports and values of all layers' codes where a backward pass will want
    them.

    `with_drive`: that pass will want the gradient of steps.
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
    """Gradients of the wanted tensors, in the order of `Tensors`. Without a tape the forward pass
    runs again.
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
