"""The score-function estimators for plain calls: an autograd.Function straight over the kernels."""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import as_seeds, in_memory, row_dtype
from latent_kernels.kernels.library import call
from latent_kernels.kernels.score.problem import Problem

Tensor = torch.Tensor
Seed = int | Tensor

OUTSIDE = {
    "bernoulli": "z must hold samples of a Bernoulli, 0 or 1; it has other values",
    "antithetic": "z must hold samples of a Bernoulli, 0 or 1; it has other values",
    "categorical": "z must hold classes 0, ..., {} of a Categorical; it has others",
}


def sample_dims(problem: Problem) -> tuple[int, ...]:
    """The leading dimensions of values that hold samples."""
    return (0, 1) if problem.family == "antithetic" else (0,)


def kernel_values(x: Tensor | None, compute: torch.dtype, per_element: bool) -> Tensor | None:
    """Values or a baseline as the kernels take them: float64 ones stay so where they are few."""
    if x is None:
        return None
    x = in_memory(x)
    if x.dtype != compute and (per_element or x.dtype != torch.float64):
        x = x.to(compute)
    return x


def run_gradient(
    problem: Problem,
    parameters: tuple[Tensor, ...],
    z: Tensor | None,
    seed: Seed,
    offset: int,
    values: Tensor,
    baseline: Tensor | None,
    upstream: Tensor | None,
    with_variance: bool = False,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """The gradients, and their variances where wanted, by the device's backend."""
    dtype = parameters[0].dtype
    compute = row_dtype(dtype)
    parameters = tuple(in_memory(x) for x in parameters)
    gradients = tuple(torch.empty_like(x) for x in parameters)
    variances = (
        tuple(torch.empty_like(x, dtype=compute) for x in parameters) if with_variance else None
    )
    values = kernel_values(values, compute, problem.per_element)  # type: ignore[assignment]
    baseline = kernel_values(baseline, compute, problem.per_element)
    if baseline is not None and baseline.dtype != values.dtype:
        values, baseline = values.double(), baseline.double()
    inside = backend("score", values.device).gradient(
        problem,
        parameters,
        None if z is None else in_memory(z),
        seed,
        offset,
        values,
        baseline,
        None if upstream is None else in_memory(upstream.to(compute)),
        gradients,
        variances,
    )
    if not inside:
        raise ValueError(OUTSIDE[problem.family].format(problem.classes - 1))
    return gradients, variances


def canonical(
    problem: Problem,
    first: Tensor,
    second: Tensor | None,
    z: Tensor | None,
    values: Tensor,
    baseline: Tensor | None,
    upstream: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the tensors of a plain call in the shapes of the opaque ops."""
    _, samples, rows, cols, classes = problem.sizes
    pairs = (2,) if problem.family == "antithetic" else ()
    of_q = (1, rows, cols, classes) if classes else (1, rows, cols)
    row = (rows, cols) if problem.per_element else (rows,)
    sampled = baseline is not None and baseline.numel() == values.numel()
    return (
        first.reshape(of_q),
        None if second is None else second.reshape(of_q),
        None if z is None else z.reshape(1, *pairs, samples, rows, cols),
        values.reshape(1, *pairs, samples, *row),
        None if baseline is None else baseline.reshape(1, samples if sampled else 1, *row),
        None if upstream is None else upstream.reshape(1, *row),
    )


def call_gradient(
    problem: Problem,
    tensors: tuple[Tensor | None, ...],
    seeds: Tensor,
    offset: int,
    with_variance: bool = False,
) -> tuple[Tensor, ...]:
    """The opaque op on `canonical` tensors: two gradients and two variances, empty where there are
    none.
    """
    choices = (problem.family, problem.control, problem.folds)
    q_and_z, values_and_more = tensors[:3], tensors[3:]
    found: tuple[Tensor, ...] = call(
        "score_gradient", *choices, *q_and_z, seeds, offset, *values_and_more, with_variance
    )
    return found


class ScoreExpectation(torch.autograd.Function):
    """(first, second parameter, values) -> the mean of values over samples, with the estimator's
    gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor | None,
        values: Tensor,
        z: Tensor | None,
        baseline: Tensor | None,
        options: tuple[Problem, Seed, int],
    ) -> Tensor:
        """The mean."""
        problem, seed, offset = options
        ctx.save_for_backward(
            first, second, values, z, baseline, seed if isinstance(seed, Tensor) else None
        )
        ctx.options = (problem, None if isinstance(seed, Tensor) else seed, offset)
        return values.mean(sample_dims(problem), dtype=row_dtype(values.dtype))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """The estimator's gradient for q, the ordinary one for values."""
        first, second, values, z, baseline, saved_seed = ctx.saved_tensors
        problem, seed, offset = ctx.options
        seed = saved_seed if seed is None else seed
        of_values = of_first = of_second = None
        if ctx.needs_input_grad[2]:
            of_values = (
                (upstream / (values.numel() // max(upstream.numel(), 1)))
                .to(values.dtype)
                .expand(values.shape)
            )
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            if (
                torch.is_grad_enabled()
            ):  # create_graph=True: the op knows how to refuse second derivatives
                tensors = canonical(problem, first, second, z, values, baseline, upstream)
                seeds = as_seeds(0 if seed is None else seed, values.device)
                found = call_gradient(problem, tensors, seeds, offset)
                found = tuple(g.reshape(first.shape) for g in found[: 1 if second is None else 2])
            else:
                parameters = (first,) if second is None else (first, second)
                found, _ = run_gradient(
                    problem, parameters, z, seed, offset, values, baseline, upstream
                )
            of_first, of_second = found[0], None if second is None else found[1]
        return of_first, of_second, of_values, None, None, None


# Function's own apply, past what Function.apply does in Python for torch.func, which `plain` has
# ruled out.
apply_expectation: Any = super(torch.autograd.Function, ScoreExpectation).apply
