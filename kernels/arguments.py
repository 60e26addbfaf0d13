"""The arguments of an op's opaque forms, and the sizes of its axes in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from latent_kernels.kernels.description import Description, Dims

Tensor = torch.Tensor


class Arguments(NamedTuple):
    """The arguments that an op's forward and backward passes both take."""

    tensors: tuple[Any, ...]
    seeds: tuple[Tensor, ...]  # one seed where the op has noise, else none
    free: tuple[int, ...]  # sizes of axes that no tensor has
    options: tuple[Any, ...]

    @property
    def first(self) -> Tensor:
        """Return the tensor whose device the outputs have."""
        first: Tensor = self.tensors[0]
        return first


def arguments_of(op: Description, args: Any) -> Arguments:
    seeds = len(op.inputs)
    free = seeds + op.seeded
    options = free + len(op.free)
    return Arguments(args[:seeds], args[seeds:free], args[free:options], args[options:])


def shapes_of(op: Description, given: Arguments) -> tuple[Any, ...]:
    """Return all that the sizes of axes depend on: the arguments of `dims_from` after the op."""
    shapes = tuple([None if x is None else x.shape for x in given.tensors])
    return shapes, given.free, op.absent(*given.options)


def dims_of(op: Description, given: Arguments) -> Dims:
    """Return the size of each axis: 1 only where no tensor has another size for it."""
    return dims_from(op, *shapes_of(op, given))


def dims_from(op: Description, shapes: Sequence[Any], free: Sequence[int], absent: str) -> Dims:
    """Return the size of each axis from the shapes of the tensors, None for one not given.

    An axis of tensors that are not given has size 1.
    """
    sizes: dict[str, int] = {"P": 2}
    for field, shape in zip(op.inputs, shapes, strict=True):
        if shape is None:
            continue
        axes = [axis for axis in field.axes if axis not in absent]
        for axis, size in zip(reversed(axes), reversed(shape), strict="*" not in axes):
            if axis not in sizes or size != 1:
                sizes[axis] = size
    sizes |= dict(zip(op.free, free, strict=True))
    return [() if axis in absent else (sizes.get(axis, 1),) for axis in op.axes]
