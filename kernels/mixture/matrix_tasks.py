"""The E-step with covariance matrices: the kernels' parameters, and their sums as arrays."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_kernels.kernels.mixture import full, tied
from latent_kernels.kernels.mixture.model import Floats, Parameters, Sums, roots
from latent_kernels.kernels.mixture.task import (
    WORK_OF_EXP,
    Data,
    Outputs,
    Task,
    aligned_zeros,
    max_distance,
)
from latent_kernels.kernels.mixture.tiles import STRIDE, round_up


def _factor_blocks(u: Floats, dtype: np.dtype[Any]) -> Data:
    """Return U [..., D, D] as [..., D4 / 4, D, 4], four columns side by side."""
    size = u.shape[-1]
    padded = np.zeros((*u.shape[:-1], round_up(size, 4)), dtype)
    padded[..., :size] = u
    return np.ascontiguousarray(padded.reshape(*u.shape[:-1], -1, 4).swapaxes(-2, -3)).ravel()


@functools.lru_cache(maxsize=16)
def _block_indices(size: int) -> NDArray[np.int64]:
    """Return where each element of a symmetric matrix [D, D] is stored among its lower blocks.

    The blocks are [4, 4] and follow row by row.
    """
    row, column = np.indices((size, size))
    row, column = np.maximum(row, column), np.minimum(row, column)
    i, j = row // 4, column // 4
    places: NDArray[np.int64] = 16 * (i * (i + 1) // 2 + j) + 4 * (row % 4) + column % 4
    return places


def _symmetric(blocks: Floats, size: int) -> Floats:
    """Return symmetric matrices [..., D, D] from their lower triangle, stored as [4, 4] blocks."""
    return blocks[..., _block_indices(size)]


def _mean_with_transpose(x: Floats) -> Floats:
    """Return x [..., D, D] without the asymmetry that rounding has left."""
    result: Floats = 0.5 * (x + x.swapaxes(-1, -2))
    return result


class _Matrices(Task):
    """The base of both tasks; their sums hold expectations in place of missing values."""

    components: int
    dims: int
    gaussian: tuple[Any, ...]
    constants: Data

    def about(self, means: Floats) -> Task:
        """Return the same E-step with each component's rows less its own one of these means."""
        return Full(self.X, self.parameters, means)

    def arguments(
        self, weight: Floats, hard: bool, workspace: Any, total: Floats, out: Outputs
    ) -> tuple[Any, ...]:
        """Return the arguments of `span` after (X, first, last)."""
        return weight, hard, self.components, self.gaussian, self.constants, workspace, total, out

    def _sums(self, counts: Floats, first: Floats, second: Floats) -> Sums:
        none = np.zeros((self.components, 0))
        observed = np.repeat(counts[:, None], self.dims, axis=1)
        return Sums(float(self.total[-1]), counts, observed, first, second, none, none)


class Full(_Matrices):
    """An E-step with full covariances; a tied one is used for every component."""

    span = full.span

    common_center = False

    def __init__(self, X: Data, parameters: Parameters, means: Floats | None = None) -> None:
        """Lay the parameters out; `means`, or else those of the parameters, are subtracted."""
        self.X, self.parameters = X, parameters
        gaussian = parameters.gaussian
        self.components, self.dims = gaussian.means.shape
        self.blocks = round_up(self.dims, 4)
        self.dtype = X.dtype
        self.size = full.size_of_total(self.components, self.dims)
        self.work_per_row = self.components * (self.dims * (self.dims + 1) + WORK_OF_EXP)
        means = gaussian.means if means is None else means
        self.rounded = means.astype(self.dtype).astype(np.float64)
        u = roots(gaussian)
        shifts = np.zeros((self.components, self.blocks), self.dtype)
        shifts[:, : self.dims] = np.einsum("kd,kdj->kj", self.rounded - gaussian.means, u)
        diagonal = np.diagonal(u, axis1=-2, axis2=-1)
        constants = parameters.log_weights + (np.log(diagonal) - 0.5 * np.log(2 * np.pi)).sum(
            axis=-1
        )
        self.constants = constants.astype(self.dtype)
        self.gaussian = (
            gaussian.columns.astype(np.int64),
            np.zeros(self.dims, self.dtype),
            self.rounded.astype(self.dtype).ravel(),
            _factor_blocks(u, self.dtype),
            shifts.ravel(),
        )

    def distance(self, means: Floats) -> Floats:
        """Return the distances of means [K, G] from the values that the kernel subtracts from X."""
        return means - self.rounded

    def workspace(self) -> Any:
        """Return the workspace of one worker thread."""
        block = self.blocks * STRIDE
        sizes = (
            block,
            block,
            block,
            self.components * STRIDE,
            STRIDE,
            STRIDE,
            max(16, self.blocks),
        )
        return tuple(aligned_zeros(size, self.dtype) for size in sizes)

    def sums(self) -> Sums:
        """Return the sums about the means."""
        k, d = self.components, self.dims
        per_component = self.total[: -k - 1].reshape(k, -1)
        counts = self.total[-k - 1 : -1].copy()
        first, second = per_component[:, :d], _symmetric(per_component[:, self.blocks :], d)
        b = self.parameters.gaussian.means - self.rounded
        moved = first - b * counts[:, None]
        second = second - b[:, :, None] * first[:, None, :] - moved[:, :, None] * b[:, None, :]
        second = _mean_with_transpose(second)
        if self.parameters.gaussian.covariance_type == "tied":
            second = second.sum(axis=0)
        return self._sums(counts, moved, second)


