"""scikit-learn's handwritten digits: 1797 real 8x8 images, shipped with the package, so that
nothing is downloaded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor

SIDE = 8
_LEVELS = 16
_HELD_OUT = 360
_SPLIT_SEED = 0


class Digits(NamedTuple):
    """Images [N, 64] with grey values in [0, 1], and the classes [N] of those held out."""

    train: Tensor
    held_out: Tensor
    held_out_classes: Tensor


def load() -> Digits:
    """Return 1437 images to train on and 360 held out; the split is always the same, whatever the
    demo's seed.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository
    (1998).
    """
    from sklearn.datasets import load_digits

    data, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(data, dtype=torch.float32) / _LEVELS
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out, train = order[:_HELD_OUT], order[_HELD_OUT:]
    return Digits(images[train], images[held_out], torch.as_tensor(classes)[held_out])
