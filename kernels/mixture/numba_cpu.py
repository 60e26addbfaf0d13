"""The E-step on the CPU by numba: choose the task."""

from __future__ import annotations

import numpy as np

from latent_kernels.kernels.mixture import patterns
from latent_kernels.kernels.mixture.independent_task import Independent
from latent_kernels.kernels.mixture.matrix_tasks import Full, Tied
from latent_kernels.kernels.mixture.model import Floats, Integers, Parameters, Sums
from latent_kernels.kernels.mixture.task import Data, Task


def statistics(X: Data, parameters: Parameters, sample_weight: Floats | None, hard: bool) -> Sums:
    """Return the sums of the E-step."""
    matrices = parameters.gaussian.covariance_type in ("full", "tied")
    task = _matrix_task(X, parameters) if matrices else Independent(X, parameters)
    sums, incomplete = task.statistics(sample_weight, hard)
    if incomplete:
        sums = patterns.add_incomplete_rows(sums, _matrix_task, X, parameters, sample_weight, hard)
    return sums


def posterior(
    X: Data,
    parameters: Parameters,
    log_density: Floats | None,
    labels: Integers | None,
    responsibilities: Data | None,
) -> None:
    """Write log p(x_i), the most probable component and r_ik into the arrays that are given."""
    outputs = (
        np.empty(0) if log_density is None else log_density,
        np.empty(0, np.int64) if labels is None else labels,
        np.empty((0, 0), X.dtype) if responsibilities is None else responsibilities,
    )
    matrices = parameters.gaussian.covariance_type in ("full", "tied")
    task = _matrix_task(X, parameters) if matrices else Independent(X, parameters)
    if task.run(None, False, outputs) != 0:
        patterns.posterior(_matrix_task, X, parameters, outputs)


def _matrix_task(X: Data, parameters: Parameters) -> Task:
    if parameters.gaussian.covariance_type == "tied":
        task = Tied(X, parameters)
        if task.center_is_near:
            return task
    return Full(X, parameters)
