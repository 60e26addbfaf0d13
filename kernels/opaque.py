"""Ops that reach their kernels through torch's dispatcher: opaque ops over canonical shapes.

`register` defines two ops from a description, the forward pass and the backward pass. What kernels
have no derivatives for, the backward pass and forward mode, is differentiated by the op's formula
(`formula.py`). An op with groups takes a batch of torch.vmap as groups; one without takes it as
rows, or slice by slice where slices have parameters of their own.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable
from typing import Any

import torch

from latent_kernels.kernels import formula
from latent_kernels.kernels.arguments import (
    Arguments,
    arguments_of,
    dims_from,
    dims_of,
    shapes_of,
)
from latent_kernels.kernels.description import Description, Dims, Fields, Flags
from latent_kernels.kernels.eager import as_int, in_memory
from latent_kernels.kernels.library import call, define, listed

Tensor = torch.Tensor

_SCHEMA_TYPES = {
    int: "SymInt",
    bool: "bool",
    str: "str",
    float: "float",
    tuple[int, ...] | None: "SymInt[]?",
}


def _packed(values: Iterable[Any]) -> Any:
    found = tuple(values)
    return found[0] if len(found) == 1 else found


def _checked_seeds(seeds: Tensor, device: torch.device) -> int | Tensor:
    """Return seeds as the kernels take them: one int, or int64 [1] or [groups] on the device."""
    if seeds.numel() == 1:
        seed = as_int(seeds, device)
        return seed if isinstance(seed, int) else seed.reshape(1)
    if seeds.device.type == "cpu" and bool((seeds < 0).any()):
        raise ValueError(f"seed must lie in [0, 2^63); got {int(seeds.min())}")
    return seeds.to(device).contiguous()


def _problem(op: Description, given: Arguments, sizes: tuple[int, ...]) -> Any:
    memory = [None if x is None else in_memory(x) for x in given.tensors]
    seed = [_checked_seeds(given.seeds[0], given.first.device)] if op.seeded else []
    return op.problem(sizes, *memory, *seed, *given.options)


def _layout(
    op: Description, dims: Dims, dtype: torch.dtype, wanted: Flags
) -> list[tuple[Any, torch.dtype]]:
    """Return the shape and dtype of each output; an output that is not wanted has no elements."""
    found = []
    for field, want in zip(op.results, wanted, strict=True):
        own = dtype if field.dtype is None else field.dtype(dtype)
        found.append((field.shape(dims) if want else (0,), own))
    return found


def _schema(op: Description) -> str:
    hints = typing.get_type_hints(op.problem)
    tensors = [f"Tensor{'?' if field.optional else ''} {field.name}" for field in op.inputs]
    seeds = ["Tensor seeds"] if op.seeded else []
    free = [f"SymInt size_of_{axis.lower()}" for axis in op.free]
    known = {"sizes", "seed", *(field.name for field in op.inputs)}
    options = [f"{_SCHEMA_TYPES[hints[name]]} {name}" for name in hints if name not in known]
    return ", ".join(tensors + seeds + free + options)


def register(op: Description) -> None:
    """Define `<name>`: (tensors, seeds, free sizes, options, wanted) -> outputs.

    And, where the op has gradients, `<name>_backward`: (upstream gradients and kept outputs, the
    same arguments, needs) -> gradients. What is not wanted or needed comes back empty. `wanted` is
    a list of ints, since torch.jit.trace takes none of bools.
    """
    run_forward, run_backward = op.runner(op.forward), op.runner(op.backward)
    none_wanted = (False,) * len(op.results)

    plans: dict[Any, Any] = {}  # not an lru_cache: torch.compile warns when it traces through one

    def plan(given: Arguments, wanted: Flags) -> Any:
        """Return the sizes of axes and the layout of the outputs. They are cached, because a small
        compiled step would spend a tenth of its time on them.
        """
        key = given.tensors[op.like].dtype, tuple(wanted), shapes_of(op, given)
        found = plans.get(key)
        if found is None:
            dtype, _, shapes = key
            dims = dims_from(op, *shapes)
            found = tuple(map(math.prod, dims)), _layout(op, dims, dtype, wanted)
            if len(plans) > 1000:
                plans.clear()
            plans[key] = found
        return found

    def fake(*args: Any) -> Any:
        given, wanted = arguments_of(op, args[:-1]), args[-1]
        like = given.tensors[op.like]
        layout = _layout(op, dims_of(op, given), like.dtype, wanted)
        return _packed([like.new_empty(shape, dtype=dtype) for shape, dtype in layout])

    def forward(*args: Any) -> Any:
        given, wanted = arguments_of(op, args[:-1]), args[-1]
        like = given.tensors[op.like]
        sizes, layout = plan(given, wanted)
        found = [like.new_empty(shape, dtype=dtype) for shape, dtype in layout]
        outputs = op.outputs(*[x if want else None for x, want in zip(found, wanted, strict=True)])
        run_forward(given.first.device)(_problem(op, given, sizes), outputs)
        return _packed(found)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        given = arguments_of(op, inputs[:-1])
        outputs = listed(output)
        fields = list(zip(outputs, op.results, inputs[-1], strict=True))
        kept = [outputs[i] for i in op.kept_at]
        ctx.mark_non_differentiable(*[x for x, f, want in fields if f.kept or not want])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *op.saved(given.tensors), *given.seeds)
        ctx.kept, ctx.rest, ctx.wanted = len(kept), (*given.free, *given.options), inputs[-1]

    def gradients(ctx: Any, *above: Any) -> Any:
        count, kept = len(op.inputs), iter(ctx.saved_tensors[: ctx.kept])
        needs = [ctx.needs_input_grad[i] for i in op.learned_at]
        fields = zip(op.results, above, ctx.wanted, strict=True)
        upstream = [next(kept) if field.kept else g if want else None for field, g, want in fields]
        none = (None,) * len(ctx.needs_input_grad)
        if all(g is None for g, f in zip(upstream, op.results, strict=True) if not f.kept):
            return none
        saved = ctx.saved_tensors[ctx.kept :]
        found = listed(call(f"{op.name}_backward", *upstream, *saved, *ctx.rest, needs))
        wanted = [g if need else None for g, need in zip(found, needs, strict=True)]
        return *op.for_inputs(wanted), *none[count:]

    def memory(given: Arguments, needs: Flags) -> list[Tensor]:
        inputs = [given.tensors[i] for i in op.learned_at]
        return [
            given.first.new_empty(0) if x is None or not need else x.new_empty(x.shape)
            for x, need in zip(inputs, needs, strict=True)
        ]

    def backward_fake(*args: Any) -> Any:
        return _packed(memory(arguments_of(op, args[len(op.results) : -1]), args[-1]))

    def backward(*args: Any) -> Any:
        above, needs = args[: len(op.results)], args[-1]
        given = arguments_of(op, args[len(op.results) : -1])
        found = memory(given, needs)
        wanted = [g if need else None for g, need in zip(found, needs, strict=True)]
        sizes, _ = plan(given, none_wanted)
        problem = _problem(op, given, sizes)
        upstream = [None if g is None else in_memory(g) for g in above]
        run_backward(problem[1].device)(problem, op.outputs(*upstream), op.gradients(*wanted))
        return _packed(found)

    schema, count = _schema(op), len(op.learned_at)
    plain_forward, plain_backward = formula.forward(op), formula.backward(op)
    vmap = _with_groups if "G" in op.axes else _with_rows
    define(
        f"{op.name}({schema}, int[] wanted) -> ({', '.join(['Tensor'] * len(op.results))})",
        forward,
        fake=fake,
        vmap=vmap(op, op.name, op.inputs),
        setup=setup,
        gradients=gradients if count else None,
        tangents=plain_forward.tangents if count else None,
        formula=plain_forward.results if count else None,
    )
    if count:
        above = [f"Tensor{'' if f.kept else '?'} of_{f.name}" for f in op.results]
        define(
            f"{op.name}_backward({', '.join(above)}, {schema}, bool[] needs)"
            f" -> ({', '.join(['Tensor'] * count)})",
            backward,
            fake=backward_fake,
            vmap=vmap(op, f"{op.name}_backward", (*op.results, *op.inputs)),
            setup=plain_backward.save,
            gradients=plain_backward.gradients,
            tangents=plain_backward.tangents,
            formula=plain_backward.results,
        )


# --- vmap -----------------------------------------------------------------------------------------


def _fold(x: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Return a vmapped [groups, ...] tensor, its batch at `dim` or none, as [batch * groups,
    ...].
    """
    if x is None:
        return None
    x = x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.reshape(batch * x.size(1), *x.shape[2:])


