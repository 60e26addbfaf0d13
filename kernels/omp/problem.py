"""The interface of orthogonal matching pursuit: problem and outputs, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.lasso.problem import saturated
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """N rows of F features over C atoms."""

    sizes: tuple[int, int, int]  # N, F, C
    x: Annotated[Tensor, "NF"]
    dictionary: Annotated[Tensor, "CF"]
    most: int  # atoms of a row at most
    tol: float  # a row ends where its squared residual is at most this; -inf for never


class Outputs(NamedTuple):
    """The codes."""

    codes: Annotated[Tensor, "NC"]


def _encode(problem: Problem, outputs: Outputs) -> None:
    """Check the values, on the CPU, and write the codes; half inputs are computed in float32."""
    kernels = backend("omp", problem.x.device)
    codes = outputs.codes
    compute = row_dtype(codes.dtype)
    if codes.dtype != compute:
        problem = problem._replace(x=problem.x.float(), dictionary=problem.dictionary.float())
    prepared = kernels.prepare(problem.dictionary)
    if codes.is_cpu:
        _check_values(problem.dictionary, prepared.norms)
    if problem.sizes[0] == 0:
        return
    found = codes if codes.dtype == compute else codes.to(compute)
    kernels.forward(problem, prepared, Outputs(found))
    if found is not codes:
        codes.copy_(saturated(found, codes.dtype))


def _check_values(dictionary: Tensor, norms: Tensor) -> None:
    if not bool(norms.isfinite().all()):
        raise ValueError("dictionary must be finite, and the squared norms of its rows too")
    tiny = torch.finfo(norms.dtype).tiny
    small = (norms < tiny).nonzero()[:, 0]
    if bool(dictionary[small].any()):
        raise ValueError(
            f"dictionary must have rows whose squared norm is 0 or at least {tiny:.3g}, the least "
            f"normal {norms.dtype}; got less"
        )


OMP = Op(
    "orthogonal_matching_pursuit",
    "omp",
    "NFC",
    Problem,
    Outputs,
    forward=_encode,
    detached=True,
)
