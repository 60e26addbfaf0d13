"""The Gaussian op for torch: an autograd.Function for plain calls, opaque torch.library ops for all others.

Both save the inputs and the seed, nothing else; backward makes eps anew. The opaque ops work on canonical shapes
[groups, samples, rows, cols], where a group has a seed of its own: that is what vmap over seeds needs.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels._backends import backend
from latent_kernels._eager import as_int, as_seeds
from latent_kernels._ops import call, define, fold, no_second_derivative, unfold

Tensor = torch.Tensor
Outputs4 = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

_HALF = (torch.float16, torch.bfloat16)


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over columns: half inputs are computed in float32, and stay there."""
    return torch.float32 if dtype in _HALF else dtype


def _rows_of(x: Tensor | None) -> Tensor | None:
    """X where its strides can be handed to a kernel: rows at one distance, or one row repeated; else a copy."""
    if x is None:
        return x
    if x.is_neg():
        x = x.resolve_neg()
    if x.is_contiguous():
        return x
    stride = x.stride()
    if stride[-1] == 1 and (len(stride) == 2 or not any(stride[:-1])):
        return x
    return x.contiguous()


def _empty(x: Tensor, wanted: bool) -> Tensor | None:
    return torch.empty_like(x, memory_format=torch.contiguous_format) if wanted else None


# --- plain calls ------------------------------------------------------------------------------------------------


class Gaussian(torch.autograd.Function):
    """(mean, spread, prior_mean, prior_logvar) of one shape [..., D] -> (z, kl), or the one that is wanted.

    The last argument is (seed, offset, num_samples, spread_is_scale, with_z, with_kl).
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        spread: Tensor,
        prior_mean: Tensor | None,
        prior_logvar: Tensor | None,
        call_options: tuple[int | Tensor, int, int | None, bool, bool, bool],
    ) -> Any:
        """z, kl or both."""
        seed, offset, num_samples, spread_is_scale, with_z, with_kl = call_options
        shape = mean.shape
        samples = (1 if num_samples is None else num_samples) if with_z else 0
        sizes = (1, samples, math.prod(shape[:-1]), shape[-1])
        mean, spread = _rows_of(mean), _rows_of(spread)  # type: ignore[assignment]
        prior_mean, prior_logvar = _rows_of(prior_mean), _rows_of(prior_logvar)
        z = kl = None
        if with_z:
            z = _empty(mean, True) if num_samples is None else mean.new_empty((num_samples, *shape))
        if with_kl:
            kl = mean.new_empty(shape[:-1], dtype=row_dtype(mean.dtype))
        kernels = backend("gaussian", mean.device)
        kernels.forward(sizes, mean, spread, prior_mean, prior_logvar, spread_is_scale, seed, offset, z, kl)
        ctx.set_materialize_grads(False)
        if isinstance(seed, Tensor):
            ctx.save_for_backward(mean, spread, prior_mean, prior_logvar, seed)
        else:
            ctx.save_for_backward(mean, spread, prior_mean, prior_logvar)
        ctx.problem = (sizes, spread_is_scale, None if isinstance(seed, Tensor) else seed, offset, with_z, with_kl)
        return (z, kl) if with_z and with_kl else z if with_z else kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Gradients of the four inputs."""
        sizes, spread_is_scale, seed, offset, with_z, with_kl = ctx.problem
        mean, spread, prior_mean, prior_logvar, *saved_seed = ctx.saved_tensors
        seed = saved_seed[0] if saved_seed else seed
        gz = gradients[0] if with_z else None
        gkl = gradients[-1] if with_kl else None
        needs = ctx.needs_input_grad[:4]
        if gz is None and gkl is None:
            return None, None, None, None, None
        if torch.is_grad_enabled():  # create_graph=True: the op knows how to refuse second derivatives
            shape, canonical = mean.shape, (1, *sizes[2:])
            results = call(
                "gaussian_backward",
                None if gz is None else gz.reshape(sizes),
                None if gkl is None else gkl.reshape(canonical[:2]),
                *(None if x is None else x.reshape(canonical) for x in (mean, spread, prior_mean, prior_logvar)),
                as_seeds(seed, mean.device),
                offset,
                sizes[1],
                spread_is_scale,
                needs,
            )
            return (*(g.reshape(shape) if need else None for g, need in zip(results, needs, strict=True)), None)
        outputs = (
            _empty(mean, needs[0]),
            _empty(mean, needs[1]),
            _empty(mean, needs[2]),
            _empty(mean, needs[3]),
        )
        backend("gaussian", mean.device).backward(
            sizes,
            mean,
            spread,
            prior_mean,
            prior_logvar,
            spread_is_scale,
            seed,
            offset,
            None if gz is None else gz.contiguous(),
            None if gkl is None else gkl.contiguous(),
            outputs,
        )
        return (*outputs, None)


