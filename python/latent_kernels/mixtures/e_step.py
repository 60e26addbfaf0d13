"""E-steps of mixtures: one pass over the data, no N x K array, the same bits for all threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from latent_kernels._data import dense_on_cpu
from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.mixture import model
from latent_kernels.mixtures import _families
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics, positive_definite

Floats = NDArray[np.float64]
_CPU = torch.device("cpu")
_OVERFLOW = (
    "X must not hold infinite values, nor ones so far from every component that their squares "
    "overflow {dtype}"
)
# Far beyond where the densities of all components but one underflow, and squares do not overflow.
_FAR = 1e100


def gaussian_e_step(
    X: NDArray[Any] | torch.Tensor,
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    covariance_type: str = "diag",
    *,
    sample_weight: ArrayLike | None = None,
    hard: bool = False,
) -> SufficientStatistics:
    r"""Return the expected sufficient statistics of a Gaussian mixture about the given means.

    With the responsibilities r they are

    .. math::
        r_{ik} = \frac{\pi_k \mathcal N(x_i; m_k, \Sigma_k)}
            {\sum_j \pi_j \mathcal N(x_i; m_j, \Sigma_j)}, \qquad
        N_k = \sum_i w_i r_{ik}, \quad \sum_i w_i r_{ik} (x_i - m_k), \quad
        \sum_i w_i r_{ik} (x_i - m_k)(x_i - m_k)^T

    and the log-likelihood is

    .. math::
        \sum_i w_i \log \sum_k \pi_k \mathcal N(x_i; m_k, \Sigma_k)

    NaN means missing at random, and is treated exactly: "diag" and "spherical" densities are those
    of the columns that are present; "full" and "tied" ones are marginal densities, and the sums are
    completed by their conditional expectations, which takes a Cholesky factor for each component
    and pattern of missing columns.

    Args:
        X: [N, D] float32 or float64, of any strides, a NumPy array (memory-mapped or read-only too)
            or a tensor on the CPU; it is not copied. Blocks of rows are computed in X's dtype and
            summed in float64.
        weights: [K], pi_k >= 0, of sum 1.
        means: [K, D].
        covariances: "full" [K, D, D], "tied" [D, D], "diag" [K, D] variances, "spherical" [K]
            variances.
        covariance_type: "full", "tied", "diag" or "spherical".
        sample_weight: [N], w_i >= 0; None for 1.
        hard: assign each row wholly to its most probable component (the first of several). EM is
            then classification EM, and Lloyd's algorithm for equal weights and one spherical
            variance. The log-likelihood is then sum_i w_i max_k log pi_k N(...).

    Returns:
        `SufficientStatistics` about `means`; `.m_step()` gives the new parameters. Threads follow
        `torch.get_num_threads()` and change no bit.

    Raises:
        TypeError: X is neither an array nor a tensor on the CPU, or not float32 or float64.
        ValueError: a shape or value is wrong; a covariance is not positive definite; X holds
            infinite values.

    Source:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm"
        (1977); Ghahramani and Jordan, "Supervised learning from incomplete data via an EM approach"
        (1994), for missing values; Celeux and Govaert, "A classification EM algorithm for
        clustering and two stochastic versions" (1992), for hard.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> X = np.array([[0.0], [1.0], [9.0], [np.nan]])
        >>> statistics = lk.gaussian_e_step(X, [0.5, 0.5], [[0.0], [10.0]], [[1.0], [1.0]], "diag")
        >>> statistics.counts.round(3)  # the missing value counts half in each
        array([2.5, 1.5])
        >>> statistics.m_step().means.round(3).tolist()
        [[0.5], [9.0]]

    """
    data = checked_data(X)
    parameters = gaussian_parameters(weights, means, covariances, covariance_type, data.shape[1])
    return e_step(data, parameters, checked_sample_weight(sample_weight, len(data)), hard)


def exponential_family_e_step(
    X: NDArray[Any] | torch.Tensor,
    weights: ArrayLike,
    families: Sequence[str],
    parameters: Sequence[Any],
    *,
    sample_weight: ArrayLike | None = None,
    hard: bool = False,
) -> SufficientStatistics:
    r"""Return the expected sufficient statistics of a mixture with columns of several families.

    Columns are independent within a component. The sums of a column of a canonical family,

    .. math::
        \log p(x \mid k) = \langle \eta_k, \phi(x) \rangle - A(\eta_k) + \log h(x), \qquad
        \sum_i w_i r_{ik}\, \phi(x_i),

    are those of its sufficient statistic phi(x); Gaussian columns are as in `gaussian_e_step`. A
    value that is NaN is missing at random and contributes nothing.

    ============= ============= ===========================
    family        values        parameters of a column
    ============= ============= ===========================
    "gaussian"    any           (means [K], variances [K])
    "bernoulli"   0, 1          p [K]
    "poisson"     0, 1, 2, ...  rates [K]
    "categorical" 0, ..., C - 1 p [K, C]
    ============= ============= ===========================

    Args:
        X: [N, D] float32 or float64, as in `gaussian_e_step`.
        weights: [K], pi_k >= 0, of sum 1.
        families: one name for each column of X.
        parameters: mean parameters for each column of X, as in the table. Probabilities and rates
            nearer than 1e-12 to 0 or 1 (rates: to 0) are moved to that distance, so that natural
            parameters are finite.
        sample_weight: [N], w_i >= 0; None for 1.
        hard: as in `gaussian_e_step`.

    Returns:
        `SufficientStatistics`: the Gaussian columns (in their order in X) have anchor, first and
        second; the features of the others (in their order in X) have `features`, whose M-step is
        `mean_parameters()`.

    Raises:
        TypeError: X is neither an array nor a tensor on the CPU, or not float32 or float64.
        ValueError: a shape or value is wrong, an unknown family, or a value of X outside its
            column's family.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> X = np.array([[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]])
        >>> statistics = lk.exponential_family_e_step(
        ...     X, [1.0], ["bernoulli", "categorical"], [[0.5], [[0.2, 0.3, 0.5]]]
        ... )
        >>> statistics.mean_parameters().round(3)  # one component: frequencies of the data
        array([[0.667, 0.333, 0.333, 0.333]])

    """
    data = checked_data(X)
    mixture = mixed_parameters(weights, families, parameters, data.shape[1])
    return e_step(data, mixture, checked_sample_weight(sample_weight, len(data)), hard)


# --- shared with the estimators -------------------------------------------------------------------


def e_step(
    X: NDArray[Any], parameters: model.Parameters, sample_weight: Floats | None, hard: bool = False
) -> SufficientStatistics:
    """Return the statistics of checked data."""
    scale = 1.0
    if sample_weight is not None:
        scale = weight_unit(float(sample_weight.max(initial=0.0)))
        sample_weight = sample_weight if scale == 1.0 else sample_weight / scale
    # The results of these are checked below.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sums = backend("mixture", _CPU).statistics(X, parameters, sample_weight, bool(hard))
    total = float(len(X)) if sample_weight is None else float(sample_weight.sum())
    result = SufficientStatistics(
        covariance_type=parameters.gaussian.covariance_type,
        log_likelihood=sums.log_likelihood,
        total_weight=total,
        counts=sums.counts,
        observed=sums.observed,
        anchor=parameters.gaussian.means,
        first=sums.first,
        second=sums.second,
        features=sums.features,
        features_observed=sums.features_observed,
        feature_starts=parameters.canonical.starts,
    )
    if not np.isfinite(result.to_vector()).all():
        _check_finite(parameters)
        raise ValueError(_OVERFLOW.format(dtype=X.dtype))
    if scale == 1.0:
        return result
    with np.errstate(over="ignore"):
        result = result * scale
    if not np.isfinite(result.to_vector()).all():
        raise ValueError("sample_weight is so large that sums with it overflow float64")
    return result


def weight_unit(most: float) -> float:
    """Return the power of two to divide weights by, the greatest of which is `most`.

    It is 1 where products of the weights fit float32 as they are.
    """
    if most == 0 or 2.0**-60 < most < 2.0**60:
        return 1.0
    return 2.0 ** math.floor(math.log2(most))


def _check_finite(parameters: model.Parameters) -> None:
    """Raise if the parameters, and not the data, are the reason for results that are not finite."""
    gaussian = parameters.gaussian
    finite = np.isfinite(gaussian.means).all() and np.isfinite(gaussian.precisions_cholesky).all()
    if not finite or not (parameters.log_weights < np.inf).all():
        raise ValueError("the weights, means and covariances of the mixture must be finite")


def posterior(
    X: NDArray[Any],
    parameters: model.Parameters,
    *,
    log_density: bool = False,
    labels: bool = False,
    responsibilities: bool = False,
) -> tuple[Floats | None, NDArray[np.int64] | None, NDArray[Any] | None]:
    """Return (log p(x_i), the most probable component, r_ik), each None unless it is asked for.

    They are [N] float64, [N] and [N, K] in X's dtype. Rows whose squares overflow that are computed
    in float64; where they overflow that too, log p is -inf, and the others are their limits.
    """
    rows, components = len(X), len(parameters.log_weights)
    density = np.empty(rows)
    label = np.empty(rows, np.int64) if labels else None
    r = np.empty((rows, components), X.dtype) if responsibilities else None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        backend("mixture", _CPU).posterior(X, parameters, density, label, r)
    far = np.flatnonzero(~np.isfinite(density))
    if len(far) > 0:
        density[far], labels_of_far, r_of_far = _far_posterior(X[far], parameters, far)
        if label is not None:
            label[far] = labels_of_far
        if r is not None:
            r[far] = r_of_far
    return density if log_density else None, label, r


def _far_posterior(
    X: NDArray[Any], parameters: model.Parameters, rows: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Return `posterior` of rows whose squares overflow their dtype."""
    X = X.astype(np.float64)
    density, labels = np.empty(len(X)), np.empty(len(X), np.int64)
    r = np.empty((len(X), len(parameters.log_weights)))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        backend("mixture", _CPU).posterior(X, parameters, density, labels, r)
        far = np.flatnonzero(~np.isfinite(density))
        # On the line from 0 through a row the most probable component no longer changes far out.
        nearer, columns = X[far], parameters.gaussian.columns
        greatest = np.fmax.reduce(abs(nearer[:, columns]), axis=1, initial=_FAR)
        nearer[:, columns] *= (_FAR / greatest)[:, None]
        label, share = labels[far], r[far]
        backend("mixture", _CPU).posterior(nearer, parameters, None, label, share)
    density[far], labels[far], r[far] = -np.inf, label, share
    if not np.isfinite(r).all():
        _check_finite(parameters)
        row = rows[np.flatnonzero(~np.isfinite(r).all(axis=1))[0]]
        raise ValueError(f"{_OVERFLOW.format(dtype=np.dtype(np.float64))}; row {row} does")
    return density, labels, r / r.sum(axis=1, keepdims=True)


