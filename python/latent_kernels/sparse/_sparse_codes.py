"""The base of the sparse estimators: checks, codes by the Lasso or by an encoder, and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array

from latent_kernels import _data
from latent_kernels._data import as_array
from latent_kernels.sparse.lasso import Algorithm, sparse_encode

Array = NDArray[Any]
Encoder = Callable[[torch.Tensor], Any]

CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32], "order": "C"}
# scikit-learn's name, and ours.
_SOLVERS: dict[str, Algorithm] = {"cd": "cd", "lasso_cd": "cd", "fista": "fista", "ista": "ista"}


class Lasso(NamedTuple):
    """The settings of a Lasso solver."""

    algorithm: Algorithm
    alpha: float
    max_iter: int
    tol: float
    positive: bool


def lasso(algorithm: str, alpha: float, max_iter: int, tol: float, positive: bool) -> Lasso:
    """Return the settings from checked arguments of an estimator."""
    return Lasso(_SOLVERS[algorithm], float(alpha), int(max_iter), float(tol), bool(positive))


# --- checks ---------------------------------------------------------------------------------------


def check_integer(name: str, value: object, least: int) -> None:
    """Raise if `value` is not an integer >= least."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")


def check_number(name: str, value: object) -> None:
    """Raise if `value` is not a finite number >= 0."""
    number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not number or not 0 <= float(value) < np.inf:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number >= 0; got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise if `value` is not a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be a bool; got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise if `value` is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_solver(name: str, value: object, *more: str) -> None:
    """Raise if `value` is neither the name of a solver nor one of `more`."""
    check_choice(name, value, (*_SOLVERS, *more))


def checked_dictionary(name: str, dictionary: Any) -> Array:
    """Return [n_components, n_features] in float32 or float64, copied only if necessary."""
    array: Array = check_array(
        as_array(dictionary), input_name=name, ensure_min_samples=0, **CHECKS
    )
    if len(array) == 0:
        raise ValueError(f"{name} must have at least one row; got shape {array.shape}")
    return array


# --- codes ----------------------------------------------------------------------------------------


def tensor(array: Array) -> torch.Tensor:
    """Return a tensor over the array's memory, or over a copy if that is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def solved(
    X: Array, dictionary: Array, how: Lasso, start: torch.Tensor | None = None, warn: bool = False
) -> Array:
    """Return Lasso codes [N, n] of X [N, m] in its dtype.

    Args:
        X: float32 or float64.
        dictionary: [n, m], converted to X's dtype.
        how: see above.
        start: the solver's starting point, [N, n].
        warn: whether a ConvergenceWarning reports rows that did not reach the tolerance.

    """
    x, D = tensor(X), tensor(dictionary.astype(X.dtype, copy=False))
    codes, gap = sparse_encode(x, D, **how._asdict(), init=start, return_gap=True)
    if warn:
        # Rounding keeps a gap in X's dtype from becoming as small as tol may ask for.
        tol = max(how.tol, float(np.finfo(X.dtype).eps) ** 0.5)
        missed = int((gap > tol * 0.5 * x.square().sum(-1)).sum())
        if missed > 0:
            _data.warn(
                f"the codes of {missed} of {len(x)} rows are not within transform_tol = "
                f"{how.tol:g} of the optimum after transform_max_iter = {how.max_iter} iterations: "
                "raise either"
            )
    return codes.numpy()


@torch.no_grad()
def predicted(X: Array, encoder: Encoder, n_components: int, positive: bool) -> torch.Tensor:
    """Return an encoder's codes [N, n] of X [N, m], in X's dtype on the CPU.

    A module is called with X on its device and in its dtype, in the mode that it is in. Negative
    codes become 0 where codes must be positive.
    """
    x = tensor(X)
    codes = torch.as_tensor(encoder(_like_parameters(x, encoder)))
    if tuple(codes.shape) != (len(x), n_components):
        raise ValueError(
            f"encoder must map X to codes of shape {(len(x), n_components)}; "
            f"got {tuple(codes.shape)}"
        )
    codes = codes.to("cpu", x.dtype)
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("encoder must give finite codes; got NaN or infinity")
    return codes.clamp_min(0) if positive else codes


def _like_parameters(x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """Return x on the device and in the dtype of a module's parameters and buffers."""
    if not isinstance(encoder, torch.nn.Module):
        return x
    for value in chain(encoder.parameters(), encoder.buffers()):
        if value.is_floating_point():
            return x.to(value)
    return x


def restored(codes: Any, dictionary: Array) -> Array:
    """Return the rows codes @ dictionary, in the dtype of the codes."""
    checked: Array = check_array(as_array(codes), input_name="X", **CHECKS)
    if checked.shape[1] != len(dictionary):
        raise ValueError(
            f"X must have n_components = {len(dictionary)} columns, as codes have; "
            f"got {checked.shape[1]}"
        )
    result: Array = checked @ dictionary.astype(checked.dtype, copy=False)
    return result


class SparseTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Maps rows to sparse codes, in float32 or in float64."""

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: float32 stays float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
