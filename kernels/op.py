"""The two doors to an op's kernels, made from its description (`description.py`).

A plain eager call goes straight to an autograd.Function over raw pointers, in the caller's shapes.
Under torch.compile, torch.func, fake tensors or any dispatch mode the call goes through an opaque
op, in canonical shapes (`opaque.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from latent_kernels.kernels import opaque
from latent_kernels.kernels.description import OPTIONAL, Description, Dims, Flags, Inputs, Tape
from latent_kernels.kernels.eager import as_int, as_seeds, contiguous, plain
from latent_kernels.kernels.library import call as call_opaque

Tensor = torch.Tensor
Shapes = tuple[tuple[int, ...], ...] | None
# A caller's call, but for its tensors and its seed: dimensions, options, which outputs are wanted,
# and the canonical shapes of the inputs where they do not follow from the axes.
Call = tuple[Dims, tuple[Any, ...], Flags, Shapes]


class Op(Description):
    """An op that can be called. The arguments are those of `Description`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._all = (True,) * len(self.results)
        self._public_at = [i for i, field in enumerate(self.results) if not field.kept]
        self._forward_plainly, self._backward_plainly = _passes(self)
        self._apply = _function(self)
        opaque.register(self)

    def __call__(
        self,
        dims: Dims,
        inputs: Inputs,
        options: tuple[Any, ...] = (),
        *,
        seed: Any = None,
        wanted: Flags | None = None,
        shapes: Shapes = None,
    ) -> Any:
        """Return the outputs that are not kept, differentiable; a single one by itself.

        Args:
            dims: the caller's dimensions for each axis, () for the groups.
            inputs: the problem's tensors, in their order.
            options: what follows them in the problem, but for the seed.
            seed: an int or a tensor, as `draw_seed` returns it, for a problem that has one.
            wanted: which outputs; one that is not wanted is None.
            shapes: canonical shapes of the inputs, where they do not follow from the axes.

        """
        call: Call = (dims, options, wanted or self._all, shapes)
        if not plain(*inputs, seed if isinstance(seed, Tensor) else None):
            if not self.learned_at:
                inputs = _detached(inputs)
            return self._public(self._forward_by_dispatcher(call, inputs, seed))
        if seed is not None:
            seed = as_int(seed, inputs[0].device)
        if self.learned_at and _is_differentiated(inputs):
            return self._apply(call, seed, *inputs)
        return self._public(self._forward_plainly(call, inputs, seed))

    def evaluate(self, dims: Dims, inputs: Inputs) -> Any:
        """Return all outputs, the kept ones too, without gradients; for ops without options."""
        call: Call = (dims, (), self._all, None)
        if plain(*inputs):
            return self._forward_plainly(call, inputs, None)
        return self._forward_by_dispatcher(call, _detached(inputs), None)

    def differentiate(self, dims: Dims, inputs: Inputs, upstream: Any, needs: Flags) -> Any:
        """Return gradients that are no part of a graph themselves; for ops without options."""
        call: Call = (dims, (), (), None)
        if plain(*inputs, *upstream):
            return self._backward_plainly(call, inputs, None, upstream, needs)
        return self._backward_by_dispatcher(call, _detached(inputs), None, upstream, needs)

    def _public(self, outputs: Any) -> Any:
        at = self._public_at
        return outputs[at[0]] if len(at) == 1 else tuple([outputs[i] for i in at])

    # --- the dispatcher's door: canonical shapes there, the caller's shapes back ------------------

    def _canonical(self, dims: Dims) -> Dims:
        axes = zip(self.axes, dims, strict=True)
        return [(math.prod(own),) if own or axis not in OPTIONAL else () for axis, own in axes]

    def _opaque_arguments(self, call: Call, canonical: Dims, inputs: Inputs, seed: Any) -> Any:
        _, options, _, shapes = call
        shapes = shapes or tuple(field.shape(canonical) for field in self.inputs)
        known = zip(inputs, shapes, strict=True)
        tensors = [x if x is None or s is None else x.reshape(s) for x, s in known]
        seeds = [as_seeds(seed, inputs[0].device)] if self.seeded else []
        free = [canonical[self.axes.index(axis)][0] for axis in self.free]
        return *tensors, *seeds, *free, *options

    def _forward_by_dispatcher(self, call: Call, inputs: Inputs, seed: Any) -> Any:
        dims, _, wanted, _ = call
        arguments = self._opaque_arguments(call, self._canonical(dims), inputs, seed)
        found = opaque.listed(call_opaque(self.name, *arguments, list(wanted)))
        fields = zip(self.results, wanted, found, strict=True)
        outputs = [x.reshape(field.shape(dims)) if want else None for field, want, x in fields]
        return self.outputs(*outputs)

    def _backward_by_dispatcher(
        self, call: Call, inputs: Inputs, seed: Any, upstream: Any, needs: Flags
    ) -> Any:
        canonical = self._canonical(call[0])
        arguments = self._opaque_arguments(call, canonical, inputs, seed)
        above = [
            None if g is None else g.reshape(field.shape(canonical))
            for field, g in zip(self.results, upstream, strict=True)
        ]
        wanted = [needs[i] for i in self.learned_at]
        found = opaque.listed(call_opaque(f"{self.name}_backward", *above, *arguments, wanted))
        fields = zip(self.learned_at, wanted, found, strict=True)
        return [g.reshape(inputs[i].shape) if want else None for i, want, g in fields]


def _detached(inputs: Inputs) -> Inputs:
    return [None if x is None else x.detach() for x in inputs]