def checked_data(X: Any, name: str = "X") -> NDArray[Any]:
    """Return X as an array over the same memory."""
    if isinstance(X, torch.Tensor):
        X = dense_on_cpu(name, X)
        if X.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must have dtype float32 or float64; got {X.dtype}")
        X = X.numpy()
    if not isinstance(X, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch.Tensor; got {type(X).__name__}")
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array: missing values are NaN, "
            f"as {name}.filled(np.nan) has them"
        )
    if X.dtype not in (np.float32, np.float64) or not X.dtype.isnative:
        raise TypeError(
            f"{name} must have dtype float32 or float64 in this machine's byte order; "
            f"got {X.dtype!r}"
        )
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"{name} must have shape [N, D] with D >= 1; got {X.shape}")
    return np.asarray(X)


def checked_sample_weight(sample_weight: ArrayLike | None, rows: int) -> Floats | None:
    """Return the weights [N] as float64."""
    if sample_weight is None:
        return None
    weight = _floats("sample_weight", sample_weight)
    if weight.shape != (rows,):
        raise ValueError(
            f"sample_weight must have shape ({rows},), one weight for each row of X; "
            f"got {weight.shape}"
        )
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("sample_weight must be finite and >= 0")
    return np.ascontiguousarray(weight)


def _floats(name: str, x: Any) -> Floats:
    try:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu().double().numpy()
        array = np.asarray(x)
        if np.iscomplexobj(array):
            raise TypeError("complex numbers")
        # A copy: the statistics' arrays must not change with the caller's.
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of numbers; got {type(x).__name__} ({error})"
        ) from None


