"""Samples of discrete families as an opaque torch.library op, and the plain way to the kernels."""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import as_int, in_memory
from latent_kernels.kernels.library import (
    call,
    checked_seeds,
    define,
    fold,
    fold_seeds,
    groups_of,
    unfold,
)

Tensor = torch.Tensor


def sample_plain(
    logits: Tensor,
    classes: int,
    num_samples: int,
    antithetic: bool,
    seed: int | Tensor,
    offset: int,
) -> Tensor:
    """Logits [..., D] or [..., D, K] -> z [S, ..., D], or pairs [2, S, ..., D]."""
    logits = in_memory(logits)
    shape = logits.shape[:-1] if classes else logits.shape
    z = logits.new_empty(
        ((2,) if antithetic else ()) + (num_samples, *shape), dtype=_dtype(logits, classes)
    )
    sizes = (1, num_samples, math.prod(shape[:-1]), shape[-1], classes)
    backend("families", logits.device).sample(
        sizes, logits, antithetic, as_int(seed, logits.device), offset, z
    )
    return z


def _dtype(logits: Tensor, classes: int) -> torch.dtype:
    return torch.int64 if classes else logits.dtype


def _sample(
    logits: Tensor, seeds: Tensor, offset: int, samples: int, classes: int, antithetic: bool
) -> Tensor:
    """[G, N, D] or [G, N, D, K] -> [G, S, N, D], or pairs [G, 2, S, N, D]."""
    z = _sample_fake(logits, seeds, offset, samples, classes, antithetic)
    sizes = (logits.size(0), samples, logits.size(1), logits.size(2), classes)
    device = logits.device
    backend("families", device).sample(
        sizes, in_memory(logits), antithetic, checked_seeds(seeds, device), offset, z
    )
    return z


def _sample_fake(
    logits: Tensor, seeds: Tensor, offset: int, samples: int, classes: int, antithetic: bool
) -> Tensor:
    groups, rows, cols = logits.shape[:3]
    pairs = (2,) if antithetic else ()
    return logits.new_empty((groups, *pairs, samples, rows, cols), dtype=_dtype(logits, classes))


def _sample_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    batch, logits = info.batch_size, args[0]
    groups = groups_of(logits, in_dims[0])
    seeds = fold_seeds(args[1], in_dims[1], batch, groups)
    return unfold(
        call("families_sample", fold(logits, in_dims[0], batch), seeds, *args[2:]), batch
    ), 0


def _no_gradient(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
    return (None,) * 6


define(
    "families_sample(Tensor logits, Tensor seeds, SymInt offset, SymInt samples, SymInt classes, bool antithetic)"
    " -> Tensor",
    _sample,
    fake=_sample_fake,
    vmap=_sample_vmap,
    gradients=_no_gradient,
)
