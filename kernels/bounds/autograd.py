"""Bounds for plain calls: an autograd.Function straight over the kernels."""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory, plain, row_dtype
from latent_kernels.kernels.op import call

Tensor = torch.Tensor


def canonical(log_w: Tensor) -> tuple[int, int, int]:
    """Log-weights [S, ...] as groups, samples and rows."""
    return 1, log_w.size(0), math.prod(log_w.shape[1:])


def run_bound(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The bound [...] of log-weights [S, ...], and the sums [2, ...] that backward needs beside
    them.
    """
    shape, dtype = log_w.shape[1:], row_dtype(log_w.dtype)
    value, sums = log_w.new_empty(shape, dtype=dtype), log_w.new_empty((2, *shape), dtype=dtype)
    backend("bounds", log_w.device).forward(canonical(log_w), in_memory(log_w), value, sums)
    return value, sums


def run_weights(log_w: Tensor, sums: Tensor, gradient: Tensor | None) -> Tensor:
    """The normalised weights [S, ...], times `gradient` [...] where it is given."""
    out = torch.empty_like(log_w, memory_format=torch.contiguous_format)
    given = None if gradient is None else in_memory(gradient)
    backend("bounds", log_w.device).weights(canonical(log_w), in_memory(log_w), sums, given, out)
    return out


class Bound(torch.autograd.Function):
    """(log_w, log_q or None) [S, ...] -> the bound [...]; log_q has VIMCO's gradient and is not
    read.
    """

    @staticmethod
    def forward(ctx: Any, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """The bound."""
        value, sums = run_bound(log_w)
        ctx.save_for_backward(log_w, sums)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The weights into log_w, the learning signal into log_q."""
        log_w, sums = ctx.saved_tensors
        needs = list(ctx.needs_input_grad)
        of_w = of_q = None
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: the op knows how to refuse second derivatives
            rows = (sums.reshape(1, 2, -1), gradient.reshape(1, -1))
            found = call("bound_backward", log_w.reshape(canonical(log_w)), *rows, needs)
            return tuple(
                x.reshape(log_w.shape) if need else None
                for x, need in zip(found, needs, strict=True)
            )
        if needs[0]:
            of_w = run_weights(log_w, sums, gradient)
        if needs[1]:
            of_q = torch.empty_like(log_w, memory_format=torch.contiguous_format)
            backend("bounds", log_w.device).signal(
                canonical(log_w), in_memory(log_w), in_memory(gradient), of_q
            )
        return of_w, of_q


# Function's own apply, past what Function.apply does in Python for torch.func, which `plain` has
# ruled out.
apply_bound: Any = super(torch.autograd.Function, Bound).apply


# --- without gradients, by either way to the kernels ----------------------------------------------


def bound_and_sums(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """As `run_bound`, also under torch's transformations."""
    log_w = log_w.detach()
    if plain(log_w):
        return run_bound(log_w)
    shape = log_w.shape[1:]
    value, sums = call("bound", log_w.reshape(canonical(log_w)), None)
    return value.reshape(shape), sums.reshape(2, *shape)


def weights(log_w: Tensor, sums: Tensor, gradient: Tensor | None = None) -> Tensor:
    """As `run_weights`, also under torch's transformations."""
    log_w = log_w.detach()
    if plain(log_w):
        return run_weights(log_w, sums, gradient)
    rows = torch.ones_like(sums[0]) if gradient is None else gradient
    given = (sums.reshape(1, 2, -1), rows.reshape(1, -1), [True, False])
    found: Tensor = call("bound_backward", log_w.reshape(canonical(log_w)), *given)[0]
    return found.reshape(log_w.shape)
