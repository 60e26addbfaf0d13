"""Log-densities summed over the last dimension: the diagonal Gaussian, and Bernoulli variables by
their logits.

Leading dimensions broadcast. Each is one pass over memory forward and one backward. Parameters that
lack dimensions of the values, [..., D] with [S, ..., D] or a single row [D], are not expanded in
memory, and their gradients are summed in the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from latent_kernels import _checks
from latent_kernels.kernels.densities.problem import BERNOULLI, GAUSSIAN
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor
Shape = tuple[int, ...]
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def gaussian_log_prob(z: Tensor, mean: Tensor | float, logvar: Tensor | float) -> Tensor:
    r"""Return log N(z; mean, e^logvar), summed over the last dimension.

    .. math::
        -\tfrac12 \sum_d \ln 2\pi + l + (z - \mu)^2 e^{-l}

    The three inputs broadcast. An input that lacks the leading dimensions of the others (parameters
    [..., D] with samples [S, ..., D], or one row [D] for all, such as a learned variance of each
    pixel) is not expanded in memory, and its gradient is summed in the kernel. Second derivatives
    and forward mode differentiate the formula in plain torch.

    Args:
        z: [S, ..., D] or [..., D], float32, float64, bfloat16 or float16.
        mean: broadcast with z; also a number or a 0-d tensor, such as one learned variance for all.
        logvar: log sigma^2, likewise.

    Returns:
        The log-density in nats, of the broadcast shape without D; float32 for half-precision
        inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix C.2.

    Example:
        >>> import torch, latent_kernels as lk
        >>> z = torch.zeros(5, 3, 2)
        >>> log_p = lk.gaussian_log_prob(z, torch.zeros(2), 0.0)
        >>> log_p.shape
        torch.Size([5, 3])
        >>> round(log_p[0, 0].item(), 4)  # -ln(2 pi), for D = 2
        -1.8379

    """
    return _log_density(GAUSSIAN, {"z": z, "mean": mean, "logvar": logvar})


def bernoulli_log_prob(x: Tensor, logits: Tensor | float) -> Tensor:
    r"""Return the log-probability of x under Bernoulli variables, summed over the last dimension.

    .. math::
        \sum_d x l - \ln(1 + e^l) = -\sum_d w |l| + \ln(1 + e^{-|l|}), \qquad
        w = 1 - x \text{ where } l > 0, \text{ else } x

    with P(x = 1) = sigmoid(l), l = logits. It is computed in the second form, accurate to a few
    units in the last place for every logit, infinite ones too. x may hold grey values in [0, 1], as
    is usual for images: the sum is then the negative cross-entropy, not a normalized density of x.
    Values outside [0, 1] are not refused; the formula is evaluated as it stands. The gradient of
    logits is x - sigmoid(l), that of x is l. Second derivatives and forward mode differentiate the
    formula in plain torch.

    Args:
        x: [..., D], float32, float64, bfloat16 or float16; or bool or integers, which are converted
            to logits' dtype.
        logits: broadcast with x; also a number or a 0-d tensor. An input that lacks leading
            dimensions of the other (images [B, D] with decoded samples [S, B, D], or one row [D]
            for all) is not expanded in memory, and its gradient is summed in the kernel.

    Returns:
        The log-probability in nats, of the broadcast shape without D; float32 for half-precision
        inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix C.1.

    Example:
        >>> import torch, latent_kernels as lk
        >>> x = torch.tensor([[0.0, 1.0, 1.0]])
        >>> log_p = lk.bernoulli_log_prob(x, torch.zeros(4, 1, 3))
        >>> log_p.shape
        torch.Size([4, 1])
        >>> round(log_p[0, 0].item(), 4)  # -3 ln 2
        -2.0794

    """
    if isinstance(x, Tensor) and x.dtype in _WHOLE:
        if isinstance(logits, Tensor):
            _checks.floating("logits", logits)
        x = x.to(logits.dtype if isinstance(logits, Tensor) else torch.get_default_dtype())
    return _log_density(BERNOULLI, {"x": x, "logits": logits})


def _log_density(op: Op, named: dict[str, Tensor | float]) -> Tensor:
    inputs: Any = tuple(named.values())
    shape = _checks.alike(*inputs)
    if shape is not None:
        full = tail = tuple(shape)
        samples: Shape = ()
        shapes = ((1, 1, math.prod(full[:-1]), full[-1]),) * len(inputs)
    else:
        inputs, full, tail = _arranged(named)
        samples, rows, cols = full[: len(full) - len(tail)], math.prod(tail[:-1]), full[-1]
        of_full, of_tail = (1, math.prod(samples), rows, cols), (1, 1, rows, cols)
        shapes = tuple(
            [
                of_full if x.shape == full else of_tail if x.shape == tail else (1, 1, 1, cols)
                for x in inputs
            ]
        )
    out: Tensor = op(((), samples, tail[:-1], full[-1:]), inputs, shapes=shapes)
    return out


def _arranged(named: dict[str, Tensor | float]) -> tuple[list[Tensor], Shape, Shape]:
    """Return the inputs, each of shape `full`, its `tail` or [D], and those two shapes."""
    given, _ = _checks.parameters(named)
    inputs: list[Tensor] = given  # type: ignore[assignment]
    shapes = [tuple(x.shape) for x in inputs]
    full = tail = shapes[0]
    for shape in shapes:
        if len(shape) > len(full):
            full = shape
        if len(shape) < len(tail):
            tail = shape
    ends = len(tail) >= 2 and full[len(full) - len(tail) :] == tail
    ends = ends and (len(tail) == 2 or tail[0] != 1)
    if ends and all(shape in (full, tail) for shape in shapes):  # samples, and what they share
        return inputs, full, tail
    full = _checks.broadcast(**dict(zip(named, inputs, strict=True)))
    inputs = [x if x.shape == full else _without_leading_ones(x) for x in inputs]
    tail = _shared_tail(inputs, full)
    return [_as_shared(x, tail, full) for x in inputs], full, tail


def _shared_tail(tensors: Sequence[Tensor], full: Shape) -> Shape:
    """Return the trailing shape that the samples repeat, that of the parameters.

    It is the shape of the shortest input with a batch dimension.
    """
    tail = full
    for x in tensors:
        shape = tuple(x.shape)
        if 2 <= len(shape) < len(tail) and shape == full[len(full) - len(shape) :]:
            tail = shape
    return tail


def _without_leading_ones(x: Tensor) -> Tensor:
    """Drop leading dimensions of size 1: [1, B, D] is [B, D] for every sample."""
    ones = 0
    while ones < x.dim() - 2 and x.size(ones) == 1:
        ones += 1
    return x.reshape(x.shape[ones:]) if ones else x


def _as_shared(x: Tensor, tail: Shape, full: Shape) -> Tensor:
    """Return x in one of three shapes, `full`, `tail` or a single row [D], expanded if needed."""
    shape = tuple(x.shape)
    if shape in (tail, full):
        return x
    if math.prod(shape[:-1]) == 1:
        return x.reshape(shape[-1]).expand(full[-1])
    fits_tail = len(shape) <= len(tail) and all(
        a in (1, b) for a, b in zip(shape[::-1], tail[::-1], strict=False)
    )
    return x.expand(tail if fits_tail else full)
