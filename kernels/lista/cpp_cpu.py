"""Unrolled soft-thresholding on the CPU, in C++ (csrc/lista.hpp)."""

from __future__ import annotations

import torch

from latent_kernels import _core
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor
Tape = _core.ListaTape | None


def _arguments(tensors: Tensors, choices: Choices) -> tuple[int, int, int, int, int, int, int, list[int]]:
    """What both passes begin with: type, threads, sizes, flags (csrc/lista.cpp, call_of), addresses."""
    x, weight, threshold, _, recurrent, _, step, _ = tensors
    n = weight.size(-1)
    flags = (
        choices.positive
        | (weight.dim() == 3) << 1
        | (recurrent is not None and recurrent.dim() == 3) << 2
        | (step is not None and step.dim() == 1) << 3
        | (threshold.dim() == 2) << 4
        | (threshold.dim() > 0 and threshold.size(-1) == n) << 5
    )
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    code = 1 if x.dtype == torch.float64 else 0
    return code, torch.get_num_threads(), x.size(0), x.size(1), n, choices.layers, flags, addresses


def _select(choices: Choices) -> tuple[Tensor | None, int]:
    """The counts as memory, and its address."""
    if choices.select is None:
        return None, 0
    counts = torch.tensor(choices.select, dtype=torch.int64)
    return counts, counts.data_ptr()


def forward(tensors: Tensors, choices: Choices, with_tape: bool) -> tuple[Tensor, Tape]:
    """The codes, and the supports and values of all layers' codes where a backward pass will want them."""
    z = torch.empty((tensors.x.size(0), tensors.components), dtype=tensors.x.dtype)
    counts, address = _select(choices)
    tape = _core.lista_forward(*_arguments(tensors, choices), address, z.data_ptr(), with_tape)
    return z, tape


def backward(
    tensors: Tensors, choices: Choices, tape: Tape, upstream: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the wanted tensors, in the order of `Tensors`. Without a tape the forward pass runs again."""
    gradients = [
        torch.empty_like(t) if t is not None and w else None for t, w in zip(tensors, wanted, strict=True)
    ]
    counts, address = _select(choices)
    addresses = [0 if g is None else g.data_ptr() for g in gradients]
    _core.lista_backward(*_arguments(tensors, choices), address, tape, upstream.data_ptr(), addresses)
    return gradients
