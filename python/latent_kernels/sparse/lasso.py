"""Sparse codes over a dictionary: the Lasso, solved row by row to a duality gap."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch

from latent_kernels import _checks
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.lasso.problem import LASSO

Tensor = torch.Tensor
Algorithm = Literal["fista", "ista", "cd"]


@overload
def sparse_encode(
    x: Tensor,
    dictionary: Tensor,
    *,
    algorithm: Algorithm = ...,
    alpha: float | Tensor = ...,
    max_iter: int = ...,
    tol: float = ...,
    positive: bool = ...,
    init: Tensor | None = ...,
    return_gap: Literal[False] = ...,
) -> Tensor: ...
@overload
def sparse_encode(
    x: Tensor,
    dictionary: Tensor,
    *,
    algorithm: Algorithm = ...,
    alpha: float | Tensor = ...,
    max_iter: int = ...,
    tol: float = ...,
    positive: bool = ...,
    init: Tensor | None = ...,
    return_gap: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def sparse_encode(
    x: Tensor,
    dictionary: Tensor,
    *,
    algorithm: Algorithm = "fista",
    alpha: float | Tensor = 1.0,
    max_iter: int = 1000,
    tol: float = 1e-6,
    positive: bool = False,
    init: Tensor | None = None,
    return_gap: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return codes of each row of x over the dictionary's atoms: the Lasso.

    .. math::
        \min_z \tfrac12 \lVert x - z D \rVert^2 + \alpha \lVert z \rVert_1
        \qquad (z \ge 0 \text{ if positive})

    Each row is solved by itself, until its duality gap is at most ``tol * 0.5 * ||x||^2`` (0.5
    ||x||^2 is the objective of z = 0), or for max_iter iterations; ``return_gap`` returns the gaps.
    ``"cd"`` also ends where rounding lets it come no closer; the others may then take all of
    max_iter. ``"cd"`` is the fastest by far. It sweeps over working sets of coordinates; an
    iteration is a sweep. ``"ista"`` and ``"fista"`` are proximal gradient steps of 1/L, L the
    largest eigenvalue of D D^T, FISTA's momentum with adaptive restart. Half inputs are computed in
    float32. On the CPU a row's bits depend on that row, the dictionary and the options: not on the
    batch around it, threads or SIMD width.

    0.5 ||x||^2, tol times it, alpha ||z||_1 and the atoms' squared norms must lie within the range
    of the dtype that is computed in: 1e-38 to 3e38 for float32. Beyond it a row may end early, with
    a gap that says so, or as NaN.

    The codes carry no gradient. At the optimum a loss's value is differentiable in D and x with z
    held fixed (Danskin): put the codes into ``0.5 * (x - z @ D).square().sum()``, and autograd
    gives the gradient in D and x of the minimum.

    Args:
        x: [..., n_features], float32, float64, bfloat16 or float16.
        dictionary: D, [n_components, n_features], one atom a row as in scikit-learn; finite,
            and of squared norms that are normal numbers, or 0. Atoms need not have norm 1; the
            codes of an atom of zeros are 0. Its Gram matrix is formed: n_components^2 numbers.
        algorithm: "fista", "ista" or "cd".
        alpha: the weight of the l1 norm, finite and >= 0, in the dtype computed in too; a number,
            or a tensor that broadcasts to x.shape[:-1]. 0 is least squares, whose gap is no smaller
            than 0.5 ||x - zD||^2.
        max_iter: the maximum number of iterations, an int >= 0; 0 returns init.
        tol: the tolerance on the gap, a number >= 0.
        positive: codes >= 0 only.
        init: codes to start from, [..., n_components], finite, and >= 0 where positive; None for 0.
        return_gap: whether to return the gaps too.

    Returns:
        codes [..., n_components] in the inputs' dtype; with return_gap, (codes, gap). gap [...],
        float32 for half inputs, is an upper bound on the objective of the returned codes above its
        minimum, computed in float64 from x - zD with an allowance for rounding and rounded up. Rows
        of x that hold NaN or infinity give NaN in both.

    Raises:
        TypeError, ValueError: naming the argument that is wrong. Values of tensors are checked on
            the CPU only.

    Source: Tibshirani, "Regression shrinkage and selection via the Lasso" (1996); Beck and
    Teboulle, "A fast iterative shrinkage-thresholding algorithm" (2009); O'Donoghue and Candes,
    "Adaptive restart for accelerated gradient schemes" (2015), gradient scheme; Friedman, Hastie
    and Tibshirani, "Regularization paths for generalized linear models via coordinate descent"
    (2010); Massias, Gramfort and Salmon, "Celer" (2018), working sets.

    """
    (x, dictionary, init), _ = _checks.together(x=x, dictionary=dictionary, init=init)  # type: ignore[assignment]
    _check_shapes(x, dictionary, init)
    weights = _alpha(alpha, x)
    if algorithm not in ("fista", "ista", "cd"):
        raise ValueError(f"algorithm must be 'fista', 'ista' or 'cd'; got {algorithm!r}")
    max_iter = _checks.integer("max_iter", max_iter, 0)
    if type(max_iter) is int and max_iter >= 2**63:
        raise ValueError(f"max_iter must be an int >= 0 and below 2^63; got {max_iter}")
    tolerance, positive = _number("tol", tol), _checks.flag("positive", positive)
    return_gap = _checks.flag("return_gap", return_gap)

    shape = tuple(x.shape)
    dims = (shape[:-1], shape[-1:], (dictionary.size(0),))
    options = (algorithm, max_iter, tolerance, positive)
    codes, gap = LASSO(dims, (x, dictionary, weights, init), options)
    return (codes, gap) if return_gap else codes


