"""Opaque ops: how a kernel reaches torch.compile, fake tensors, dispatch modes and torch.func.

`define` registers an op twice over: with torch.library, for everything that works through the
dispatcher, and as an autograd.Function with `setup_context`, a vmap rule and forward mode, which
torch.func wants instead, and forward mode outside it. `call` picks. Plain eager calls use neither,
since either costs microseconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from latent_kernels.kernels.eager import transformed

Tensor = torch.Tensor

_library = torch.library.Library("latent_kernels", "FRAGMENT")
_functions: dict[str, Any] = {}
_formulas: dict[str, Callable[..., Any]] = {}


def listed(found: Any) -> Any:
    """Return what an opaque op returned as a sequence, also where that is a single tensor."""
    return (found,) if isinstance(found, Tensor) else found


def call(name: str, *args: Any) -> Any:
    """Call an op, by the registration that the present state of torch needs."""
    if name in _formulas and _needs_formula(torch.compiler.is_compiling()):
        fixed = listed(call_fixed(name, *args))
        by_formula = zip(fixed, _formulas[name](*args), strict=True)
        found = tuple(x if own is None else own for x, own in by_formula)
        return found[0] if len(found) == 1 else found
    return _call(name, args)


def call_fixed(name: str, *args: Any) -> Any:
    """Call an op for outputs without derivatives of any kind."""
    return _call(name, [x.detach() if isinstance(x, Tensor) else x for x in args])


def _call(name: str, args: Sequence[Any]) -> Any:
    if not torch.compiler.is_compiling() and transformed():
        return _functions[name].apply(*args)
    return getattr(torch.ops.latent_kernels, name)(*args)


def _needs_formula(compiling: bool) -> bool:
    """Return whether torch differentiates in a way that only torch's own operations support.

    These ways are torch.func's differentiation and forward mode within torch.compile, which ignores
    our rules; and forward mode within forward mode, where the outer tangents of an
    autograd.Function are silently dropped.
    """
    functorch = torch._C._functorch
    levels = [level.key() for level in functorch.get_interpreter_stack() or ()]
    if compiling:
        _guard_forward_mode()
        return forward_ad._current_level >= 0 or functorch.TransformType.Grad in levels
    return levels.count(functorch.TransformType.Jvp) > 1


def _guard_forward_mode() -> None:
    """Make torch.compile trace again where forward mode begins or ends around the traced code.

    For the levels of torch.func it does so by itself.
    """
    if torch._guards.TracingContext.try_get() is not None:
        from torch._dynamo.guards import GuardBuilder, install_guard  # loaded, where it traces
        from torch._dynamo.source import GlobalStateSource

        install_guard(GlobalStateSource().make_guard(GuardBuilder.DUAL_LEVEL))


# torch.compile calls this while it traces, under the levels of that moment.
_needs_formula._dynamo_marked_constant = True  # type: ignore[attr-defined]


def define(
    schema: str,
    implementation: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    gradients: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
    tangents: Callable[..., Any] | None = None,
    formula: Callable[..., Any] | None = None,
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
        tangents: (args, tangents) -> a tangent or None for each output; None where no input has a
            tangent.
        formula: the outputs in plain torch, None for one without derivatives; None for no formula.

    """
    name = schema[: schema.index("(")]
    save, gradients = setup or _save_nothing, gradients or _no_gradient

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, inputs=inputs, output=output)
        if tangents is not None:
            ctx.save_for_forward(*hold(ctx, inputs))

    def backward(ctx: Any, *above: Any) -> Any:
        return over_batch(functools.partial(gradients, ctx), above)

    def jvp(ctx: Any, *of_inputs: Any) -> Any:
        assert tangents is not None
        args = held(ctx)
        return over_batch(lambda *of_inputs: tangents(args, of_inputs), of_inputs)

    if formula is not None:
        _formulas[name] = formula
    _library.define(schema)
    for key in ("CPU", "CUDA", "MPS", "XPU"):  # not Meta: that is the fake's
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"latent_kernels::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"latent_kernels::{name}", backward, setup_context=save, lib=_library
    )
    torch.library.register_vmap(f"latent_kernels::{name}", vmap, lib=_library)
    _functions[name] = type(
        f"Transformed_{name}",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(getattr(torch.ops.latent_kernels, name)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(jvp),
            "vmap": staticmethod(vmap),
        },
    )


def over_batch(function: Callable[..., Any], tensors: Sequence[Any]) -> Any:
    """Return function(*tensors), called by torch.func.vmap where tensors have a batch of torch's
    older vmap.

    The older vmap ignores our rules; torch uses it for `is_grads_batched` and `vectorize`.
    """
    if torch.compiler.is_compiling():
        return function(*tensors)
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    dims = tuple(0 if isinstance(x, Tensor) and is_batched(x) else None for x in tensors)
    if not any(dim == 0 for dim in dims):
        return function(*tensors)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    if level > 1:
        raise NotImplementedError(
            "latent_kernels: a batched backward pass within another is not implemented"
        )
    whole = [
        x if dim is None else torch._remove_batch_dim(x, level, 1, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]
    found: Any = None

    def tensors_of(*given: Any) -> tuple[Tensor, ...]:
        nonlocal found
        found = function(*given)
        return tuple(x for x in listed(found) if x is not None)

    batches = iter(torch.func.vmap(tensors_of, dims)(*whole))
    batched = [
        None if x is None else torch._add_batch_dim(next(batches), 0, level) for x in listed(found)
    ]
    return batched[0] if isinstance(found, Tensor) else tuple(batched)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_gradient(ctx: Any, *gradients: Any) -> tuple[None, ...]:
    return (None,) * len(ctx.needs_input_grad)


def hold(ctx: Any, args: Sequence[Any]) -> list[Tensor]:
    """Keep a call's arguments for `held`; return the tensors among them, to be saved."""
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in args]
    return [x for x in args if isinstance(x, Tensor)]


def held(ctx: Any) -> list[Any]:
    """Return the arguments of a call from those that `hold` kept and the tensors that were
    saved.
    """
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]
