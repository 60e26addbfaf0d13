"""The log-densities in plain torch, as the formulas stand in the paper, and their derivatives by
hand.

    log N(z; mean, sigma^2)  = -1/2 sum_d [ ln 2 pi + logvar + (z - mean)^2 e^-logvar ],  logvar = ln sigma^2
    log Bernoulli(x; logits) = sum_d [ x l - ln(1 + e^l) ]

(Kingma & Welling 2014, appendix C.) The second is computed as -sum_d [ w |l| + ln(1 + e^-|l|) ], w
= 1 - x where l > 0, else x: nothing overflows, and where x lies in [0, 1] nothing cancels. Tests
hold the compiled kernels against these functions; devices without a compiled kernel run them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # groups, samples, rows, cols


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, e^logvar), summed over the last dimension."""
    return -0.5 * (
        math.log(2 * math.pi) + logvar + ((z - mean) * torch.exp(-0.5 * logvar)) ** 2
    ).sum(-1)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log Bernoulli(x; logits), summed over the last dimension."""
    weight, size = _weight(x, logits), logits.abs()
    product = torch.where(
        weight == 0, torch.zeros_like(weight), weight * size
    )  # 0 even where the logit is infinite
    return -(product + torch.log1p(torch.exp(-size))).sum(-1)


def _weight(x: Tensor, logits: Tensor) -> Tensor:
    return torch.where(logits > 0, 1 - x, x)


def _gaussian_slopes(z: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.exp(-0.5 * logvar)
    t = (z - mean) * inverse
    return -t * inverse, t * inverse, 0.5 * (t * t - 1)


def _bernoulli_slopes(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits', x - sigmoid(l), by the smaller of sigmoid and 1 - sigmoid: it keeps its digits
    where x is 0 or 1.
    """
    e = torch.exp(-logits.abs())
    distance = _weight(x, logits) - e / (1 + e)
    return logits, torch.where(logits > 0, -distance, distance)


_LOG_DENSITIES: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian_log_prob,
    "bernoulli": bernoulli_log_prob,
}
_SLOPES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "gaussian": _gaussian_slopes,
    "bernoulli": _bernoulli_slopes,
}


def _compute(x: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def forward(density: str, sizes: Sizes, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    """The log-density into `out` [groups, samples, rows]. The interface of all backends.

    Args:
        density: "gaussian" with inputs (z, mean, logvar), or "bernoulli" with inputs (x, logits).
        sizes: groups, samples, rows, cols.
        inputs: each [groups, samples or 1, rows or 1, cols]. With size 1 in samples it is shared by
            them; with size 1 in rows (then in samples too) it is one row for all rows and samples.
            Columns are contiguous.
        out: contiguous.

    """
    value = _LOG_DENSITIES[density](*(_compute(x) for x in inputs))
    out.copy_(value.expand(sizes[:3]).reshape(out.shape))


def backward(
    density: str,
    sizes: Sizes,
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    outputs: tuple[Tensor | None, ...],
) -> None:
    """The gradient of each input in the input's shape, summed over what is shared, where `outputs`
    has a place for it.

    `gradient` is [groups, samples, rows], contiguous; so are the outputs.
    """
    upstream = gradient.reshape(*sizes[:3], 1)
    slopes = _SLOPES[density](*(_compute(x) for x in inputs))
    for x, out, slope in zip(inputs, outputs, slopes, strict=True):
        if out is not None:
            out.copy_((upstream * slope).sum_to_size(x.shape).reshape(out.shape))