class GaussianLogProb(torch.autograd.Function):
    """z, mean, logvar -> the log-density of `shape`. Each input has `samples` of its own or is shared by all."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mean: Tensor, logvar: Tensor, sizes: tuple[int, int, int, int], shape: tuple[int, ...]
    ) -> Tensor:
        """The sum over columns."""
        z, mean, logvar = _rows_of(z), _rows_of(mean), _rows_of(logvar)  # type: ignore[assignment]
        out = z.new_empty(shape, dtype=row_dtype(z.dtype))
        inputs = [_sampled(x, sizes) for x in (z, mean, logvar)]
        backend("gaussian", z.device).log_prob_forward(sizes, *inputs, out)
        ctx.save_for_backward(z, mean, logvar)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of the three inputs."""
        sizes, saved = ctx.sizes, ctx.saved_tensors
        inputs = [_sampled(x, sizes) for x in saved]
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            results = call("gaussian_log_prob_backward", *inputs, gradient.reshape(sizes[:3]), needs)
            found = (g.reshape(x.shape) if n else None for g, x, n in zip(results, saved, needs, strict=True))
            return (*found, None, None)
        outputs = tuple(_empty(x, need) for x, need in zip(saved, needs, strict=True))
        backend("gaussian", gradient.device).log_prob_backward(sizes, *inputs, gradient.contiguous(), outputs)
        return (*outputs, None, None)


def _sampled(x: Tensor, sizes: tuple[int, int, int, int]) -> Tensor:
    """X as [1, samples or 1, rows, cols], strides kept."""
    _, samples, rows, cols = sizes
    if x.is_contiguous():
        return x.view(1, samples if x.numel() == rows * cols * samples else 1, rows, cols)
    if x.dim() == 2 and x.size(0) == rows:
        return x[None, None]
    if samples != 1 and x.numel() == rows * cols * samples:  # one row repeated over samples that are its own
        return x.contiguous().view(1, samples, rows, cols)
    return x.as_strided((1, 1, rows, cols), (0, 0, x.stride(-2), 1))


# The Functions' own apply, past what Function.apply does in Python for torch.func, which `plain` has ruled out.
apply_gaussian: Any = super(torch.autograd.Function, Gaussian).apply
apply_log_prob: Any = super(torch.autograd.Function, GaussianLogProb).apply


# --- opaque ops -------------------------------------------------------------------------------------------------


def _seeds(seeds: Tensor, device: torch.device) -> int | Tensor:
    if seeds.device.type == "cpu" and bool((seeds < 0).any()):
        raise ValueError(f"seed must lie in [0, 2^63); got {int(seeds.min())}")
    if seeds.numel() == 1:
        seed = as_int(seeds, device)
        return seed if isinstance(seed, int) else seed.reshape(1)
    return seeds.to(device).contiguous()


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
        _seeds(seeds, mean.device),
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
        _seeds(seeds, mean.device),
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


def _log_prob_sizes(z: Tensor, mean: Tensor, logvar: Tensor) -> tuple[int, int, int, int]:
    own = [x.size(1) for x in (z, mean, logvar) if x.size(1) != 1]
    return (z.size(0), own[0] if own else 1, z.size(2), z.size(3))


