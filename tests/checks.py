"""Helpers that the checks of several ops share: sizes, dtypes, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]

# Odd sizes, one row, one column, more columns than a tile, no samples, nothing at all.
SIZES: list[Sizes] = [
    (1, 1, 64, 20),
    (1, 1, 3, 1),
    (2, 3, 5, 7),
    (1, 2, 3, 4),
    (1, 4, 63, 17),
    (1, 2, 2, 1500),
    (1, 3, 1, 5),
    (3, 20, 2, 8),
    (1, 1, 1, 40000),
    (1, 300, 2, 100),
    (2, 700, 1, 3),
    (1, 333, 2, 5),
    (1, 0, 3, 4),
    (1, 2, 0, 4),
    (1, 2, 3, 0),
]
# Of these for the PTX interpreter: of each kind one, first of several groups, and of long rows.
INTERPRETED: list[Sizes] = [
    (2, 3, 5, 7),
    (1, 2, 2, 1500),
    (1, 1, 64, 20),
    (1, 1, 3, 1),
    (1, 2, 3, 4),
    (3, 2, 2, 8),
    (1, 9, 2, 100),
    (1, 0, 3, 4),
    (1, 2, 0, 4),
    (1, 2, 3, 0),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether tensors are equal bit for bit; NaN equals NaN."""
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)) and bool(
        (a.isnan() == b.isnan()).all()
        and (torch.signbit(a) == torch.signbit(b)).logical_or(a.isnan()).all()
    )


def compare(
    ours: dict[str, Tensor],
    truth: dict[str, Tensor],
    torchs: dict[str, Tensor],
    floor: Callable[[str, float], float],
) -> None:
    """Check that the error against `truth`, in float64, is at most twice that of torch in the
    problem's dtype.

    Where torch happens to be exact, twice its error is nothing: a result may always be off by
    `floor` of its name and its largest true value, which says what rounding may come to.
    """
    assert ours.keys() == truth.keys()
    for name, got in ours.items():
        want = truth[name]
        assert got.shape == want.shape, name
        assert not got.isnan().any(), f"{name}: an element was not written"
        if got.numel() == 0:
            continue
        error, theirs = (float((x.double() - want).abs().max()) for x in (got, torchs[name]))
        least = floor(name, float(want.abs().max()))
        assert error <= max(least, 2 * theirs), (  # least, too, where theirs is NaN
            f"{name}: error {error:.3g}, torch's {theirs:.3g}, floor {least:.3g}"
        )
