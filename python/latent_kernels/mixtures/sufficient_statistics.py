"""The sufficient statistics of an E-step: sums that add over shards and give the M-step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Below this weight a component's sums are too near the smallest float64 to be precise.
LOST = 1e-290
# Rounding errors of a variance, relative to the square of the distance of the mean from the anchor.
_ROUNDING = 1e-12
# A mean has moved far where its squared change is this many times the previous variance.
_FAR = 1e6


class GaussianParameters(NamedTuple):
    """The parameters of a Gaussian mixture, with the shapes that `gaussian_e_step` takes."""

    weights: Floats  # [K]
    means: Floats  # [K, D]
    covariances: Floats  # [K, D, D] full, [D, D] tied, [K, D] diag, [K] spherical


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    r"""The expected sufficient statistics of a mixture, as the E-steps return them.

    With responsibilities r (times the sample weights) and an anchor a_k for each component, which
    is its previous mean:

    .. math::
        \text{counts}_k = \sum_i r_{ik}, \qquad \text{first}_k = \sum_i r_{ik} (x_i - a_k), \qquad
        \text{second}_k = \sum_i r_{ik} (x_i - a_k)(x_i - a_k)^T

    Sums about an anchor near the data keep their precision where E[x^2] - E[x]^2 would cancel. They
    are float64.

    Args:
        covariance_type: "full", "tied", "diag" or "spherical".
        log_likelihood: sum_i w_i log p(x_i), in nats, of the parameters that the E-step was given.
        total_weight: sum of the sample weights.
        counts: the weight of each component, [K].
        observed: [K, D], the weight of the rows in which a column is present; the counts where
            nothing is missing, and for "full" and "tied", whose sums are completed by their
            expectations.
        anchor: the anchors, [K, D].
        first: the sums of x - a, [K, D].
        second: [K, D, D] full, [D, D] tied (summed over components), [K, D] diag and spherical (the
            squares alone).
        features: [K, F], sum_i r_ik phi(x_i) over the columns of other families; F = 0 if there are
            none.
        features_observed: [K, C], the weight of the rows in which such a column is present.
        feature_starts: [C + 1]; column c has the features
            ``feature_starts[c]:feature_starts[c + 1]``.

    ``a + b`` is the statistics of both sets of rows and needs the same anchors; ``a.about(b.anchor)
    + b`` always works. ``a * c`` weights every row by c. All are exact up to float64 rounding.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> X = np.arange(8.0).reshape(4, 2)
        >>> parameters = [1.0], [[3.0, 4.0]], [[5.0, 5.0]]
        >>> a, b = lk.gaussian_e_step(X[:2], *parameters), lk.gaussian_e_step(X[2:], *parameters)
        >>> weights, means, variances = (a + b).m_step()
        >>> means.tolist(), variances.tolist()
        ([[3.0, 4.0]], [[5.0, 5.0]])
        >>> moved = a.about(np.zeros((1, 2)))  # sums of x and x^2 themselves
        >>> moved.first.tolist(), a.has_shapes_of(moved)
        ([[2.0, 4.0]], True)
        >>> total = a.from_vector(a.to_vector() + b.to_vector())  # as an all-reduce does it
        >>> np.array_equal(total.first, (a + b).first)
        True
        >>> a.mean_parameters().shape  # no columns of other families
        (1, 0)

    """

    covariance_type: str
    log_likelihood: float
    total_weight: float
    counts: Floats
    observed: Floats
    anchor: Floats
    first: Floats
    second: Floats
    features: Floats
    features_observed: Floats
    feature_starts: NDArray[np.int64]

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        if self.covariance_type != other.covariance_type:
            kinds = f"{self.covariance_type!r} and {other.covariance_type!r}"
            raise ValueError(
                f"statistics can be added only where covariance_type is the same; got {kinds}"
            )
        if self._shapes() != other._shapes():
            raise ValueError(
                "statistics must have the same shapes to be added; "
                f"got {self._shapes()}, {other._shapes()}"
            )
        if self._starts() != other._starts():
            raise ValueError(
                "statistics must have the same features; "
                f"they start at {self._starts()}, {other._starts()}"
            )
        if not np.array_equal(self.anchor, other.anchor):
            raise ValueError(
                "statistics can be added only about one anchor; "
                "move one of them: a.about(b.anchor) + b"
            )
        return self.from_vector(self.to_vector() + other.to_vector())

    def __mul__(self, factor: float) -> SufficientStatistics:
        return self.from_vector(self.to_vector() * float(factor))

    __rmul__ = __mul__

    def has_shapes_of(self, other: SufficientStatistics) -> bool:
        """Return whether both are of one covariance_type and have the same shapes."""
        same_type = self.covariance_type == other.covariance_type
        return same_type and self._shapes() == other._shapes()

    def _shapes(self) -> list[tuple[int, ...]]:
        return [x.shape for x in self._arrays()]

    def _starts(self) -> list[int]:
        starts: list[int] = self.feature_starts.tolist()
        return starts

    def _arrays(self) -> list[Floats]:
        return [
            self.counts,
            self.observed,
            self.first,
            self.second,
            self.features,
            self.features_observed,
        ]

    def to_vector(self) -> Floats:
        """Return every sum in one vector, without the anchor.

        Adding vectors adds statistics about one anchor.
        """
        return np.concatenate(
            [[self.log_likelihood, self.total_weight], *(x.ravel() for x in self._arrays())]
        )

    def from_vector(self, vector: Floats) -> SufficientStatistics:
        """Return statistics of this one's shapes and anchor with the sums of `vector`."""
        vector = np.array(vector, dtype=np.float64)
        if vector.shape != (2 + sum(x.size for x in self._arrays()),):
            raise ValueError(
                f"vector must have the length of to_vector(); got shape {vector.shape}"
            )
        arrays, at = [], 2
        for x in self._arrays():
            arrays.append(vector[at : at + x.size].reshape(x.shape))
            at += x.size
        counts, observed, first, second, features, features_observed = arrays
        return replace(
            self,
            log_likelihood=float(vector[0]),
            total_weight=float(vector[1]),
            counts=counts,
            observed=observed,
            first=first,
            second=second,
            features=features,
            features_observed=features_observed,
        )

    def about(self, anchor: Floats) -> SufficientStatistics:
        """Return the same statistics about another anchor [K, D].

        Raises:
            ValueError: anchor has another shape than [K, D], or is not finite.

        """
        anchor = np.array(anchor, dtype=np.float64)
        if anchor.shape != self.anchor.shape or not np.isfinite(anchor).all():
            raise ValueError(
                f"anchor must be finite with shape {self.anchor.shape}; got shape {anchor.shape}"
            )
        b = anchor - self.anchor
        first = self.first - b * self.observed
        if self.covariance_type in ("diag", "spherical"):
            second = self.second - b * (self.first + first)
        else:  # (x - a - b)(x - a - b)^T = (x - a)(x - a)^T - b (x - a)^T - (x - a - b) b^T
            change = b[:, :, None] * self.first[:, None, :] + first[:, :, None] * b[:, None, :]
            second = self.second - (
                change.sum(axis=0) if self.covariance_type == "tied" else change
            )
            second = 0.5 * (second + second.swapaxes(-1, -2))  # rounding is not symmetric
        return replace(self, anchor=anchor, first=first, second=second)

    def mean_parameters(self) -> Floats:
        """Return the mean of every feature in every component [K, F].

        This is the M-step of the columns of other families. It is NaN where the column is missing
        in every row of a component.
        """
        column = np.repeat(np.arange(len(self.feature_starts) - 1), np.diff(self.feature_starts))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.features / self.features_observed[:, column]

    def m_step(
        self, *, reg_covar: float = 0.0, covariances: ArrayLike | None = None
    ) -> GaussianParameters:
        """Return the Gaussian parameters that maximize the expected log-likelihood.

        weights = N_k / sum N, means = a_k + first / N_k, covariances = second / N_k less the square
        of the change of the mean, plus reg_covar on the diagonal. With missing values N_k is
        `observed` of the column.

        Args:
            reg_covar: added to every variance; >= 0.
            covariances: the previous ones. A component without weight (or a column missing in all
                its rows) has no estimate: it keeps its anchor as its mean and these, as they are.

        Raises:
            ValueError: a component has no weight and covariances is not given ("tied" needs none);
                a covariance is not positive definite, which a greater reg_covar prevents.

        """
        if not reg_covar >= 0:
            raise ValueError(f"reg_covar must be >= 0; got {reg_covar}")
        if not np.isfinite(self.to_vector()).all():
            raise ValueError(
                "the statistics must be finite; the E-step met an infinite value or an overflow"
            )
        if not self.counts.max(initial=0.0) >= LOST:
            raise ValueError("there is nothing to estimate from: the statistics have no weight")
        lost = self.counts < LOST
        empty = (self.observed < LOST) | lost[:, None]
        if empty.any() and covariances is None and self.covariance_type != "tied":
            k = int(np.flatnonzero(empty.any(axis=1))[0])
            raise ValueError(
                f"component {k} has lost all its weight, so that its parameters have no estimate; "
                "give the previous covariances to keep them"
            )
        counts = np.where(lost, 0.0, self.counts)
        observed = np.where(empty, 1.0, self.observed)
        delta = np.where(empty, 0.0, self.first / observed)
        new = self._covariances(counts, observed, delta, empty)
        new = new + reg_covar * (
            np.eye(new.shape[-1]) if self.covariance_type in ("full", "tied") else 1.0
        )
        if covariances is not None:
            new = self._with_previous(new, np.asarray(covariances, np.float64), empty)
        self._check_positive_definite(new, covariances, delta)
        return GaussianParameters(counts / counts.sum(), self.anchor + delta, new)

    def _covariances(self, counts: Floats, observed: Floats, delta: Floats, empty: Mask) -> Floats:
        """Return the estimates, which are arbitrary where there is nothing to estimate from."""
        if self.covariance_type == "full":
            return self.second / observed[:, :, None] - delta[:, :, None] * delta[:, None, :]
        if self.covariance_type == "tied":
            between = (delta * counts[:, None]).T @ delta
            tied: Floats = (self.second - 0.5 * (between + between.T)) / counts.sum()
            return tied
        if self.covariance_type == "diag":
            return self.second / observed - delta**2
        total = np.where(empty, 0.0, observed).sum(axis=1)
        squares = np.where(empty, 0.0, self.second - observed * delta**2).sum(axis=1)
        spherical: Floats = squares / np.where(total == 0, 1.0, total)
        return spherical

    def _with_previous(self, new: Floats, previous: Floats, empty: Mask) -> Floats:
        """Return the new covariances, the previous ones where there is nothing to estimate from."""
        if previous.shape != new.shape:
            raise ValueError(f"covariances must have shape {new.shape}; got {previous.shape}")
        if self.covariance_type == "tied":
            return new
        keeps = {"spherical": empty.all(axis=1), "full": empty[:, :, None], "diag": empty}[
            self.covariance_type
        ]
        result: Floats = np.where(keeps, previous, new)
        return result

    def _has_moved_far(
        self, covariances: Floats, previous: ArrayLike | None, delta: Floats, which: Any
    ) -> bool:
        """Return whether rounding errors explain a variance, and a far start explains these."""

        def variances(x: Floats) -> Floats:
            x = x if self.covariance_type == "tied" else x[which]
            return np.diagonal(x) if x.ndim == 2 else x

        squares = delta[which] ** 2
        far = squares * _ROUNDING > abs(variances(covariances))
        if previous is not None:
            far &= squares > _FAR * variances(np.asarray(previous, np.float64))
        return bool(far.any())

    def _check_positive_definite(
        self, covariances: Floats, previous: ArrayLike | None, delta: Floats
    ) -> None:
        if self.covariance_type in ("diag", "spherical"):
            bad = ~(covariances.reshape(len(covariances), -1) > 0).all(axis=1)
        else:
            stack = covariances.reshape(-1, *covariances.shape[-2:])
            bad = np.zeros(len(stack), np.bool_)
            if not positive_definite(stack):
                bad = np.array([not positive_definite(covariance) for covariance in stack])
        if bad.any():
            whose = (
                "shared by all components"
                if self.covariance_type == "tied"
                else f"of component {bad.argmax()}"
            )
            which = slice(None) if self.covariance_type == "tied" else int(bad.argmax())
            why = (
                "its mean has moved so far that rounding errors hide its variance. Start from "
                "means nearer to the data, or center the data"
                if self._has_moved_far(covariances, previous, delta, which)
                else "too few distinct rows are in it. Use fewer components, a greater reg_covar, "
                "or scale the data"
            )
            raise ValueError(f"the covariance {whose} is not positive definite: {why}")


def positive_definite(covariances: Floats) -> bool:
    """Return whether symmetric matrices [..., D, D] all have Cholesky factors."""
    try:
        return bool(np.isfinite(np.linalg.cholesky(covariances)).all())
    except np.linalg.LinAlgError:
        return False