def _log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """[G, S or 1, N, D] each -> [G, S, N]."""
    out = _log_prob_fake(z, mean, logvar)
    inputs = (x.contiguous() for x in (z, mean, logvar))
    backend("gaussian", z.device).log_prob_forward(_log_prob_sizes(z, mean, logvar), *inputs, out)
    return out


def _log_prob_fake(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return z.new_empty(_log_prob_sizes(z, mean, logvar)[:3], dtype=row_dtype(z.dtype))


def _log_prob_backward(
    z: Tensor, mean: Tensor, logvar: Tensor, gradient: Tensor, needs: list[bool]
) -> tuple[Tensor, ...]:
    outputs = _log_prob_backward_fake(z, mean, logvar, gradient, needs)
    backend("gaussian", z.device).log_prob_backward(
        _log_prob_sizes(z, mean, logvar),
        *(x.contiguous() for x in (z, mean, logvar, gradient)),
        tuple(x if need else None for x, need in zip(outputs, needs, strict=True)),
    )
    return outputs


def _log_prob_backward_fake(
    z: Tensor, mean: Tensor, logvar: Tensor, gradient: Tensor, needs: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip((z, mean, logvar), needs, strict=True))


def _log_prob_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _log_prob_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    results = call("gaussian_log_prob_backward", *ctx.saved_tensors, gradient, needs)
    return tuple(g if need else None for g, need in zip(results, needs, strict=True))


# --- vmap: the batch joins the groups ---------------------------------------------------------------------------


def _fold_seeds(seeds: Tensor, dim: int | None, batch: int, groups: int) -> Tensor:
    """One seed for each of batch * groups: the same for the whole batch where the seed is not batched."""
    seeds = seeds.expand(batch, seeds.size(-1)) if dim is None else seeds.movedim(dim, 0)
    return seeds.expand(batch, groups).reshape(-1)


def _groups(x: Tensor, dim: int | None) -> int:
    return x.size(1 if dim == 0 else 0)


def _gaussian_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch = info.batch_size
    groups = _groups(args[0], in_dims[0])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:4], in_dims[:4], strict=True)]
    seeds = _fold_seeds(args[4], in_dims[4], batch, groups)
    z, kl = call("gaussian", *tensors, seeds, *args[5:])
    return (unfold(z, batch), unfold(kl, batch)), (0, 0)


def _gaussian_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch, needs = info.batch_size, args[10]
    groups = _groups(args[2], in_dims[2])
    tensors = [fold(x, dim, batch) for x, dim in zip(args[:6], in_dims[:6], strict=True)]
    seeds = _fold_seeds(args[6], in_dims[6], batch, groups)
    results = call("gaussian_backward", *tensors, seeds, *args[7:])
    unfolded = tuple(unfold(x, batch) if need else x for x, need in zip(results, needs, strict=True))
    return unfolded, tuple(0 if need else None for need in needs)


def _log_prob_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    folded = [fold(x, dim, info.batch_size) for x, dim in zip(args, in_dims, strict=True)]
    return unfold(call("gaussian_log_prob", *folded), info.batch_size), 0


def _log_prob_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    batch, needs = info.batch_size, args[4]
    folded = [fold(x, dim, batch) for x, dim in zip(args[:4], in_dims[:4], strict=True)]
    results = call("gaussian_log_prob_backward", *folded, needs)
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
define(
    "gaussian_log_prob(Tensor z, Tensor mean, Tensor logvar) -> Tensor",
    _log_prob,
    fake=_log_prob_fake,
    vmap=_log_prob_vmap,
    setup=_log_prob_setup,
    gradients=_log_prob_gradients,
)
define(
    "gaussian_log_prob_backward(Tensor z, Tensor mean, Tensor logvar, Tensor gradient, bool[] needs)"
    " -> (Tensor z, Tensor mean, Tensor logvar)",
    _log_prob_backward,
    fake=_log_prob_backward_fake,
    vmap=_log_prob_backward_vmap,
    gradients=no_second_derivative,
)
