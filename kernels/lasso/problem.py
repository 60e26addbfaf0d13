"""The interface of the Lasso codes: problem and outputs, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import row_dtype
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
    """Codes, and an upper bound on how far their objective is above its minimum."""

    codes: Annotated[Tensor, "NC"]
    gap: Annotated[Tensor, "N", row_dtype]


def _encode(problem: Problem, outputs: Outputs) -> None:
    """Check the values and write the codes and their gap; half inputs are computed in float32.

    The values are checked here, since torch.compile knows them only at run time, and only on the
    CPU, where reading them needs no synchronization.
    """
    kernels = backend("lasso", problem.x.device)
    codes, gap = outputs
    is_half = codes.dtype != gap.dtype
    if is_half:
        x, dictionary, init = problem.x, problem.dictionary, problem.init
        start = None if init is None else init.float()
        problem = problem._replace(x=x.float(), dictionary=dictionary.float(), init=start)
        codes = codes.float()
    prepared = kernels.prepare(problem.dictionary)
    if codes.is_cpu:
        present = problem.dictionary.any(-1) if not bool(prepared.norms.all()) else None
        if present is not None and not bool(present.all()):
            _encode_without_zero_atoms(problem, outputs, present)
            return
        _check_values(problem, prepared.norms)
    if problem.sizes[0] == 0:
        return
    kernels.forward(problem, prepared, Outputs(codes, gap))
    if is_half:  # of rounded codes the gap is another: that of what is returned
        rounded = outputs.codes.copy_(saturated(codes, outputs.codes.dtype)).float()
        again = problem._replace(init=rounded, algorithm="cd", max_iter=0)
        kernels.forward(again, prepared, Outputs(codes, gap))


def saturated(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the codes, the largest number of `dtype` in place of what is beyond it; NaN stays."""
    most = torch.finfo(dtype).max
    return codes.clamp(-most, most)


def _encode_without_zero_atoms(problem: Problem, outputs: Outputs, present: Tensor) -> None:
    """Encode with the atoms that are `present`: the codes of all others are 0."""
    codes, gap = outputs
    rows, features, _ = problem.sizes
    if not bool(present.any()):  # the objective of no codes cannot be improved
        lost = ~problem.x.isfinite().all(-1)
        codes.zero_().masked_fill_(lost[:, None], torch.nan)
        gap.zero_().masked_fill_(lost, torch.nan)
        return
    fewer = problem._replace(
        sizes=(rows, features, int(present.sum())),
        dictionary=problem.dictionary[present],
        init=None if problem.init is None else problem.init[:, present].contiguous(),
    )
    found = codes.new_empty(rows, fewer.sizes[2])
    _encode(fewer, Outputs(found, gap))
    codes.zero_()[:, present] = found
    codes.masked_fill_(gap.isnan()[:, None], torch.nan)


def _check_values(problem: Problem, norms: Tensor) -> None:
    alpha, init, dtype = problem.alpha, problem.init, norms.dtype
    limits = torch.finfo(dtype)
    if not bool(norms.sum(dtype=torch.float64).isfinite()) or not bool(norms.isfinite().all()):
        raise ValueError("dictionary must be finite, and the sum of its squares too")
    if not bool((norms >= limits.tiny).all()):
        # 1 / norm were infinite, or the norm itself had a few digits
        row = int((norms < limits.tiny).nonzero()[0])
        raise ValueError(
            f"dictionary must have rows whose squared norm is 0 or at least "
            f"{limits.tiny:.3g}, the least normal {dtype}; got less in row {row}"
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
    if init is not None and problem.positive and not bool((init >= 0).all()):
        raise ValueError(f"init must be >= 0 where positive=True; got {init.min().item()}")


LASSO = Op("sparse_encode", "lasso", "NFC", Problem, Outputs, forward=_encode, detached=True)
