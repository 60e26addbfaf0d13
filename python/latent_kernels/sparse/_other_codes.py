"""Codes that are not one call of the Lasso's solvers: thresholds, and those of LARS."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.lasso.problem import LASSO
from latent_kernels.sparse.lista import lista_encode

Tensor = torch.Tensor
Array = NDArray[Any]

_SWEEPS = 200  # of coordinate descent, before LARS takes less time than more of them


def thresholded(x: Tensor, dictionary: Tensor, alpha: float, positive: bool) -> Tensor:
    """Return soft(x D^T, alpha), whose terms are added as in an encoder of one layer."""
    with torch.no_grad():
        return lista_encode(x, dictionary.mT, None, alpha, n_layers=1, positive=positive)


def least_angle(x: Tensor, dictionary: Tensor, n_nonzero_coefs: int | None) -> Tensor:
    """Return the codes of least angle regression, by scikit-learn."""
    rows, atoms = _rows("lars", x), _rows("lars", dictionary)
    codes = np.zeros((len(rows), len(atoms)), rows.dtype)
    if len(rows) > 0:
        codes[:] = _by_lars(rows, atoms, algorithm="lars", n_nonzero_coefs=n_nonzero_coefs)
    return torch.from_numpy(codes).view(*x.shape[:-1], len(atoms)).to(x.dtype)


def lasso_by_lars(
    x: Tensor, dictionary: Tensor, alpha: Tensor, max_iter: int, positive: bool
) -> tuple[Tensor, Tensor]:
    """Return Lasso codes as near the optimum as LARS comes to it, and their gaps.

    Coordinate descent goes as far as rounding lets it, which nearly always is the optimum. Where
    its gap is no such small share of the objective, as with a tiny alpha, scikit-learn's LARS
    follows, and the better codes are kept. A code that is nothing beside the rounding of x is 0.
    """
    rows, atoms = _rows("lasso_lars", x), _rows("lasso_lars", dictionary)
    dims = (tuple(x.shape[:-1]), tuple(x.shape[-1:]), (len(atoms),))
    how = ("cd", min(max_iter, _SWEEPS), 0.0, positive)
    first, gap = LASSO(dims, (x, dictionary, alpha, None), how)
    weights, bounds = alpha.detach().reshape(-1).numpy(), gap.reshape(-1).numpy()
    codes = _rows("lasso_lars", first).copy()
    unit = float(np.finfo(rows.dtype).eps)
    objectives = _objectives(rows, atoms, weights, codes)
    missed = np.flatnonzero(bounds > unit**0.5 * objectives)
    gram = atoms @ atoms.T
    for i in missed:
        options = {"alpha": weights[i], "positive": positive, "max_iter": max_iter}
        row = slice(i, i + 1)
        found = _by_lars(rows[row], atoms, algorithm="lasso_lars", gram=gram, **options)
        if _objectives(rows[row], atoms, weights[row], found) < objectives[i]:
            codes[row] = found
    sizes = np.abs(codes) * np.linalg.norm(atoms, axis=1)
    codes[sizes <= unit * np.linalg.norm(rows, axis=1, keepdims=True)] = 0
    init = torch.from_numpy(codes).view(first.shape).to(x.dtype).nan_to_num(0)
    found, gap = LASSO(dims, (x, dictionary, alpha, init), ("cd", 0, 0.0, positive))
    return found, gap


def _rows(algorithm: str, x: Tensor) -> Array:
    """Return the rows of x as an array, halves in float32."""
    if not x.is_cpu:
        raise ValueError(f"x must be on the CPU where algorithm is {algorithm!r}; got {x.device}")
    found: Array = x.detach().reshape(-1, x.size(-1)).to(row_dtype(x.dtype)).resolve_neg().numpy()
    return found


def _objectives(rows: Array, atoms: Array, weights: Array, codes: Array) -> Array:
    squares = np.square(rows - codes @ atoms, dtype=np.float64).sum(axis=1)
    result: Array = 0.5 * squares + weights * np.abs(codes).sum(axis=1, dtype=np.float64)
    return result


def _by_lars(rows: Array, atoms: Array, **options: Any) -> Array:
    """Return scikit-learn's codes, without its warnings about degenerate intermediate steps."""
    from sklearn.decomposition import sparse_encode
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes: Array = sparse_encode(rows, atoms, **options)
    return codes
