"""What a sparse encoder is asked to compute: its tensors and choices, as every backend is handed them."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Tensors(NamedTuple):
    """The inputs of T layers over N rows of m features and n components; one dtype, contiguous for the compiled kernel.

    A first dimension of 1 where [T or 1] stands means that all layers share the tensor.
    """

    x: Tensor  # [N, m]
    weight: Tensor  # [1, m, n]; [T or 1, m, n] with a dictionary
    threshold: Tensor  # [T or 1, n or 1], >= 0
    bias: Tensor | None = None  # [n]; not with a dictionary
    recurrent: Tensor | None = None  # [T or 1, n, n]; this or a dictionary
    dictionary: Tensor | None = None  # [n, m]
    step: Tensor | None = None  # [T or 1]
    initial: Tensor | None = None  # [N, n]; None for zeros

    @property
    def components(self) -> int:
        """The number of components n."""
        return self.weight.size(2)


class Choices(NamedTuple):
    """What is no tensor."""

    layers: int  # T, the number of soft-thresholdings
    positive: bool = False  # codes >= 0
    select: tuple[int, ...] | None = None  # for each layer, how many of the largest entries pass unthresholded
