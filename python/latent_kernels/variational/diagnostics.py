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
    """The normalised importance weights w_s / sum_r w_r, without gradient.

    Args:
        log_w: log-weights [S, ...], float32, float64, bfloat16 or float16.

    Returns:
        [S, ...], which adds up to 1 over S; NaN where a log-weight is NaN or inf, or all are -inf.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    """
    _checks.log_weights(log_w)
    return weights(log_w, bound_and_sums(log_w)[1])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """1 / sum_s w~_s^2 of the normalised weights, between 1 and S: how many samples of the
    posterior S are worth.

    It sees only what was sampled: it may be large where q misses a mode, and `pareto_k` may warn
        where it does not.

    Args:
        log_w: log-weights [S, ...], float32, float64, bfloat16 or float16.

    Returns:
        [...], float32 for half-precision inputs, without gradient.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kong, "A note on importance sampling using standardized weights" (1992).

    """
    _checks.log_weights(log_w)
    normalized = normalized_weights(log_w.to(row_dtype(log_w.dtype)))
    return 1 / (normalized * normalized).sum(0)


def pareto_k(log_w: Tensor) -> Tensor:
    r"""The shape k of a generalized Pareto distribution fitted to the largest weights: how heavy
    their tail is.

    Moments of the weights of order 1/k and above do not exist. Below 0.5 their variance is finite;
    up to min(1 - 1 / \log_{10} S, 0.7) estimates with these weights are still dependable in
    practice; above it they are not, and q is too narrow or in the wrong place. The tail is what the
    M = min(S / 5, 3 \sqrt S) largest weights (rounded up) have beyond the next one; k comes from
    Zhang and Stephens' estimator, drawn towards 0.5 with the weight of ten observations, in
    float64.

    Args:
        log_w: log-weights [S, ...], S >= 21, float32, float64, bfloat16 or float16.

    Returns:
        k of shape [...], float32 for half-precision inputs, without gradient; NaN where a
        log-weight is NaN or inf; inf where a quarter of the tail is no more than where it begins
        but the rest is, as with a few weights that are not zero. -inf where the M + 1 largest
        weights are equal, as all are where q is the posterior: there is nothing to fit, and weights
        that reach their largest value so often have all moments. (R's loo gives inf there and warns
        that it could not fit; arviz raises.)

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling" (2024);
    Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto
    distribution" (2009).

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
    """The shape k for each row of x [rows, n], float64, ascending, >= 0: a mean over a grid of b =
    -k / sigma.

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