def _check_shapes(x: Tensor, dictionary: Tensor, init: Tensor | None) -> None:
    if dictionary.dim() != 2 or dictionary.size(0) == 0 or dictionary.size(1) == 0:
        expected = "[n_components, n_features], neither of them 0"
        raise ValueError(f"dictionary must have shape {expected}; got {tuple(dictionary.shape)}")
    if x.size(-1) != dictionary.size(1):
        got = f"x {tuple(x.shape)} and dictionary {tuple(dictionary.shape)}"
        raise ValueError(f"x must have the dictionary's n_features as its last size; got {got}")
    shape = (*x.shape[:-1], dictionary.size(0))
    if init is not None and tuple(init.shape) != shape:
        raise ValueError(f"init must have the shape of the codes, {shape}; got {tuple(init.shape)}")


def _alpha(alpha: float | Tensor, x: Tensor) -> Tensor:
    """Return alpha for each row of x, in float64 where the device has it."""
    batch = tuple(x.shape[:-1])
    kind = torch.float32 if x.device.type == "mps" else torch.float64
    if isinstance(alpha, Tensor):
        if alpha.dtype not in _checks.FLOATS:
            raise TypeError(f"alpha must be a number or a floating tensor; got {alpha.dtype}")
        _checks.device_of("alpha", alpha, "x", x)
        return _checks.expand("alpha", alpha.to(kind), batch, "x without its last size")
    value, dtype = _number("alpha", alpha), row_dtype(x.dtype)
    if not math.isfinite(value):
        raise ValueError(f"alpha must be finite and >= 0; got {value}")
    if value > torch.finfo(dtype).max:
        raise ValueError(
            f"alpha must be at most {torch.finfo(dtype).max:.3g}, the largest {dtype}; got {value}"
        )
    return torch.full(batch, value, dtype=kind, device=x.device)


def _number(name: str, value: object) -> float:
    try:
        number = _checks.as_float(value)
    except OverflowError:  # an int, perhaps one too long to print
        raise ValueError(
            f"{name} must be a number >= 0 in the range of float64; got an int beyond it"
        ) from None
    if number is None:
        raise TypeError(f"{name} must be a number >= 0; got {value!r}")
    if not number >= 0:
        raise ValueError(f"{name} must be a number >= 0; got {value}")
    return number
