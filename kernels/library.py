"""Opaque ops: how a kernel reaches torch.compile, fake tensors, dispatch modes and torch.func.

`define` registers an op twice over: with torch.library, for everything that works through the
dispatcher, and as an autograd.Function with `setup_context` and a vmap rule, which torch.func wants
instead. `call` picks. Plain eager calls use neither, since either costs microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor

_library = torch.library.Library("latent_kernels", "FRAGMENT")
_functions: dict[str, Any] = {}


def call(name: str, *args: Any) -> Any:
    """Call an op, by the door that the present state of torch needs."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _functions[name].apply(*args)
    return getattr(torch.ops.latent_kernels, name)(*args)


def define(
    schema: str,
    implementation: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    gradients: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
) -> None:
    """Register an op.

    Args:
        schema: its torch.library schema, `name(...) -> ...`.
        implementation: runs it on real tensors of any device.
        fake: empty outputs of the right shape and dtype.
        vmap: (info, in_dims, *args) -> (outputs, out_dims), by way of `call`.
        gradients: (ctx, *output_gradients) -> a gradient or None for each input, by way of `call`;
            None where no input has a gradient.
        setup: (ctx, inputs, output) saves what `gradients` needs.

    """
    name = schema[: schema.index("(")]
    save, gradients = setup or _save_nothing, gradients or _no_gradient
    _library.define(schema)
    for key in ("CPU", "CUDA", "MPS", "XPU"):  # not Meta: that is the fake's
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"latent_kernels::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"latent_kernels::{name}", gradients, setup_context=save, lib=_library
    )
    torch.library.register_vmap(f"latent_kernels::{name}", vmap, lib=_library)
    _functions[name] = type(
        f"Transformed_{name}",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(getattr(torch.ops.latent_kernels, name)),
            "setup_context": staticmethod(lambda ctx, inputs, output: save(ctx, inputs, output)),
            "backward": staticmethod(gradients),
            "jvp": staticmethod(_no_forward_mode),
            "vmap": staticmethod(vmap),
        },
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_gradient(ctx: Any, *gradients: Any) -> tuple[None, ...]:
    return (None,) * len(ctx.needs_input_grad)


def _no_forward_mode(ctx: Any, *tangents: Any) -> Any:
    raise NotImplementedError(
        "latent_kernels: forward-mode derivatives (jvp, jacfwd, hessian) are not implemented"
    )


def no_second_derivative(ctx: Any, *gradients: Tensor) -> Any:
    """The `gradients` of an op that is itself a backward pass."""
    raise RuntimeError("latent_kernels: second derivatives of this op are not implemented")
