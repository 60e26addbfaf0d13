"""The results of EM, the time of an iteration, and sentences about both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from latent_kernels.cli.frame import plural, table
from latent_kernels.cli.mixture.data import Data, Floats
from latent_kernels.mixtures.sufficient_statistics import GaussianParameters

TOLERANCE = 1e-5  # change of the mean log-likelihood, below which EM has converged


class Fit(NamedTuple):
    """EM from one start: its parameters and likelihoods."""

    trace: list[GaussianParameters]  # the start, then after each iteration
    log_likelihood: list[float]  # of each but the last of them, mean over rows in nats

    @property
    def converged(self) -> bool:
        """Return whether the last iteration changed the log-likelihood by less than TOLERANCE."""
        last = self.log_likelihood[-2:]
        return len(last) == 2 and abs(last[1] - last[0]) < TOLERANCE


class Outcome(NamedTuple):
    """The results of the study, to be drawn."""

    data: Data
    covariance_type: str
    fits: list[Fit]  # the best one first
    responsibilities: Floats  # [N, K], at the end of the best one
    bic: dict[int, float]  # by the number of components

    @property
    def components(self) -> int:
        """Return the number of components of the fits."""
        return len(self.fits[0].trace[0].weights)

    @property
    def least(self) -> int:
        """Return the number of components with the least BIC."""
        return min(self.bic, key=self.bic.__getitem__)


class Size(NamedTuple):
    """The size of the comparison with scikit-learn."""

    rows: int
    columns: int
    components: int


class Speed(NamedTuple):
    """The times of an iteration of EM, E-step and M-step, from the same parameters."""

    covariance_type: str
    dtype: str
    ours: float  # seconds
    sklearn: float
    difference: float  # the greatest of any new parameter, relative to 1 + |value|


def summary(outcome: Outcome) -> list[str]:
    """Return what was fitted, and which number of components BIC prefers."""
    best, components, bic = outcome.fits[0], outcome.components, outcome.bic
    iterations = len(best.log_likelihood)
    lines = [
        f"{outcome.data.title}: {len(outcome.data.X)} rows, {plural(components, 'component')}, "
        f"{outcome.covariance_type} covariances.",
        f"Log-likelihood {best.log_likelihood[-1]:.6f} nats per row after "
        f"{iterations} iterations, the best of {len(outcome.fits)} starts.",
        f"BIC {bic[components]:.1f}; it is least, {bic[outcome.least]:.1f}, with "
        f"{plural(outcome.least, 'component')}.",
    ]
    if not best.converged:
        lines.append(f"It did not converge in {iterations} iterations.")
    lost = np.count_nonzero(best.trace[-1].weights == 0)
    if lost:
        lines.append(f"{lost} of {components} components have lost all their weight.")
    return lines


def speed_table(size: Size, speeds: list[Speed]) -> Table:
    """Return the table of times beside scikit-learn's."""
    return table(
        f"An iteration of EM, {size.rows} x {size.columns}, {size.components} components, "
        f"{plural(torch.get_num_threads(), 'thread')}",
        ("covariances", "dtype", "latent-kernels", "scikit-learn", "ratio", "difference"),
        [
            (
                s.covariance_type,
                s.dtype,
                f"{1e3 * s.ours:.1f} ms",
                f"{1e3 * s.sklearn:.1f} ms",
                f"{s.sklearn / s.ours:.1f}x",
                f"{s.difference:.0e}",
            )
            for s in speeds
        ],
        caption="medians of runs in turns; difference: the greatest of the new parameters, "
        "relative to 1 + |value|",
        names=2,
    )
