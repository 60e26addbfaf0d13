"""Sparse codes with few atoms, chosen one by one: orthogonal matching pursuit."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels import _checks
from latent_kernels.kernels.omp.problem import OMP
from latent_kernels.sparse._arguments import as_tensor, check_shapes, number

Tensor = torch.Tensor


@overload
def orthogonal_matching_pursuit(
    x: Tensor, dictionary: Tensor, *, n_nonzero_coefs: int | None = ..., tol: float | None = ...
) -> Tensor: ...
@overload
def orthogonal_matching_pursuit(
    x: NDArray[Any],
    dictionary: NDArray[Any],
    *,
    n_nonzero_coefs: int | None = ...,
    tol: float | None = ...,
) -> NDArray[Any]: ...
def orthogonal_matching_pursuit(
    x: Any, dictionary: Any, *, n_nonzero_coefs: int | None = None, tol: float | None = None
) -> Any:
    r"""Return codes of each row of x in which few atoms of the dictionary are used.

    From z = 0 on, the atom k with the largest abs((x - z D) . d_k) joins those that are used, S,
    and their codes become the least-squares codes,

    .. math::
        z_S = \arg\min_z \lVert x - z D_S \rVert^2, \qquad z_k = 0 \text{ for } k \notin S,

    until n_nonzero_coefs atoms are used, or the squared residual ||x - z D||^2 is at most tol. A
    row also ends where no atom correlates with its residual, to rounding: more atoms, as those that
    are linear combinations of S, would not lower it.

    Atoms are compared by that product, as in sklearn.linear_model.orthogonal_mp: normally they have
    norm 1. The Gram matrix is formed once, and each row keeps an incremental Cholesky factor
    (Batch-OMP). Half inputs are computed in float32. On the CPU a row's bits depend on that row,
    the dictionary and the options: not on the batch around it, threads or SIMD width. The codes
    carry no gradient.

    Args:
        x: [..., n_features], float32, float64, bfloat16 or float16; a tensor, or a NumPy array.
        dictionary: D, [n_components, n_features], one atom a row; finite, and of squared norms
            that are normal numbers, or 0: an atom of zeros is never chosen. Its Gram matrix is
            formed: n_components^2 numbers.
        n_nonzero_coefs: the maximum number of atoms of a row, an int >= 1; None for n_features /
            10 but at least 1, or for as many as it takes where tol is given.
        tol: the squared residual at which a row ends, a number >= 0; None for none.

    Returns:
        codes [..., n_components] in the inputs' dtype; an array where x is one. Rows of x that hold
        NaN or infinity give NaN.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Values of tensors are
            checked on the CPU only.

    Source:
        Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit" (1993); Rubinstein,
        Zibulevsky and Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal
        matching pursuit" (2008).

    Example:
        >>> import torch, latent_kernels as lk
        >>> x = torch.tensor([[3.0, -0.5, 2.0]])
        >>> lk.orthogonal_matching_pursuit(x, torch.eye(3), n_nonzero_coefs=2)
        tensor([[3., 0., 2.]])
        >>> lk.orthogonal_matching_pursuit(x, torch.eye(3), tol=5.0)  # ||x - z D||^2 <= 5
        tensor([[3., 0., 0.]])

    """
    if isinstance(x, np.ndarray):
        found = orthogonal_matching_pursuit(
            as_tensor(x), as_tensor(dictionary), n_nonzero_coefs=n_nonzero_coefs, tol=tol
        )
        return found.numpy()
    (x, dictionary), _ = _checks.together(x=x, dictionary=dictionary)
    check_shapes(x, dictionary)
    components, features = dictionary.shape
    most = min(components, features)  # further atoms are linear combinations of these
    if n_nonzero_coefs is not None:
        most = min(most, _checks.integer("n_nonzero_coefs", n_nonzero_coefs))
    elif tol is None:
        most = min(most, max(features // 10, 1))
    target = -math.inf if tol is None else number("tol", tol)
    dims = (tuple(x.shape[:-1]), (features,), (components,))
    return OMP(dims, (x, dictionary), (most, target))