def _log_weights(weights: ArrayLike) -> Floats:
    pi = _floats("weights", weights)
    if pi.ndim != 1 or len(pi) == 0:
        raise ValueError(f"weights must have shape [K] with K >= 1; got {pi.shape}")
    if not (pi >= 0).all() or not abs(pi.sum() - 1) <= 1e-6:
        raise ValueError(f"weights must be >= 0 with sum 1; got {pi} of sum {pi.sum()}")
    with np.errstate(divide="ignore"):
        result: Floats = np.log(pi)
    return result


def covariance_shape(covariance_type: str, components: int, size: int) -> tuple[int, ...]:
    """Return the shape of `covariances`."""
    if covariance_type not in model.COVARIANCE_TYPES:
        known = ", ".join(map(repr, model.COVARIANCE_TYPES))
        raise ValueError(f"covariance_type must be one of {known}; got {covariance_type!r}")
    return {
        "full": (components, size, size),
        "tied": (size, size),
        "diag": (components, size),
        "spherical": (components,),
    }[covariance_type]


def precisions_cholesky(covariances: Floats, covariance_type: str) -> Floats:
    """Return U with Sigma^-1 = U U^T, upper triangular; 1/sigma for "diag" and "spherical"."""
    if covariance_type in ("diag", "spherical"):
        bad = ~(np.isfinite(covariances) & (covariances > 0))
        if bad.any():
            where = int(np.argwhere(bad)[0][0])
            raise ValueError(
                f"covariances must be finite and > 0; those of component {where} are not"
            )
        return 1 / np.sqrt(covariances)
    stack = covariances.reshape(-1, *covariances.shape[-2:])
    scale = abs(stack).max(axis=(1, 2), initial=0)
    bad = ~np.isfinite(scale)
    if not bad.any():
        bad = abs(stack - stack.swapaxes(1, 2)).max(axis=(1, 2), initial=0) > 1e-6 * scale
    if not bad.any():
        try:
            lower = np.linalg.cholesky(stack)
        except np.linalg.LinAlgError:
            bad = np.array([not positive_definite(covariance) for covariance in stack])
    if bad.any():
        raise ValueError(
            "covariances must be symmetric and positive definite; "
            f"number {int(np.flatnonzero(bad)[0])} is not"
        )
    result: Floats = np.triu(np.linalg.inv(lower).swapaxes(1, 2)).reshape(covariances.shape)
    return result


