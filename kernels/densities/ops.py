"""The log-densities as opaque ops, for everything but plain calls: torch.compile, torch.func, fake
tensors.

One pair of ops for each density, over canonical shapes [groups, samples or 1, rows or 1, cols];
under vmap the batch joins the groups.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.library import call, define, fold, no_second_derivative, unfold

Tensor = torch.Tensor


def _sizes(inputs: tuple[Tensor, ...]) -> tuple[int, int, int, int]:
    samples = [x.size(1) for x in inputs if x.size(1) != 1]
    rows = [x.size(2) for x in inputs if x.size(2) != 1]
    return (
        inputs[0].size(0),
        samples[0] if samples else 1,
        rows[0] if rows else 1,
        inputs[0].size(3),
    )


def _fake(*inputs: Tensor) -> Tensor:
    return inputs[0].new_empty(_sizes(inputs)[:3], dtype=row_dtype(inputs[0].dtype))


def _backward_fake(gradient: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, needs = rest
    return tuple(
        x.new_empty(x.shape if need else (0,)) for x, need in zip(inputs, needs, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _vmap(name: str) -> Any:
    def rule(info: Any, in_dims: tuple[Any, ...], *inputs: Tensor) -> tuple[Any, Any]:
        folded = [fold(x, dim, info.batch_size) for x, dim in zip(inputs, in_dims, strict=True)]
        return unfold(call(name, *folded), info.batch_size), 0

    return rule


def _backward_vmap(name: str) -> Any:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        *tensors, needs = args
        folded = [
            fold(x, dim, info.batch_size) for x, dim in zip(tensors, in_dims[:-1], strict=True)
        ]
        results = call(name, *folded, needs)
        unfolded = tuple(
            unfold(x, info.batch_size) if need else x
            for x, need in zip(results, needs, strict=True)
        )
        return unfolded, tuple(0 if need else None for need in needs)

    return rule


def _define(density: str, inputs: str) -> None:
    """Registers <density>_log_prob and its backward pass; `inputs` as in a schema."""
    name = f"{density}_log_prob"
    backward_name = f"{name}_backward"

    def forward(*inputs: Tensor) -> Tensor:
        out = _fake(*inputs)
        placed = tuple(x.contiguous() for x in inputs)
        backend("densities", out.device).forward(density, _sizes(inputs), placed, out)
        return out

    def backward(gradient: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *inputs, needs = rest
        results = _backward_fake(gradient, *rest)
        placed = tuple(x.contiguous() for x in inputs)
        wanted = tuple(x if need else None for x, need in zip(results, needs, strict=True))
        kernels = backend("densities", gradient.device)
        kernels.backward(density, _sizes(placed), placed, gradient.contiguous(), wanted)
        return results

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad)
        results = call(backward_name, gradient, *ctx.saved_tensors, needs)
        return tuple(g if need else None for g, need in zip(results, needs, strict=True))

    define(
        f"{name}({inputs}) -> Tensor",
        forward,
        fake=_fake,
        vmap=_vmap(name),
        setup=_setup,
        gradients=gradients,
    )
    define(
        f"{backward_name}(Tensor gradient, {inputs}, bool[] needs) -> ({inputs})",
        backward,
        fake=_backward_fake,
        vmap=_backward_vmap(backward_name),
        gradients=no_second_derivative,
    )


_define("gaussian", "Tensor z, Tensor mean, Tensor logvar")
_define("bernoulli", "Tensor x, Tensor logits")
