"""The base of the sparse estimators: checks, codes by an algorithm or by an encoder, and back."""

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
from latent_kernels.kernels.lasso.values import unconverged
from latent_kernels.sparse.lasso import ALGORITHMS, SOLVERS, Algorithm, sparse_encode

Array = NDArray[Any]
Encoder = Callable[[torch.Tensor], Any]

CHECKS: dict[str, Any] = {"dtype": [np.float64, np.float32], "order": "C"}


class Lasso(NamedTuple):
    """How codes are computed: the options of `sparse_encode`."""

    algorithm: Algorithm
    alpha: float
    max_iter: int
    tol: float
    positive: bool
    n_nonzero_coefs: int | None = None


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
    """Return codes [N, n] of X [N, m] in its dtype.

    Args:
        X: float32 or float64.
        dictionary: [n, m], converted to X's dtype.
        how: see above.
        start: the starting point of the Lasso's solver, [N, n].
        warn: whether a ConvergenceWarning reports rows that did not reach the tolerance.

    """
    x, D = tensor(X), tensor(dictionary.astype(X.dtype, copy=False))
    options: dict[str, Any] = how._asdict()
    if how.algorithm not in (*SOLVERS, "lasso_lars"):
        codes: torch.Tensor = sparse_encode(x, D, **options)
        return codes.numpy()
    codes, gap = sparse_encode(x, D, **options, init=start, return_gap=True)
    if warn:
        missed = unconverged(x, gap, how.tol)
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


class SparseTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The base of estimators that map rows to sparse codes, in float32 or float64.

    It has the arguments that they share: transform_*, positive_code, split_sign and n_jobs.
    """

    def _how(self, alpha: float) -> Lasso:
        """Return how transform computes codes; transform_alpha takes precedence over alpha."""
        given, count = self.transform_alpha, self.transform_n_nonzero_coefs
        return Lasso(
            self.transform_algorithm,
            float(alpha if given is None else given),
            int(self.transform_max_iter),
            float(self.transform_tol),
            bool(self.positive_code),
            None if count is None else int(count),
        )

    def _check_transform_settings(self) -> None:
        check_choice("transform_algorithm", self.transform_algorithm, (*ALGORITHMS, "encoder"))
        if self.transform_n_nonzero_coefs is not None:
            check_integer("transform_n_nonzero_coefs", self.transform_n_nonzero_coefs, 1)
        if self.transform_alpha is not None:
            check_number("transform_alpha", self.transform_alpha)
        jobs = self.n_jobs
        if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, Integral)):
            raise ValueError(f"n_jobs must be an integer or None; got {jobs!r}")
        check_integer("transform_max_iter", self.transform_max_iter, 0)
        check_number("transform_tol", self.transform_tol)
        check_bool("positive_code", self.positive_code)
        check_bool("split_sign", self.split_sign)

    def _split(self, codes: Array) -> Array:
        """Return the codes; with split_sign [max(Z, 0), max(-Z, 0)]."""
        if not self.split_sign:
            return codes
        return np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)])

    def _restored(self, codes: Any, dictionary: Array) -> Array:
        """Return the rows codes @ dictionary, in the dtype of the codes."""
        checked: Array = check_array(as_array(codes), input_name="X", **CHECKS)
        n, sides = len(dictionary), "2 n_components" if self.split_sign else "n_components"
        expected = 2 * n if self.split_sign else n
        if checked.shape[1] != expected:
            raise ValueError(
                f"X must have {sides} = {expected} columns, as codes have. "
                f"Expected {expected}, got {checked.shape[1]}."
            )
        if self.split_sign:
            checked = checked[:, :n] - checked[:, n:]
        result: Array = checked @ dictionary.astype(checked.dtype, copy=False)
        return result

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: float32 stays float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
