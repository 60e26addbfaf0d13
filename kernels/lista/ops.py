"""Unrolled soft-thresholding as opaque ops, for torch.compile, torch.func and fake tensors.

Shapes are those of `Tensors`. The results of an op must be tensors whose shapes are known
beforehand. Lists of non-zeros are not, so nothing is kept between the passes, and the backward op
runs the forward pass again.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory
from latent_kernels.kernels.library import call, define, no_second_derivative
from latent_kernels.kernels.lista.autograd import checked_memory, memory
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor
_COUNT = len(Tensors._fields)
# Which of the tensors have a row for each sample.
_ROWS = tuple(name in ("x", "initial") for name in Tensors._fields)
_SCHEMA = (
    "Tensor x, Tensor weight, Tensor threshold, Tensor? bias, Tensor? recurrent, Tensor? "
    "dictionary, Tensor? step, Tensor? initial, SymInt layers, bool positive, SymInt[]? select"
)
_GRADIENTS = ", ".join(["Tensor"] * _COUNT)


def _unpacked(arguments: tuple[Any, ...]) -> tuple[Tensors, Choices]:
    layers, positive, select = arguments[_COUNT : _COUNT + 3]
    return Tensors(*arguments[:_COUNT]), Choices(
        layers, positive, None if select is None else tuple(select)
    )


def _encode(*arguments: Any) -> Tensor:
    tensors, choices = _unpacked(arguments)
    z: Tensor = backend("lista", tensors.x.device).forward(checked_memory(tensors), choices)[0]
    return z


def _encode_fake(*arguments: Any) -> Tensor:
    tensors, _ = _unpacked(arguments)
    return tensors.x.new_empty((tensors.x.size(0), tensors.components))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_COUNT])
    ctx.choices = inputs[_COUNT:]


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:_COUNT])
    found = call("lista_backward", *ctx.saved_tensors, *ctx.choices, upstream, wanted)
    return (*(g if w else None for g, w in zip(found, wanted, strict=True)), None, None, None)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return a gradient for each tensor, an empty one where it is not wanted."""
    tensors, choices = _unpacked(arguments)
    upstream, wanted = arguments[-2:]
    kernels = backend("lista", upstream.device)
    found = kernels.backward(memory(tensors), choices, None, in_memory(upstream), tuple(wanted))
    return tuple(upstream.new_empty(0) if g is None else g for g in found)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, _ = _unpacked(arguments)
    upstream, wanted = arguments[-2:]
    return tuple(
        upstream.new_empty(t.shape if w and t is not None else (0,))
        for t, w in zip(tensors, wanted, strict=True)
    )


# --- vmap -----------------------------------------------------------------------------------------


def _at(x: Any, dim: int | None, i: int) -> Any:
    return x if dim is None else x.select(dim, i)


def _folded(x: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Return the rows of all slices as one matrix."""
    if x is None:
        return None
    x = x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.reshape(batch * x.size(1), x.size(2))


def _only_rows(in_dims: tuple[Any, ...]) -> bool:
    """Return whether the slices differ in their rows only, and share all parameters."""
    return all(rows or dim is None for dim, rows in zip(in_dims[:_COUNT], _ROWS, strict=True))


def _slices(info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> list[list[Any]]:
    """Return the arguments of each slice."""
    # vmap gives a list of dimensions for an argument that is a list of numbers.
    dims = [None if isinstance(dim, (list, tuple)) else dim for dim in in_dims]
    return [
        [_at(x, dim, i) for x, dim in zip(arguments, dims, strict=True)]
        for i in range(info.batch_size)
    ]


def _encode_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    batch = info.batch_size
    if not _only_rows(in_dims):
        return torch.stack(
            [call("lista_encode", *one) for one in _slices(info, in_dims, arguments)]
        ), 0
    folded = [
        _folded(x, dim, batch) if rows else x
        for x, dim, rows in zip(arguments[:_COUNT], in_dims[:_COUNT], _ROWS, strict=True)
    ]
    z = call("lista_encode", *folded, *arguments[_COUNT:])
    return z.reshape(batch, z.size(0) // max(batch, 1), z.size(1)), 0


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """Run slice by slice, since each has its own gradients even of parameters that all share."""
    found = [call("lista_backward", *one) for one in _slices(info, in_dims, arguments)]
    return tuple(torch.stack(gradients) for gradients in zip(*found, strict=True)), (0,) * _COUNT


define(
    f"lista_encode({_SCHEMA}) -> Tensor",
    _encode,
    fake=_encode_fake,
    vmap=_encode_vmap,
    setup=_save,
    gradients=_gradients,
)
define(
    f"lista_backward({_SCHEMA}, Tensor upstream, bool[] wanted) -> ({_GRADIENTS})",
    _backward,
    fake=_backward_fake,
    vmap=_backward_vmap,
    gradients=no_second_derivative,
)
