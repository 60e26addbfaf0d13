"""The weights of ALISTA, which need no training."""

from __future__ import annotations

import torch

from latent_kernels.sparse.encoders._start import Array, checked_dictionary

Tensor = torch.Tensor


def analytic_weight(dictionary: Array) -> Tensor:
    r"""Return the weights whose coherence with a dictionary is least, in the mean square.

    .. math::
        \min_W ||D W||_F^2 \text{ where } d_j \cdot w_j = 1 \text{ for each } j, \qquad
        w_j = \frac{(D^T D)^{-1} d_j}{d_j^T (D^T D)^{-1} d_j}

    Computed in float64, by the pseudo-inverse where D is not of full rank at the precision of its
    dtype.

    Args:
        dictionary: D [n_components, n_features], float32, float64, bfloat16 or float16; a tensor or
            an array.

    Returns:
        W [n_features, n_components] of the dictionary's dtype, on its device; 0 for rows of zeros.

    Raises:
        TypeError, ValueError: dictionary has a wrong shape or dtype, is all zeros, or is not
            finite.

    Source:
        Liu, Chen, Wang, Yin, "ALISTA: analytic weights are as good as learned weights in LISTA"
        (2019).

    """
    checked = checked_dictionary(dictionary)
    return solve(checked.double(), checked.dtype).to(checked.dtype)


def solve(dictionary: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights in float64.

    `dictionary` is checked and float64, and its entries have the precision of `dtype`.
    """
    left, values, right = torch.linalg.svd(dictionary, full_matrices=False)
    # Entries of half precision are taken as exact numbers, so singular values count down to the
    # rounding of float32.
    precision = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    rank = int((values > max(dictionary.shape) * precision * values[0]).sum())
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    # A row that is too short to count for the rank is orthogonal to the rest: its own direction is
    # the best.
    inside = ((left * values) ** 2).sum(-1) > 0.5 * (dictionary * dictionary).sum(-1)
    weight = torch.where(inside, right.T @ (left / values).T, dictionary.T)
    along = (dictionary.T * weight).sum(0)
    return torch.where(dictionary.any(-1), weight / along, torch.zeros_like(weight))


def generalized_coherence(dictionary: Tensor, weight: Tensor) -> float:
    """Return the largest abs(d_i . w_j) over i != j.

    It is ALISTA's measure of how much the components disturb one another.

    Args:
        dictionary: D [n, m].
        weight: W [m, n].

    Returns:
        0 for a single component.

    Raises:
        ValueError: weight is not [m, n].

    Source:
        Liu et al. (2019).

    """
    if tuple(weight.shape) != tuple(dictionary.shape)[::-1]:
        raise ValueError(
            f"weight must have shape {tuple(dictionary.shape)[::-1]}; got {tuple(weight.shape)}"
        )
    return float((dictionary @ weight).abs().fill_diagonal_(0).max())