def gaussian_parameters(
    weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, covariance_type: str, size: int
) -> model.Parameters:
    """Return checked parameters of a Gaussian mixture over `size` columns."""
    log_weights = _log_weights(weights)
    components = len(log_weights)
    m, s = _floats("means", means), _floats("covariances", covariances)
    if m.shape != (components, size) or not np.isfinite(m).all():
        raise ValueError(
            f"means must be finite with shape [K, D] = ({components}, {size}); got shape {m.shape}"
        )
    expected = covariance_shape(covariance_type, components, size)
    if s.shape != expected:
        raise ValueError(
            f"covariances must have shape {expected} for {covariance_type!r}; got {s.shape}"
        )
    factors = precisions_cholesky(s, covariance_type)
    return model.gaussian_mixture(log_weights, covariance_type, np.ascontiguousarray(m), factors)


def mixed_parameters(
    weights: ArrayLike, families: Sequence[str], parameters: Sequence[Any], size: int
) -> model.Parameters:
    """Return checked parameters of a mixture of several families."""
    log_weights = _log_weights(weights)
    components = len(log_weights)
    if isinstance(families, str):
        raise TypeError(
            "families must be a sequence of one name for each column of X; "
            f"got the string {families!r}"
        )
    families = list(families)
    if len(families) != size or len(parameters) != size:
        raise ValueError(
            f"families and parameters must have one entry for each of the {size} columns of X; "
            f"got {len(families)} and {len(parameters)}"
        )
    gaussians: list[tuple[int, Floats, Floats]] = []
    columns, kinds, starts, naturals, partitions = [], [], [0], [], []
    for i, (family, parameter) in enumerate(zip(families, parameters, strict=True)):
        if family not in _families.FAMILIES:
            known = ", ".join(map(repr, _families.FAMILIES))
            raise ValueError(f"families must be among {known}; got {family!r} for column {i}")
        if family == "gaussian":
            mean, variance = _gaussian_column(i, parameter, components)
            gaussians.append((i, mean, variance))
            continue
        mean = _floats(f"parameters[{i}]", parameter)
        _check_mean(i, family, mean, components)
        natural, partition = _families.natural_parameters(family, mean)
        columns.append(i)
        kinds.append(family)
        starts.append(starts[-1] + natural.shape[1])
        naturals.append(natural)
        partitions.append(partition)
    gaussian = model.no_gaussian(components)
    if gaussians:
        variances = np.stack([v for _, _, v in gaussians], axis=1)
        gaussian = model.GaussianColumns(
            np.array([i for i, _, _ in gaussians]),
            "diag",
            np.stack([m for _, m, _ in gaussians], axis=1),
            precisions_cholesky(variances, "diag"),
        )
    canonical = model.no_canonical(components)
    if columns:
        canonical = model.CanonicalColumns(
            np.array(columns),
            tuple(kinds),
            np.array(starts),
            np.concatenate(naturals, axis=1),
            np.stack(partitions, axis=1),
        )
    return model.Parameters(log_weights, gaussian, canonical)