def _is_differentiated(inputs: Inputs) -> bool:
    """Return whether autograd must see the call, which refuses forward-mode derivatives."""
    if torch.is_grad_enabled():
        for x in inputs:
            if x is not None and x.requires_grad:
                return True
    return forward_ad._current_level >= 0


def _passes(op: Op) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the forward and the backward pass of plain calls.

    Small calls spend their time here: what does not change from call to call is looked up before.
    """
    place, seeded, taped, learned_at = op.place, op.seeded, op.taped, op.learned_at
    new_problem, new_outputs = _maker(op.problem), _maker(op.outputs)
    new_gradients = _maker(op.gradients)
    shapes, dtypes = [f.shape for f in op.results], [f.dtype for f in op.results]
    empty_like, layout = torch.empty_like, torch.contiguous_format
    run_forward, run_backward = op.runner(op.forward), op.runner(op.backward)

    def problem_of(call: Call, inputs: Inputs, seed: Any) -> Any:
        dims, options, _, canonical = call
        if canonical is None:
            memory = [None if x is None else place(x) for x in inputs]
        else:
            memory = [place(x, shape) for x, shape in zip(inputs, canonical, strict=True)]
        sizes = tuple(map(math.prod, dims))
        if seeded:
            return new_problem((sizes, *memory, seed, *options))
        return new_problem((sizes, *memory, *options))

    @functools.cache
    def allocation(dtype: torch.dtype, wanted: tuple[bool, ...]) -> list[Any]:
        """Return for each output its shape's function and its dtype, where it is another."""
        own = [dtype if f is None else f(dtype) for f in dtypes]
        plan = zip(shapes, own, wanted, strict=True)
        return [(shape, None if d is dtype else d) if want else None for shape, d, want in plan]

    def forward(call: Call, inputs: Inputs, seed: Any, tape: Tape | None = None) -> Any:
        first = inputs[0]
        dims, new_empty = call[0], first.new_empty
        outputs: list[Any] = []
        for plan in allocation(first.dtype, call[2]):
            if plan is None:
                outputs.append(None)
            elif plan[1] is None:
                outputs.append(new_empty(plan[0](dims)))  # quicker than with a dtype
            else:
                outputs.append(new_empty(plan[0](dims), dtype=plan[1]))
        if taped:
            outputs.append(tape)
        found = new_outputs(outputs)
        run_forward(first.device)(problem_of(call, inputs, seed), found)
        return found

    def backward(
        call: Call, inputs: Inputs, seed: Any, upstream: Any, needs: Flags, tape: Tape | None = None
    ) -> Any:
        gradients = new_gradients(
            [empty_like(inputs[i], memory_format=layout) if needs[i] else None for i in learned_at]
        )
        above: list[Any] = [None if g is None else contiguous(g) for g in upstream]
        if taped:
            above.append(tape)
        problem = problem_of(call, inputs, seed)
        run_backward(inputs[0].device)(problem, new_outputs(above), gradients)
        return gradients

    return forward, backward


def _maker(cls: Any) -> Any:
    """Return what makes a named tuple of a list, in a quarter of the class's own time."""
    return functools.partial(tuple.__new__, cls)


def _function(op: Op) -> Any:
    """Return the `apply` of an autograd.Function for plain calls: (call, seed, *inputs) -> outputs.

    It keeps the inputs, the outputs that are kept, and the seed, from which noise is made anew.
    """
    forward_plainly, backward_plainly = op._forward_plainly, op._backward_plainly
    count, taped = len(op.inputs), op.taped
    nothing = (None,) * (2 + count)
    kept_at = [i for i, field in enumerate(op.results) if field.kept]
    all_learned = op.learned_at == list(range(count))

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Call, seed: Any, *inputs: Any) -> Any:
            ctx.tape = Tape(ctx.needs_input_grad[2:]) if taped else None
            outputs = forward_plainly(call, inputs, seed, ctx.tape)
            # Not what `place` may have copied, which second derivatives could not be refused for.
            if isinstance(seed, Tensor):
                ctx.save_for_backward(*op.saved(inputs), *[outputs[i] for i in kept_at], seed)
                ctx.call = call, None
            else:
                ctx.save_for_backward(*op.saved(inputs), *[outputs[i] for i in kept_at])
                ctx.call = call, seed
            ctx.set_materialize_grads(False)
            return op._public(outputs)

        @staticmethod
        def backward(ctx: Any, *above: Any) -> Any:
            if above[0] is None and all(g is None for g in above):
                return nothing
            saved, (call, seed) = ctx.saved_tensors, ctx.call
            if len(saved) > count + len(kept_at):
                seed = saved[-1]
            upstream = list(above)
            for place, i in enumerate(kept_at, count):
                upstream.insert(i, saved[place])
            arguments = call, saved[:count], seed, upstream, ctx.needs_input_grad[2:]
            if torch.is_grad_enabled():
                # create_graph=True: the opaque op knows how to refuse second derivatives.
                found = op._backward_by_dispatcher(*arguments)
            else:
                found = backward_plainly(*arguments, ctx.tape)
                if taped and not torch._C._autograd._get_current_graph_task_keep_graph():
                    ctx.tape.held = None  # torch frees its saved tensors here, too
            return (None, None, *(found if all_learned else op.for_inputs(found)))

    # Function's own apply, past what Function.apply does in Python for torch.func, which `plain`
    # has ruled out.
    return super(torch.autograd.Function, Plain).apply
