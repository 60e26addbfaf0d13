"""The arguments of an op's opaque forms, and the sizes of its axes in them."""

from __future__ import annotations

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


def dims_of(op: Description, given: Arguments) -> Dims:
    """Return the size of each axis: 1 only where no tensor has another size for it.

    An axis of tensors that are not given has size 1.
    """
    absent = op.absent(*given.options)
    sizes: dict[str, int] = {"P": 2}
    for field, x in zip(op.inputs, given.tensors, strict=True):
        if x is None:
            continue
        axes = [axis for axis in field.axes if axis not in absent]
        for axis, size in zip(reversed(axes), reversed(x.shape), strict="*" not in axes):
            if axis not in sizes or size != 1:
                sizes[axis] = size
    sizes |= dict(zip(op.free, given.free, strict=True))
    return [() if axis in absent else (sizes.get(axis, 1),) for axis in op.axes]
