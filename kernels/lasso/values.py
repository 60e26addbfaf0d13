"""Count gaps in one serial pass: a forked process has none of torch's threads."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.eager import contiguous, row_dtype
from latent_kernels.kernels.extension import DTYPES

Tensor = torch.Tensor


def unconverged(x: Tensor, gap: Tensor, tol: float) -> int:
    """Return how many rows are further from the optimum than tol asks for, on the CPU.

    Rounding keeps a gap in x's dtype from becoming as small as tol may ask for: below the root of
    its epsilon, every row is near enough.
    """
    rows = contiguous(x if x.dtype == gap.dtype else x.to(gap.dtype))
    found: int = _core.lasso_far_rows(
        dtype=DTYPES[row_dtype(x.dtype)],
        rows=gap.numel(),
        features=x.size(-1),
        tolerance=max(tol, torch.finfo(x.dtype).eps ** 0.5),
        x=rows.data_ptr(),
        gap=gap.data_ptr(),
    )
    return found
