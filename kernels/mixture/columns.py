"""The E-step where columns are independent: parameters laid out for the kernel, sums put back in
shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latent_kernels.kernels.mixture import independent
from latent_kernels.kernels.mixture.model import (
    KINDS,
    Floats,
    GaussianColumns,
    Parameters,
    Sums,
    check_domain,
    roots,
)
from latent_kernels.kernels.mixture.task import Data, Outputs, Task, most_distance
from latent_kernels.kernels.mixture.tiles import INVALID, STRIDE, up


class Independent(Task):
    """Diagonal Gaussian columns and columns of other families."""

    span = independent.span

    def __init__(self, X: Data, parameters: Parameters, direct: bool = False) -> None:
        """direct: every component subtracts its own mean, whatever the distances."""
        self.X, self.parameters = X, parameters
        gaussian, canonical = parameters.gaussian, parameters.canonical
        self.components, self.dims = gaussian.means.shape
        self.features, self.others = int(canonical.starts[-1]), len(canonical.columns)
        # Natural parameters times counts cancel against log-partition functions: float32 is not
        # enough for these.
        self.dtype = np.dtype(np.float64) if self.others else X.dtype
        self.layout = independent.layout(self.components, self.dims, self.features, self.others)
        self.size = self.layout.size
        self.work_per_row = self.components * max(1, 2 * self.dims + self.features)
        weights = np.exp(parameters.log_weights)
        self.center = ((weights @ gaussian.means) / max(weights.sum(), 1e-300)).astype(self.dtype)
        self.rounded = gaussian.means.astype(self.dtype).astype(np.float64)
        self.gaussian = self._gaussian(gaussian, direct)
        scale = roots(gaussian)
        self.base = np.stack(
            [
                parameters.log_weights,
                (np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(axis=1),
                -canonical.log_partition.sum(axis=1),
            ]
        )
        self.canonical = self._canonical() if self.others else None

    def _gaussian(self, gaussian: GaussianColumns, direct: bool) -> tuple[Any, ...]:
        scale, components = roots(gaussian), up(self.components, 4)
        distance = (gaussian.means - self.center) * scale
        self.direct = bool(direct or not (distance**2).max(initial=0) <= most_distance(self.dtype))
        factors = np.zeros((components, self.dims, 2), self.dtype)
        factors[: self.components, :, 0] = scale
        factors[: self.components, :, 1] = -distance
        own = np.empty((self.components, self.dims, 4), self.dtype)
        own[..., 0] = self.rounded
        own[..., 1] = scale
        own[..., 2] = (self.rounded - gaussian.means) * scale
        own[..., 3] = np.log(scale) - 0.5 * np.log(2 * np.pi)
        blocked = factors.reshape(components // 4, 4, self.dims, 2).transpose(0, 2, 3, 1)
        columns = gaussian.columns.astype(np.int64)
        zero = np.zeros(self.dims, self.dtype)
        return (
            columns,
            self.center,
            zero,
            np.ascontiguousarray(blocked).ravel(),
            own.ravel(),
            self.direct,
        )

    def _canonical(self) -> tuple[Any, ...]:
        canonical, components = self.parameters.canonical, up(self.components, 4)
        observed = up(self.features, 4)
        self.natural_size = observed + up(self.others, 4)
        natural = np.zeros((components, self.natural_size), self.dtype)
        natural[: self.components, : self.features] = canonical.natural
        natural[: self.components, observed : observed + self.others] = -canonical.log_partition
        blocked = np.ascontiguousarray(
            natural.reshape(components // 4, 4, -1).transpose(0, 2, 1)
        ).ravel()
        kinds = np.array([KINDS.index(kind) for kind in canonical.kinds], np.int64)
        return canonical.columns.astype(np.int64), kinds, canonical.starts.astype(np.int64), blocked

    def buffers(self) -> Any:
        """Of one thread."""
        components, even = up(self.components, 4), up(self.dims, 2)
        sums = max(2 * components * even, 4 * self.components * self.dims, 16, self.components)
        sizes = (even * STRIDE, components * STRIDE, STRIDE, STRIDE, components, sums)
        work = tuple(np.zeros(size, self.dtype) for size in sizes)
        if self.canonical is None:
            return work, None
        return work, (
            *self.canonical,
            np.zeros(self.natural_size * STRIDE, self.dtype),
            np.zeros(STRIDE),
        )

    def arguments(
        self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs
    ) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        work, canonical = buffers
        parts = tuple(self.layout[:-1])
        return (
            weight,
            hard,
            self.components,
            self.gaussian,
            self.base,
            canonical,
            work,
            parts,
            total,
            out,
        )

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """As for every task; raises where a value is outside its column's family."""
        if super().run(sample_weight, hard, outputs) & INVALID:
            check_domain(self.X, self.parameters.canonical)
        return self.status

    def lost_digits(self, sums: Sums) -> bool:
        """Whether a component is so much tighter than its previous sigma that the center was too
        far after all.
        """
        if self.direct or self.dims == 0:
            return False
        observed = np.where(sums.observed > 0, sums.observed, 1.0)
        delta = sums.first / observed
        distance = abs(self.parameters.gaussian.means - self.center) + abs(delta)
        variance = sums.second / observed - delta**2
        lost = distance**2 > most_distance(self.dtype) * variance
        return bool((lost & (sums.observed > 0)).any())

    def sums(self) -> Sums:
        """The sums about the means."""
        k, g, at, total = self.components, self.dims, self.layout, self.total
        k4, g2 = up(k, 4), up(g, 2)
        gaussian = self.parameters.gaussian
        counts, near, complete = (total[i : i + k] for i in (at.counts, at.near, at.complete))
        about_center = (
            total[: at.direct].reshape(k4 // 4, g2 // 2, 4, 2, 2).transpose(0, 2, 1, 3, 4)
        )
        about_center = about_center.reshape(k4, g2, 2)[:k, :g]
        about_rounded = total[at.direct : at.features].reshape(k, g, 4)
        first, second = _move(
            near[:, None], about_center[..., 0], about_center[..., 1], gaussian.means - self.center
        )
        observed = about_rounded[..., 0]
        first2, second2 = _move(
            observed, about_rounded[..., 1], about_rounded[..., 2], gaussian.means - self.rounded
        )
        features = (
            total[at.features : at.counts]
            .reshape(k4 // 4, -1, 4, 4)
            .transpose(0, 2, 1, 3)
            .reshape(k4, -1)[:k]
        )
        start = up(self.features, 4)
        return Sums(
            float(total[at.log_likelihood]),
            counts.copy(),
            near[:, None] + observed,
            first + first2,
            second + second2,
            features[:, : self.features].copy(),
            features[:, start : start + self.others] + complete[:, None],
        )


def _move(counts: Floats, first: Floats, second: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Sums of x and x^2 become those of x - b and its square."""
    moved = first - b * counts
    return moved, second - b * (first + moved)
