"""Noise as an opaque torch.library op, for torch.compile, fake tensors and vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from latent_kernels.kernels.backends import backend, remember
from latent_kernels.kernels.eager import as_int
from latent_kernels.kernels.library import call, define

Tensor = torch.Tensor
Fill = Callable[[str, Tensor, int | Tensor, int], None]


@remember
def fill_of(device: torch.device) -> Fill:
    """Return the device's function (kind, out, seed, offset), which fills `out` with the seed's
    `kind` ("normal" or "uniform") from `offset` on.
    """
    found: Fill = getattr(backend("noise", device), "fill", _fill_by_reference)
    return found


def _fill_by_reference(kind: str, out: Tensor, seed: int | Tensor, offset: int) -> None:
    from latent_kernels.kernels.noise import reference

    values = getattr(reference, kind)(out.numel(), int(seed), offset)
    out.copy_(torch.from_numpy(values.copy()).reshape(out.shape))


def uniforms(sizes: Sequence[int], seeds: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return uniforms [groups, ...] for seeds [1] or [groups], in the dtype of `like` and on its
    device.
    """
    groups, *shape = sizes
    found: Tensor = call(
        "noise", "uniform", shape, seeds.expand(groups), offset, like.dtype, str(like.device)
    )
    return found


def _noise(
    kind: str,
    shape: list[int],
    seeds: Tensor,
    offset: int,
    dtype: torch.dtype,
    device: str,
) -> Tensor:
    """Return the noise [G, *shape] of seeds [G]."""
    out = _noise_fake(kind, shape, seeds, offset, dtype, device)
    if out.is_meta:
        return out
    for i in range(seeds.numel()):
        fill_of(out.device)(kind, out[i], as_int(seeds[i], out.device), offset)
    return out


def _noise_fake(
    kind: str,
    shape: list[int],
    seeds: Tensor,
    offset: int,
    dtype: torch.dtype,
    device: str,
) -> Tensor:
    return torch.empty((seeds.numel(), *shape), dtype=dtype, device=device)


def _noise_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    kind, shape, seeds, *rest = args
    batched = seeds.movedim(in_dims[2], 0)
    out = call("noise", kind, shape, batched.reshape(-1), *rest)
    return out.reshape(*batched.shape, *shape), 0


define(
    "noise(str kind, SymInt[] shape, Tensor seeds, SymInt offset, ScalarType dtype, str device) "
    "-> Tensor",
    _noise,
    fake=_noise_fake,
    vmap=_noise_vmap,
)
