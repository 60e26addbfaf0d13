"""Importance-weighted bounds in plain torch, as the formulas stand in the papers.

For log-weights log w_s = log p(x, z_s) - log q(z_s), s = 1 ... S:

    bound     L = log 1/S sum_s w_s                                     (Burda et al. 2016, eq. 8)
    weights   dL / d log w_s = w_s / sum_r w_r
    signal    L - log 1/S (sum_{r != s} w_r + e^{m_s}),  m_s = 1/(S - 1) sum_{r != s} log w_r
              what VIMCO multiplies the gradient of log q(z_s) by       (Mnih and Rezende 2016, eqs. 6 to 10)

Sums are over w_s / max w; `sums` holds top = max log w and total = sum_s e^(log w_s - top), which
is what backward needs: weights from them add up to 1 whatever the rounding of L. Where every weight
is 0 or one is infinite, L is -inf or inf and weights are NaN.
"""

from __future__ import annotations

import math

import torch

from latent_kernels.kernels.eager import row_dtype

Tensor = torch.Tensor
Sizes = tuple[int, int, int]  # groups, samples, rows


def bound(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The bound [groups, rows] over dimension 1 of [groups, samples, rows], and its sums [groups,
    2, rows].
    """
    lowest = torch.finfo(log_w.dtype).min
    top = log_w.amax(1).nan_to_num(nan=lowest, posinf=math.inf, neginf=lowest)
    total = torch.exp(log_w - top.unsqueeze(1)).sum(1)
    value = top + (torch.log(total) - math.log(log_w.size(1)))
    without_nan = (top == math.inf) & ~log_w.isnan().any(1)
    return torch.where(without_nan, math.inf, value), torch.stack((top, total), 1)


def log_without(log_w: Tensor, s: int) -> Tensor:
    """log (sum_{r != s} w_r + e^{m_s}) over its own terms: [groups, rows]."""
    others = torch.cat((log_w[:, :s], log_w[:, s + 1 :]), 1)
    return torch.logsumexp(torch.cat((others, others.mean(1, keepdim=True)), 1), 1)


def forward(sizes: Sizes, log_w: Tensor, out: Tensor, sums: Tensor) -> None:
    """The interface of the compiled kernels: log_w of `sizes` -> [groups, rows] and [groups, 2,
    rows].
    """
    found = bound(log_w.reshape(sizes).to(row_dtype(log_w.dtype)))
    for place, value in zip((out, sums), found, strict=True):
        place.copy_(value.reshape(place.shape))


def weights(
    sizes: Sizes, log_w: Tensor, sums: Tensor, gradient: Tensor | None, out: Tensor
) -> None:
    """The normalised weights, times `gradient` [groups, rows] where it is given."""
    top, total = sums.reshape(sizes[0], 2, 1, sizes[2]).unbind(1)
    factor = 1 / total if gradient is None else gradient.reshape(total.shape) / total
    found = torch.exp(log_w.reshape(sizes).to(top.dtype) - top) * factor
    out.copy_(found.reshape(out.shape))


def signal(sizes: Sizes, log_w: Tensor, gradient: Tensor, out: Tensor) -> None:
    """VIMCO's learning signal for each sample, times `gradient` [groups, rows]."""
    log_w = log_w.reshape(sizes).to(row_dtype(log_w.dtype))
    without = torch.stack([log_without(log_w, s) for s in range(sizes[1])], 1)
    learned = gradient.reshape(sizes[0], 1, sizes[2]) * (
        torch.logsumexp(log_w, 1, keepdim=True) - without
    )
    out.copy_(learned.reshape(out.shape))
