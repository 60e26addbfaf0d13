"""The log-densities for plain calls: an autograd.Function straight over the kernels. It saves the
inputs.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory, row_dtype
from latent_kernels.kernels.library import call

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]


def _in_place(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x in its canonical shape, where it lies if a kernel can read it there: nothing repeats,
    columns contiguous.
    """
    if x.is_neg():
        x = x.resolve_neg()
    if x.is_contiguous():
        return x.view(shape)
    x = x.reshape(shape)
    strides = [stride for stride, size in zip(x.stride(), shape, strict=True) if size != 1]
    repeats = 0 in strides  # the gradient of what repeats is one for each repetition
    return x.contiguous() if repeats or (shape[-1] != 1 and x.stride(-1) != 1) else x


class LogDensity(torch.autograd.Function):
    """(density, sizes, canonical shapes, shape of the result), inputs -> the log-density."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: tuple[str, Sizes, list[tuple[int, ...]], tuple[int, ...]],
        *inputs: Tensor,
    ) -> Tensor:
        """The sum over columns."""
        density, sizes, shapes, shape = problem
        placed = tuple(_in_place(x, s) for x, s in zip(inputs, shapes, strict=True))
        first = inputs[0]
        out = first.new_empty(shape, dtype=row_dtype(first.dtype))
        backend("densities", first.device).forward(density, sizes, placed, out)
        ctx.save_for_backward(
            *inputs
        )  # not their copies, which second derivatives could not be refused for
        ctx.problem = density, sizes, shapes
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of the inputs."""
        density, sizes, shapes = ctx.problem
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: the op knows how to refuse second derivatives
            canonical = (x.reshape(s) for x, s in zip(inputs, shapes, strict=True))
            found = call(
                f"{density}_log_prob_backward", gradient.reshape(sizes[:3]), *canonical, list(needs)
            )
        else:
            placed = tuple(_in_place(x, s) for x, s in zip(inputs, shapes, strict=True))
            found = tuple(
                x.new_empty(x.shape) if need else None
                for x, need in zip(inputs, needs, strict=True)
            )
            backend("densities", gradient.device).backward(
                density, sizes, placed, in_memory(gradient), found
            )
        return None, *(
            g.view(x.shape) if n else None for g, x, n in zip(found, inputs, needs, strict=True)
        )


# The Function's own apply, past what Function.apply does in Python for torch.func, which `plain`
# has ruled out.
apply_log_density: Any = super(torch.autograd.Function, LogDensity).apply
