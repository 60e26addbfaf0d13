"""Derivatives that an op's kernels do not compute, from its formula.

These are second derivatives, forward mode, and those of torch.func within torch.compile. The
formula is a function of the op's reference in plain torch, from the problem to the outputs, with
the noise made again from the seed; torch differentiates it as often as it is asked to, in the time
and the memory that plain torch takes. An op without a formula refuses them. The kernels have the
first derivatives of backward passes, and of torch.func outside torch.compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.func import vjp

from latent_kernels.kernels.arguments import arguments_of, dims_of
from latent_kernels.kernels.backends import reference
from latent_kernels.kernels.description import Description
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.library import held, hold, listed

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]
Args = Sequence[Any]  # of an opaque op, as `opaque.register` defines it


class Pass:
    """An op's forward or backward pass in plain torch, as a function of an opaque op's arguments.

    Args:
        op: its description.
        run: from the op and the arguments to the results that are there.
        places: which arguments have derivatives.
        is_there: from the arguments to whether each result is there; one that is not wanted, not
            needed or kept is not.

    """

    def __init__(
        self,
        op: Description,
        run: Callable[[Description, Args], Tensors],
        places: Sequence[int],
        is_there: Callable[[Args], Sequence[bool]],
    ):
        self.op, self.run, self.places, self.is_there = op, run, places, is_there

    def results(self, *args: Any) -> list[Tensor | None]:
        """Return the results, None for one that is not computed."""
        return self._spread(self.run(self.op, args), args)

    def tangents(self, args: Args, tangents: Args) -> Any:
        """Return the tangents of the results, None for one that is not there.

        Two reverse passes compute them: the gradient is linear in the upstream gradient, and its
        own gradient by that is the tangent. So no level of forward mode is opened within another,
        which torch allows in torch.func alone.
        """
        places = [i for i in self.places if tangents[i] is not None]
        found, pull = self._vjp(args, places)
        _, push = _pullback(
            lambda *above: pull(above), [torch.zeros_like(x) for x in found], range(len(found))
        )
        spread = self._spread(push(tuple(tangents[i] for i in places)), args)
        return spread[0] if len(spread) == 1 else tuple(spread)

    def gradients(self, ctx: Any, *above: Any) -> Any:
        """Return the gradient of each argument that `save` saved, None for one that has none."""
        args = held(ctx)
        places = [i for i in self.places if ctx.needs_input_grad[i]]
        found, pull = self._vjp(args, places)
        given = [g for g, there in zip(above, self.is_there(args), strict=True) if there]
        pairs = zip(found, given, strict=True)
        upstream = tuple(torch.zeros_like(x) if g is None else g for x, g in pairs)
        gradients = dict(zip(places, pull(upstream), strict=True))
        return tuple(gradients.get(i) for i in range(len(args)))

    def save(self, ctx: Any, inputs: Args, output: Any) -> None:
        """Save the arguments for `gradients`."""
        outputs = zip(listed(output), self.is_there(inputs), strict=True)
        ctx.mark_non_differentiable(*[x for x, there in outputs if not there])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*hold(ctx, inputs))

    def _vjp(self, args: Args, places: Sequence[int]) -> tuple[Tensors, Callable[..., Tensors]]:
        return _pullback(lambda *own: self.run(self.op, own), args, places)

    def _spread(self, found: Tensors, args: Args) -> list[Tensor | None]:
        rest = iter(found)
        return [next(rest) if there else None for there in self.is_there(args)]


def forward(op: Description) -> Pass:
    """Return the forward pass: inputs to the outputs that are wanted and not kept."""

    def is_there(args: Args) -> list[bool]:
        return [bool(w) and not f.kept for w, f in zip(args[-1], op.results, strict=True)]

    def run(op: Description, args: Args) -> Tensors:
        return _outputs(op, args, is_there(args))

    return Pass(op, run, op.learned_at, is_there)


def backward(op: Description) -> Pass:
    """Return the backward pass: upstream gradients and inputs to the gradients that are needed."""
    count = len(op.results)
    above = [i for i, field in enumerate(op.results) if not field.kept]
    places = above + [count + i for i in op.learned_at]
    return Pass(op, _gradients, places, lambda args: args[-1])


def _outputs(op: Description, args: Args, wanted: Sequence[bool]) -> Tensors:
    """Return the wanted outputs by the formula, computed wide where the inputs are halves."""
    if op.formula is None:
        raise NotImplementedError(
            f"latent_kernels: {op.name} has no second derivatives, no forward-mode derivatives "
            "(jvp, jacfwd, hessian), and no derivatives by torch.func within torch.compile"
        )
    given = arguments_of(op, args[:-1])
    sizes = tuple(math.prod(own) for own in dims_of(op, given))
    wide = [x if x is None else x.to(row_dtype(x.dtype)) for x in given.tensors]
    problem = op.problem(sizes, *wide, *given.seeds, *given.options)
    found = reference(op.kernels, op.formula)(problem, op.outputs(*[w or None for w in wanted]))
    like = given.tensors[op.like].dtype
    dtypes = [like if field.dtype is None else field.dtype(like) for field in op.results]
    return tuple(x.to(d) for x, d, want in zip(found, dtypes, wanted, strict=True) if want)


def _gradients(op: Description, args: Args) -> Tensors:
    """Return the needed gradients by the formula."""
    above, given, needs = args[: len(op.results)], args[len(op.results) :], args[-1]
    wanted = [g is not None and not f.kept for g, f in zip(above, op.results, strict=True)]
    places = [i for i, need in zip(op.learned_at, needs, strict=True) if need]
    _, pull = _pullback(lambda *own: _outputs(op, own, wanted), given, places)
    return pull(tuple(g for g, want in zip(above, wanted, strict=True) if want))


def _pullback(
    function: Callable[..., Tensors], args: Args, places: Sequence[int]
) -> tuple[Tensors, Callable[..., Tensors]]:
    """Return a function's results, and its pullback to the arguments at some places."""

    def of_places(*given: Tensor) -> Tensors:
        own = list(args)
        for i, x in zip(places, given, strict=True):
            own[i] = x
        return function(*own)

    found: Any = vjp(of_places, *[args[i] for i in places])
    results, pull = found
    return results, pull
