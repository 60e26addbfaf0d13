"""The interface of vector quantization: problems, outputs, gradients, the same for all backends.

Two ops: `ASSIGN` finds codes and their sufficient statistics, which have no derivatives;
`QUANTIZE` is given the codes, and differentiable.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # G, N, C, D


def _whole(dtype: torch.dtype) -> torch.dtype:
    return torch.int64


class AssignProblem(NamedTuple):
    """The nearest of C codes for N rows, in G groups with a codebook each."""

    sizes: Sizes
    z: Annotated[Tensor, "GND"]
    codebook: Annotated[Tensor, "GCD"]


class Assigned(NamedTuple):
    """The code of each row, -1 for none, and each code's number of rows and their sum."""

    codes: Annotated[Tensor, "GN", _whole]
    counts: Annotated[Tensor, "GC", _whole]
    sums: Annotated[Tensor, "GCD", row_dtype]


class Problem(NamedTuple):
    """N rows and the code of each, of C codes, in G groups with a codebook each."""

    sizes: Sizes
    z: Annotated[Tensor, "GND"]
    codebook: Annotated[Tensor, "GCD"]
    codes: Annotated[Tensor, "GN"]


class Outputs(NamedTuple):
    """The codes' rows of the codebook, and the squared distances to them.

    The distance comes twice: `commitment` has a gradient of z alone, `codebook_loss` one of the
    codebook alone.
    """

    quantized: Annotated[Tensor, "GND"]
    commitment: Annotated[Tensor, "GN", row_dtype]
    codebook_loss: Annotated[Tensor, "GN", row_dtype]


class Gradients(NamedTuple):
    """Gradients of the inputs."""

    z: Tensor | None
    codebook: Tensor | None


ASSIGN = Op("nearest_codes", "vector_quantize", "GNCD", AssignProblem, Assigned, forward="assign")
QUANTIZE = Op(
    "vector_quantize", "vector_quantize", "GNCD", Problem, Outputs, Gradients, formula="formula"
)
