"""What a sparse encoder is asked to compute: its tensors and choices, as every backend is handed
them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Tensors(NamedTuple):
    """The inputs of T layers over N rows of m features and n components: one dtype; contiguous for
    the compiled kernel.

    Where two shapes stand, the one without T is shared by all layers.
    """

    x: Tensor  # [N, m]
    weight: Tensor  # [m, n]; with a dictionary also [T, m, n]
    threshold: Tensor  # [], [n], [T, 1] or [T, n], >= 0
    bias: Tensor | None = None  # [n]; not with a dictionary
    recurrent: Tensor | None = None  # [n, n] or [T, n, n]; this or a dictionary
    dictionary: Tensor | None = None  # [n, m]
    step: Tensor | None = None  # [] or [T]
    initial: Tensor | None = None  # [N, n]; None for zeros

    @property
    def components(self) -> int:
        """The number of components n."""
        return self.weight.size(-1)


class Choices(NamedTuple):
    """What is no tensor."""

    layers: int  # T, the number of soft-thresholdings
    positive: bool = False  # codes >= 0
    select: tuple[int, ...] | None = (
        None  # for each layer, how many of the largest entries pass unthresholded
    )
