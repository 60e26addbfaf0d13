"""The Gaussian op as opaque ops, for everything but plain calls: torch.compile, torch.func, fake tensors.

They work on canonical shapes [groups, samples, rows, cols], where a group has a seed of its own: that is what vmap
over seeds needs.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels._backends import backend
from latent_kernels._eager import row_dtype
from latent_kernels._ops import call, checked_seeds, define, fold, fold_seeds, groups_of, no_second_derivative, unfold

Tensor = torch.Tensor


def _gaussian(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    seeds: Tensor,
    offset: int,
    samples: int,
    spread_is_scale: bool,
    with_kl: bool,
) -> tuple[Tensor, Tensor]:
    """[G, N, D] inputs, seeds [G] or [1] -> z [G, S, N, D] and kl [G, N], or [G, 0] where not wanted."""
    groups, rows, cols = mean.shape
    z = mean.new_empty((groups, samples, rows, cols))
    kl = mean.new_empty((groups, rows if with_kl else 0), dtype=row_dtype(mean.dtype))
    backend("gaussian", mean.device).forward(
        (groups, samples, rows, cols),
        *(None if x is None else x.contiguous() for x in (mean, spread, prior_mean, prior_logvar)),
        spread_is_scale,
        checked_seeds(seeds, mean.device),
        offset,
        z if samples else None,
        kl if with_kl else None,
    )
    return z, kl


def _gaussian_fake(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    seeds: Tensor,
    offset: int,
    samples: int,
    spread_is_scale: bool,
    with_kl: bool,
) -> tuple[Tensor, Tensor]:
    groups, rows, cols = mean.shape
    z = mean.new_empty((groups, samples, rows, cols))
    return z, mean.new_empty((groups, rows if with_kl else 0), dtype=row_dtype(mean.dtype))


def _gaussian_backward(
    gz: Tensor | None,
    gkl: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    seeds: Tensor,
    offset: int,
    samples: int,
    spread_is_scale: bool,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """Gradients [G, N, D] of the four inputs; empty where `needs` says no."""
    outputs = _gaussian_backward_fake(
        gz, gkl, mean, spread, prior_mean, prior_logvar, seeds, offset, samples, spread_is_scale, needs
    )
    wanted = tuple(x if need else None for x, need in zip(outputs, needs, strict=True))
    if gz is None and gkl is None:
        for x in outputs:
            x.zero_()
        return outputs
    backend("gaussian", mean.device).backward(
        (mean.size(0), samples, mean.size(1), mean.size(2)),
        *(None if x is None else x.contiguous() for x in (mean, spread, prior_mean, prior_logvar)),
        spread_is_scale,
        checked_seeds(seeds, mean.device),
        offset,
        None if gz is None else gz.contiguous(),
        None if gkl is None else gkl.contiguous(),
        wanted,
    )
    return outputs


def _gaussian_backward_fake(
    gz: Tensor | None,
    gkl: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    seeds: Tensor,
    offset: int,
    samples: int,
    spread_is_scale: bool,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return tuple(mean.new_empty(mean.shape if need else (0,)) for need in needs)


def _gaussian_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _gaussian_gradients(ctx: Any, gz: Tensor | None, gkl: Tensor | None) -> tuple[Tensor | None, ...]:
    offset, samples, spread_is_scale, with_kl = ctx.rest
    mean, spread, prior_mean, prior_logvar, seeds = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    if gz is None and gkl is None:
        return (None,) * 9
    results = call(
        "gaussian_backward",
        gz if samples else None,
        gkl if with_kl else None,
        mean,
        spread,
        prior_mean,
        prior_logvar,
        seeds,
        offset,
        samples,
        spread_is_scale,
        needs,
    )
    return (*(g if need else None for g, need in zip(results, needs, strict=True)), None, None, None, None, None)


# --- vmap: the batch joins the groups ---------------------------------------------------------------------------


def _gaussian_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch = info.batch_size
    groups = groups_of(args[0], in_dims[0])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:4], in_dims[:4], strict=True)]
    seeds = fold_seeds(args[4], in_dims[4], batch, groups)
    z, kl = call("gaussian", *tensors, seeds, *args[5:])
    return (unfold(z, batch), unfold(kl, batch)), (0, 0)


def _gaussian_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch, needs = info.batch_size, args[10]
    groups = groups_of(args[2], in_dims[2])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:6], in_dims[:6], strict=True)]
    seeds = fold_seeds(args[6], in_dims[6], batch, groups)
    results = call("gaussian_backward", *tensors, seeds, *args[7:])
    unfolded = tuple(unfold(x, batch) if need else x for x, need in zip(results, needs, strict=True))
    return unfolded, tuple(0 if need else None for need in needs)


define(
    "gaussian(Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_logvar, Tensor seeds, SymInt offset,"
    " SymInt samples, bool spread_is_scale, bool with_kl) -> (Tensor z, Tensor kl)",
    _gaussian,
    fake=_gaussian_fake,
    vmap=_gaussian_vmap,
    setup=_gaussian_setup,
    gradients=_gaussian_gradients,
)
define(
    "gaussian_backward(Tensor? gz, Tensor? gkl, Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_logvar,"
    " Tensor seeds, SymInt offset, SymInt samples, bool spread_is_scale, bool[] needs)"
    " -> (Tensor mean, Tensor spread, Tensor prior_mean, Tensor prior_logvar)",
    _gaussian_backward,
    fake=_gaussian_backward_fake,
    vmap=_gaussian_backward_vmap,
    gradients=no_second_derivative,
)
