"""Unrolled soft-thresholding for plain eager calls: an autograd.Function over the kernels."""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory
from latent_kernels.kernels.library import call
from latent_kernels.kernels.lista.problem import Choices, Tensors
from latent_kernels.kernels.lista.values import finite

Tensor = torch.Tensor


def memory(tensors: Tensors) -> Tensors:
    """Return the tensors as contiguous memory, without gradients."""
    return Tensors(*(None if t is None else in_memory(t) for t in tensors))  # type: ignore[arg-type]


def checked_memory(tensors: Tensors) -> Tensors:
    """Check the values of the parameters, and return the tensors as `memory` does."""
    found = memory(tensors)
    for name in ("weight", "bias", "recurrent", "dictionary", "step", "initial"):
        finite(name, getattr(found, name))
    finite("threshold", found.threshold, least=0)
    return found


def op_arguments(tensors: Tensors, choices: Choices) -> tuple[Any, ...]:
    """Return the arguments of the opaque op for these tensors and options."""
    select = None if choices.select is None else list(choices.select)
    return (*tensors, choices.layers, choices.positive, select)


class Lista(torch.autograd.Function):
    """The codes as a differentiable function of (*tensors, choices)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Return the codes; keep the non-zero codes of all layers for the backward pass."""
        tensors, choices = Tensors(*arguments[:-1]), arguments[-1]
        with_drive = ctx.needs_input_grad[Tensors._fields.index("step")]
        z: Tensor
        z, ctx.tape = backend("lista", tensors.x.device).forward(
            checked_memory(tensors), choices, True, with_drive
        )
        # The tensors themselves: second derivatives could not be refused for their memory alone.
        ctx.save_for_backward(*tensors)
        ctx.choices = choices
        return z

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return the gradients of the tensors that need one."""
        tensors, choices = Tensors(*ctx.saved_tensors), ctx.choices
        wanted = ctx.needs_input_grad[:-1]
        if torch.is_grad_enabled():  # create_graph=True: the op refuses second derivatives
            found = call("lista_backward", *op_arguments(tensors, choices), upstream, list(wanted))
            return (*(g if w else None for g, w in zip(found, wanted, strict=True)), None)
        kernels = backend("lista", upstream.device)
        found = kernels.backward(memory(tensors), choices, ctx.tape, in_memory(upstream), wanted)
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.tape = None  # torch frees its saved tensors here, too
        return (*found, None)


# The apply of the C++ base class. Function.apply first looks for transforms of torch.func, which
# `plain` has ruled out.
apply_lista: Any = super(torch.autograd.Function, Lista).apply
