"""The rows that an encoder learns from, out of tensors or streams, and those for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch

from latent_kernels import _checks

Tensor = torch.Tensor
Stream = Callable[[], Any] | Iterable[Any]
Validation = float | Tensor | tuple[Tensor, Tensor]

_STREAM_VALIDATION = 4  # batches of a stream that are kept for validation


class Batch(NamedTuple):
    """Rows x [B, m], and their codes [B, n] where these are to be learned."""

    x: Tensor
    codes: Tensor | None = None

    def rows(self, index: Tensor) -> Batch:
        """Return the rows of that index."""
        index = index.to(self.x.device)
        return Batch(
            self.x[index], None if self.codes is None else self.codes[index.to(self.codes.device)]
        )

    def to(self, like: Tensor) -> Batch:
        """Return the batch on the device and in the dtype of `like`."""
        return Batch(self.x.to(like), None if self.codes is None else self.codes.to(like))


class Batches(NamedTuple):
    """The batches to train with, without end, and the rows to validate with."""

    training: Iterator[Batch]
    validation: Batch


def prepare(
    x: Tensor | Stream,
    codes: Tensor | None,
    validation: Validation,
    batch_size: int,
    generator: torch.Generator,
) -> Batches:
    """Check the data, and return batches from tensors or from a stream."""
    if isinstance(validation, (int, float)):
        if not 0 < validation < 1:
            raise ValueError(
                "validation must be a share in (0, 1), or the rows to validate with; "
                f"got {validation}"
            )
        share, held_out = float(validation), None
    else:
        share, held_out = 0.0, _finite("validation", _item("validation", validation))
    if not isinstance(x, Tensor):
        if codes is not None:
            raise ValueError(
                "codes must be None where x is a stream, which gives (x, codes) instead"
            )
        if held_out is not None:
            return Batches(_stream(x), held_out)
        stream = _stream(x, _STREAM_VALIDATION)
        first_batches = [next(stream) for _ in range(_STREAM_VALIDATION)]
        following = next(stream)  # so that too few batches are an error before training begins
        return Batches(chain([following], stream), _joined(first_batches))
    data = _finite("x", _item("x", x if codes is None else (x, codes)))
    if held_out is None:
        if len(data.x) < 2:
            raise ValueError(
                f"x must have at least 2 rows, to keep one for validation; got {len(data.x)}"
            )
        order = torch.randperm(len(data.x), generator=generator)
        kept = min(max(round(share * len(order)), 1), len(order) - 1)
        held_out, data = data.rows(order[:kept]), data.rows(order[kept:])
    return Batches(_shuffled(data, batch_size, generator), held_out)


def _item(name: str, item: object) -> Batch:
    """Check a tensor, (x,) or (x, codes), and return it as a batch."""
    parts = tuple(item) if isinstance(item, (tuple, list)) else (item,)
    if len(parts) not in (1, 2):
        raise ValueError(f"{name} must give x or (x, codes); got {len(parts)} values")
    batch = Batch(*parts)
    for part, tensor in zip(("x", "codes"), parts, strict=False):
        what = part if name in ("x", "codes") else f"{part} of {name}"
        _checks.float_tensor(what, tensor)
        if tensor.dim() != 2:
            raise ValueError(
                f"{what} must have two dimensions, rows first; got {tuple(tensor.shape)}"
            )
    if len(batch.x) == 0:
        raise ValueError(f"{name} must have rows; got {tuple(batch.x.shape)}")
    if batch.codes is not None and len(batch.codes) != len(batch.x):
        raise ValueError(
            f"codes must have as many rows as x, {len(batch.x)}; got {len(batch.codes)}"
        )
    return batch


def _finite(name: str, batch: Batch) -> Batch:
    for part, tensor in zip((name, "codes"), batch, strict=True):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{part} must be finite; got NaN or infinity")
    return batch


def _joined(batches: list[Batch]) -> Batch:
    codes = [batch.codes for batch in batches if batch.codes is not None]
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat(codes) if codes else None)


def _shuffled(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches without end, each epoch in a new random order.

    Rows at the end of an epoch that do not fill a batch are left out of it.
    """
    while True:
        order = torch.randperm(len(data.x), generator=generator)
        for first in range(0, max(len(order) - size, 0) + 1, size):
            yield data.rows(order[first : first + size])


def _stream(x: Stream, kept: int = 0) -> Iterator[Batch]:
    """Yield batches without end.

    The first `kept` batches of an iterable are yielded in its first epoch only.
    """
    if callable(x):
        while True:
            yield _item("x", x())
    if not isinstance(x, Iterable):
        raise TypeError(
            "x must be a torch.Tensor, or a callable or iterable that gives batches;"
            f" got {type(x).__name__}"
        )
    skipped = 0
    while True:
        given = 0
        for given, item in enumerate(x, 1):
            if given > skipped:
                yield _item("x", item)
        if given == 0:
            raise ValueError(
                "x gave no more batches; an iterable must start anew each time it is iterated over"
            )
        if given <= kept:
            raise ValueError(
                f"x must give more than {kept} batches where validation is a share, which keeps"
                f" the first {kept}; got {given}. Pass the rows to validate with as validation"
            )
        skipped = kept