def _groups_of(x: Tensor, dim: int | None) -> int:
    """Return how many groups a vmapped tensor has, its batch at `dim` or none."""
    return x.size(1 if dim == 0 else 0)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """Return [batch * groups, ...] as [batch, groups, ...]."""
    return x.reshape(batch, x.size(0) // max(batch, 1), *x.shape[1:])


def _fold_seeds(seeds: Tensor, dim: int | None, batch: int, groups: int) -> Tensor:
    """Return a seed for each of batch * groups: the same for the whole batch where the seed is not
    batched.
    """
    seeds = seeds.expand(batch, seeds.size(-1)) if dim is None else seeds.movedim(dim, 0)
    return seeds.expand(batch, groups).reshape(-1)


def _with_groups(op: Description, name: str, tensors: Fields) -> Callable[..., Any]:
    """Return the vmap rule that makes the batch a part of the groups."""
    count = len(tensors)
    first = count - len(op.inputs)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch, wanted, rest = info.batch_size, args[-1], list(args[count:])
        folded = [_fold(x, d, batch) for x, d in zip(args[:count], in_dims[:count], strict=True)]
        if op.seeded:
            groups = _groups_of(args[first], in_dims[first])
            rest[0] = _fold_seeds(rest[0], in_dims[count], batch, groups)
        found = zip(listed(call(name, *folded, *rest)), wanted, strict=True)
        dims = tuple(0 if want else None for want in wanted)
        return _packed(_unfold(x, batch) if want else x for x, want in found), _packed(dims)

    return rule


def _with_rows(op: Description, name: str, tensors: Fields) -> Callable[..., Any]:
    """Return the vmap rule that makes the batch a part of the rows, or calls the op for each slice.

    It calls the op for each slice where slices have parameters of their own, or where each slice
    needs its own gradients of the parameters.
    """
    count, is_row = len(tensors), [field.axes.startswith("N") for field in tensors]
    is_forward = count == len(op.inputs)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        dims = [None if isinstance(d, (list, tuple)) else d for d in in_dims]  # lists of numbers
        fields = list(zip(args[:count], dims[:count], is_row, strict=True))
        if is_forward and all(row or d is None for _, d, row in fields):
            folded = [_fold(x, d, batch) if row else x for x, d, row in fields]
            found = [_unfold(x, batch) for x in listed(call(name, *folded, *args[count:]))]
        else:
            slices = [
                listed(call(name, *[_slice(x, d, i) for x, d in zip(args, dims, strict=True)]))
                for i in range(batch)
            ]
            found = [torch.stack(xs) for xs in zip(*slices, strict=True)]
        return _packed(found), _packed([0] * len(found))

    return rule


def _slice(x: Any, dim: int | None, i: int) -> Any:
    return x if dim is None else x.select(dim, i)
