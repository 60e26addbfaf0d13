"""The Gaussian op for plain calls: autograd.Functions straight over the kernels.

They save the inputs and the seed, nothing else; backward makes eps anew.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import as_seeds, in_memory, row_dtype
from latent_kernels.kernels.library import call

Tensor = torch.Tensor


def _rows_of(x: Tensor | None) -> Tensor | None:
    """x where its strides can be handed to a kernel: rows at one distance, or one row repeated;
    else a copy.
    """
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


class Gaussian(torch.autograd.Function):
    """(mean, spread, prior_mean, prior_logvar) of one shape [..., D] -> (z, kl, log_q), None for
    what is not wanted.

    The last argument is (seed, offset, num_samples, spread_is_scale, with_z, with_kl, with_log_q).
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        spread: Tensor,
        prior_mean: Tensor | None,
        prior_logvar: Tensor | None,
        call_options: tuple[int | Tensor, int, int | None, bool, bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """z, kl, log q(z)."""
        seed, offset, num_samples, spread_is_scale, with_z, with_kl, with_log_q = call_options
        shape = mean.shape
        samples = (1 if num_samples is None else num_samples) if with_z else 0
        sizes = (1, samples, math.prod(shape[:-1]), shape[-1])
        z = kl = log_q = None
        if with_z:
            z = _empty(mean, True) if num_samples is None else mean.new_empty((num_samples, *shape))
        if with_kl:
            kl = mean.new_empty(shape[:-1], dtype=row_dtype(mean.dtype))
        kernels = backend("gaussian", mean.device)
        if with_log_q:
            log_q = mean.new_empty(
                (*(() if num_samples is None else (num_samples,)), *shape[:-1]),
                dtype=row_dtype(mean.dtype),
            )
        parameters = (
            _rows_of(mean),
            _rows_of(spread),
            _rows_of(prior_mean),
            _rows_of(prior_logvar),
        )
        kernels.forward(sizes, *parameters, spread_is_scale, seed, offset, z, kl, log_q)
        ctx.set_materialize_grads(False)
        # Not what _rows_of may have copied, which second derivatives could not be refused for.
        if isinstance(seed, Tensor):
            ctx.save_for_backward(mean, spread, prior_mean, prior_logvar, seed)
        else:
            ctx.save_for_backward(mean, spread, prior_mean, prior_logvar)
        ctx.problem = (sizes, spread_is_scale, None if isinstance(seed, Tensor) else seed, offset)
        return z, kl, log_q

    @staticmethod
    def backward(ctx: Any, gz: Tensor | None, gkl: Tensor | None, gq: Tensor | None) -> Any:
        """Gradients of the four inputs."""
        sizes, spread_is_scale, seed, offset = ctx.problem
        mean, spread, prior_mean, prior_logvar, *saved_seed = ctx.saved_tensors
        seed = saved_seed[0] if saved_seed else seed
        needs = ctx.needs_input_grad[:4]
        if gz is None and gkl is None and gq is None:
            return None, None, None, None, None
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: the op knows how to refuse second derivatives
            shape, canonical = mean.shape, (1, *sizes[2:])
            results = call(
                "gaussian_backward",
                None if gz is None else gz.reshape(sizes),
                None if gkl is None else gkl.reshape(canonical[:2]),
                None if gq is None else gq.reshape(sizes[:3]),
                *(
                    None if x is None else x.reshape(canonical)
                    for x in (mean, spread, prior_mean, prior_logvar)
                ),
                as_seeds(seed, mean.device),
                offset,
                sizes[1],
                spread_is_scale,
                needs,
            )
            return (
                *(
                    g.reshape(shape) if need else None
                    for g, need in zip(results, needs, strict=True)
                ),
                None,
            )
        outputs = (
            _empty(mean, needs[0]),
            _empty(mean, needs[1]),
            _empty(mean, needs[2]),
            _empty(mean, needs[3]),
        )
        backend("gaussian", mean.device).backward(
            sizes,
            _rows_of(mean),
            _rows_of(spread),
            _rows_of(prior_mean),
            _rows_of(prior_logvar),
            spread_is_scale,
            seed,
            offset,
            None if gz is None else in_memory(gz),
            None if gkl is None else in_memory(gkl),
            None if gq is None else in_memory(gq),
            outputs,
        )
        return (*outputs, None)


class GaussianPath(torch.autograd.Function):
    """Z of shape [S, ..., D] or [..., D] -> log_q, computed with z, as a function of z alone.

    The last argument is (log_q, logvar, seed, offset), logvar of shape [..., D] and neither with a
    gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, call_options: tuple[Tensor, Tensor, int | Tensor, int]
    ) -> Tensor:
        """log_q itself."""
        log_q, logvar, seed, offset = call_options
        logvar = _rows_of(logvar)  # type: ignore[assignment]
        shape = logvar.shape
        samples = z.size(0) if z.dim() > logvar.dim() else 1
        ctx.problem = (
            (1, samples, math.prod(shape[:-1]), shape[-1]),
            None if isinstance(seed, Tensor) else seed,
            offset,
        )
        # eps comes from the seed: z is kept for the graph, which must know what a second derivative
        # depends on.
        ctx.save_for_backward(z, logvar, *((seed,) if isinstance(seed, Tensor) else ()))
        return log_q

    @staticmethod
    def backward(ctx: Any, gq: Tensor) -> tuple[Tensor, None]:
        """The gradient of z."""
        sizes, seed, offset = ctx.problem
        z, logvar, *saved_seed = ctx.saved_tensors
        seed = saved_seed[0] if saved_seed else seed
        if torch.is_grad_enabled():
            tensors = (gq.reshape(sizes[:3]), z.reshape(sizes), logvar.reshape(1, *sizes[2:]))
            gz: Tensor = call("gaussian_path_backward", *tensors, as_seeds(seed, z.device), offset)
            return gz.reshape(z.shape), None
        gz = torch.empty_like(z, memory_format=torch.contiguous_format)
        backend("gaussian", z.device).path_backward(sizes, logvar, seed, offset, in_memory(gq), gz)
        return gz, None


# The Functions' own apply, past what Function.apply does in Python for torch.func, which `plain`
# has ruled out.
apply_gaussian: Any = super(torch.autograd.Function, Gaussian).apply
apply_path: Any = super(torch.autograd.Function, GaussianPath).apply
