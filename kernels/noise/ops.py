"""Noise as an opaque torch.library op, for torch.compile, fake tensors and vmap."""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels._backends import backend
from latent_kernels._eager import as_int

Tensor = torch.Tensor


def fill(kind: str, out: Tensor, seed: int | Tensor, offset: int) -> None:
    """Fills `out` with the seed's `kind` ("normal" or "uniform") from `offset` on, by the device's backend."""
    backend_fill = getattr(backend("noise", out.device), "fill", None)
    if backend_fill is not None:
        backend_fill(kind, out, seed, offset)
        return
    from latent_kernels.kernels.noise import reference

    values = getattr(reference, kind)(out.numel(), int(seed), offset)
    out.copy_(torch.from_numpy(values.copy()).reshape(out.shape))


_library = torch.library.Library("latent_kernels", "FRAGMENT")
_library.define(
    "noise(str kind, SymInt[] shape, Tensor seeds, SymInt offset, ScalarType dtype, Device device) -> Tensor"
)


def _noise(
    kind: str, shape: list[int], seeds: Tensor, offset: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """seeds [G] -> [G, *shape]."""
    out = torch.empty((seeds.numel(), *shape), dtype=dtype, device=device)
    for i in range(seeds.numel()):
        fill(kind, out[i], as_int(seeds[i], out.device), offset)
    return out


def _noise_fake(
    kind: str, shape: list[int], seeds: Tensor, offset: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty((seeds.numel(), *shape), dtype=dtype, device=device)


def _noise_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    kind, shape, seeds, *rest = args
    batched = seeds.movedim(in_dims[2], 0)
    out = torch.ops.latent_kernels.noise(kind, shape, batched.reshape(-1), *rest)
    return out.reshape(*batched.shape, *shape), 0


_library.impl("noise", _noise, "CompositeExplicitAutograd")
torch.library.register_fake("latent_kernels::noise", _noise_fake, lib=_library)
torch.library.register_vmap("latent_kernels::noise", _noise_vmap, lib=_library)
