"""How Triton kernels are launched: options and tile sizes, in one place.

A compiled kernel is kept under a key of our own: Triton takes longer to find it than to launch it.

The sizes are a safe default chosen by counting (8 to 16 elements a thread, 16-byte accesses), not
yet tuned on a device. There is no autotuning: a first call compiles one kernel and nothing else.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Kernels say themselves where a product and a sum are fused (tl.fma), and nothing else is: noise
# stream v2 and bits equal to the CPU's rest on it.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}

TILE = 1024  # elements of one program; half as many in float64, which needs twice the registers
WANTED_PROGRAMS = (
    2048  # below this, samples are dealt to several programs; by shape alone, so bits do not change
)
_AS_IT_IS = nullcontext()

# For each kernel: which integers Triton compiles for by their width alone, not for their value.
_widths: dict[Any, tuple[bool, ...]] = {}
# Compiled kernels, with the constants that they take as arguments.
_kept: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
_MOST_KEPT = 4096  # a bound, for programs whose shapes differ without end


def block_of(count: int) -> int:
    """Return how many elements a program of an elementwise kernel handles.

    More tiles cost fewer instructions an element, and are taken where enough programs are left to
    fill a GPU.
    """
    tiles = 2 * count // (TILE * WANTED_PROGRAMS)
    return TILE * (4 if tiles >= 4 else 2 if tiles >= 2 else 1)


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up; triton.cdiv, made for kernels too, takes microseconds."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """Return the least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def nest(chunks: int, groups: int) -> int:
    """Return the argument `nest` of triton_math.program: 0, or 1 for chunks, or 2 for groups."""
    return 2 if groups > 1 else int(chunks > 1)


def tile_shape(rows: int, cols: int, dtype: torch.dtype, *, small: bool = False) -> tuple[int, int]:
    """Return the rows and columns of one program's tile.

    `small` is for kernels that need many registers an element.
    """
    tile = TILE // 2 if small or dtype == torch.float64 else TILE
    block_cols = min(tile, max(4, next_power_of_two(max(cols, 1))))
    return max(1, min(tile // block_cols, next_power_of_two(max(rows, 1)))), block_cols


def tiles_of_classes(logits: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the number of variables of logits [..., K], K, and the variables and classes of one
    program's tile.
    """
    classes = logits.size(-1)
    block_k = min(TILE, next_power_of_two(classes))
    return logits.numel() // classes, classes, TILE // block_k, block_k


@functools.cache
def _several_devices() -> bool:
    return torch.cuda.device_count() > 1


def on_device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device, on which Triton launches, the current one; a lone device is."""
    return torch.cuda.device(x.device) if x.is_cuda and _several_devices() else _AS_IT_IS


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch kernel[(programs,)](*arguments, **constants, **OPTIONS) on the current stream.

    The key of what is compiled tells apart more than Triton's own in each of its versions: integers
    count by value, those not specialized by their width, tensors by type and alignment, and the
    device. On AMD's GPUs Triton looks at more, and must find its kernels itself. A kernel's
    constants have one order, that of its only call.
    """
    function = kernel.fn
    if (widths := _widths.get(function)) is None:
        parameters = getattr(kernel, "params", ())  # none in Triton's interpreter
        widths = _widths[function] = tuple(x.do_not_specialize for x in parameters)
    key: list[Any] = [function, *constants.values()]
    device = -1
    for x, by_width in zip(arguments, widths, strict=False):
        if type(x) is int:
            key.append(-0x80000000 <= x < 0x80000000 if by_width else x)
        elif x is not None and isinstance(x, torch.Tensor):  # of None, isinstance takes long
            device = x.get_device()
            key += (x.dtype, x.data_ptr() & 15)
        else:
            key.append(x)
    key.append(device)
    found = _kept.get(place := tuple(key))
    if found is not None:
        compiled, more = found
        compiled[programs, 1, 1](*arguments, *more)
        return
    compiled = kernel[(programs,)](*arguments, **constants, **OPTIONS)
    if compiled is None or torch.version.hip is not None:  # Triton's interpreter compiles nothing
        return
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    names = kernel.arg_names[len(arguments) :]
    # Triton before 3.3 takes no constants here.
    takes = names[-1] in compiled.src.signature
    _kept[place] = compiled, tuple(constants[x] for x in names) if takes else ()
