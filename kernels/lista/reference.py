"""Unrolled soft-thresholding in plain torch, differentiable by autograd.

README.md has the formulas.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.lista.problem import Gradients, Outputs, Problem

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


def encode(problem: Problem) -> Tensor:
    """Return the codes z_T, [N, C]."""
    (rows, features, n), x, weight, threshold, bias, recurrent, dictionary, step, z = problem[:9]
    x, z = x.reshape(rows, features), None if z is None else z.reshape(rows, n)
    drive = x  # a placeholder: with a dictionary there is no x W + b
    if dictionary is None:
        drive = x @ weight if bias is None else x @ weight + bias
    for t in range(problem.layers):
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
        select = problem.select[t] if problem.select is not None else 0
        z = shrink(u, _of_layer(threshold, 1, t), positive=problem.positive, select=select)
    assert z is not None  # there is at least one layer
    return z


def _of_layer(parameter: Tensor, dims: int, t: int) -> Tensor:
    """Return the parameter of layer t.

    A parameter has `dims` dimensions, and one more in front where each layer has its own.
    """
    return parameter[t] if parameter.dim() > dims else parameter


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the codes, without a tape."""
    with torch.no_grad():
        outputs.z.copy_(encode(problem).reshape(outputs.z.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients. The forward pass runs again, under torch.func.

    An opaque op runs this where autograd is switched off, and torch.func is not.
    """
    wanted = {name: g for name, g in gradients._asdict().items() if g is not None}

    def codes(*leaves: Tensor) -> Tensor:
        inputs: Any = dict(zip(wanted, leaves, strict=True))
        return encode(problem._replace(**inputs))

    leaves = [getattr(problem, name).detach() for name in wanted]
    z, pullback, *_ = torch.func.vjp(codes, *leaves)
    found = pullback(upstream.z.reshape(z.shape))
    for gradient, value in zip(wanted.values(), found, strict=True):
        gradient.copy_(value)
