"""Checks at the public door. Every error names the argument, what it was and what it may be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

Tensor = torch.Tensor
Seed = int | Tensor | None

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SEED_END = 2**63


def float_dtype(name: str, dtype: object) -> torch.dtype:
    """A dtype that the kernels compute with."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"{name} must be torch.float32, float64, bfloat16 or float16; got {dtype}")
    return dtype


def floating(name: str, x: object) -> None:
    """A strided tensor of a floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name} must have dtype float32, float64, bfloat16 or float16; got {x.dtype}"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor; got layout {x.layout}")


def float_tensor(name: str, x: object) -> None:
    """Check that x is a floating tensor with at least one dimension."""
    floating(name, x)
    assert isinstance(x, Tensor)
    if x.dim() == 0:
        raise ValueError(
            f"{name} must have shape [..., D] with at least one dimension; got a scalar"
        )


def log_weights(x: object, name: str = "log_w") -> None:
    """Values of at least one sample, [S, ...]."""
    floating(name, x)
    assert isinstance(x, Tensor)
    if x.dim() == 0 or x.size(0) < 1:
        raise ValueError(
            f"{name} must have shape [S, ...] with S >= 1 samples; got {tuple(x.shape)}"
        )


def device(device: torch.device | str) -> torch.device:
    """A device that torch knows."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be a torch.device or its name; got {device!r} ({error})"
        ) from None


def device_of(name: str, x: Tensor, like: str, other: Tensor) -> None:
    """One device for both."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {like}, {other.device}; got {x.device}")


def together(**tensors: Tensor | None) -> tuple[list[Tensor | None], torch.dtype]:
    """Floating tensors on one device, converted to the dtype that torch promotes them to."""
    return _together(tensors)


def _together(tensors: Mapping[str, Any]) -> tuple[list[Tensor | None], torch.dtype]:
    first_name, first = "", None
    dtype: torch.dtype | None = None
    for name, x in tensors.items():
        if x is None:
            continue
        float_tensor(name, x)
        if first is None:
            first_name, first, dtype = name, x, x.dtype
            continue
        device_of(name, x, first_name, first)
        if x.dtype != dtype:
            dtype = torch.promote_types(x.dtype, dtype)  # type: ignore[arg-type]
    assert dtype is not None
    return [x if x is None or x.dtype == dtype else x.to(dtype) for x in tensors.values()], dtype


def parameters(tensors: Mapping[str, Any]) -> tuple[list[Tensor | None], torch.dtype]:
    """As `together`, but numbers and 0-d tensors are taken too, beside tensors with dimensions:
    they hold for every element, come back as [1], and do not weigh in the dtype.
    """
    try:  # costs nothing where there are none
        return _together(tensors)
    except (TypeError, ValueError):
        given = [x for x in tensors.values() if isinstance(x, Tensor)]
        wide = [x for x in given if x.dim() > 0 and x.dtype in FLOATS]
        if not wide:
            raise
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in wide))
    device = wide[0].device
    return _together({name: _one(name, x, dtype, device) for name, x in tensors.items()})


def _one(name: str, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a number or a 0-d tensor as [1], and anything else as it is."""
    if isinstance(x, Tensor) and x.dim() == 0:
        floating(name, x)
        return x.reshape(1).to(dtype)
    if isinstance(x, Real) and not isinstance(x, bool):
        return torch.full((1,), float(x), dtype=dtype, device=device)
    return x


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that these broadcast to, or None; in a tenth of torch's own time."""
    result = [1] * max(len(shape) for shape in shapes)
    for shape in shapes:
        for i in range(1, len(shape) + 1):
            if shape[-i] == 1 or shape[-i] == result[-i]:
                continue
            if result[-i] != 1:
                return None
            result[-i] = shape[-i]
    return tuple(result)


def broadcast(**tensors: Tensor) -> tuple[int, ...]:
    """The shape that the tensors broadcast to."""
    shape = broadcast_shape(*(tuple(x.shape) for x in tensors.values()))
    if shape is None:
        shapes = " and ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must have shapes that broadcast; got {shapes}")
    return shape


def expand(name: str, x: Tensor, shape: tuple[int, ...], like: str) -> Tensor:
    """x broadcast to `shape`, the shape of `like`, which must not grow for it."""
    if x.shape == shape:
        return x
    if broadcast_shape(tuple(x.shape), tuple(shape)) != tuple(shape):
        raise ValueError(
            f"{name} must broadcast to the shape of {like}, {tuple(shape)}; got {tuple(x.shape)}"
        )
    return x.expand(shape)


def samples(num_samples: int | None, name: str = "num_samples") -> int:
    """Return how many samples are drawn; None draws one, without a sample dimension."""
    if num_samples is None:
        return 1
    if isinstance(num_samples, bool) or not isinstance(num_samples, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int >= 1 or None; got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"{name} must be an int >= 1 or None; got {num_samples}")
    return num_samples


def stream(seed: Seed, offset: int, count: int, device: torch.device) -> None:
    """A seed that fits the device, and an offset that leaves `count` elements inside the stream."""
    if isinstance(offset, bool) or not isinstance(offset, (int, torch.SymInt)):
        raise TypeError(f"offset must be an int >= 0; got {offset!r}")
    if offset < 0 or (not isinstance(count, torch.SymInt) and offset + max(count, 1) > _SEED_END):
        raise ValueError(
            f"offset must be >= 0, and offset + {count} elements at most 2^63; got {offset}"
        )
    if seed is None:
        return
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"seed as a tensor must be 0-d int64; got shape {tuple(seed.shape)}, {seed.dtype}"
            )
        if seed.device != device and seed.device.type != "cpu":
            raise ValueError(
                f"seed must be on the device of the op, {device}, or on the CPU; got {seed.device}"
            )
        return
    if isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(f"seed must be an int, a 0-d int64 tensor or None; got {seed!r}")
    if not 0 <= seed < _SEED_END:
        raise ValueError(f"seed must lie in [0, 2^63); got {seed}")
