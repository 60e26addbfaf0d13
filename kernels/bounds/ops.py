"""Bounds as opaque ops, for everything but plain calls, on canonical shapes [groups, samples,
rows].
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory, row_dtype
from latent_kernels.kernels.op import call, define, fold, no_second_derivative, unfold

Tensor = torch.Tensor
Sizes = tuple[int, int, int]


def _sizes(log_w: Tensor) -> Sizes:
    return (log_w.size(0), log_w.size(1), log_w.size(2))


def _bound(log_w: Tensor, log_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """[G, S, N] -> the bound [G, N] and the sums behind it [G, 2, N]."""
    found = _bound_fake(log_w, log_q)
    backend("bounds", log_w.device).forward(_sizes(log_w), in_memory(log_w), *found)
    return found


def _bound_fake(log_w: Tensor, log_q: Tensor | None) -> tuple[Tensor, Tensor]:
    (groups, _, rows), dtype = log_w.shape, row_dtype(log_w.dtype)
    return log_w.new_empty((groups, rows), dtype=dtype), log_w.new_empty(
        (groups, 2, rows), dtype=dtype
    )


def _bound_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _bound_gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    found = call("bound_backward", *ctx.saved_tensors, gradient, needs)
    return tuple(g if need else None for g, need in zip(found, needs, strict=True))


def _backward(
    log_w: Tensor, sums: Tensor, gradient: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of log_w and log_q, [G, S, N]; empty where `needs` says no."""
    found = _backward_fake(log_w, sums, gradient, needs)
    kernels, memory = backend("bounds", log_w.device), in_memory(log_w)
    if needs[0]:
        kernels.weights(_sizes(log_w), memory, in_memory(sums), in_memory(gradient), found[0])
    if needs[1]:
        kernels.signal(_sizes(log_w), memory, in_memory(gradient), found[1])
    return found


def _backward_fake(
    log_w: Tensor, sums: Tensor, gradient: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    return log_w.new_empty(log_w.shape if needs[0] else (0,)), log_w.new_empty(
        log_w.shape if needs[1] else (0,)
    )


# --- vmap: the batch joins the groups -------------------------------------------------------------


def _bound_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    folded = (fold(x, dim, info.batch_size) for x, dim in zip(args, in_dims, strict=True))
    return tuple(unfold(x, info.batch_size) for x in call("bound", *folded)), (0, 0)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch, needs = info.batch_size, args[3]
    folded = (fold(x, dim, batch) for x, dim in zip(args[:3], in_dims[:3], strict=True))
    found = call("bound_backward", *folded, needs)
    unfolded = tuple(unfold(x, batch) if need else x for x, need in zip(found, needs, strict=True))
    return unfolded, tuple(0 if need else None for need in needs)


define(
    "bound(Tensor log_w, Tensor? log_q) -> (Tensor bound, Tensor sums)",
    _bound,
    fake=_bound_fake,
    vmap=_bound_vmap,
    setup=_bound_setup,
    gradients=_bound_gradients,
)
define(
    "bound_backward(Tensor log_w, Tensor sums, Tensor gradient, bool[] needs) -> (Tensor log_w, Tensor log_q)",
    _backward,
    fake=_backward_fake,
    vmap=_backward_vmap,
    gradients=no_second_derivative,
)
