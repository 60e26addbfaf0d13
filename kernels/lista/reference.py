"""Unrolled soft-thresholding in plain torch, differentiable by autograd: see README.md for the formulas."""

from __future__ import annotations

import torch

from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor


def shrink(u: Tensor, threshold: Tensor, *, positive: bool = False, select: int = 0) -> Tensor:
    """Soft-thresholding: sign(u) max(|u| - threshold, 0), or max(u - threshold, 0) where `positive`.

    Of entries beyond the threshold, those as large as the `select`-th largest of their row pass as they are. NaN passes.
    """
    size = u if positive else u.abs()
    active = ~(size <= threshold)
    z = u - threshold if positive else u - torch.sign(u) * threshold
    if select > 0:
        bound = size.detach().topk(min(select, u.size(-1))).values[..., -1:]
        z = torch.where(size >= bound, u, z)
    return torch.where(active, z, torch.zeros_like(u))


def encode(tensors: Tensors, choices: Choices) -> Tensor:
    """The codes z_T, [N, n]."""
    x, weight, threshold, bias, recurrent, dictionary, step, initial = tensors
    z = initial
    drive = None
    if dictionary is None:
        drive = x @ weight[0] if bias is None else x @ weight[0] + bias
    for t in range(choices.layers):

        def of_layer(parameter: Tensor, t: int = t) -> Tensor:
            return parameter[t if parameter.size(0) > 1 else 0]

        if dictionary is not None:
            u = (x if z is None else x - z @ dictionary) @ of_layer(weight)
        elif z is None or recurrent is None:
            u = drive
        else:
            u = drive + z @ of_layer(recurrent)
        if step is not None:
            u = of_layer(step) * u
        if z is not None and (dictionary is not None or step is not None):
            u = z + u
        select = choices.select[t] if choices.select is not None else 0
        z = shrink(u, of_layer(threshold), positive=choices.positive, select=select)
    assert z is not None
    return z
