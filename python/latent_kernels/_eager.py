"""How torch is calling: plainly, or through one of its transformations.

A plain eager call goes straight to an autograd.Function over raw pointers. Under torch.compile, torch.func, fake
tensors or any dispatch mode it must go through torch's dispatcher, as an opaque op of torch.library.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
_SEED_END = 2**63 - 1
_PLAIN = (Tensor, torch.nn.Parameter)


def plain(*tensors: Tensor | None) -> bool:
    """Whether these tensors hold memory of their own and nothing watches the dispatcher."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return all(x is None or type(x) in _PLAIN for x in tensors)


def draw_seed(seed: int | Tensor | None, device: torch.device) -> int | Tensor:
    """The seed given, or one from torch's default CPU generator, so that torch.manual_seed governs it.

    Plainly an int; under a transformation a tensor, which vmap's `randomness` and torch.compile know how to treat.
    """
    if seed is not None:
        return seed
    if not torch.compiler.is_compiling() and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "seed must be a 0-d int64 CUDA tensor while a CUDA graph is captured; got None, which would draw one "
            "seed now and repeat the same noise at every replay. Advance the tensor (seed += 1) between replays."
        )
    return torch.randint(_SEED_END, ())


def as_int(seed: int | Tensor, device: torch.device) -> int | Tensor:
    """A seed that need not stay on a GPU, as an int; plain calls only."""
    if isinstance(seed, Tensor) and seed.device.type == "cpu":
        seed = int(seed.item())
        if seed < 0:
            raise ValueError(f"seed must lie in [0, 2^63); got {seed}")
    return seed


def as_seeds(seed: int | Tensor) -> Tensor:
    """A seed as the opaque ops take it: int64 [1]."""
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    return torch.full((1,), seed, dtype=torch.int64)
