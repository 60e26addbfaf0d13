"""How well q covers a posterior, from log-weights [S, ...]: normalised weights, effective sample
size, Pareto k.
"""

from __future__ import annotations

import math

import torch

from latent_kernels import _checks
from latent_kernels.kernels.bounds.problem import bound_and_sums, weights
from latent_kernels.kernels.eager import row_dtype

Tensor = torch.Tensor

_FEWEST_IN_TAIL = 5


def normalized_weights(log_w: Tensor) -> Tensor:
    r"""Return the normalised importance weights, without gradient.

    .. math::
        \tilde w_s = w_s / \sum_r w_r

    Args:
        log_w: log-weights [S, ...], float32, float64, bfloat16 or float16.

    Returns:
        The weights [S, ...], which add up to 1 over S; NaN where a log-weight is NaN or inf, or all
        are -inf.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> import torch, latent_kernels as lk
        >>> log_w = torch.tensor([0.25, 0.75]).log()
        >>> lk.normalized_weights(log_w + 1000)
        tensor([0.2500, 0.7500])

    """
    _checks.log_weights(log_w)
    return weights(log_w, bound_and_sums(log_w)[1])


def effective_sample_size(log_w: Tensor) -> Tensor:
    r"""Return how many samples of the posterior the S weighted samples are worth, from 1 to S.

    .. math::
        1 / \sum_s \tilde w_s^2

    with the normalised weights. It sees only what was sampled, so that it may be large where q
    misses a mode; `pareto_k` may be large where the effective sample size raises no doubt.

    Args:
        log_w: log-weights [S, ...], float32, float64, bfloat16 or float16.

    Returns:
        [...], float32 for half-precision inputs, without gradient.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kong, "A note on importance sampling using standardized weights" (1992).

    Example:
        >>> import torch, latent_kernels as lk
        >>> lk.effective_sample_size(torch.zeros(4, 2))  # four equal weights
        tensor([4., 4.])
        >>> lk.effective_sample_size(torch.tensor([0.0, -1000.0, -1000.0]))  # one large weight
        tensor(1.)

    """
    _checks.log_weights(log_w)
    normalized = normalized_weights(log_w.to(row_dtype(log_w.dtype)))
    return 1 / (normalized * normalized).sum(0)


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Return the shape k of a generalized Pareto distribution fitted to the largest weights.

    It says how heavy their tail is: moments of the weights of order 1/k and above do not exist.
    Below 0.5 their variance is finite. Up to :math:`\min(1 - 1 / \log_{10} S, 0.7)` estimates with
    these weights are still dependable in practice; above it they are not, and q is too narrow or in
    the wrong place. The distribution is fitted to the excesses of the
    :math:`M = \lceil \min(S / 5, 3 \sqrt S) \rceil` largest weights over the next one, by Zhang
    and Stephens' estimator in float64, and k is then shrunk towards 0.5 with the weight of ten
    observations.

    Args:
        log_w: log-weights [S, ...], S >= 21, float32, float64, bfloat16 or float16.

    Returns:
        k of shape [...], float32 for half-precision inputs, without gradient. NaN where a
        log-weight is NaN or inf; inf where a quarter of the excesses are zero but not all, as when
        only a few weights are not zero; -inf where the M + 1 largest weights are equal, as all are
        where q is the posterior: there is nothing to fit, and such weights have all moments. (R's
        loo gives inf there and warns that it could not fit; arviz raises.)

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling" (2024); Zhang
        and Stephens, "A new and efficient estimation method for the generalized Pareto
        distribution" (2009).

    Example:
        >>> import torch, latent_kernels as lk
        >>> light = torch.linspace(0, 1, 100)
        >>> heavy = -2 * torch.linspace(0.01, 1, 100).log()  # w = u^-2 has k = 2
        >>> bool(lk.pareto_k(light) < 0.5), bool(lk.pareto_k(heavy) > 0.7)
        (True, True)

    """
    _checks.log_weights(log_w)
    samples = log_w.size(0)
    tail = math.ceil(min(0.2 * samples, 3 * math.sqrt(samples)))
    if tail < _FEWEST_IN_TAIL:
        raise ValueError(
            f"log_w must have S >= 21 samples for {_FEWEST_IN_TAIL} in the tail; got S = {samples}"
        )
    flat = log_w.detach().double().reshape(samples, -1)
    largest = torch.topk(flat, tail + 1, dim=0).values.T.flip(1)  # [rows, M + 1], ascending
    relative = torch.exp(largest - largest[:, -1:])
    undefined = flat.isnan().any(0) | (largest[:, -1] == math.inf)
    k = _fit_generalized_pareto(relative[:, 1:] - relative[:, :1])
    return torch.where(undefined, math.nan, k).to(row_dtype(log_w.dtype)).reshape(log_w.shape[1:])


def _fit_generalized_pareto(x: Tensor) -> Tensor:
    """Return the shape k for each row of x [rows, n], float64, ascending and >= 0.

    It is a mean over a grid of b = -k / sigma.

    The grid's weights are the profile likelihood n (ln(-b / k(b)) - k(b) - 1), k(b) = mean ln(1 - b
    x).
    """
    n = x.size(1)
    points = 30 + math.isqrt(n)
    grid = 1 - torch.sqrt(
        points / (torch.arange(1, points + 1, dtype=x.dtype, device=x.device) - 0.5)
    )
    quartile, largest = x[:, math.floor(n / 4 + 0.5) - 1, None], x[:, -1:]
    b = grid / (3 * quartile) + 1 / largest

    def shape(b: Tensor) -> Tensor:
        return torch.log1p(-b.unsqueeze(-1) * x.unsqueeze(1)).mean(-1)

    k = shape(b)
    likelihood = n * (torch.log(-b / k) - k - 1)
    posterior = torch.softmax(likelihood, 1)
    found = shape((b * posterior).sum(1, keepdim=True)).squeeze(1)
    regular = torch.where(quartile.squeeze(1) == 0, math.inf, (n * found + 5) / (n + 10))
    return torch.where(largest.squeeze(1) == 0, -math.inf, regular)
