"""Unrolled soft-thresholding on the CPU, in C++ (csrc/lista/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor
Tape = _core.ListaTape | None


def plan(tensors: Tensors, choices: Choices) -> _core.ListaPlan:
    """Return the call for these parameters, which it reads at their addresses.

    Each call is given its x and initial codes.
    """
    x, weight, threshold, bias, recurrent, dictionary, step, _ = tensors
    n = weight.size(-1)
    return _core.ListaPlan(
        dtype=DTYPES[x.dtype],
        features=x.size(1),
        components=n,
        layers=choices.layers,
        positive=choices.positive,
        layered_weight=weight.dim() == 3,
        layered_recurrent=recurrent is not None and recurrent.dim() == 3,
        layered_step=step is not None and step.dim() == 1,
        layered_threshold=threshold.dim() == 2,
        wide_threshold=threshold.dim() > 0 and threshold.size(-1) == n,
        weight=_address(weight),
        threshold=_address(threshold),
        bias=_address(bias),
        recurrent=_address(recurrent),
        dictionary=_address(dictionary),
        step=_address(step),
        select=choices.select or (),
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
    tape = _core.lista_forward(
        plan(tensors, choices),
        threads=torch.get_num_threads(),
        rows=x.size(0),
        x=_address(x),
        initial=_address(tensors.initial),
        out=_address(z),
        with_tape=with_tape,
        with_drive=with_drive,
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
    addresses = {name: _address(g) for name, g in zip(Tensors._fields, gradients, strict=True)}
    _core.lista_backward(
        plan(tensors, choices),
        threads=torch.get_num_threads(),
        rows=x.size(0),
        x=_address(x),
        initial=_address(tensors.initial),
        tape=tape,
        upstream=_address(upstream),
        gradients=_core.ListaGradients(**addresses),
    )
    return gradients