class Tied(_Matrices):
    """An E-step with one covariance, for means so near to a center c that they can share x - c."""

    span = tied.span
    common_center = True

    def __init__(self, X: Data, parameters: Parameters, dtype: np.dtype[Any] | None = None) -> None:
        """Lay the parameters out; compute in `dtype`, or in X's where that is accurate enough."""
        self.X, self.parameters = X, parameters
        gaussian = parameters.gaussian
        self.components, self.dims = gaussian.means.shape
        self.blocks, padded = round_up(self.dims, 4), round_up(self.components, 4)
        self.triangle = 2 * self.blocks * (self.blocks // 4 + 1)
        self.size = padded * self.blocks + self.triangle + self.components + 1
        self.work_per_row = self.components * (3 * self.dims + WORK_OF_EXP) + self.dims**2
        weights, u = np.exp(parameters.log_weights), gaussian.precisions_cholesky
        center = (weights @ gaussian.means) / weights.sum()
        self.center = center.astype(X.dtype).astype(np.float64)
        if dtype is None:
            inverse = np.linalg.inv(u)
            near = self._is_near(gaussian.means, np.square(inverse).sum(axis=0), u, X.dtype)
            dtype = X.dtype if near else np.dtype(np.float64)
        self.dtype = dtype
        whitened = (gaussian.means - self.center) @ u
        # If not, the task must be `Full`.
        self.center_is_near = bool((whitened**2).max() <= max_distance(np.dtype(np.float64)))
        factors = np.zeros((padded, self.dims, 2), dtype)
        factors[..., 0] = 1
        factors[: self.components, :, 1] = -whitened
        self.constants = np.zeros(padded, dtype)
        self.constants[: self.components] = (
            parameters.log_weights + (np.log(np.diagonal(u)) - 0.5 * np.log(2 * np.pi)).sum()
        )
        self.gaussian = (
            gaussian.columns.astype(np.int64),
            self.center.astype(dtype),
            np.zeros(self.dims, dtype),
            _factor_blocks(u, dtype),
            np.ascontiguousarray(
                factors.reshape(padded // 4, 4, self.dims, 2).transpose(0, 2, 3, 1)
            ).ravel(),
        )

    def _is_near(self, means: Floats, variances: Floats, u: Floats, dtype: np.dtype[Any]) -> bool:
        """Return whether one center is accurate enough in `dtype`, in every direction.

        x - c is of the size s_d = sqrt(sigma_d^2 + (m_d - c_d)^2) in column d, and its product with
        itself has an error of u s_d s_e. Whitened, this is at most u q_j^2 beside the variance 1,
        with q = |U|^T s: the bound of a single column, to which the condition of the covariance is
        added.
        """
        size = np.sqrt(variances + np.square(means - self.center))
        return bool(np.square(size @ abs(u)).max() <= max_distance(dtype))

    def statistics(self, sample_weight: Floats | None, hard: bool) -> tuple[Sums, bool]:
        """Return the sums, and whether rows were left out; in float64 if float32 lost digits."""
        if self.dtype == np.float64:
            return super().statistics(sample_weight, hard)
        incomplete = self.run(sample_weight, hard, None) != 0
        sums = self.sums()
        if self._has_digits(sums):
            return sums, incomplete
        return Tied(self.X, self.parameters, np.dtype(np.float64)).statistics(sample_weight, hard)

    def _has_digits(self, sums: Sums) -> bool:
        """Return whether the new means and covariance satisfy `_is_near`, too."""
        if not (np.isfinite(sums.log_likelihood) and np.isfinite(sums.second).all()):
            return False
        delta = sums.first / np.maximum(sums.counts, 1e-300)[:, None]
        covariance = (sums.second - sums.first.T @ delta) / max(sums.counts.sum(), 1e-300)
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError:
            return False
        means = self.parameters.gaussian.means + delta
        return self._is_near(means, covariance.diagonal(), inverse.T, self.dtype)

    def workspace(self) -> Any:
        """Return the workspace of one worker thread."""
        block = self.blocks * STRIDE
        joint = round_up(self.components, 4) * STRIDE
        sums = max(16, self.blocks, self.components)
        sizes = (block, block, block, joint, STRIDE, STRIDE, sums)
        return tuple(aligned_zeros(size, self.dtype) for size in sizes)

    def sums(self) -> Sums:
        """Return the sums about the means."""
        k, d = self.components, self.dims
        at = round_up(k, 4) * self.blocks
        blocks = self.total[:at].reshape(-1, self.blocks // 4, 4, 4).swapaxes(1, 2)
        first = blocks.reshape(-1, self.blocks)[:k, :d]
        second = _symmetric(self.total[at : at + self.triangle], d)
        counts = self.total[at + self.triangle : -1].copy()
        b = self.parameters.gaussian.means - self.center
        moved = first - b * counts[:, None]
        return self._sums(counts, moved, _mean_with_transpose(second - b.T @ first - moved.T @ b))

    def distance(self, means: Floats) -> Floats:
        """Return the distances of means [K, G] from the values that the kernel subtracts from X."""
        distance: Floats = means - self.center
        return distance
