"""The description of an op: named tuples, from which `op.py` makes every way to its kernels.

Three named tuples in kernels/<op>/problem.py describe an op:

- its problem, which is what backends are handed: `sizes`; the tensors, each annotated with the
  axes of its canonical shape, as in `Annotated[Tensor, "GND"]`; `seed` and `offset`, where the op
  draws noise; the options. An input that is `FORWARD_ONLY` is None in the backward pass.
- its outputs: tensors annotated with their axes and, where it is not that of the input that they
  are like (the first, if none is named), their dtype. Outputs that are `KEPT` come last, are there
  for the backward pass, and have no gradient. One that is the `Same` as another is None in the
  forward pass, and that other in the backward pass. After them may come a `tape` (`Tape`); it is
  None where no backward pass follows, or none of a plain call.
- its gradients: tensors with the names of the inputs that have one.

Axes are single letters; a digit is an axis of that length. "G" are groups, calls side by side with
a seed each: torch.vmap makes them of a batch, or rows "N" where an op has no groups. In canonical
shapes every axis is one dimension, but for those of `OPTIONAL`, which may be missing. A caller has
no groups, and any number of dimensions, none too, for each of the other axes. So a list with one
tuple of sizes for each of the op's axes (`Dims`) tells every shape, the caller's or the canonical
one, but for inputs whose axes begin with "*": any dimensions, which the backends look at. Backends
offer

    forward(problem, outputs)               fills the outputs; one that is not wanted is None
    backward(problem, upstream, gradients)  fills the gradients; `upstream` has the fields of the
                                            outputs: their gradients, and the kept outputs as such
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from latent_kernels.kernels.backends import function
from latent_kernels.kernels.eager import contiguous

Tensor = torch.Tensor
Dims = Sequence[tuple[int, ...]]  # the dimensions that a caller's shapes have for each axis
Inputs = Sequence[Any]  # tensors of a problem, None for those not given
Flags = Sequence[bool]

KEPT = "kept"
FORWARD_ONLY = "forward only"
OPTIONAL = "PEK"


class Same(NamedTuple):
    """The mark of a kept output that is another output, by whose name it goes there."""

    name: str


class Field(NamedTuple):
    """The description of one tensor of an op."""

    name: str
    axes: str
    optional: bool
    kept: bool  # an output that backward reads
    same: str | None  # the name of the output that a kept one is
    forward_only: bool  # an input that backward does not read, and that is not saved for it
    dtype: Callable[[torch.dtype], torch.dtype] | None  # from that of the input it is like
    shape: Callable[[Dims], Any]  # from a caller's dimensions; None for axes with "*"


Fields = tuple[Field, ...]


class Tape:
    """What a plain forward pass keeps for its backward pass besides tensors."""

    def __init__(self, needs: Flags):
        self.needs = needs  # which inputs need gradients
        self.held: Any = None


def _shape(axes: str, order: str) -> Callable[[Dims], Any]:
    """Return the function that joins the dimensions of `axes`, which come in `order`."""
    if axes.startswith("*"):
        return lambda dims: None
    place = order.find(axes[-1])
    if len(axes) == 1:
        return lambda dims: dims[place]

    before = _shape(axes[:-1], order)
    if axes[-1].isdigit():
        length = (int(axes[-1]),)
        return lambda dims: before(dims) + length
    return lambda dims: before(dims) + dims[place]


def _tensors(cls: Any, order: str) -> Fields:
    fields = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            axes, *marks = hint.__metadata__
            optional = type(None) in typing.get_args(hint.__origin__)
            dtype = next((mark for mark in marks if callable(mark)), None)
            same = next((mark.name for mark in marks if isinstance(mark, Same)), None)
            fields.append(
                Field(
                    name,
                    axes,
                    optional,
                    KEPT in marks,
                    same,
                    FORWARD_ONLY in marks,
                    dtype,
                    _shape(axes, order),
                )
            )
    return tuple(fields)


class Description:
    """The named tuples of an op, and what both ways to its kernels do with them.

    Args:
        name: the opaque op's name.
        kernels: the folder of the backends.
        axes: all axes, in the order of `problem.sizes` and of lists of dimensions; "G" comes first.
        problem, outputs, gradients: the named tuples that describe the op; None for no gradients.
        forward, backward: names of the backends' functions, or functions for any device.
        place: how a plain call hands an input that is not contiguous to the backends: from the
            tensor and its canonical shape (where a call gives it) to memory that they can read.
            They get contiguous ones in the caller's shape.
        detached: hand backends tensors without gradients, where they do more than read addresses.
        directly: from the inputs and the options to the outputs, for plain calls, where the forward
            pass is one operation of torch: a problem and memory to fill would cost more.
        like: the input whose dtype the outputs follow; the first if none is named.
        formula: the name of a function of the reference, (problem, wanted) -> outputs, in plain
            torch over canonical shapes; `wanted` is the outputs with True or None in place of
            tensors. Second and forward-mode derivatives come from it (`formula.py`); without one
            they raise.
        absent: from the options to the axes of `OPTIONAL` that a call does not have.

    """

    def __init__(
        self,
        name: str,
        kernels: str,
        axes: str,
        problem: Any,
        outputs: Any,
        gradients: Any = None,
        *,
        forward: str | Callable[..., None] = "forward",
        backward: str | Callable[..., None] = "backward",
        place: Callable[..., Tensor] = contiguous,
        detached: bool = False,
        directly: Callable[..., tuple[Tensor, ...]] | None = None,
        like: str | None = None,
        formula: str | None = None,
        absent: Callable[..., str] = lambda *options: OPTIONAL,
    ):
        self.name, self.kernels, self.axes = name, kernels, axes
        self.problem, self.outputs, self.gradients = problem, outputs, gradients
        self.inputs, self.results = _tensors(problem, axes), _tensors(outputs, axes)
        learned = () if gradients is None else gradients._fields
        names = [field.name for field in self.inputs]
        self._check(names, learned)
        self.like = names.index(like) if like else 0
        self.learned_at = [i for i, field in enumerate(self.inputs) if field.name in learned]
        at = {place: i for i, place in enumerate(self.learned_at)}
        self._gradient_at = [at.get(place) for place in range(len(self.inputs))]
        results = [field.name for field in self.results]
        # The outputs that the backward pass is given, and which are outputs of their own.
        self.kept_at = [results.index(f.same or f.name) for f in self.results if f.kept]
        self.all_wanted = tuple(field.same is None for field in self.results)
        self.seeded = "seed" in problem._fields
        self.taped = "tape" in outputs._fields
        self._forward_only = [i for i, field in enumerate(self.inputs) if field.forward_only]
        known = "P" + "".join(field.axes for field in self.inputs)  # P has a length of 2
        self.free = "".join(axis for axis in axes if axis not in known)
        self.forward, self.backward, self.place, self.absent = forward, backward, place, absent
        self.detached, self.directly, self.formula = detached, directly, formula

    def _check(self, names: list[str], learned: Sequence[str]) -> None:
        """Raise for descriptions that would silently give wrong results."""
        for field in (*self.inputs, *self.results):
            if strange := set(field.axes) - set(self.axes) - set("*0123456789"):
                raise ValueError(f"{self.name}: {field.name} has axes {strange} not in {self.axes}")
        if strange := set(learned) - set(names):
            raise ValueError(f"{self.name}: gradients of {strange}, which are not inputs")

    def runner(self, which: str | Callable[..., None]) -> Callable[[torch.device], Any]:
        """Return a function that returns the `forward` or `backward` of a device."""
        if isinstance(which, str):
            return functools.partial(function, self.kernels, which)
        return lambda device: which

    def saved(self, inputs: Inputs) -> Inputs:
        """Return the inputs that backward gets, None for those that it does not read."""
        if not self._forward_only:
            return inputs
        return [None if i in self._forward_only else x for i, x in enumerate(inputs)]

    def for_inputs(self, gradients: Any) -> list[Any]:
        """Return a gradient, or None, for each input."""
        return [None if place is None else gradients[place] for place in self._gradient_at]
