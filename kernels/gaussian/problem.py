"""The interface of the Gaussian ops: problems, outputs and gradients, the same for all backends."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch

from latent_kernels.kernels.description import FORWARD_ONLY
from latent_kernels.kernels.eager import contiguous, row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # groups, samples, rows, columns

# How samples depend on each other; csrc/gaussian/problem.hpp has the same numbers.
INDEPENDENT, ANTITHETIC, SOBOL = 0, 1, 2


def drawn(samples: int, dependence: int) -> int:
    """Return the number of samples whose noise is drawn: the others are the twins of the first of
    them, with the signs of the noise flipped.
    """
    return samples - samples // 2 if dependence == ANTITHETIC else samples


class Problem(NamedTuple):
    """S samples of N(mean, sigma^2) for N rows of D columns, in G groups with a seed each.

    Sigma comes as its log-variance ln sigma^2 or, then without KL and log q, as the scale itself.
    """

    sizes: Sizes
    mean: Annotated[Tensor, "GND"]
    logvar: Annotated[Tensor | None, "GND"]
    scale: Annotated[Tensor | None, "GND"]
    prior_mean: Annotated[Tensor | None, "GND"]  # None for 0
    prior_logvar: Annotated[Tensor | None, "GND"]  # None for 0
    seed: int | Tensor
    offset: int
    dependence: int


class Outputs(NamedTuple):
    """Samples, KL to the prior and log q of the samples; in a backward pass, their gradients."""

    z: Annotated[Tensor | None, "GSND"]
    kl: Annotated[Tensor | None, "GN", row_dtype]
    log_q: Annotated[Tensor | None, "GSN", row_dtype]


class Gradients(NamedTuple):
    """The gradients of the inputs."""

    mean: Tensor | None
    logvar: Tensor | None
    scale: Tensor | None
    prior_mean: Tensor | None
    prior_logvar: Tensor | None


def deviation(of: Problem | Gradients) -> Any:
    """Return the log-variance or the scale, or its gradient, whichever is there.

    A function, since torch.compile of torch 2.6 reads no properties of named tuples.
    """
    return of.logvar if of.scale is None else of.scale


def rows_in_place(x: Tensor, shape: object = None) -> Tensor:
    """Return x if kernels can read it: rows at one distance, or one row repeated; else a copy."""
    if not x.is_contiguous() and not x.is_neg():
        stride = x.stride()
        if stride[-1] == 1 and (len(stride) == 2 or not any(stride[:-1])):
            return x
    return contiguous(x)


GAUSSIAN = Op(
    "gaussian",
    "gaussian",
    "GSND",
    Problem,
    Outputs,
    Gradients,
    place=rows_in_place,
    formula="formula",
)


class PathProblem(NamedTuple):
    """The log q of samples z that `GAUSSIAN` returned, as a function of z alone."""

    sizes: Sizes
    z: Annotated[Tensor, "GSND"]  # only for the graph: eps is made anew from the seed
    log_q: Annotated[Tensor | None, "GSN", FORWARD_ONLY]
    logvar: Annotated[Tensor, "GND"]
    seed: int | Tensor
    offset: int
    dependence: int


class PathOutputs(NamedTuple):
    """log_q; in the backward pass, its gradient."""

    log_q: Annotated[Tensor, "GSN", row_dtype]


class PathGradients(NamedTuple):
    """The gradient of z: -eps / sigma times log_q's gradient."""

    z: Tensor | None


def _copy(problem: PathProblem, outputs: PathOutputs) -> None:
    assert problem.log_q is not None
    outputs.log_q.copy_(problem.log_q)


GAUSSIAN_PATH = Op(
    "gaussian_path",
    "gaussian",
    "GSND",
    PathProblem,
    PathOutputs,
    PathGradients,
    forward=_copy,
    directly=lambda inputs, options: (inputs[1].detach(),),  # no copy
    backward="path_backward",
    place=rows_in_place,
    formula="path_formula",
)
