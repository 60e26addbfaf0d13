"""Data and warnings of the scikit-learn estimators in mixtures/ and sparse/."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch

_ESTIMATORS = tuple(
    os.path.join(os.path.dirname(__file__), folder) + os.sep for folder in ("mixtures", "sparse")
)


def dense_on_cpu(name: str, X: torch.Tensor) -> torch.Tensor:
    """Return a tensor that `.numpy()` takes, if its dtype is one of NumPy's."""
    if X.device.type != "cpu" or X.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor on the CPU; got one on {X.device}, {X.layout}"
        )
    return X.detach().resolve_neg()


def as_array(X: Any) -> Any:
    """Return a tensor as an array over the same memory; return anything else as it is."""
    if not isinstance(X, torch.Tensor):
        return X
    X = dense_on_cpu("X", X)
    return (X if X.dtype in (torch.float32, torch.float64) else X.double()).numpy()


def warn(message: str) -> None:
    """Raise a ConvergenceWarning at the line that called an estimator."""
    from sklearn.exceptions import ConvergenceWarning

    level, frame = 2, sys._getframe(1)
    while frame.f_code.co_filename.startswith(_ESTIMATORS) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ConvergenceWarning, stacklevel=level)
