"""Log-densities summed over the last dimension: the diagonal Gaussian, and Bernoulli variables by
their logits.

Leading dimensions broadcast. Each is one pass over memory forward and one backward. Parameters that
lack dimensions of the values, [..., D] under [S, ..., D] or a single row [D], are read where they
lie, and their gradients are summed in the kernel.
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
    """log N(z; mean, e^logvar), summed over the last dimension.

    -1/2 sum_d [ln 2 pi + logvar + (z - mean)^2 e^-logvar]. The three inputs broadcast; where one
    lacks the leading dimensions of the others (parameters [..., D] under samples [S, ..., D], or
    one row [D] for all, such as a learned variance of each pixel) it is read where it lies and its
    gradient is summed in the kernel. Second derivatives and forward mode differentiate the formula
    in plain torch.

    Args:
        z: [S, ..., D] or [..., D], float32, float64, bfloat16 or float16.
        mean: broadcast with z; also a number or a 0-d tensor, such as one learned variance for all.
        logvar: log sigma^2, likewise.

    Returns:
        The log-density in nats, of the broadcast shape without D; float32 for half-precision
        inputs.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix C.2.

    """
    return _log_density(GAUSSIAN, {"z": z, "mean": mean, "logvar": logvar})


def bernoulli_log_prob(x: Tensor, logits: Tensor | float) -> Tensor:
    """Log-probability of x under Bernoulli variables with P(1) = sigmoid(logits), summed over the
    last dimension.

    sum_d [x l - ln(1 + e^l)], computed as -sum_d [w |l| + ln(1 + e^-|l|)] with w = 1 - x where l >
    0, else x: right to a few ulp for every logit, infinite ones too. x may be grey values in [0,
    1], as is usual for images: the sum is then the negative cross-entropy and no normalized density
    of x. Values outside [0, 1] are not refused; the formula is evaluated as it stands. The gradient
    of logits is x - sigmoid(l), that of x is l. Second derivatives and forward mode differentiate
    the formula in plain torch.

    Args:
        x: [..., D], float32, float64, bfloat16 or float16; or bool or integers, which are converted
            to logits' dtype.
        logits: broadcast with x; one that lacks leading dimensions of the other (images [B, D]
            under decoded samples [S, B, D], or one row [D] for all) is read where it lies and its
            gradient is summed in the kernel. Also a number or a 0-d tensor.

    Returns:
        The log-probability in nats, of the broadcast shape without D; float32 for half-precision
        inputs.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix C.1.

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
    """Return the inputs in one of three shapes, `full`, its `tail` or [D]; and the two."""
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
    """The trailing shape that parameters have and samples repeat: of the shortest input with a
    batch dimension.
    """
    tail = full
    for x in tensors:
        shape = tuple(x.shape)
        if 2 <= len(shape) < len(tail) and shape == full[len(full) - len(shape) :]:
            tail = shape
    return tail


def _without_leading_ones(x: Tensor) -> Tensor:
    """[1, B, D] is [B, D] for every sample."""
    ones = 0
    while ones < x.dim() - 2 and x.size(ones) == 1:
        ones += 1
    return x.reshape(x.shape[ones:]) if ones else x


def _as_shared(x: Tensor, tail: Shape, full: Shape) -> Tensor:
    """x in one of three shapes: `full`, `tail`, or a single row [D]; expanded where it has none of
    them.
    """
    shape = tuple(x.shape)
    if shape in (tail, full):
        return x
    if math.prod(shape[:-1]) == 1:
        return x.reshape(shape[-1]).expand(full[-1])
    fits_tail = len(shape) <= len(tail) and all(
        a in (1, b) for a, b in zip(shape[::-1], tail[::-1], strict=False)
    )
    return x.expand(tail if fits_tail else full)
