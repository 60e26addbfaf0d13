"""Sparse codes over a dictionary: the Lasso, solved row by row to a duality gap, and others."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels import _checks, _data
from latent_kernels.kernels.eager import plain, row_dtype
from latent_kernels.kernels.lasso.problem import LASSO
from latent_kernels.kernels.lasso.values import unconverged
from latent_kernels.sparse import _other_codes
from latent_kernels.sparse._arguments import as_tensor, check_shapes, number
from latent_kernels.sparse.pursuit import orthogonal_matching_pursuit

Tensor = torch.Tensor
Algorithm = Literal["fista", "ista", "cd", "lasso_cd", "lasso_lars", "lars", "omp", "threshold"]
SOLVERS = {"fista": "fista", "ista": "ista", "cd": "cd", "lasso_cd": "cd"}
ALGORITHMS = (*SOLVERS, "lasso_lars", "lars", "omp", "threshold")


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
    n_nonzero_coefs: int | None = ...,
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
    n_nonzero_coefs: int | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def sparse_encode(
    x: NDArray[Any],
    dictionary: NDArray[Any],
    *,
    algorithm: Algorithm = ...,
    alpha: Any = ...,
    max_iter: int = ...,
    tol: float = ...,
    positive: bool = ...,
    init: NDArray[Any] | None = ...,
    return_gap: bool = ...,
    n_nonzero_coefs: int | None = ...,
) -> Any: ...
def sparse_encode(
    x: Any,
    dictionary: Any,
    *,
    algorithm: Algorithm = "fista",
    alpha: Any = 1.0,
    max_iter: int = 1000,
    tol: float = 1e-6,
    positive: bool = False,
    init: Any = None,
    return_gap: bool = False,
    n_nonzero_coefs: int | None = None,
) -> Any:
    r"""Return codes of each row of x over the dictionary's atoms: the Lasso.

    .. math::
        \min_z \tfrac12 \lVert x - z D \rVert^2 + \alpha \lVert z \rVert_1
        \qquad (z \ge 0 \text{ if positive})

    Each row is solved by itself, until its duality gap is at most ``tol * 0.5 * ||x||^2`` (0.5
    ||x||^2 is the objective of z = 0), or for max_iter iterations; ``return_gap`` returns the gaps.
    ``"cd"`` is the fastest by far. It sweeps over working sets of coordinates, and an iteration is
    a sweep. It also stops where rounding prevents further progress; the others may then take all of
    max_iter. ``"ista"`` and ``"fista"`` are proximal gradient steps of length 1 / L, with L the
    largest eigenvalue of D D^T; where norms of atoms differ by a factor of more than 4, of length
    1 / (L ||d_k||^2), with the L of the atoms scaled to norm 1. FISTA's momentum has an adaptive
    restart. Rows that have not converged raise a ConvergenceWarning, on the CPU and unless the gaps
    are returned. Half inputs are computed in float32; float16 codes are clipped at 65504, and the
    gap is that of the clipped codes. On the CPU a row's bits depend on that row, the dictionary and
    the options: not on the batch around it, threads or SIMD width.

    The other names are scikit-learn's. ``"lasso_cd"`` is "cd". ``"lasso_lars"`` is "cd" without a
    tolerance, until rounding stops it; rows that it does not bring to the optimum, as with a tiny
    alpha, are also solved by scikit-learn's LARS, and the better codes are returned. ``"lars"``,
    least angle regression with n_nonzero_coefs atoms, is entirely scikit-learn's; both need the
    CPU. ``"omp"`` is `orthogonal_matching_pursuit` with n_nonzero_coefs. ``"threshold"`` is
    soft(x D^T, alpha), or max(x D^T - alpha, 0) if positive.

    0.5 ||x||^2, tol times it, alpha ||z||_1 and the atoms' squared norms must lie within the range
    of the dtype that is computed in: 1e-38 to 3e38 for float32. Beyond it a row may end early, with
    a gap that says so, or as NaN.

    The codes carry no gradient. At the optimum a loss's value is differentiable in D and x with z
    held fixed (Danskin): put the codes into ``0.5 * (x - z @ D).square().sum()``, and autograd
    gives the gradient in D and x of the minimum.

    Args:
        x: [..., n_features], float32, float64, bfloat16 or float16; a tensor, or a NumPy array,
            beside which the dictionary and init are arrays too.
        dictionary: D, [n_components, n_features], one atom a row as in scikit-learn; finite,
            and of squared norms that are normal numbers, or 0. Atoms need not have norm 1; the
            codes of an atom of zeros are 0. Its Gram matrix is formed: n_components^2 numbers.
        algorithm: "fista", "ista" or "cd"; or, as in scikit-learn, "lasso_cd", "lasso_lars",
            "lars", "omp" or "threshold".
        alpha: the weight of the l1 norm, finite and >= 0, in the dtype computed in too; a number,
            or a tensor that broadcasts to x.shape[:-1]. 0 is least squares, whose gap is no smaller
            than 0.5 ||x - zD||^2.
        max_iter: the maximum number of iterations, an int >= 0; 0 returns init.
        tol: the tolerance on the gap, a number >= 0.
        positive: codes >= 0 only; not for "omp" and "lars".
        init: codes to start from, [..., n_components], finite, and >= 0 where positive; None for 0.
            Not for the names from "lasso_lars" on.
        return_gap: whether to return the gaps too; only of the Lasso's codes.
        n_nonzero_coefs: atoms of a row at most, for "omp" and "lars"; None for n_features / 10 but
            at least 1.

    Returns:
        codes [..., n_components] in the inputs' dtype, an array where x is one; with return_gap,
        (codes, gap). gap [...], float32 for half inputs, is an upper bound on the objective of the
        returned codes above its minimum, computed in float64 from x - zD with an allowance for
        rounding and rounded up. Rows of x that hold NaN or infinity give NaN in both.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Values of tensors are
            checked on the CPU only.

    Source:
        Tibshirani, "Regression shrinkage and selection via the Lasso" (1996); Beck and Teboulle, "A
        fast iterative shrinkage-thresholding algorithm" (2009); O'Donoghue and Candes, "Adaptive
        restart for accelerated gradient schemes" (2015), gradient scheme; Friedman, Hastie and
        Tibshirani, "Regularization paths for generalized linear models via coordinate descent"
        (2010); Massias, Gramfort and Salmon, "Celer" (2018), working sets.

    Example:
        >>> import torch, latent_kernels as lk
        >>> D = torch.eye(3)
        >>> lk.sparse_encode(torch.tensor([[3.0, -0.5, 0.0]]), D, algorithm="cd", alpha=1.0)
        tensor([[2., 0., 0.]])
        >>> codes, gap = lk.sparse_encode(lk.normal((5, 3), seed=0), D, alpha=1.0, return_gap=True)
        >>> codes.shape, gap.shape
        (torch.Size([5, 3]), torch.Size([5]))

    """
    if isinstance(x, np.ndarray):
        found = sparse_encode(
            as_tensor(x),
            as_tensor(dictionary),
            algorithm=algorithm,
            alpha=as_tensor(alpha),
            max_iter=max_iter,
            tol=tol,
            positive=positive,
            init=as_tensor(init),
            return_gap=return_gap,
            n_nonzero_coefs=n_nonzero_coefs,
        )
        return tuple(part.numpy() for part in found) if return_gap else found.numpy()
    (x, dictionary, init), _ = _checks.together(x=x, dictionary=dictionary, init=init)
    check_shapes(x, dictionary)
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"algorithm must be one of {', '.join(map(repr, ALGORITHMS))}; got {algorithm!r}"
        )
    positive = _checks.flag("positive", positive)
    return_gap = _checks.flag("return_gap", return_gap)
    if algorithm not in SOLVERS:
        if positive and algorithm in ("omp", "lars"):
            raise ValueError(
                f"Positive constraint not supported for '{algorithm}' coding method: positive must "
                "be False; got True"
            )
        if init is not None:
            raise ValueError(f"init must be None where algorithm is {algorithm!r}")
        if return_gap and algorithm != "lasso_lars":
            raise ValueError(f"return_gap must be False where algorithm is {algorithm!r}; got True")
    if algorithm == "omp":
        return orthogonal_matching_pursuit(x, dictionary, n_nonzero_coefs=n_nonzero_coefs)
    if algorithm == "lars":
        if n_nonzero_coefs is not None:
            n_nonzero_coefs = _checks.integer("n_nonzero_coefs", n_nonzero_coefs)
        return _other_codes.least_angle(x, dictionary, n_nonzero_coefs)
    if algorithm == "threshold":
        return _other_codes.thresholded(x, dictionary, number("alpha", alpha), positive)

    shape = (*x.shape[:-1], dictionary.size(0))
    if init is not None and tuple(init.shape) != shape:
        raise ValueError(f"init must have the shape of the codes, {shape}; got {tuple(init.shape)}")
    weights = _alpha(alpha, x)
    max_iter = _checks.integer("max_iter", max_iter, 0)
    if type(max_iter) is int and max_iter >= 2**63:
        raise ValueError(f"max_iter must be an int >= 0 and below 2^63; got {max_iter}")
    tolerance = number("tol", tol)
    if algorithm == "lasso_lars":
        codes, gap = _other_codes.lasso_by_lars(x, dictionary, weights, max_iter, positive)
    else:
        dims = (shape[:-1], tuple(x.shape[-1:]), shape[-1:])
        how = (SOLVERS[algorithm], max_iter, tolerance, positive)
        codes, gap = LASSO(dims, (x, dictionary, weights, init), how)
    if return_gap:
        return codes, gap
    if x.is_cpu and max_iter > 0 and plain(x, gap):
        missed = unconverged(x, gap, tolerance)
        if missed > 0:
            _data.warn(
                f"the codes of {missed} of {gap.numel()} rows are not within tol = {tolerance:g} "
                f"of the optimum after max_iter = {max_iter} iterations of {algorithm!r}: raise "
                "either ('cd' takes the fewest); return_gap=True tells how far they are, in place "
                "of this warning"
            )
    return codes


def _alpha(alpha: float | Tensor, x: Tensor) -> Tensor:
    """Return alpha for each row of x, in float64 where the device has it."""
    batch = tuple(x.shape[:-1])
    kind = torch.float32 if x.device.type == "mps" else torch.float64
    if isinstance(alpha, Tensor):
        if alpha.dtype not in _checks.FLOATS:
            raise TypeError(f"alpha must be a number or a floating tensor; got {alpha.dtype}")
        _checks.device_of("alpha", alpha, "x", x)
        return _checks.expand("alpha", alpha.to(kind), batch, "x without its last size")
    value, dtype = number("alpha", alpha), row_dtype(x.dtype)
    if not math.isfinite(value):
        raise ValueError(f"alpha must be finite and >= 0; got {value}")
    if value > torch.finfo(dtype).max:
        raise ValueError(
            f"alpha must be at most {torch.finfo(dtype).max:.3g}, the largest {dtype}; got {value}"
        )
    return torch.full(batch, value, dtype=kind, device=x.device)
