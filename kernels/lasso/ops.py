"""Lasso codes as an opaque torch.library op, and the plain way to the kernels."""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import in_memory, row_dtype
from latent_kernels.kernels.library import call, define, fold, unfold

Tensor = torch.Tensor


def encode(
    x: Tensor,
    dictionary: Tensor,
    alpha: Tensor,
    init: Tensor | None,
    algorithm: str,
    max_iter: int,
    tol: float,
    positive: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """x [B, F], dictionary [K, F], alpha float64 [B] or [1], init [B, K] -> codes [B, K] in
    `dtype`, gap [B].

    Checks the values, which only now are there to be looked at: on the CPU, where that waits for
    nothing.
    """
    kernels = backend("lasso", x.device)
    x, alpha, init = in_memory(x), in_memory(alpha), None if init is None else in_memory(init)
    prepared = kernels.prepare(in_memory(dictionary))
    if x.device.type == "cpu":
        _check_values(prepared.norms, alpha, init, positive, x.dtype)
    codes, gap = _encode_fake(
        x, dictionary, alpha, init, algorithm, max_iter, tol, positive, row_dtype(dtype)
    )
    if x.size(0) > 0:
        kernels.encode(x, prepared, alpha, init, codes, gap, algorithm, max_iter, tol, positive)
    if dtype == codes.dtype:
        return codes, gap
    rounded = codes.to(dtype)  # whose gap is another: that of what is returned
    if x.size(0) > 0:
        kernels.encode(x, prepared, alpha, rounded.to(x.dtype), codes, gap, "cd", 0, tol, positive)
    return rounded, gap


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


def _encode_fake(
    x: Tensor,
    dictionary: Tensor,
    alpha: Tensor,
    init: Tensor | None,
    algorithm: str,
    max_iter: int,
    tol: float,
    positive: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.size(0), dictionary.size(0)), dtype=dtype), x.new_empty(x.size(0))


def _encode_vmap(
    info: Any, in_dims: tuple[Any, ...], *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    batch, (x, dictionary, alpha, init, *rest) = info.batch_size, args
    if in_dims[2] is not None or alpha.size(0) > 1:
        alpha = fold(alpha, in_dims[2], batch)
    x, init = fold(x, in_dims[0], batch), fold(init, in_dims[3], batch)
    rows = x.size(0)  # type: ignore[union-attr]
    if in_dims[1] is None:
        codes, gap = call("sparse_encode", x, dictionary, alpha, init, *rest)
        return (unfold(codes, batch), unfold(gap, batch)), (0, 0)
    alpha = alpha.expand(rows) if alpha.size(0) == 1 else alpha
    slices = [[None] * batch if t is None else unfold(t, batch) for t in (x, alpha, init)]
    dictionaries = dictionary.movedim(in_dims[1], 0)
    each = [
        call("sparse_encode", row, d, a, start, *rest)
        for row, d, a, start in zip(slices[0], dictionaries, *slices[1:], strict=True)
    ]
    codes, gap = (torch.stack(tensors) for tensors in zip(*each, strict=True))
    return (codes, gap), (0, 0)


define(
    "sparse_encode(Tensor x, Tensor dictionary, Tensor alpha, Tensor? init, str algorithm, "
    "SymInt max_iter, float tol, bool positive, ScalarType dtype) -> (Tensor, Tensor)",
    encode,
    fake=_encode_fake,
    vmap=_encode_vmap,
)
