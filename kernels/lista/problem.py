"""The tensors and options of a sparse encoder, as every backend takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Tensors(NamedTuple):
    """The tensors of T layers for N rows of m features and n components, all of one dtype.

    The compiled kernel needs them contiguous. A parameter that has no dimension T is shared by all
    layers.
    """

    x: Tensor  # [N, m]
    weight: Tensor  # [m, n]; with a dictionary also [T, m, n]
    threshold: Tensor  # [], [n], [T, 1] or [T, n], >= 0
    bias: Tensor | None = None  # [n]; not with a dictionary
    recurrent: Tensor | None = None  # [n, n] or [T, n, n]; not with a dictionary
    dictionary: Tensor | None = None  # [n, m]
    step: Tensor | None = None  # [] or [T]
    initial: Tensor | None = None  # [N, n]; None for zeros

    @property
    def components(self) -> int:
        """Return the number n of components."""
        return self.weight.size(-1)


class Choices(NamedTuple):
    """Options of the encoder that are not tensors."""

    layers: int  # T, the number of soft-thresholdings
    positive: bool = False  # codes >= 0
    # For each layer, how many of the largest entries pass unthresholded.
    select: tuple[int, ...] | None = None
