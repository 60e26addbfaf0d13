"""The interface of the log-density ops: problems, outputs and gradients, the same for all backends.

An input may have 1 in place of S, where samples share it, or of S and N, where it is a single row
for all of them; its columns are contiguous. One that is contiguous may come in the caller's shape:
its number of elements tells which of the three it is.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # G, S, N, D


class GaussianProblem(NamedTuple):
    """Densities of S samples of N rows under N(mean, e^logvar), in G groups."""

    sizes: Sizes
    z: Annotated[Tensor, "GSND"]
    mean: Annotated[Tensor, "GSND"]
    logvar: Annotated[Tensor, "GSND"]


class BernoulliProblem(NamedTuple):
    """Log-probabilities of S samples of N rows under their logits, in G groups."""

    sizes: Sizes
    x: Annotated[Tensor, "GSND"]
    logits: Annotated[Tensor, "GSND"]


Problem = GaussianProblem | BernoulliProblem


class Outputs(NamedTuple):
    """The log-densities: sums over columns."""

    log_prob: Annotated[Tensor, "GSN", row_dtype]


class GaussianGradients(NamedTuple):
    """Gradients in the inputs' shapes, summed over the dimensions that samples share."""

    z: Tensor | None
    mean: Tensor | None
    logvar: Tensor | None


class BernoulliGradients(NamedTuple):
    """Gradients in the inputs' shapes, summed over the dimensions that samples share."""

    x: Tensor | None
    logits: Tensor | None


Gradients = GaussianGradients | BernoulliGradients


def inputs_of(problem: Problem) -> tuple[Tensor, ...]:
    """Return z, mean and logvar, or x and logits, in their canonical shapes."""
    sizes, *inputs = problem
    return tuple([x.view(_shape_of(x, sizes)) if x.is_contiguous() else x for x in inputs])


def _shape_of(x: Tensor, sizes: Sizes) -> Sizes:
    """Return the canonical shape of a contiguous input."""
    groups, samples, rows, cols = sizes
    if x.numel() == groups * samples * rows * cols:
        return sizes
    return (groups, 1, rows, cols) if x.numel() > groups * cols else (groups, 1, 1, cols)


def in_place(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return x in its canonical shape, where it lies if a kernel can read it there.

    That is where nothing repeats, since the gradient of what repeats is one for each repetition,
    and columns are contiguous.
    """
    x = x.resolve_neg().reshape(shape)
    strides = [stride for stride, size in zip(x.stride(), shape, strict=True) if size != 1]
    return x.contiguous() if 0 in strides or (shape[-1] != 1 and x.stride(-1) != 1) else x


GAUSSIAN = Op(
    "gaussian_log_prob",
    "densities",
    "GSND",
    GaussianProblem,
    Outputs,
    GaussianGradients,
    place=in_place,
    formula="gaussian_formula",
)
BERNOULLI = Op(
    "bernoulli_log_prob",
    "densities",
    "GSND",
    BernoulliProblem,
    Outputs,
    BernoulliGradients,
    place=in_place,
    formula="bernoulli_formula",
)
