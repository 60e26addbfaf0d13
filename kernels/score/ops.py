"""The score-function estimators as opaque ops, for torch.compile, torch.func and fake tensors.

On canonical shapes: q [G, N, D] or [G, N, D, K]; values [G, S, N] or [G, S, N, D]; z [G, S, N, D];
pairs have a 2 before S.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.library import (
    call,
    checked_seeds,
    define,
    fold,
    fold_seeds,
    groups_of,
    no_second_derivative,
    unfold,
)
from latent_kernels.kernels.score.autograd import run_gradient
from latent_kernels.kernels.score.problem import Problem

Tensor = torch.Tensor


def _problem(family: str, control: str, folds: int, first: Tensor, values: Tensor) -> Problem:
    groups, rows, cols = first.shape[:3]
    before = 2 if family == "antithetic" else 1
    per_element = values.dim() == before + 3
    classes = first.size(3) if first.dim() == 4 else 0
    return Problem(
        family, groups, values.size(before), rows, cols, classes, per_element, control, folds
    )


def _gradient(
    family: str,
    control: str,
    folds: int,
    first: Tensor,
    second: Tensor | None,
    z: Tensor | None,
    seeds: Tensor,
    offset: int,
    values: Tensor,
    baseline: Tensor | None,
    upstream: Tensor | None,
    with_variance: bool,
) -> tuple[Tensor, ...]:
    """The gradients of both parameters and their variances, empty where there are none."""
    parameters = (first,) if second is None else (first, second)
    seed = checked_seeds(seeds, first.device) if z is None else 0
    problem = _problem(family, control, folds, first, values)
    found, variances = run_gradient(
        problem,
        parameters,
        z,
        seed,
        offset,
        values,
        baseline,
        upstream,
        with_variance=with_variance,
    )
    none = first.new_empty(0)
    no_variance = first.new_empty(0, dtype=row_dtype(first.dtype))
    spread = variances or ()
    return (
        found[0],
        found[1] if len(found) > 1 else none,
        spread[0] if spread else no_variance,
        spread[1] if len(spread) > 1 else no_variance.clone(),
    )


def _gradient_fake(*args: Any) -> tuple[Tensor, ...]:
    first, second, with_variance = args[3], args[4], args[11]
    compute = row_dtype(first.dtype)

    def room(wanted: bool, dtype: torch.dtype) -> Tensor:
        return torch.empty(first.shape if wanted else (0,), dtype=dtype, device=first.device)

    both = second is not None
    return (
        room(True, first.dtype),
        room(both, first.dtype),
        room(with_variance, compute),
        room(with_variance and both, compute),
    )


def _gradient_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch = info.batch_size
    groups = groups_of(args[3], in_dims[3])
    folded = [fold(args[i], in_dims[i], batch) for i in (3, 4, 5)]
    seeds = fold_seeds(args[6], in_dims[6], batch, groups)
    values, upstream = (fold(args[i], in_dims[i], batch) for i in (8, 10))
    baseline = fold(args[9], in_dims[9], batch)
    found = call(
        "score_gradient", *args[:3], *folded, seeds, args[7], values, baseline, upstream, args[11]
    )
    wanted = (True, args[4] is not None, args[11], args[11] and args[4] is not None)
    return tuple(unfold(x, batch) if w else x for x, w in zip(found, wanted, strict=True)), tuple(
        0 if w else None for w in wanted
    )


def _expectation(
    family: str,
    control: str,
    folds: int,
    first: Tensor,
    second: Tensor | None,
    z: Tensor | None,
    seeds: Tensor,
    offset: int,
    values: Tensor,
    baseline: Tensor | None,
) -> Tensor:
    """The mean of values over samples: [G, N] or [G, N, D]."""
    return values.mean((1, 2) if family == "antithetic" else (1,), dtype=row_dtype(values.dtype))


def _expectation_fake(*args: Any) -> Tensor:
    family, values = args[0], args[8]
    after = 3 if family == "antithetic" else 2
    shape = (values.size(0), *values.shape[after:])
    return torch.empty(shape, dtype=row_dtype(values.dtype), device=values.device)


def _expectation_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.choices, ctx.offset = inputs[:3], inputs[7]
    ctx.save_for_backward(*inputs[3:7], *inputs[8:])


def _expectation_gradients(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    first, second, z, seeds, values, baseline = ctx.saved_tensors
    needs = ctx.needs_input_grad
    of_first = of_second = of_values = None
    if needs[3] or needs[4]:
        of_first, of_second, _, _ = call(
            "score_gradient",
            *ctx.choices,
            first,
            second,
            z,
            seeds,
            ctx.offset,
            values,
            baseline,
            upstream,
            False,
        )
    if needs[8]:
        samples = values.shape[1 : values.dim() - upstream.dim() + 1]
        shape = (upstream.size(0), *(1 for _ in samples), *upstream.shape[1:])
        of_values = (
            (upstream / math.prod(samples)).to(values.dtype).reshape(shape).expand(values.shape)
        )
    return (
        None,
        None,
        None,
        of_first,
        of_second if second is not None else None,
        None,
        None,
        None,
        of_values,
        None,
    )


def _expectation_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    batch = info.batch_size
    groups = groups_of(args[3], in_dims[3])
    folded = [fold(args[i], in_dims[i], batch) for i in (3, 4, 5)]
    seeds = fold_seeds(args[6], in_dims[6], batch, groups)
    values, baseline = (fold(args[i], in_dims[i], batch) for i in (8, 9))
    out = call("score_expectation", *args[:3], *folded, seeds, args[7], values, baseline)
    return unfold(out, batch), 0


define(
    "score_expectation(str family, str control, SymInt folds, Tensor first, Tensor? second, "
    "Tensor? z, Tensor seeds, SymInt offset, Tensor values, Tensor? baseline) -> Tensor",
    _expectation,
    fake=_expectation_fake,
    vmap=_expectation_vmap,
    setup=_expectation_setup,
    gradients=_expectation_gradients,
)
define(
    "score_gradient(str family, str control, SymInt folds, Tensor first, Tensor? second, Tensor? "
    "z, Tensor seeds, SymInt offset, Tensor values, Tensor? baseline, Tensor? upstream, bool "
    "with_variance) -> (Tensor first, Tensor second, Tensor first_variance, Tensor "
    "second_variance)",
    _gradient,
    fake=_gradient_fake,
    vmap=_gradient_vmap,
    gradients=no_second_derivative,
)
