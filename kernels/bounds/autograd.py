"""Bounds for plain calls: an autograd.Function straight over the kernels."""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels._backends import backend
from latent_kernels._eager import in_memory, row_dtype
from latent_kernels._ops import call

Tensor = torch.Tensor


def run_bound(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bound of log-weights [S, ...], and what backward needs beside them: `top` and `total`, [...] each."""
    shape = log_w.shape[1:]
    found = log_w.new_empty((3, *shape), dtype=row_dtype(log_w.dtype))
    sizes = (1, log_w.size(0), math.prod(shape))
    value, top, total = found[0], found[1], found[2]
    backend("bounds", log_w.device).forward(sizes, in_memory(log_w), value, top, total)
    return value, top, total


def run_weights(log_w: Tensor, top: Tensor, total: Tensor, gradient: Tensor | None) -> Tensor:
    """The normalised weights [S, ...], times `gradient` [...] where it is given."""
    out = torch.empty_like(log_w, memory_format=torch.contiguous_format)
    sizes = (1, log_w.size(0), math.prod(log_w.shape[1:]))
    given = None if gradient is None else in_memory(gradient)
    backend("bounds", log_w.device).weights(sizes, in_memory(log_w), top, total, given, out)
    return out


class Bound(torch.autograd.Function):
    """(log_w, log_q or None) [S, ...] -> the bound [...]; log_q has VIMCO's gradient and is not read."""

    @staticmethod
    def forward(ctx: Any, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """The bound."""
        value, top, total = run_bound(log_w)
        ctx.save_for_backward(log_w, top, total)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The weights into log_w, the learning signal into log_q."""
        log_w, top, total = ctx.saved_tensors
        needs = list(ctx.needs_input_grad)
        of_w = of_q = None
        if torch.is_grad_enabled():  # create_graph=True: the op knows how to refuse second derivatives
            sizes = (1, log_w.size(0), math.prod(log_w.shape[1:]))
            rows = (x.reshape(1, sizes[2]) for x in (top, total, gradient))
            found = call("bound_backward", log_w.reshape(sizes), *rows, needs)
            return tuple(x.reshape(log_w.shape) if need else None for x, need in zip(found, needs, strict=True))
        if needs[0]:
            of_w = run_weights(log_w, top, total, gradient)
        if needs[1]:
            of_q = torch.empty_like(log_w, memory_format=torch.contiguous_format)
            sizes = (1, log_w.size(0), math.prod(log_w.shape[1:]))
            backend("bounds", log_w.device).signal(sizes, in_memory(log_w), in_memory(gradient), of_q)
        return of_w, of_q


# Function's own apply, past what Function.apply does in Python for torch.func, which `plain` has ruled out.
apply_bound: Any = super(torch.autograd.Function, Bound).apply
