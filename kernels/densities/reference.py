"""The log-densities in plain torch, with the formulas of the paper and their derivatives.

    log N(z; mean, sigma^2)  = -1/2 sum_d [ ln 2 pi + logvar + (z - mean)^2 e^-logvar ]
    log Bernoulli(x; logits) = sum_d [ x l - ln(1 + e^l) ]

with logvar = ln sigma^2 (Kingma & Welling 2014, appendix C). The second formula is computed as
-sum_d [ w |l| + ln(1 + e^-|l|) ], w = 1 - x where l > 0, else x: nothing overflows, and where x
lies in [0, 1] nothing cancels. Tests hold the compiled kernels against these functions; devices
without a compiled kernel run them.
"""

from __future__ import annotations

import math

import torch

from latent_kernels.kernels.densities.problem import (
    BernoulliProblem,
    GaussianProblem,
    Gradients,
    Outputs,
    Problem,
    inputs_of,
)

Tensor = torch.Tensor


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return log N(z; mean, e^logvar), summed over the last dimension."""
    return -0.5 * (
        math.log(2 * math.pi) + logvar + ((z - mean) * torch.exp(-0.5 * logvar)) ** 2
    ).sum(-1)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Return log Bernoulli(x; logits), summed over the last dimension."""
    weight, size = _weight(x, logits), logits.abs()
    product = torch.where(
        weight == 0, torch.zeros_like(weight), weight * size
    )  # 0 even where the logit is infinite
    return -(product + torch.log1p(torch.exp(-size))).sum(-1)


def _weight(x: Tensor, logits: Tensor) -> Tensor:
    return torch.where(logits > 0, 1 - x, x)


def _gaussian_slopes(z: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
    inverse = torch.exp(-0.5 * logvar)
    t = (z - mean) * inverse
    return -t * inverse, t * inverse, 0.5 * (t * t - 1)


def _bernoulli_slopes(x: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """The logits', x - sigmoid(l), by the smaller of sigmoid and 1 - sigmoid: it keeps its digits
    where x is 0 or 1.
    """
    e = torch.exp(-logits.abs())
    distance = _weight(x, logits) - e / (1 + e)
    return logits, torch.where(logits > 0, -distance, distance)


def gaussian_formula(problem: GaussianProblem, wanted: Outputs) -> Outputs:
    """Return the log-densities, to be differentiated."""
    return Outputs(gaussian_log_prob(*inputs_of(problem)).expand(problem.sizes[:3]))


def bernoulli_formula(problem: BernoulliProblem, wanted: Outputs) -> Outputs:
    """Return the log-probabilities, to be differentiated: by two branches, each of which is smooth
    where it holds, at 0 too, and keeps its digits.
    """
    x, logits = problem.x, problem.logits
    over = logits > 0
    high, low = torch.where(over, logits, 0), torch.where(over, 0, logits)
    terms = torch.where(
        over,
        torch.nn.functional.logsigmoid(high) - (1 - x) * high,
        torch.nn.functional.logsigmoid(-low) + x * low,
    )
    return Outputs(terms.sum(-1).expand(problem.sizes[:3]))


def _compute(x: Tensor) -> Tensor:
    """Return x in the dtype of the computation: float32 for half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the log-density of each row."""
    out, inputs = outputs.log_prob, [_compute(x) for x in inputs_of(problem)]
    log_prob = gaussian_log_prob if isinstance(problem, GaussianProblem) else bernoulli_log_prob
    out.copy_(log_prob(*inputs).expand(problem.sizes[:3]).reshape(out.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradient of each input, summed over the dimensions that samples share."""
    given = inputs_of(problem)
    inputs, gradient = [_compute(x) for x in given], upstream.log_prob
    slopes = _gaussian_slopes if isinstance(problem, GaussianProblem) else _bernoulli_slopes
    gradient = gradient.reshape(*problem.sizes[:3], 1)
    for x, out, slope in zip(given, gradients, slopes(*inputs), strict=True):
        if out is not None:
            out.copy_((gradient * slope).sum_to_size(x.shape).reshape(out.shape))
