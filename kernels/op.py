"""The two ways to call an op's kernels, made from its description (`description.py`).

A plain eager call goes straight to an autograd.Function over raw pointers, in the caller's shapes.
Under torch.compile, torch.func, fake tensors or any dispatch mode the call goes through an opaque
op, in canonical shapes (`opaque.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from latent_kernels.kernels import opaque
from latent_kernels.kernels.backends import remember
from latent_kernels.kernels.description import OPTIONAL, Description, Dims, Flags, Inputs, Tape
from latent_kernels.kernels.eager import as_int, as_seeds, contiguous, hold_memory, plain
from latent_kernels.kernels.library import call as call_opaque
from latent_kernels.kernels.library import call_fixed, listed, over_batch

Tensor = torch.Tensor
is_grad_enabled, prod = torch.is_grad_enabled, math.prod
Shapes = tuple[tuple[int, ...], ...] | None


class Call(NamedTuple):
    """What a call asks of an op, apart from tensors, options and seed."""

    dims: Dims
    wanted: Flags  # which outputs are wanted
    shapes: Shapes  # canonical shapes of the inputs, where they do not follow from the axes


class Plan(NamedTuple):
    """What all plain calls with the same `Call`, dtype and device share."""

    call: Call
    sizes: tuple[int, ...]
    memory: list[tuple[Any, torch.dtype | None]]  # of outputs: size, None for none; another dtype
    is_empty: bool  # no output has elements
    forward: Callable[..., None]
    backward: Callable[..., None] | None


class Op(Description):
    """An op that can be called. The arguments are those of `Description`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._public_count = [field.kept for field in self.results].count(False)
        self._plan = remember(self._make_plan)
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
        """Return the outputs that are not kept, differentiable; a single one without a tuple.

        Args:
            dims: the caller's dimensions for each axis, () for the groups.
            inputs: the problem's tensors, in their order.
            options: what follows them in the problem, but for the seed.
            seed: for a problem that has one, an int, a 0-d tensor, or what to draw it from:
                a generator, or None for torch's default CPU generator.
            wanted: which outputs; one that is not wanted is None.
            shapes: canonical shapes of the inputs, where they do not follow from the axes.

        """
        wanted = wanted or self.all_wanted
        if not plain(*inputs) or (isinstance(seed, Tensor) and not plain(seed)):
            run, call = call_opaque if self.learned_at else call_fixed, Call(dims, wanted, shapes)
            return self._public(self._forward_by_dispatcher(call, inputs, options, seed, run))
        first = inputs[self.like]
        plan, device = self._plan(dims, wanted, shapes, first.dtype, first.device), first.device
        if self.seeded:
            seed = as_int(seed, device)
        if self.learned_at and is_grad_enabled():
            for x in inputs:
                if x is not None and x.requires_grad:
                    return self._apply((plan, options, seed), *inputs)
        return self._public(self._forward_plainly(plan, inputs, options, seed))

    def evaluate(self, dims: Dims, inputs: Inputs) -> Any:
        """Return all outputs, the kept ones too, without gradients; for ops without options."""
        if plain(*inputs):
            return self._forward_plainly(self._plan_for(dims, inputs), inputs, (), None)
        call = Call(dims, self.all_wanted, None)
        return self._forward_by_dispatcher(call, inputs, (), None, call_fixed)

    def differentiate(self, dims: Dims, inputs: Inputs, upstream: Any, needs: Flags) -> Any:
        """Return gradients that are no part of a graph themselves; for ops without options."""
        if plain(*inputs, *upstream):
            plan = self._plan_for(dims, inputs)
            return self._backward_plainly(plan, inputs, (), None, upstream, needs)
        call = Call(dims, self.all_wanted, None)
        return self._backward_by_dispatcher(call, inputs, (), None, upstream, needs, call_fixed)

    def _make_plan(
        self, dims: Dims, wanted: Flags, shapes: Shapes, dtype: torch.dtype, device: torch.device
    ) -> Plan:
        memory: list[tuple[Any, torch.dtype | None]] = []
        for field, want in zip(self.results, wanted, strict=True):
            own = dtype if field.dtype is None else field.dtype(dtype)
            memory.append((field.shape(dims) if want else None, None if own is dtype else own))
        is_empty = not any(size is not None and prod(size) for size, _ in memory)
        forward = self.runner(self.forward)(device)
        backward = self.runner(self.backward)(device) if self.learned_at else None
        call = Call(dims, wanted, shapes)
        return Plan(call, _sizes(dims), memory, is_empty, forward, backward)

    def _public(self, outputs: Any) -> Any:
        if self._public_count == 1:
            return outputs[0]
        return tuple(outputs)[: self._public_count]  # torch.compile of 2.6 slices no named tuples

    def _plan_for(self, dims: Dims, inputs: Inputs) -> Any:
        first = inputs[self.like]
        return self._plan(dims, self.all_wanted, None, first.dtype, first.device)

    # --- through the dispatcher: canonical shapes there, the caller's shapes back -----------------

    def _canonical(self, call: Call) -> Dims:
        axes = zip(self.axes, call.dims, _sizes(call.dims), strict=True)
        return [(size,) if own or axis not in OPTIONAL else () for axis, own, size in axes]

    def _opaque_arguments(
        self, call: Call, canonical: Dims, inputs: Inputs, options: tuple[Any, ...], seed: Any
    ) -> Any:
        shapes = call.shapes or tuple(field.shape(canonical) for field in self.inputs)
        known = zip(inputs, shapes, strict=True)
        tensors = [x if x is None or s is None else x.reshape(s) for x, s in known]
        seeds = [as_seeds(seed, inputs[0].device)] if self.seeded else []
        free = [canonical[self.axes.index(axis)][0] for axis in self.free]
        return *tensors, *seeds, *free, *options

    def _forward_by_dispatcher(
        self,
        call: Call,
        inputs: Inputs,
        options: tuple[Any, ...],
        seed: Any,
        run: Callable[..., Any],
    ) -> Any:
        canonical = self._canonical(call)
        arguments = self._opaque_arguments(call, canonical, inputs, options, seed)
        found = listed(run(self.name, *arguments, list(call.wanted)))
        fields = zip(self.results, call.wanted, found, strict=True)
        outputs = [x.reshape(field.shape(call.dims)) if want else None for field, want, x in fields]
        return self.outputs(*outputs)

    def _backward_by_dispatcher(
        self,
        call: Call,
        inputs: Inputs,
        options: tuple[Any, ...],
        seed: Any,
        upstream: Any,
        needs: Flags,
        run: Callable[..., Any] = call_opaque,
    ) -> Any:
        canonical = self._canonical(call)
        arguments = self._opaque_arguments(call, canonical, inputs, options, seed)
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


