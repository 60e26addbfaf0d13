"""The arguments of an op's opaque forms: what they are, and how long its axes are in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from latent_kernels.kernels.description import Description, Dims

Tensor = torch.Tensor


class Arguments(NamedTuple):
    """The arguments that an op's forward and backward passes both take."""

    tensors: tuple[Any, ...]
    seeds: tuple[Tensor, ...]  # one where the op is seeded, else none
    free: tuple[int, ...]  # sizes of axes that no tensor has
    options: tuple[Any, ...]

    @property
    def first(self) -> Tensor:
        """The tensor that the outputs' device follows."""
        first: Tensor = self.tensors[0]
        return first


def arguments_of(op: Description, args: Any) -> Arguments:
    seeds = len(op.inputs)
    free = seeds + op.seeded
    options = free + len(op.free)
    return Arguments(args[:seeds], args[seeds:free], args[free:options], args[options:])


def dims_of(op: Description, given: Arguments) -> Dims:
    """Return the size of each axis; where some tensors have 1 for it, that of the others.

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
