"""How torch calls an op: plainly, or through one of its transformations.

A plain eager call goes straight to an autograd.Function over raw pointers. Under torch.compile,
torch.func, fake tensors or any dispatch mode it must go through torch's dispatcher, as an opaque op
of torch.library.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch.autograd import forward_ad

Tensor = torch.Tensor
# A seed, or what to draw one from: a generator, or None for torch's default CPU generator.
SeedSource = int | Tensor | torch.Generator | None
_CPU = torch.device("cpu")
_SEED_END = 2**63 - 1  # seeds are below this: torch.randint does not take 2^63
_CAPTURING = (
    "seed must be a 0-d int64 CUDA tensor while a CUDA graph is captured; got {}, whose value "
    "would be read now and give the same noise at every replay. Advance the tensor (seed += 1) "
    "between replays."
)
_PLAIN = (Tensor, torch.nn.Parameter)
# Bound to names here, since looking them up takes much of the time of small calls.
_is_compiling = torch.compiler.is_compiling
_is_transforming = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state  # of torch.jit.trace


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of computations and sums: float32 for half-precision inputs."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def contiguous(x: Tensor, shape: object = None) -> Tensor:
    """Return x as contiguous memory that a kernel can read, with any lazy negation resolved."""
    if x.is_neg():
        x = x.resolve_neg()
    return x.contiguous()  # x itself where it is contiguous


def in_memory(x: Tensor) -> Tensor:
    """Return `contiguous` memory without gradient, for callers that compute with x."""
    return contiguous(x.detach() if x.requires_grad else x)


def plain(*tensors: Tensor | None) -> bool:
    """Return whether these tensors hold memory of their own and nothing watches the dispatcher."""
    if _is_compiling() or _dispatch_modes() or _tracing_state() is not None:
        return False
    if _is_transforming() or forward_ad._current_level >= 0:  # `transformed`, inlined
        return False
    return not tensors or hold_memory(tensors)


def hold_memory(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether these tensors have addresses that a kernel can read or write."""
    try:
        for x in tensors:
            if x is not None and (type(x) not in _PLAIN or not (x.data_ptr() or _is_empty(x))):
                return False
    except RuntimeError:  # no storage: sparse tensors, and those of a batched backward pass
        return False
    return True


def transformed() -> bool:
    """Return whether torch.func or forward mode is active."""
    return _is_transforming() or forward_ad._current_level >= 0


def _is_empty(x: Tensor) -> bool:
    """Return whether x has no memory because it has no elements.

    Fake, zero and functional tensors have no memory for other reasons.
    """
    return not x.is_meta and x.numel() == 0


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draw a seed for an op on the device, from torch's default CPU generator or another one.

    torch.manual_seed thus governs the default.
    A tensor, since vmap's `randomness` and torch.compile know how to treat one; plain calls draw
    the same number by `as_int`. One from a GPU's generator stays there, and nothing waits for it.
    """
    if generator is not None and generator.device.type != "cpu":
        return torch.randint(_SEED_END, (), device=generator.device, generator=generator)
    _refuse_capture(device, "None" if generator is None else "from the CPU")
    if generator is None:
        return torch.randint(_SEED_END, (), device="cpu")
    return torch.randint(_SEED_END, (), device="cpu", generator=generator)


class _Drawn(threading.local):
    """Memory for a seed in each thread: a tensor that torch draws into, read as an array."""

    def __init__(self) -> None:
        self.array = np.zeros((), np.int64)
        with torch.inference_mode(False):  # one made in inference mode could not be drawn into
            self.tensor = torch.from_numpy(self.array)


_drawn = _Drawn()


def as_int(seed: SeedSource, device: torch.device) -> int | Tensor:
    """Return a seed, drawn where need be, as an int unless it stays on a GPU; plain calls only."""
    if isinstance(seed, int):
        return seed
    if seed is None or isinstance(seed, torch.Generator):
        if seed is not None and seed.device != _CPU:
            return draw_seed(device, seed)
        if device != _CPU:
            _refuse_capture(device, "None" if seed is None else "from the CPU")
        # the numbers of torch.randint, twice as fast
        if seed is None:
            _drawn.tensor.random_(_SEED_END)
        else:
            _drawn.tensor.random_(_SEED_END, generator=seed)
        return _drawn.array.item()
    if not seed.is_cpu:
        return seed
    _refuse_capture(device, "a tensor on the CPU")
    number = int(seed.item())
    if number < 0:
        raise ValueError(f"seed must lie in [0, 2^63); got {number}")
    return number


def shared(seed: SeedSource, device: torch.device) -> int | Tensor:
    """Return a seed, drawn where need be, that several ops can be given."""
    if plain():
        return as_int(seed, device)
    if isinstance(seed, Tensor):  # first: torch.compile of 2.14 asks no tensor for another class
        return seed
    return draw_seed(device, seed) if seed is None or isinstance(seed, torch.Generator) else seed


def _refuse_capture(device: torch.device, seed: str) -> None:
    """Raise before a value is read that a CUDA graph would then repeat."""
    if device.type == "cuda" and not _is_compiling() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(_CAPTURING.format(seed))


def as_seeds(seed: SeedSource, device: torch.device) -> Tensor:
    """Return a seed, drawn where need be, as the opaque ops take it: int64 [1].

    On a GPU for ops there, so that what torch.compile captures as a CUDA graph holds no value read
    at capture. What brings them there does not wait for the GPU; only compiled code copies them in
    step, since a graph that captured the copy would read the CPU's memory again at every replay.
    """
    compiling, on_gpu = _is_compiling(), device.type == "cuda"
    if isinstance(seed, Tensor):  # first, as in `shared`
        seeds = seed.reshape(1)
    elif seed is None or isinstance(seed, torch.Generator):
        seeds = draw_seed(device, seed).reshape(1)
    else:
        filled = device if on_gpu and not compiling else _CPU
        seeds = torch.full((1,), seed, dtype=torch.int64, device=filled)
    if on_gpu and seeds.is_cpu:
        _refuse_capture(device, "a tensor on the CPU")
    return seeds.to(device, non_blocking=not compiling) if on_gpu else seeds


def unbatched(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return x without vmap's wrappers, [B, *x], and `other` likewise, [B or 1, *other].

    A batched tensor does not tell whether the tensor that it wraps requires grad.
    """
    if _is_compiling():
        return x, other
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(x):
        level, at = functorch.maybe_get_level(x), functorch.maybe_get_bdim(x)
        if functorch.is_batchedtensor(other) and functorch.maybe_get_level(other) == level:
            other = functorch.get_unwrapped(other).movedim(functorch.maybe_get_bdim(other), at)
        else:
            other = other.unsqueeze(at)
        x = functorch.get_unwrapped(x)
    return x, other