def _gaussian_column(i: int, parameter: Any, components: int) -> tuple[Floats, Floats]:
    whole = isinstance(parameter, Sequence) or getattr(parameter, "ndim", 0) > 0
    pair = list(parameter) if whole else []
    arrays = [_floats(f"parameters[{i}]", x) for x in pair]
    if (
        [x.shape for x in arrays] != [(components,)] * 2
        or not np.isfinite(arrays).all()
        or not (arrays[1] > 0).all()
    ):
        raise ValueError(
            f"parameters[{i}] must be finite means and variances > 0, "
            f"two arrays of shape ({components},)"
        )
    return arrays[0], arrays[1]


def _check_mean(i: int, family: str, mean: Floats, components: int) -> None:
    if family == "categorical":
        fits = mean.ndim == 2 and mean.shape[0] == components and mean.shape[1] >= 1
        shape = f"({components}, C)"
    else:
        fits, shape = mean.shape == (components,), f"({components},)"
    if not fits:
        raise ValueError(
            f"parameters[{i}] must have shape {shape} for {family!r}; got {mean.shape}"
        )
    least, greatest = 0.0, np.inf if family == "poisson" else 1.0
    sums = family != "categorical" or bool((abs(mean.sum(axis=1) - 1) <= 1e-6).all())
    if not ((mean >= least) & (mean <= greatest) & np.isfinite(mean)).all() or not sums:
        what = (
            "rates >= 0" if family == "poisson" else "probabilities" + ("" if sums else " of sum 1")
        )
        raise ValueError(f"parameters[{i}] must be {what} for {family!r}")
