"""The E-step on the CPU: parameters laid out for the kernels, rows dealt to threads, sums put back in shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from latent_kernels.kernels.mixture import full, independent, patterns, tied
from latent_kernels.kernels.mixture.canonical import INVALID
from latent_kernels.kernels.mixture.compiled import compiled
from latent_kernels.kernels.mixture.model import (
    KINDS,
    Floats,
    GaussianColumns,
    Integers,
    Parameters,
    Sums,
    check_domain,
    roots,
)
from latent_kernels.kernels.mixture.parts import in_order
from latent_kernels.kernels.mixture.tiles import ROWS, STRIDE
from numpy.typing import NDArray

PART = 2**22  # of rows * components * features in a part: about half a millisecond; a part costs 30 us beside
MOST_PARTS = 256
NEAR = 2.0**-14  # the error in a variance, relative, that a common center may cost: (m - c)^2 / sigma^2 * epsilon

Data = NDArray[Any]
Outputs = tuple[Floats, Integers, Data]


def statistics(X: Data, parameters: Parameters, sample_weight: Floats | None, hard: bool) -> Sums:
    """The sums of the E-step."""
    if parameters.gaussian.covariance_type in ("full", "tied"):
        return patterns.statistics(_matrix_task, X, parameters, sample_weight, hard)
    task = _Independent(X, parameters)
    task.run(sample_weight, hard, None)
    return task.sums()


def posterior(
    X: Data,
    parameters: Parameters,
    log_density: Floats | None,
    labels: Integers | None,
    responsibilities: Data | None,
) -> None:
    """log p(x_i), the component of greatest responsibility, and r_ik, into the arrays that are given."""
    outputs = (
        np.empty(0) if log_density is None else log_density,
        np.empty(0, np.int64) if labels is None else labels,
        np.empty((0, 0), X.dtype) if responsibilities is None else responsibilities,
    )
    if parameters.gaussian.covariance_type in ("full", "tied"):
        patterns.posterior(_matrix_task, X, parameters, outputs)
    else:
        _Independent(X, parameters).run(None, False, outputs)


def _up(n: int, step: int) -> int:
    return n + -n % step


def _deal(rows: int, work: int) -> tuple[int, int]:
    """(parts, rows in each): by the shape alone, so that the sums have the same bits for any number of threads."""
    tiles = max(1, -(-rows // ROWS))
    in_part = max(1, PART // (ROWS * work), -(-tiles // MOST_PARTS))
    return -(-tiles // in_part), in_part * ROWS


class _Task:
    """One E-step: `span` does a span of rows, with `buffers` of a thread's own."""

    span: ClassVar[Callable[..., int]]
    X: Data
    work_per_row: int
    size: int  # of `total`
    total: Floats
    status: int

    def buffers(self) -> Any:
        raise NotImplementedError

    def arguments(self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        raise NotImplementedError

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """The E-step into `self.total`, or into `outputs`; returns what the kernel reported, 0 if nothing."""
        rows = len(self.X)
        weight = np.empty(0) if sample_weight is None else sample_weight
        out = outputs or (np.empty(0), np.empty(0, np.int64), np.empty((0, 0), self.X.dtype))
        self.total = np.zeros(self.size if outputs is None else 0)
        self.status = 0
        parts, step = _deal(rows, self.work_per_row)

        first = self.arguments(weight, hard, self.buffers(), np.zeros_like(self.total), out)
        function = compiled(type(self).span, self.X, 0, 0, *first)

        def make() -> tuple[Floats, tuple[Any, ...]]:
            total = np.zeros_like(self.total)
            return total, self.arguments(weight, hard, self.buffers(), total, out)

        def work(part: int, state: tuple[Floats, tuple[Any, ...]]) -> None:
            total, arguments = state
            total[:] = 0
            if self.status == 0:
                self.status |= function(self.X, part * step, min((part + 1) * step, rows), *arguments)

        def merge(state: tuple[Floats, tuple[Any, ...]]) -> None:
            np.add(self.total, state[0], out=self.total)

        in_order(parts, torch.get_num_threads(), make, work, merge)
        return self.status


class _Independent(_Task):
    """Diagonal Gaussian columns and columns of other families."""

    span = independent.span

    def __init__(self, X: Data, parameters: Parameters) -> None:
        self.X, self.parameters = X, parameters
        gaussian, canonical = parameters.gaussian, parameters.canonical
        self.components, self.dims = gaussian.means.shape
        self.features, self.others = int(canonical.starts[-1]), len(canonical.columns)
        # Natural parameters times counts cancel against log-partition functions: float32 is not enough for these.
        self.dtype = np.dtype(np.float64) if self.others else X.dtype
        self.layout = independent.layout(self.components, self.dims, self.features, self.others)
        self.size = self.layout.size
        self.work_per_row = self.components * max(1, 2 * self.dims + self.features)
        weights = np.exp(parameters.log_weights)
        self.center = ((weights @ gaussian.means) / max(weights.sum(), 1e-300)).astype(self.dtype)
        self.rounded = gaussian.means.astype(self.dtype).astype(np.float64)
        self.gaussian = self._gaussian(gaussian)
        scale = roots(gaussian)
        self.base = np.stack(
            [
                parameters.log_weights,
                (np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(axis=1),
                -canonical.log_partition.sum(axis=1),
            ]
        )
        self.canonical = self._canonical() if self.others else None

    def _gaussian(self, gaussian: GaussianColumns) -> tuple[Any, ...]:
        scale, components = roots(gaussian), _up(self.components, 4)
        distance = (gaussian.means - self.center) * scale
        near = (distance**2).max(initial=0) <= NEAR * 2 / np.finfo(self.dtype).eps
        factors = np.zeros((components, self.dims, 2), self.dtype)
        factors[: self.components, :, 0] = scale
        factors[: self.components, :, 1] = -distance
        direct = np.empty((self.components, self.dims, 4), self.dtype)
        direct[..., 0] = self.rounded
        direct[..., 1] = scale
        direct[..., 2] = (self.rounded - gaussian.means) * scale
        direct[..., 3] = np.log(scale) - 0.5 * np.log(2 * np.pi)
        blocked = factors.reshape(components // 4, 4, self.dims, 2).transpose(0, 2, 3, 1)
        columns = gaussian.columns.astype(np.int64)
        zero = np.zeros(self.dims, self.dtype)
        return columns, self.center, zero, np.ascontiguousarray(blocked).ravel(), direct.ravel(), not near

    def _canonical(self) -> tuple[Any, ...]:
        canonical, components = self.parameters.canonical, _up(self.components, 4)
        observed = _up(self.features, 4)
        self.natural_size = observed + _up(self.others, 4)
        natural = np.zeros((components, self.natural_size), self.dtype)
        natural[: self.components, : self.features] = canonical.natural
        natural[: self.components, observed : observed + self.others] = -canonical.log_partition
        blocked = np.ascontiguousarray(natural.reshape(components // 4, 4, -1).transpose(0, 2, 1)).ravel()
        kinds = np.array([KINDS.index(kind) for kind in canonical.kinds], np.int64)
        return canonical.columns.astype(np.int64), kinds, canonical.starts.astype(np.int64), blocked

    def buffers(self) -> Any:
        """Of one thread."""
        components, even = _up(self.components, 4), _up(self.dims, 2)
        sums = max(2 * components * even, 4 * self.components * self.dims, 16, self.components)
        sizes = (even * STRIDE, components * STRIDE, STRIDE, STRIDE, components, sums)
        work = tuple(np.zeros(size, self.dtype) for size in sizes)
        if self.canonical is None:
            return work, None
        return work, (*self.canonical, np.zeros(self.natural_size * STRIDE, self.dtype), np.zeros(STRIDE))

    def arguments(self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        work, canonical = buffers
        parts = tuple(self.layout[:-1])
        return weight, hard, self.components, self.gaussian, self.base, canonical, work, parts, total, out

    def run(self, sample_weight: Floats | None, hard: bool, outputs: Outputs | None) -> int:
        """As for every task; raises where a value is outside its column's family."""
        if super().run(sample_weight, hard, outputs) & INVALID:
            check_domain(self.X, self.parameters.canonical)
        return self.status

    def sums(self) -> Sums:
        """The sums about the means."""
        k, g, at, total = self.components, self.dims, self.layout, self.total
        k4, g2 = _up(k, 4), _up(g, 2)
        gaussian = self.parameters.gaussian
        counts, near, complete = (total[i : i + k] for i in (at.counts, at.near, at.complete))
        about_center = total[: at.direct].reshape(k4 // 4, g2 // 2, 4, 2, 2).transpose(0, 2, 1, 3, 4)
        about_center = about_center.reshape(k4, g2, 2)[:k, :g]
        about_rounded = total[at.direct : at.features].reshape(k, g, 4)
        first, second = _move(near[:, None], about_center[..., 0], about_center[..., 1], gaussian.means - self.center)
        observed = about_rounded[..., 0]
        first2, second2 = _move(observed, about_rounded[..., 1], about_rounded[..., 2], gaussian.means - self.rounded)
        features = total[at.features : at.counts].reshape(k4 // 4, -1, 4, 4).transpose(0, 2, 1, 3).reshape(k4, -1)[:k]
        start = _up(self.features, 4)
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


def _matrix_task(X: Data, parameters: Parameters) -> _Task:
    if parameters.gaussian.covariance_type == "tied" and _Tied.fits(parameters):
        return _Tied(X, parameters)
    return _Full(X, parameters)


def _factor_blocks(u: Floats, dtype: np.dtype[Any]) -> Data:
    """U [..., D, D] as [..., D4 / 4, D, 4], four columns side by side."""
    size = u.shape[-1]
    padded = np.zeros((*u.shape[:-1], _up(size, 4)), dtype)
    padded[..., :size] = u
    return np.ascontiguousarray(padded.reshape(*u.shape[:-1], -1, 4).swapaxes(-2, -3)).ravel()


def _symmetric(blocks: Floats, size: int) -> Floats:
    """The symmetric matrices [..., D, D] whose lower [4, 4] blocks are given, row by row."""
    n = _up(size, 4) // 4
    leading = blocks.shape[:-1]
    lower = np.zeros((n, n, *leading, 4, 4))
    lower[np.tril_indices(n)] = np.moveaxis(blocks.reshape(*leading, -1, 4, 4), -3, 0)
    matrix = np.moveaxis(lower, (0, 1), (-4, -2)).reshape(*leading, 4 * n, 4 * n)[..., :size, :size]
    result: Floats = np.tril(matrix) + np.tril(matrix, -1).swapaxes(-1, -2)
    return result


class _Full(_Task):
    """Full covariances; a tied one is every component's."""

    span = full.span

    def __init__(self, X: Data, parameters: Parameters) -> None:
        self.X, self.parameters = X, parameters
        gaussian = parameters.gaussian
        self.components, self.dims = gaussian.means.shape
        self.blocks = _up(self.dims, 4)
        self.dtype = X.dtype
        self.size = full.size_of_total(self.components, self.dims)
        self.work_per_row = self.components * self.dims * (self.dims + 1)
        self.rounded = gaussian.means.astype(self.dtype).astype(np.float64)
        u = roots(gaussian)
        shifts = np.zeros((self.components, self.blocks), self.dtype)
        shifts[:, : self.dims] = np.einsum("kd,kdj->kj", self.rounded - gaussian.means, u)
        diagonal = np.diagonal(u, axis1=-2, axis2=-1)
        constants = parameters.log_weights + (np.log(diagonal) - 0.5 * np.log(2 * np.pi)).sum(axis=-1)
        self.constants = constants.astype(self.dtype)
        self.gaussian = (
            gaussian.columns.astype(np.int64),
            np.zeros(self.dims, self.dtype),
            self.rounded.astype(self.dtype).ravel(),
            _factor_blocks(u, self.dtype),
            shifts.ravel(),
        )

    def buffers(self) -> Any:
        """Of one thread."""
        block = self.blocks * STRIDE
        sizes = (block, block, block, self.components * STRIDE, STRIDE, STRIDE, max(16, self.blocks))
        return tuple(np.zeros(size, self.dtype) for size in sizes)

    def arguments(self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        return weight, hard, self.components, self.gaussian, self.constants, buffers, total, out

    def sums(self) -> Sums:
        """The sums about the means."""
        k, d = self.components, self.dims
        per_component = self.total[: -k - 1].reshape(k, -1)
        counts = self.total[-k - 1 : -1].copy()
        first, second = per_component[:, :d], _symmetric(per_component[:, self.blocks :], d)
        b = self.parameters.gaussian.means - self.rounded
        moved = first - b * counts[:, None]
        second = second - b[:, :, None] * first[:, None, :] - moved[:, :, None] * b[:, None, :]
        if self.parameters.gaussian.covariance_type == "tied":
            second = second.sum(axis=0)
        none = np.zeros((k, 0))
        observed = np.repeat(counts[:, None], d, axis=1)
        return Sums(float(self.total[-1]), counts, observed, moved, second, none, none)


class _Tied(_Task):
    """One covariance, near enough to one center that x - c serves every component."""

    span = tied.span

    @staticmethod
    def fits(parameters: Parameters) -> bool:
        """Whether the means are near enough to their center."""
        _, turned = _turned_means(parameters)
        return bool((turned**2).max() <= NEAR * 2 / np.finfo(np.float64).eps)

    def __init__(self, X: Data, parameters: Parameters) -> None:
        self.X, self.parameters = X, parameters
        gaussian = parameters.gaussian
        self.components, self.dims = gaussian.means.shape
        self.blocks, padded = _up(self.dims, 4), _up(self.components, 4)
        self.triangle = 2 * self.blocks * (self.blocks // 4 + 1)
        self.size = padded * self.blocks + self.triangle + self.components + 1
        self.work_per_row = self.dims * (2 * self.components + self.dims)
        self.center, turned = _turned_means(parameters)
        factors = np.zeros((padded, self.dims, 2))
        factors[..., 0] = 1
        factors[: self.components, :, 1] = -turned
        u = gaussian.precisions_cholesky
        self.constants = parameters.log_weights + (np.log(np.diagonal(u)) - 0.5 * np.log(2 * np.pi)).sum()
        self.constants = np.concatenate([self.constants, np.zeros(padded - self.components)])
        self.gaussian = (
            gaussian.columns.astype(np.int64),
            self.center,
            _factor_blocks(u, np.dtype(np.float64)),
            np.ascontiguousarray(factors.reshape(padded // 4, 4, self.dims, 2).transpose(0, 2, 3, 1)).ravel(),
        )

    def buffers(self) -> Any:
        """Of one thread."""
        block = self.blocks * STRIDE
        joint = _up(self.components, 4) * STRIDE
        sums = max(16, self.blocks, self.components)
        return tuple(np.zeros(size) for size in (block, block, block, joint, STRIDE, STRIDE, sums))

    def arguments(self, weight: Floats, hard: bool, buffers: Any, total: Floats, out: Outputs) -> tuple[Any, ...]:
        """Those of `span` behind (X, first, last)."""
        return weight, hard, self.components, self.gaussian, self.constants, buffers, total, out

    def sums(self) -> Sums:
        """The sums about the means."""
        k, d = self.components, self.dims
        at = _up(k, 4) * self.blocks
        blocks = self.total[:at].reshape(-1, self.blocks // 4, 4, 4).swapaxes(1, 2)
        first = blocks.reshape(-1, self.blocks)[:k, :d]
        second = _symmetric(self.total[at : at + self.triangle], d)
        counts = self.total[at + self.triangle : -1].copy()
        b = self.parameters.gaussian.means - self.center
        moved = first - b * counts[:, None]
        none = np.zeros((k, 0))
        observed = np.repeat(counts[:, None], d, axis=1)
        return Sums(float(self.total[-1]), counts, observed, moved, second - b.T @ first - moved.T @ b, none, none)


def _turned_means(parameters: Parameters) -> tuple[Floats, Floats]:
    """The center c [G], and U^T (m_k - c) [K, G]."""
    weights = np.exp(parameters.log_weights)
    center = (weights @ parameters.gaussian.means) / weights.sum()
    return center, (parameters.gaussian.means - center) @ parameters.gaussian.precisions_cholesky
