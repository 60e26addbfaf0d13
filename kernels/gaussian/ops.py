"""The Gaussian op as opaque ops, for everything but plain calls: torch.compile, torch.func, fake
tensors.

They work on canonical shapes [groups, samples, rows, cols], where a group has a seed of its own:
that is what vmap over seeds needs.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.library import (
    call,
    checked_seeds,
    define,
    fold,
    fold_seeds,
    groups_of,
    no_second_derivative,
    unfold,
)

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
    with_log_q: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """[G, N, D] inputs, seeds [G] or [1] -> z [G, S, N, D], kl [G, N], log q [G, S, N]; the last
    two without rows where not wanted.
    """
    z, kl, log_q = _gaussian_fake(
        mean,
        spread,
        prior_mean,
        prior_logvar,
        seeds,
        offset,
        samples,
        spread_is_scale,
        with_kl,
        with_log_q,
    )
    backend("gaussian", mean.device).forward(
        tuple(z.shape),
        *(None if x is None else x.contiguous() for x in (mean, spread, prior_mean, prior_logvar)),
        spread_is_scale,
        checked_seeds(seeds, mean.device),
        offset,
        z if samples else None,
        kl if with_kl else None,
        log_q if with_log_q and samples else None,
    )
    return z, kl, log_q


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
    with_log_q: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, rows, cols = mean.shape
    of_rows = row_dtype(mean.dtype)
    z = mean.new_empty((groups, samples, rows, cols))
    kl = mean.new_empty((groups, rows if with_kl else 0), dtype=of_rows)
    return z, kl, mean.new_empty((groups, samples, rows if with_log_q else 0), dtype=of_rows)


def _gaussian_backward(
    gz: Tensor | None,
    gkl: Tensor | None,
    gq: Tensor | None,
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
        gz,
        gkl,
        gq,
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
    wanted = tuple(x if need else None for x, need in zip(outputs, needs, strict=True))
    if gz is None and gkl is None and gq is None:
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
        None if gq is None else gq.contiguous(),
        wanted,
    )
    return outputs


def _gaussian_backward_fake(
    gz: Tensor | None,
    gkl: Tensor | None,
    gq: Tensor | None,
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


def _gaussian_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _gaussian_gradients(
    ctx: Any, gz: Tensor | None, gkl: Tensor | None, gq: Tensor | None
) -> tuple[Tensor | None, ...]:
    offset, samples, spread_is_scale, with_kl, with_log_q = ctx.rest
    mean, spread, prior_mean, prior_logvar, seeds = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    if gz is None and gkl is None and gq is None:
        return (None,) * 10
    results = call(
        "gaussian_backward",
        gz if samples else None,
        gkl if with_kl else None,
        gq if with_log_q else None,
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
    return (*(g if need else None for g, need in zip(results, needs, strict=True)), *[None] * 6)


def _path(z: Tensor, log_q: Tensor, logvar: Tensor, seeds: Tensor, offset: int) -> Tensor:
    """log q [G, S, N], given and returned, as a function of z [G, S, N, D] alone."""
    return log_q.clone()


def _path_backward(
    gradient: Tensor, z: Tensor, logvar: Tensor, seeds: Tensor, offset: int
) -> Tensor:
    """The gradient of z; of z itself only the shape is read, as eps comes from the seed."""
    out = _path_backward_fake(gradient, z, logvar, seeds, offset)
    backend("gaussian", z.device).path_backward(
        tuple(z.shape),
        logvar.contiguous(),
        checked_seeds(seeds, z.device),
        offset,
        gradient.contiguous(),
        out,
    )
    return out


def _path_backward_fake(
    gradient: Tensor, z: Tensor, logvar: Tensor, seeds: Tensor, offset: int
) -> Tensor:
    return z.new_empty(z.shape)


def _path_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, _, logvar, seeds, ctx.offset = inputs
    ctx.save_for_backward(z, logvar, seeds)


def _path_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (
        call("gaussian_path_backward", gradient, *ctx.saved_tensors, ctx.offset),
        None,
        None,
        None,
        None,
    )


# --- vmap: the batch joins the groups -------------------------------------------------------------


def _gaussian_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch = info.batch_size
    groups = groups_of(args[0], in_dims[0])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:4], in_dims[:4], strict=True)]
    seeds = fold_seeds(args[4], in_dims[4], batch, groups)
    results = call("gaussian", *tensors, seeds, *args[5:])
    return tuple(unfold(x, batch) for x in results), (0, 0, 0)


def _gaussian_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch, needs = info.batch_size, args[11]
    groups = groups_of(args[3], in_dims[3])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:7], in_dims[:7], strict=True)]
    seeds = fold_seeds(args[7], in_dims[7], batch, groups)
    results = call("gaussian_backward", *tensors, seeds, *args[8:])
    unfolded = tuple(
        unfold(x, batch) if need else x for x, need in zip(results, needs, strict=True)
    )
    return unfolded, tuple(0 if need else None for need in needs)


def _path_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _sampled_vmap("gaussian_path", info.batch_size, in_dims, args), 0


def _path_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _sampled_vmap("gaussian_path_backward", info.batch_size, in_dims, args), 0


def _sampled_vmap(name: str, batch: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Tensor:
    """An op of three tensors, seeds and offset."""
    groups = groups_of(args[0], in_dims[0])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:3], in_dims[:3], strict=True)]
    return unfold(
        call(name, *tensors, fold_seeds(args[3], in_dims[3], batch, groups), args[4]), batch
    )


define(
    "gaussian(Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_logvar, Tensor seeds, "
    "SymInt offset,"
    " SymInt samples, bool spread_is_scale, bool with_kl, bool with_log_q) -> (Tensor z, Tensor "
    "kl, Tensor log_q)",
    _gaussian,
    fake=_gaussian_fake,
    vmap=_gaussian_vmap,
    setup=_gaussian_setup,
    gradients=_gaussian_gradients,
)
define(
    "gaussian_backward(Tensor? gz, Tensor? gkl, Tensor? gq, Tensor mean, Tensor spread, Tensor? "
    "prior_mean,"
    " Tensor? prior_logvar, Tensor seeds, SymInt offset, SymInt samples, bool spread_is_scale, "
    "bool[] needs)"
    " -> (Tensor mean, Tensor spread, Tensor prior_mean, Tensor prior_logvar)",
    _gaussian_backward,
    fake=_gaussian_backward_fake,
    vmap=_gaussian_backward_vmap,
    gradients=no_second_derivative,
)
define(
    "gaussian_path(Tensor z, Tensor log_q, Tensor logvar, Tensor seeds, SymInt offset) -> Tensor",
    _path,
    fake=_path,
    vmap=_path_vmap,
    setup=_path_setup,
    gradients=_path_gradients,
)
define(
    "gaussian_path_backward(Tensor gradient, Tensor z, Tensor logvar, Tensor seeds, SymInt offset) "
    "-> Tensor",
    _path_backward,
    fake=_path_backward_fake,
    vmap=_path_backward_vmap,
    gradients=no_second_derivative,
)