def _sizes(dims: Dims) -> tuple[int, ...]:
    """Return the size of each axis."""
    return tuple(map(prod, dims))


def _dense(x: Tensor) -> Tensor:
    """Return a sparse tensor as a dense one."""
    return x if x.layout is torch.strided else x.to_dense()


def _is_empty(tensors: Inputs) -> bool:
    return not any(x is not None and x.numel() for x in tensors)


def _passes(op: Op) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the forward and the backward pass of plain calls.

    Small calls spend their time here. So everything that does not change from call to call is
    looked up before, and loops are used where a comprehension would cost a function call.
    """
    place, seeded, taped, learned_at = op.place, op.seeded, op.taped, op.learned_at
    like, directly, detached = op.like, op.directly, op.detached
    new = tuple.__new__  # makes a named tuple from a list, twice as fast as its class
    problem, outputs, gradients = op.problem, op.outputs, op.gradients
    empty_like, layout = torch.empty_like, torch.contiguous_format

    def placed(shapes: Any, inputs: Inputs) -> Inputs:
        return [
            x if x is None or (x.is_contiguous() and not x.is_neg()) else place(x, shape)
            for x, shape in zip(inputs, shapes, strict=True)
        ]

    def problem_of(plan: Plan, inputs: Inputs, options: tuple[Any, ...], seed: Any) -> Any:
        if detached:
            inputs = [None if x is None else x.detach() for x in inputs]
        for x in inputs:
            if x is not None and not (x.is_contiguous() and not x.is_neg()):
                inputs = placed(plan.call.shapes or (None,) * len(inputs), inputs)
                break
        if seeded:
            return new(problem, (plan.sizes, *inputs, seed, *options))
        return new(problem, (plan.sizes, *inputs, *options))

    def forward(
        plan: Plan, inputs: Inputs, options: tuple[Any, ...], seed: Any, tape: Tape | None = None
    ) -> Any:
        if directly is not None:
            return new(outputs, directly(inputs, options))
        new_empty = inputs[like].new_empty
        memory: list[Any] = []
        for size, dtype in plan.memory:
            if size is None:
                memory.append(None)
            elif dtype is None:
                memory.append(new_empty(size=size))  # faster than with a dtype
            else:
                memory.append(new_empty(size=size, dtype=dtype))
        if taped:
            memory.append(tape)
        found = new(outputs, memory)
        if plan.is_empty and not inputs[like].numel():
            return found  # other sizes may be huge beside a 0: no kernel must compute with them
        plan.forward(problem_of(plan, inputs, options, seed), found)
        return found

    def backward(
        plan: Plan,
        inputs: Inputs,
        options: tuple[Any, ...],
        seed: Any,
        upstream: Any,
        needs: Flags,
        tape: Tape | None = None,
    ) -> Any:
        memory = []
        for i in learned_at:
            memory.append(empty_like(inputs[i], memory_format=layout) if needs[i] else None)
        found = new(gradients, memory)
        if not inputs[like].numel() and _is_empty(found):
            return found
        for g in upstream:
            if g is not None and not (g.is_contiguous() and not g.is_neg()):
                upstream = tuple([None if g is None else contiguous(g) for g in upstream])
                break
        above = new(outputs, (*upstream, tape) if taped else upstream)
        plan.backward(problem_of(plan, inputs, options, seed), above, found)  # type: ignore[misc]
        return found

    return forward, backward


def _function(op: Op) -> Any:
    """Return the `apply` of an autograd.Function for plain calls.

    ((plan, options, seed), *inputs) -> outputs.

    It keeps the inputs, the outputs that are kept, and the seed, from which noise is made anew.
    """
    forward_plainly, backward_plainly = op._forward_plainly, op._backward_plainly
    saved_of, seeded, taped = op.saved, op.seeded, op.taped
    count, public, kept_at = len(op.inputs), op._public_count, op.kept_at
    all_learned = op.learned_at == list(range(count))
    nothing = (None,) * (1 + count)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Any, *inputs: Any) -> Any:
            plan, options, seed = call
            tape = None
            if taped:
                ctx.tape = tape = Tape(ctx.needs_input_grad[1:])
            outputs = forward_plainly(plan, inputs, options, seed, tape)
            # Not what `place` may have copied: second derivatives would end there.
            saved = *saved_of(inputs), *[outputs[i] for i in kept_at]
            if seeded and isinstance(seed, Tensor):
                saved, call = (*saved, seed), (plan, options, None)
            ctx.save_for_backward(*saved)
            ctx.call = call
            ctx.set_materialize_grads(False)
            return outputs[0] if public == 1 else outputs[:public]

        @staticmethod
        def backward(ctx: Any, *above: Any) -> Any:
            for g in above:
                if g is not None:
                    break
            else:
                return nothing
            saved, (plan, options, seed) = ctx.saved_tensors, ctx.call
            if seeded and seed is None:
                seed, saved = saved[-1], saved[:-1]
            upstream = above + saved[count:]
            arguments = saved[:count], options, seed, upstream, ctx.needs_input_grad[1:]
            if is_grad_enabled() or forward_ad._current_level >= 0 or not hold_memory(above):
                # create_graph=True, for which the opaque op has derivatives; a batch of upstream
                # gradients; or some that have no memory.
                found = op._backward_by_dispatcher(plan.call, *arguments)
            elif taped:
                found = backward_plainly(plan, *arguments, ctx.tape)
                if not torch._C._autograd._get_current_graph_task_keep_graph():
                    ctx.tape.held = None  # torch frees its saved tensors here, too
            else:
                found = backward_plainly(plan, *arguments)
            return (None, *(found if all_learned else op.for_inputs(found)))

    # Function's own apply, past what Function.apply does in Python for torch.func, which `plain`
    # has ruled out.
    return super(torch.autograd.Function, Plain).apply
