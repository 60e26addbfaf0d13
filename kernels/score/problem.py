"""The interface of score-function estimators: problem, outputs and gradients for all backends.

A backend has one function, gradient(problem, upstream, estimate): it writes the gradient of each
parameter, times `upstream` [G, N] or [G, N, D] where that is given, and its estimated variance
where the estimate has a place for it. It returns False where z, on a CPU, has a value outside the
family's support.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch

from latent_kernels.kernels.backends import function
from latent_kernels.kernels.description import Inputs
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """S samples z of q over N x D variables, in G groups that have a seed each.

    family          parameters                   z
    "gaussian"      mean, logvar [G, N, D]       [G, S, N, D]
    "bernoulli"     logits [G, N, D]             [G, S, N, D], 0 or 1
    "antithetic"    logits [G, N, D]             [G, 2, S, N, D], 0 or 1: DisARM's pairs
    "categorical"   logits [G, N, D, K]          [G, S, N, D], int64

    Axis P is the 2 of pairs; B is S, or 1 where the samples share a baseline; E is D where values
    have a term for each column (`per_element`).
    """

    sizes: tuple[int, ...]  # G, P, S, B, N, E, D, K; 1 for what there is not
    first: Annotated[Tensor, "GNDK"]  # the first parameter of q
    second: Annotated[Tensor | None, "GNDK"]
    z: Annotated[Tensor | None, "GPSND"]  # None: the samples that seed and offset draw
    values: Annotated[Tensor, "GPSNE"]
    baseline: Annotated[Tensor | None, "GBNE"]
    seed: int | Tensor
    offset: int
    family: str
    control: str  # "none", "leave_one_out", "optimal"; a given baseline goes with "none"
    folds: int  # of "optimal"; fold k is samples [k S // folds, (k + 1) S // folds)
    per_element: bool

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Return groups, samples, rows, cols and classes, 0 except for a Categorical."""
        groups, _, samples, _, rows, _, cols, classes = self.sizes
        return groups, samples, rows, cols, classes if self.family == "categorical" else 0

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Return the parameters of q."""
        return (self.first,) if self.second is None else (self.first, self.second)


class Estimate(NamedTuple):
    """The gradient of each parameter, and the variance of each gradient."""

    first: Annotated[Tensor | None, "GNDK"]
    second: Annotated[Tensor | None, "GNDK"]
    first_variance: Annotated[Tensor | None, "GNDK", row_dtype]
    second_variance: Annotated[Tensor | None, "GNDK", row_dtype]


class Mean(NamedTuple):
    """The mean of the values over samples, and over both samples of a pair."""

    mean: Annotated[Tensor, "GNE", row_dtype]


class Gradients(NamedTuple):
    """The estimator's gradient for q, and the ordinary gradient for the values."""

    first: Tensor | None
    second: Tensor | None
    values: Tensor | None


def gradients_of(estimate: Estimate) -> tuple[Tensor, ...]:
    """Return the gradients as backends write them: one for each parameter."""
    return tuple([x for x in estimate[:2] if x is not None])


def variances_of(estimate: Estimate) -> tuple[Tensor, ...] | None:
    """Return the variance of each parameter's gradient, None where variances are not wanted."""
    return tuple([x for x in estimate[2:] if x is not None]) or None


def _for_kernels(x: Tensor, compute: torch.dtype, per_element: bool) -> Tensor:
    """Return values or a baseline in the compute type; float64 stays where rows have one value."""
    if x.dtype == compute or (x.dtype == torch.float64 and not per_element):
        return x
    return x.to(compute)


def _estimate(problem: Problem, estimate: Estimate, upstream: Tensor | None = None) -> None:
    """Write gradients and variances by the device's backend."""
    first, values, baseline = problem.first, problem.values, problem.baseline
    compute = row_dtype(first.dtype)
    values = _for_kernels(values, compute, problem.per_element)
    if baseline is not None:
        baseline = _for_kernels(baseline, compute, problem.per_element)
        if baseline.dtype != values.dtype:
            values, baseline = values.double(), baseline.double()
    if values is not problem.values or baseline is not problem.baseline:
        problem = problem._replace(values=values, baseline=baseline)
    if upstream is not None and upstream.dtype != compute:
        upstream = upstream.to(compute)
    inside = function("score", "gradient", first.device)(problem, upstream, estimate)
    if not inside and problem.family == "categorical":
        last = problem.counts[-1] - 1
        raise ValueError(f"z must hold classes 0, ..., {last} of a Categorical; it has others")
    if not inside:
        raise ValueError("z must hold samples of a Bernoulli, 0 or 1; it has other values")


def _planes(problem: Problem) -> tuple[int, int, int]:
    """Return groups, samples (both of a pair), and what a sample has values for."""
    groups, pairs, samples, _, rows, cols, _, _ = problem.sizes
    return groups, pairs * samples, rows * cols


def _mean_directly(inputs: Inputs, options: tuple[Any, ...]) -> tuple[Tensor]:
    values, family = inputs[3], options[1]
    return (values.mean((0, 1) if family == "antithetic" else 0, dtype=row_dtype(values.dtype)),)


def _mean(problem: Problem, outputs: Mean) -> None:
    groups, samples, size = _planes(problem)
    values, out = problem.values.view(groups, samples, size), outputs.mean.view(groups, size)
    torch.mean(values, 1, dtype=out.dtype, out=out)


def _gradients(problem: Problem, upstream: Mean, gradients: Gradients) -> None:
    first, second, of_values = gradients
    if first is not None or second is not None:
        if first is None:
            first = torch.empty_like(problem.first)
        if second is None and problem.second is not None:
            second = torch.empty_like(problem.second)
        _estimate(problem, Estimate(first, second, None, None), upstream.mean)
    if of_values is not None:
        groups, samples, size = _planes(problem)
        share = (upstream.mean / samples).to(of_values.dtype).view(groups, 1, size)
        of_values.view(groups, samples, size).copy_(share)


def _absent(offset: int, family: str, control: str, folds: int, per_element: bool) -> str:
    pairs, classes = family == "antithetic", family == "categorical"
    return ("" if pairs else "P") + ("" if per_element else "E") + ("" if classes else "K")


AXES = "GPSBNEDK"
ESTIMATE = Op("score_gradient", "score", AXES, Problem, Estimate, forward=_estimate, absent=_absent)
EXPECTATION = Op(
    "score_expectation",
    "score",
    AXES,
    Problem,
    Mean,
    Gradients,
    forward=_mean,
    directly=_mean_directly,
    backward=_gradients,
    like="values",
    absent=_absent,
)
