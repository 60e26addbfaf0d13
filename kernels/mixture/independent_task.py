"""The E-step where columns are independent: the kernel's parameters, and its sums as arrays."""

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
from latent_kernels.kernels.mixture.task import (
    WORK_OF_EXP,
    Data,
    Outputs,
    Task,
    aligned_zeros,
    max_distance,
)
from latent_kernels.kernels.mixture.tiles import INVALID, STRIDE, round_up


class Independent(Task):
    """An E-step over diagonal Gaussian columns and columns of other families."""

    span = independent.span

    def __init__(self, X: Data, parameters: Parameters, means: Floats | None = None) -> None:
        """Lay the parameters out; every component subtracts its own one of `means`, if given."""
        self.X, self.parameters = X, parameters
        gaussian, canonical = parameters.gaussian, parameters.canonical
        self.components, self.dims = gaussian.means.shape
        self.features, self.others = int(canonical.starts[-1]), len(canonical.columns)
        # Natural parameters times counts cancel against log-partition functions, for which float32
        # is not enough.
        self.dtype = np.dtype(np.float64) if self.others else X.dtype
        self.layout = independent.layout(self.components, self.dims, self.features, self.others)
        self.size = self.layout.size
        self.work_per_row = self.components * (4 * self.dims + 2 * self.features + WORK_OF_EXP)
        weights = np.exp(parameters.log_weights)
        self.center = ((weights @ gaussian.means) / max(weights.sum(), 1e-300)).astype(self.dtype)
        self.rounded = gaussian.means if means is None else means
        self.rounded = self.rounded.astype(self.dtype).astype(np.float64)
        self.gaussian = self._gaussian(gaussian, means is not None)
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
        scale, components = roots(gaussian), round_up(self.components, 4)
        distance = (gaussian.means - self.center) * scale
        self.direct = bool(direct or not (distance**2).max(initial=0) <= max_distance(self.dtype))
        self.common_center = not self.direct
        factors = np.zeros((components, self.dims, 2), self.dtype)
        factors[: self.components, :, 0] = scale
        factors[: self.components, :, 1] = -distance
        direct_factors = np.empty((self.components, self.dims, 4), self.dtype)
        direct_factors[..., 0] = self.rounded
        direct_factors[..., 1] = scale
        direct_factors[..., 2] = (self.rounded - gaussian.means) * scale
        direct_factors[..., 3] = np.log(scale) - 0.5 * np.log(2 * np.pi)
        blocked = factors.reshape(components // 4, 4, self.dims, 2).transpose(0, 2, 3, 1)
        columns = gaussian.columns.astype(np.int64)
        zero = np.zeros(self.dims, self.dtype)
        return (
            columns,
            self.center,
            zero,
            np.ascontiguousarray(blocked).ravel(),
            direct_factors.ravel(),
            self.direct,
        )

    def _canonical(self) -> tuple[Any, ...]:
        canonical, components = self.parameters.canonical, round_up(self.components, 4)
        observed = round_up(self.features, 4)
        self.natural_size = observed + round_up(self.others, 4)
        natural = np.zeros((components, self.natural_size), self.dtype)
        natural[: self.components, : self.features] = canonical.natural
        natural[: self.components, observed : observed + self.others] = -canonical.log_partition
        blocked = np.ascontiguousarray(
            natural.reshape(components // 4, 4, -1).transpose(0, 2, 1)
        ).ravel()
        kinds = np.array([KINDS.index(kind) for kind in canonical.kinds], np.int64)
        return canonical.columns.astype(np.int64), kinds, canonical.starts.astype(np.int64), blocked

    def workspace(self) -> Any:
        """Return the workspace of one thread, and the arguments for columns of other families."""
        components, even = round_up(self.components, 4), round_up(self.dims, 2)
        sums = max(2 * components * even, 4 * self.components * self.dims, 16, self.components)
        sizes = (even * STRIDE, components * STRIDE, STRIDE, STRIDE, components, sums)
        work = tuple(aligned_zeros(size, self.dtype) for size in sizes)
        if self.canonical is None:
            return work, None
        return work, (
            *self.canonical,
            aligned_zeros(self.natural_size * STRIDE, self.dtype),
            np.zeros(STRIDE),
        )

    def arguments(
        self, weight: Floats, hard: bool, workspace: Any, total: Floats, out: Outputs
    ) -> tuple[Any, ...]:
        """Return the arguments of `span` after (X, first, last)."""
        work, canonical = workspace
        offsets = tuple(self.layout[:-1])
        return (
            weight,
            hard,
            self.components,
            self.gaussian,
            self.base,
            canonical,
            work,
            offsets,
            total,
            out,
        )

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """Run the E-step as every task does; raise where a value is outside its column's family."""
        if super().run(sample_weight, hard, outputs) & INVALID:
            check_domain(self.X, self.parameters.canonical)
        return self.status

    def about(self, means: Floats) -> Task:
        """Return the same E-step with each component's rows less its own one of these means."""
        return Independent(self.X, self.parameters, means)

    def distance(self, means: Floats) -> Floats:
        """Return the distances of means [K, G] from the values that the kernel subtracts from X."""
        if self.direct:
            return means - self.rounded
        gaussian = self.parameters.gaussian
        distance: Floats = abs(gaussian.means - self.center) + abs(means - gaussian.means)
        return distance

    def sums(self) -> Sums:
        """Return the sums about the means."""
        k, g, at, total = self.components, self.dims, self.layout, self.total
        k4, g2 = round_up(k, 4), round_up(g, 2)
        gaussian = self.parameters.gaussian
        counts, centered, complete = (
            total[i : i + k] for i in (at.counts, at.centered, at.complete)
        )
        about_center = (
            total[: at.direct].reshape(k4 // 4, g2 // 2, 4, 2, 2).transpose(0, 2, 1, 3, 4)
        )
        about_center = about_center.reshape(k4, g2, 2)[:k, :g]
        about_rounded = total[at.direct : at.features].reshape(k, g, 4)
        first, second = _shifted_moments(
            centered[:, None],
            about_center[..., 0],
            about_center[..., 1],
            gaussian.means - self.center,
        )
        observed = about_rounded[..., 0]
        first2, second2 = _shifted_moments(
            observed, about_rounded[..., 1], about_rounded[..., 2], gaussian.means - self.rounded
        )
        features = (
            total[at.features : at.counts]
            .reshape(k4 // 4, -1, 4, 4)
            .transpose(0, 2, 1, 3)
            .reshape(k4, -1)[:k]
        )
        start = round_up(self.features, 4)
        return Sums(
            float(total[at.log_likelihood]),
            counts.copy(),
            centered[:, None] + observed,
            first + first2,
            second + second2,
            features[:, : self.features].copy(),
            features[:, start : start + self.others] + complete[:, None],
        )


def _shifted_moments(
    counts: Floats, first: Floats, second: Floats, b: Floats
) -> tuple[Floats, Floats]:
    """Return the sums of x - b and of its square, from those of x and x^2."""
    moved = first - b * counts
    return moved, second - b * (first + moved)
