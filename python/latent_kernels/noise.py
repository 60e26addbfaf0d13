"""Noise stream v2: standard normals and uniforms that depend on the seed and the position, and on
nothing else.

Here and in every sampler, `seed=None` draws a seed from torch's default CPU generator, so that
`torch.manual_seed` governs the noise, and `generator=` draws it from another. `torch.compile` has a
generator of its own: after one `torch.manual_seed`, a function that its default backend has
compiled draws other seeds than eager code does, unless
`torch._inductor.config.fallback_random = True` (torch's own samplers differ likewise). `seed=`
gives the same noise in both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.eager import as_int, as_seeds, plain
from latent_kernels.kernels.library import call
from latent_kernels.kernels.noise import ops

Tensor = torch.Tensor
_CPU = torch.device("cpu")


def normal(
    shape: int | Sequence[int],
    *,
    seed: Seed = None,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return standard normals from noise stream v2.

    .. math::
        \epsilon = \sqrt{-2 \ln u}\, \cos(\pi t) \quad \text{or} \quad
        \sqrt{-2 \ln u}\, \sin(\pi t)

    where u is uniform on (0, 1] and t on [-1, 1), from words of Philox4x32-10. Values are computed
    in float32 and are at most 6.76 in size. Element i (row-major) is element ``offset + i`` of the
    seed's stream: the same bits on every device, for every SIMD width, number of threads and way of
    splitting the call. ``normal(n)`` equals the concatenation of ``normal(k)`` and ``normal(n - k,
    offset=k)`` with the same seed.

    Args:
        shape: the shape of the result, an int or a sequence of ints.
        seed: an int in [0, 2^63), a 0-d int64 tensor, or None to draw one from torch's default CPU
            generator.
        offset: the first element's place in the stream, an int >= 0.
        dtype: float32, or another floating dtype that the float32 values are converted to.
        device: where the result lives.
        generator: a torch.Generator to draw the seed from, in place of `seed`: on the CPU, or on
            the GPU where the result lives.

    Returns:
        A tensor of that shape, without gradient.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11; Box and Muller (1958).

    Example:
        >>> import torch, latent_kernels as lk
        >>> whole = lk.normal(6, seed=7)
        >>> tail = lk.normal(2, seed=7, offset=4)
        >>> torch.equal(whole[4:], tail)
        True

    """
    return _noise("normal", shape, seed, offset, dtype, device, generator)


def uniform(
    shape: int | Sequence[int],
    *,
    seed: Seed = None,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return uniforms on the open interval (0, 1) from noise stream v2, substream 1.

    They depend on the seed and the position alone, as those of `normal` do. The float32 values lie
    in [2^-33, 1 - 2^-24]; conversion to half precision can round them up to 1.

    Args:
        shape: the shape of the result, an int or a sequence of ints.
        seed: an int in [0, 2^63), a 0-d int64 tensor, or None to draw one from torch's default CPU
            generator.
        offset: the first element's place in the stream, an int >= 0.
        dtype: float32, or another floating dtype that the float32 values are converted to.
        device: where the result lives.
        generator: a torch.Generator to draw the seed from, in place of `seed`: on the CPU, or on
            the GPU where the result lives.

    Returns:
        A tensor of that shape, without gradient.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.

    Example:
        >>> import torch, latent_kernels as lk
        >>> u = lk.uniform((2, 3), seed=7)
        >>> u.shape
        torch.Size([2, 3])
        >>> bool(((0 < u) & (u < 1)).all())
        True

    """
    return _noise("uniform", shape, seed, offset, dtype, device, generator)


def _noise(
    kind: str,
    shape: int | Sequence[int],
    seed: Seed,
    offset: int,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: torch.Generator | None,
) -> Tensor:
    sizes = (shape,) if type(shape) is int and shape >= 0 else _sizes(shape)
    _checks.float_dtype("dtype", dtype)
    where = _CPU if device == "cpu" else _device(device)
    source, offset = _checks.stream(seed, offset, math.prod(sizes), where, generator)

    is_plain = plain() if source is None else plain(source if isinstance(source, Tensor) else None)
    if not is_plain or (where is not _CPU and where.type == "meta"):
        seeds = as_seeds(source, where)
        out: Tensor = call("noise", kind, sizes, seeds, offset, dtype, str(where))
        return out.reshape(sizes)
    out = _like(dtype, where).new_empty(size=sizes)  # in half of torch.empty's time
    ops.fill_of(where)(kind, out, as_int(source, where), offset)
    return out


def _sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    given = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    sizes = tuple(size for size in map(_checks.as_int, given) if size is not None and size >= 0)
    if len(sizes) != len(given):
        raise ValueError(f"shape must be an int or a sequence of ints >= 0; got {shape!r}")
    return sizes


def _device(device: torch.device | str) -> torch.device:
    where = _checks.device(device)
    if where.type == "cuda" and where.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return where


@functools.cache
def _like(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=dtype, device=device)
