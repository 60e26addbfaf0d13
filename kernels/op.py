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
from latent_kernels.kernels.eager import as_int, as_seeds, contiguous, hold_memory, plain
from latent_kernels.kernels.library import call as call_opaque
from latent_kernels.kernels.library import call_fixed, listed, over_batch

Tensor = torch.Tensor
is_grad_enabled, prod = torch.is_grad_enabled, math.prod
Shapes = tuple[tuple[int, ...], ...] | None
# A caller's call, but for its tensors and its seed: dimensions and size of each axis, options,
# which outputs are wanted, and the canonical shapes of the inputs where they do not follow from the
# axes.
Call = tuple[Dims, tuple[int, ...], tuple[Any, ...], Flags, Shapes]


class Op(Description):
    """An op that can be called. The arguments are those of `Description`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._all = (True,) * len(self.results)
        self._public_count = [field.kept for field in self.results].count(False)
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
        call: Call = (dims, tuple(map(prod, dims)), options, wanted or self._all, shapes)
        if not plain(*inputs, seed if self.seeded and isinstance(seed, Tensor) else None):
            run = call_opaque if self.learned_at else call_fixed
            return self._public(self._forward_by_dispatcher(call, inputs, seed, run))
        if seed is not None:
            seed = as_int(seed, inputs[0].device)
        if self.learned_at and _is_differentiated(inputs):
            return self._apply(call, seed, *inputs)
        return self._public(self._forward_plainly(call, inputs, seed))

    def evaluate(self, dims: Dims, inputs: Inputs) -> Any:
        """Return all outputs, the kept ones too, without gradients; for ops without options."""
        call: Call = (dims, tuple(map(prod, dims)), (), self._all, None)
        if plain(*inputs):
            return self._forward_plainly(call, inputs, None)
        return self._forward_by_dispatcher(call, inputs, None, call_fixed)

    def differentiate(self, dims: Dims, inputs: Inputs, upstream: Any, needs: Flags) -> Any:
        """Return gradients that are no part of a graph themselves; for ops without options."""
        call: Call = (dims, tuple(map(prod, dims)), (), (), None)
        if plain(*inputs, *upstream):
            return self._backward_plainly(call, inputs, None, upstream, needs)
        return self._backward_by_dispatcher(call, inputs, None, upstream, needs, call_fixed)

    def _public(self, outputs: Any) -> Any:
        return outputs[0] if self._public_count == 1 else outputs[: self._public_count]

    # --- the dispatcher's door: canonical shapes there, the caller's shapes back ------------------

    def _canonical(self, call: Call) -> Dims:
        axes = zip(self.axes, call[0], call[1], strict=True)
        return [(size,) if own or axis not in OPTIONAL else () for axis, own, size in axes]

    def _opaque_arguments(self, call: Call, canonical: Dims, inputs: Inputs, seed: Any) -> Any:
        _, _, options, _, shapes = call
        shapes = shapes or tuple(field.shape(canonical) for field in self.inputs)
        known = zip(inputs, shapes, strict=True)
        tensors = [x if x is None or s is None else x.reshape(s) for x, s in known]
        seeds = [as_seeds(seed, inputs[0].device)] if self.seeded else []
        free = [canonical[self.axes.index(axis)][0] for axis in self.free]
        return *tensors, *seeds, *free, *options

    def _forward_by_dispatcher(
        self, call: Call, inputs: Inputs, seed: Any, run: Callable[..., Any]
    ) -> Any:
        dims, _, _, wanted, _ = call
        arguments = self._opaque_arguments(call, self._canonical(call), inputs, seed)
        found = listed(run(self.name, *arguments, list(wanted)))
        fields = zip(self.results, wanted, found, strict=True)
        outputs = [x.reshape(field.shape(dims)) if want else None for field, want, x in fields]
        return self.outputs(*outputs)

    def _backward_by_dispatcher(
        self,
        call: Call,
        inputs: Inputs,
        seed: Any,
        upstream: Any,
        needs: Flags,
        run: Callable[..., Any] = call_opaque,
    ) -> Any:
        canonical = self._canonical(call)
        arguments = self._opaque_arguments(call, canonical, inputs, seed)
        wanted = [needs[i] for i in self.learned_at]

        def gradients(*upstream: Any) -> Any:
            fields = zip(self.results, upstream, strict=True)
            above = [
                None if g is None else _dense(g).reshape(f.shape(canonical)) for f, g in fields
            ]
            found = listed(run(f"{self.name}_backward", *above, *arguments, wanted))
            needed = zip(self.learned_at, wanted, found, strict=True)
            return [g.reshape(inputs[i].shape) if want else None for i, want, g in needed]

        return over_batch(gradients, upstream)


def _dense(x: Tensor) -> Tensor:
    """Return a sparse tensor as a dense one."""
    return x if x.layout is torch.strided else x.to_dense()


def _is_empty(tensors: Inputs) -> bool:
    return not any(x is not None and x.numel() for x in tensors)


def _is_differentiated(inputs: Inputs) -> bool:
    """Return whether autograd must see the call."""
    if is_grad_enabled():
        for x in inputs:
            if x is not None and x.requires_grad:
                return True
    return False


def _passes(op: Op) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the forward and the backward pass of plain calls.

    Small calls spend their time here: what does not change from call to call is looked up before.
    """
    place, seeded, taped, learned_at = op.place, op.seeded, op.taped, op.learned_at
    like, directly = op.like, op.directly
    new = tuple.__new__  # makes a named tuple of a list, in half of the class's own time
    problem, outputs, gradients = op.problem, op.outputs, op.gradients
    shapes, dtypes = [f.shape for f in op.results], [f.dtype for f in op.results]
    empty_like, layout = torch.empty_like, torch.contiguous_format
    run_forward, run_backward = op.runner(op.forward), op.runner(op.backward)

    def problem_of(call: Call, inputs: Inputs, seed: Any) -> Any:
        _, sizes, options, _, canonical = call
        if canonical is None:
            memory = [None if x is None else place(x) for x in inputs]
        else:
            memory = [place(x, shape) for x, shape in zip(inputs, canonical, strict=True)]
        if seeded:
            return new(problem, (sizes, *memory, seed, *options))
        return new(problem, (sizes, *memory, *options))

    @functools.cache
    def allocation(dtype: torch.dtype, wanted: tuple[bool, ...]) -> list[Any]:
        """Return for each output its shape's function and its dtype, where it is another."""
        own = [dtype if f is None else f(dtype) for f in dtypes]
        plan = zip(shapes, own, wanted, strict=True)
        return [(shape, None if d is dtype else d) if want else None for shape, d, want in plan]

    def forward(call: Call, inputs: Inputs, seed: Any, tape: Tape | None = None) -> Any:
        if directly is not None:
            return new(outputs, directly(inputs, call[2]))
        first = inputs[like]
        dims, new_empty = call[0], first.new_empty
        memory: list[Any] = []
        for plan in allocation(first.dtype, call[3]):
            if plan is None:
                memory.append(None)
            elif plan[1] is None:
                memory.append(new_empty(size=plan[0](dims)))  # quicker than with a dtype
            else:
                memory.append(new_empty(size=plan[0](dims), dtype=plan[1]))
        empty = not first.numel() and _is_empty(memory)
        if taped:
            memory.append(tape)
        found = new(outputs, memory)
        if empty:
            return found  # sizes beside a 0 may be huge: no kernel counts in them
        run_forward(first.device)(problem_of(call, inputs, seed), found)
        return found

    def backward(
        call: Call, inputs: Inputs, seed: Any, upstream: Any, needs: Flags, tape: Tape | None = None
    ) -> Any:
        found = new(
            gradients,
            [empty_like(inputs[i], memory_format=layout) if needs[i] else None for i in learned_at],
        )
        if not inputs[like].numel() and _is_empty(found):
            return found
        above: list[Any] = [  # `contiguous`, mostly without its call
            None if g is None else contiguous(g) if g.is_neg() else g.contiguous() for g in upstream
        ]
        if taped:
            above.append(tape)
        run_backward(inputs[0].device)(problem_of(call, inputs, seed), new(outputs, above), found)
        return found

    return forward, backward


