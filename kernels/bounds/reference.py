"""Importance-weighted bounds in plain torch, with the formulas of the papers.

For log-weights log w_s = log p(x, z_s) - log q(z_s), s = 1 ... S:

    bound     L = log 1/S sum_s w_s               (Burda et al. 2016, eq. 8)
    weights   dL / d log w_s = w_s / sum_r w_r
    signal    L - log 1/S (sum_{r != s} w_r + e^{m_s}),  m_s = 1/(S - 1) sum_{r != s} log w_r
              what VIMCO multiplies the gradient of log q(z_s) by
                                                    (Mnih and Rezende 2016, eqs. 6 to 10)

Sums are over w_s / max w; `sums` holds top = max log w and total = sum_s e^(log w_s - top), which
is what backward needs: weights from them add up to 1 whatever the rounding of L. Where every weight
is 0 or one is infinite, L is -inf or inf and weights are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from latent_kernels.kernels.bounds.problem import Gradients, Outputs, Problem
from latent_kernels.kernels.eager import row_dtype

Tensor = torch.Tensor


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
    """Return log (sum_{r != s} w_r + e^{m_s}), [groups, rows], summed over its own terms."""
    others = torch.cat((log_w[:, :s], log_w[:, s + 1 :]), 1)
    return torch.logsumexp(torch.cat((others, others.mean(1, keepdim=True)), 1), 1)


def signal(log_w: Tensor) -> Tensor:
    """Return VIMCO's signals [groups, samples, rows].

    As -ln(1 + change), change = (e^{m_s} - w_s) / sum_r w_r by the ratio of the two, wherever it is
    small: the difference of the bounds has no digits of it.
    """
    log_w = log_w - log_w.amax(1, keepdim=True)
    whole = torch.logsumexp(log_w, 1, keepdim=True)
    difference = whole - torch.stack([log_without(log_w, s) for s in range(log_w.size(1))], 1)
    apart = (log_w.sum(1, keepdim=True) - log_w) / (log_w.size(1) - 1) - log_w
    change = torch.exp(log_w - whole) * torch.expm1(apart)
    return torch.where(change.abs() < 0.5, -torch.log1p(change), difference)


def formula(problem: Problem, wanted: Outputs) -> Sequence[Tensor | None]:
    """Return the bound, to be differentiated; VIMCO's signal is no derivative of it."""
    if problem.log_q is not None:
        raise NotImplementedError(
            "latent_kernels: the bound with estimator 'vimco' has no second derivatives and no "
            "forward-mode derivatives: its gradient of log_q is an estimate, not a derivative"
        )
    return torch.logsumexp(problem.log_w, 1) - math.log(problem.log_w.size(1)), None


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the bound of each row, and the sums."""
    found = bound(_log_weights(problem))
    for out, value in zip(outputs, found, strict=True):
        if out is not None:
            out.copy_(value.reshape(out.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the normalised weights and VIMCO's signal, times the bound's gradient."""
    groups, _, rows = problem.sizes
    log_w = _log_weights(problem)
    given = 1.0 if upstream.bound is None else upstream.bound.reshape(groups, 1, rows)
    if gradients.log_w is not None:
        top, total = upstream.sums.reshape(groups, 2, 1, rows).unbind(1)
        weights = torch.exp(log_w - top) * (given / total)
        gradients.log_w.copy_(weights.reshape(gradients.log_w.shape))
    if gradients.log_q is not None:
        gradients.log_q.copy_((given * signal(log_w)).reshape(gradients.log_q.shape))


def _log_weights(problem: Problem) -> Tensor:
    return problem.log_w.reshape(problem.sizes).to(row_dtype(problem.log_w.dtype))
