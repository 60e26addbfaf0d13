"""The interface of the bounds op: problem, outputs and gradients, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.description import KEPT, Dims
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """Bounds for N rows over S samples each, in G groups."""

    sizes: tuple[int, int, int]  # G, S, N
    log_w: Annotated[Tensor, "GSN"]
    log_q: Annotated[Tensor | None, "GSN"] = None  # has VIMCO's gradient, and is not read


class Outputs(NamedTuple):
    """The bound and the sums; in a backward pass, `bound` is its gradient (None for ones)."""

    bound: Annotated[Tensor | None, "GN", row_dtype]
    sums: Annotated[Tensor, "G2N", row_dtype, KEPT]  # the largest log-weight, and a sum


class Gradients(NamedTuple):
    """The normalised weights and VIMCO's signal, both times the bound's gradient."""

    log_w: Tensor | None
    log_q: Tensor | None


BOUND = Op("bound", "bounds", "GSN", Problem, Outputs, Gradients, formula="formula")


def dims_of(log_w: Tensor) -> Dims:
    """Return what the axes are in a caller's log-weights [S, ...]."""
    shape = tuple(log_w.shape)
    return (), shape[:1], shape[1:]


def bound_and_sums(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bound [...] of log-weights [S, ...] and the sums behind it, without gradients."""
    bound, sums = BOUND.evaluate(dims_of(log_w), (log_w, None))
    return bound, sums


def weights(log_w: Tensor, sums: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return the normalised weights [S, ...], times `gradient` [...] where it is given."""
    upstream = Outputs(gradient, sums)
    found: Tensor = BOUND.differentiate(dims_of(log_w), (log_w, None), upstream, (True, False))[0]
    return found
