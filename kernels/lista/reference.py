"""Unrolled soft-thresholding in plain torch, differentiable by autograd.

README.md has the formulas.
"""

from __future__ import annotations

import torch

from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor


def shrink(u: Tensor, threshold: Tensor, *, positive: bool = False, select: int = 0) -> Tensor:
    """Return sign(u) max(|u| - threshold, 0), or max(u - threshold, 0) where `positive`.

    Entries beyond the threshold that are at least as large as the `select`-th largest of their row
    are not reduced by it. NaN stays NaN.
    """
    size = u if positive else u.abs()
    active = ~(size <= threshold)
    z = u - threshold if positive else u - torch.sign(u) * threshold
    if select > 0:
        bound = size.detach().topk(min(select, u.size(-1))).values[..., -1:]
        z = torch.where(size >= bound, u, z)
    return torch.where(active, z, torch.zeros_like(u))


def encode(tensors: Tensors, choices: Choices) -> Tensor:
    """Return the codes z_T, [N, n]."""
    x, weight, threshold, bias, recurrent, dictionary, step, initial = tensors
    z = initial
    drive = x  # a placeholder: with a dictionary there is no x W + b
    if dictionary is None:
        drive = x @ weight if bias is None else x @ weight + bias
    for t in range(choices.layers):
        if dictionary is not None:
            u = (x if z is None else x - z @ dictionary) @ _of_layer(weight, 2, t)
        elif z is None or recurrent is None:
            u = drive
        else:
            u = drive + z @ _of_layer(recurrent, 2, t)
        if step is not None:
            u = _of_layer(step, 0, t) * u
        if z is not None and (dictionary is not None or step is not None):
            u = z + u
        select = choices.select[t] if choices.select is not None else 0
        z = shrink(u, _of_layer(threshold, 1, t), positive=choices.positive, select=select)
    assert z is not None  # there is at least one layer
    return z


def _of_layer(parameter: Tensor, dims: int, t: int) -> Tensor:
    """Return the parameter of layer t.

    A parameter has `dims` dimensions, and one more in front where each layer has its own.
    """
    return parameter[t] if parameter.dim() > dims else parameter


def forward(
    tensors: Tensors, choices: Choices, with_tape: bool = False, with_drive: bool = False
) -> tuple[Tensor, None]:
    """Return the codes, as the compiled kernels do, without a tape."""
    with torch.no_grad():
        return encode(tensors, choices), None


def backward(
    tensors: Tensors, choices: Choices, tape: None, upstream: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients of the wanted tensors, in the order of `Tensors`.

    The forward pass runs again, under autograd.
    """
    with torch.enable_grad():
        leaves = [
            t if t is None else t.detach().requires_grad_(w)
            for t, w in zip(tensors, wanted, strict=True)
        ]
        z = encode(Tensors(*leaves), choices)  # type: ignore[arg-type]
        inputs = [t for t in leaves if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(z, inputs, upstream, materialize_grads=True))
    return [next(found) if t is not None and t.requires_grad else None for t in leaves]
