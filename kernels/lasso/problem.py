"""What Lasso codes are: the problem and its outputs, as every backend has them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory, row_dtype
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """The Lasso of N rows of F features over C atoms."""

    sizes: tuple[int, int, int]  # N, F, C
    x: Annotated[Tensor, "NF"]
    dictionary: Annotated[Tensor, "CF"]
    alpha: Annotated[Tensor, "N"]  # float64, where the device has it
    init: Annotated[Tensor | None, "NC"]  # None for zeros
    algorithm: str
    max_iter: int
    tol: float
    positive: bool


class Outputs(NamedTuple):
    """Codes, and an upper bound on their objective above its minimum."""

    codes: Annotated[Tensor, "NC"]
    gap: Annotated[Tensor, "N", row_dtype]


def _encode(problem: Problem, outputs: Outputs) -> None:
    """Write the codes and their gap; the backends compute in the dtype of the gap.

    Checks the values, which only now are there to be looked at: on the CPU, where that waits for
    nothing.
    """
    kernels = backend("lasso", problem.x.device)
    x, dictionary, alpha, init = problem[1:5]
    dtype, is_half = outputs.gap.dtype, outputs.codes.dtype != outputs.gap.dtype
    start = None if init is None else init.to(dtype)
    problem = problem._replace(x=x.to(dtype), dictionary=dictionary.to(dtype), init=start)
    prepared = kernels.prepare(problem.dictionary)
    if x.device.type == "cpu":
        _check_values(prepared.norms, alpha, start, problem.positive, dtype)
    if problem.sizes[0] == 0:
        return
    codes = outputs.codes.to(dtype)
    kernels.forward(problem, prepared, Outputs(codes, outputs.gap))
    if is_half:  # rounded codes, whose gap is another: that of what is returned
        rounded = outputs.codes.copy_(codes).to(dtype)
        again = problem._replace(init=rounded, algorithm="cd", max_iter=0)
        kernels.forward(again, prepared, Outputs(codes, outputs.gap))


def _check_values(
    norms: Tensor, alpha: Tensor, init: Tensor | None, positive: bool, dtype: torch.dtype
) -> None:
    limits = torch.finfo(dtype)
    if not bool(norms.sum(dtype=torch.float64).isfinite()) or not bool(norms.isfinite().all()):
        raise ValueError("dictionary must be finite, and the sum of its squares too")
    if not bool(
        (norms >= limits.tiny).all()
    ):  # or 1 / norm were infinite, or the norm itself a few digits
        row = int((norms < limits.tiny).nonzero()[0])
        least = f"{limits.tiny:.3g}, the least normal {dtype}"
        raise ValueError(
            f"dictionary must have no zero row; row {row} is zero, or its squared norm below "
            f"{least}"
        )
    if not bool(((alpha >= 0) & alpha.isfinite()).all()):
        wrong = alpha[~((alpha >= 0) & alpha.isfinite())][0].item()
        raise ValueError(f"alpha must be finite and >= 0; got {wrong}")
    if not bool((alpha <= limits.max).all()):
        raise ValueError(
            f"alpha must be at most {limits.max:.3g}, the largest {dtype}; got {alpha.max().item()}"
        )
    if init is not None and not bool(init.isfinite().all()):
        raise ValueError("init must be finite")
    if init is not None and positive and not bool((init >= 0).all()):
        raise ValueError(f"init must be >= 0 where positive=True; got {init.min().item()}")


LASSO = Op("sparse_encode", "lasso", "NFC", Problem, Outputs, forward=_encode, place=in_memory)
