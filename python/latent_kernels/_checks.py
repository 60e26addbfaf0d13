"""Checks of public arguments. Every error names the argument, what it was and what it may be."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from latent_kernels.kernels.eager import SeedSource

Tensor = torch.Tensor
Seed = int | Tensor | None

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SEED_END = 2**63


def float_dtype(name: str, dtype: object) -> torch.dtype:
    """Return the dtype if the kernels compute with it, else raise."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"{name} must be torch.float32, float64, bfloat16 or float16; got {dtype}")
    return dtype


def floating(name: str, x: object) -> Tensor:
    """Return x, a strided tensor of a floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name} must have dtype float32, float64, bfloat16 or float16; got {x.dtype}"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor; got layout {x.layout}")
    if x.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor; got a nested one")
    return x


def float_tensor(name: str, x: object) -> None:
    """Check that x is a floating tensor with at least one dimension."""
    if floating(name, x).dim() == 0:
        raise ValueError(
            f"{name} must have shape [..., D] with at least one dimension; got a scalar"
        )


def log_weights(x: object, name: str = "log_w") -> None:
    """Check that x is a floating tensor [S, ...] of at least one sample."""
    given = floating(name, x)
    if given.dim() == 0 or given.size(0) < 1:
        raise ValueError(
            f"{name} must have shape [S, ...] with S >= 1 samples; got {tuple(given.shape)}"
        )


def device(device: torch.device | str) -> torch.device:
    """Return the device, which must be one that torch knows."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be a torch.device or its name; got {device!r} ({error})"
        ) from None


def device_of(name: str, x: Tensor, like: str, other: Tensor) -> None:
    """Check that both are on one device."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {like}, {other.device}; got {x.device}")


def alike(first: Any, *others: Any) -> torch.Size | None:
    """Return the shape of dense floating tensors with dimensions, of one shape, dtype and device.

    Arguments usually are like that. Return None for all others, which the checks below look at one
    by one, and where an argument is None.
    """
    if (
        not isinstance(first, Tensor)
        or first.dtype not in FLOATS
        or first.layout is not torch.strided
        or first.is_nested
        or first.dim() == 0
    ):
        return None
    dtype, device, shape = first.dtype, first.device, first.shape
    for x in others:
        if x is not None and (
            not isinstance(x, Tensor)
            or x.dtype is not dtype
            or x.layout is not torch.strided
            or x.is_nested
            or x.shape != shape
            or x.device != device
        ):
            return None
    return shape


def together(**tensors: Tensor | None) -> tuple[list[Tensor | None], torch.dtype]:
    """Return floating tensors on one device, converted to the dtype that they promote to."""
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
    """Return the tensors as `together` does, with numbers and 0-d tensors as tensors [1].

    One of the arguments must have dimensions. Numbers and 0-d tensors hold for every element, and
    do not affect the dtype.
    """
    try:  # which costs nothing where all arguments are tensors with dimensions
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
    """Return the shape that these broadcast to, or None; ten times as fast as torch's own."""
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
    """Return the shape that the tensors broadcast to."""
    shape = broadcast_shape(*(tuple(x.shape) for x in tensors.values()))
    if shape is None:
        shapes = " and ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must have shapes that broadcast; got {shapes}")
    return shape


def expand(name: str, x: Tensor, shape: tuple[int, ...], like: str) -> Tensor:
    """Return x broadcast to `shape`, that of `like`, which must not become larger."""
    if x.shape == shape:
        return x
    if broadcast_shape(tuple(x.shape), tuple(shape)) != tuple(shape):
        raise ValueError(
            f"{name} must broadcast to the shape of {like}, {tuple(shape)}; got {tuple(x.shape)}"
        )
    return x.expand(shape)


def as_int(value: object) -> int | None:
    """Return an integer of any type (NumPy's, a 0-d tensor) as an int, and None for anything else.

    A bool is not an integer here.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def integer(name: str, value: object, least: int = 1, also: str = "") -> int:
    """Return the argument `name` as an int, which must be at least `least`."""
    number = as_int(value)
    if number is None:
        raise TypeError(f"{name} must be an int >= {least}{also}; got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be an int >= {least}{also}; got {value}")
    return number


def as_float(value: object) -> float | None:
    """Return a number of any type (NumPy's, a 0-d tensor) as a float, else None."""
    if type(value) is float:
        return value
    if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value) > 0:  # type: ignore[arg-type]
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def positive(name: str, value: object) -> float:
    """Return the argument `name` as a float, which must be finite and above 0."""
    number = value if isinstance(value, torch.SymFloat) else as_float(value)
    if number is None:
        raise TypeError(f"{name} must be a number > 0; got {value!r}")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number > 0; got {value}")
    return number  # type: ignore[return-value]


def flag(name: str, value: object) -> bool:
    """Return the argument `name` as a bool."""
    if value is True or value is False:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def samples(num_samples: int | None) -> int | None:
    """Return the number of samples as an int; None stands for one, without a sample dimension."""
    return None if num_samples is None else integer("num_samples", num_samples, 1, " or None")


def seed_number(seed: object, also: str = "") -> int:
    """Return a seed as an int in [0, 2^63)."""
    number = as_int(seed)
    if number is None:
        raise TypeError(f"seed must be an int{also} or None; got {seed!r}")
    if not 0 <= number < _SEED_END:
        raise ValueError(f"seed must lie in [0, 2^63); got {seed}")
    return number


def stream(
    seed: Seed,
    offset: int,
    count: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[SeedSource, int]:
    """Return a seed that fits the device, or what to draw it from, and an offset that leaves
    `count` elements inside the stream.
    """
    begin = offset if type(offset) is int else as_int(offset)
    if begin is None:
        raise TypeError(f"offset must be an int >= 0; got {offset!r}")
    # sizes that torch.compile or torch.jit.trace watches are not ints
    if begin < 0 or (type(count) is int and begin + (count or 1) > _SEED_END):
        raise ValueError(
            f"offset must be >= 0, and offset + {count} elements at most 2^63; got {offset}"
        )
    if generator is not None:
        return _generator(seed, device, generator), begin
    if seed is None:
        return None, begin
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"seed as a tensor must be 0-d int64; got shape {tuple(seed.shape)}, {seed.dtype}"
            )
        if seed.device != device and seed.device.type != "cpu":
            raise ValueError(
                f"seed must be on the device of the op, {device}, or on the CPU; got {seed.device}"
            )
        return seed, begin
    return seed_number(seed, ", a 0-d int64 tensor"), begin


def _generator(seed: Seed, device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return the caller's generator, which takes the place of `seed`."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None; got {type(generator).__name__}"
        )
    if seed is not None:
        raise ValueError("seed and generator cannot both be given: a generator draws the seed")
    if generator.device.type != "cpu" and generator.device != device:
        raise ValueError(
            f"generator must be on the device of the op, {device}, or on the CPU; got one on "
            f"{generator.device}"
        )
    return generator