def _function(op: Op) -> Any:
    """Return the `apply` of an autograd.Function for plain calls: (call, seed, *inputs) -> outputs.

    It keeps the inputs, the outputs that are kept, and the seed, from which noise is made anew.
    """
    forward_plainly, backward_plainly = op._forward_plainly, op._backward_plainly
    saved_of, seeded, taped = op.saved, op.seeded, op.taped
    count, public, results = len(op.inputs), op._public_count, len(op.results)
    all_learned = op.learned_at == list(range(count))
    nothing = (None,) * (2 + count)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Call, seed: Any, *inputs: Any) -> Any:
            tape = None
            if taped:
                ctx.tape = tape = Tape(ctx.needs_input_grad[2:])
            outputs = forward_plainly(call, inputs, seed, tape)
            held = seed if seeded and isinstance(seed, Tensor) else None
            # Not what `place` may have copied: second derivatives would end there.
            ctx.save_for_backward(*saved_of(inputs), *outputs[public:results], held)
            ctx.call = call, seed if held is None else None
            ctx.set_materialize_grads(False)
            return outputs[0] if public == 1 else outputs[:public]

        @staticmethod
        def backward(ctx: Any, *above: Any) -> Any:
            if above[0] is None and all(g is None for g in above):
                return nothing
            saved, (call, seed) = ctx.saved_tensors, ctx.call
            if saved[-1] is not None:
                seed = saved[-1]
            upstream = above + saved[count:-1]
            arguments = call, saved[:count], seed, upstream, ctx.needs_input_grad[2:]
            if is_grad_enabled() or forward_ad._current_level >= 0 or not hold_memory(above):
                # create_graph=True, for which the opaque op has derivatives; a batch of upstream
                # gradients; or some that have no memory.
                found = op._backward_by_dispatcher(*arguments)
            elif taped:
                found = backward_plainly(*arguments, ctx.tape)
                if not torch._C._autograd._get_current_graph_task_keep_graph():
                    ctx.tape.held = None  # torch frees its saved tensors here, too
            else:
                found = backward_plainly(*arguments)
            return (None, None, *(found if all_learned else op.for_inputs(found)))

    # Function's own apply, past what Function.apply does in Python for torch.func, which `plain`
    # has ruled out.
    return super(torch.autograd.Function, Plain).apply
