"""The importance-weighted bound of any number of samples in the memory of one chunk of them.

Forward keeps each row's largest log-weight and one sum, and forgets the chunk. Backward draws each
chunk again from the seed, evaluates it again, and adds its gradients to those of the chunks before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.bounds.problem import bound_and_sums, weights
from latent_kernels.kernels.eager import as_int, row_dtype
from latent_kernels.variational._replay import Sources, Surroundings
from latent_kernels.variational.families import DiagonalGaussian

Tensor = torch.Tensor

STREAMED_ESTIMATORS = ("iwae", "stl", "dreg")


def streamed_bound(
    q: DiagonalGaussian,
    log_joint: Callable[[Tensor], Tensor],
    num_samples: int,
    *,
    chunk: int = 64,
    params: Iterable[Tensor] = (),
    estimator: str = "iwae",
    seed: Seed = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return `importance_bound` of S samples of q, in the memory of one chunk of them.

    .. math::
        L_S = \log \frac1S \sum_s w_s, \qquad w_s = p(x, z_s) / q(z_s), \qquad
        \sum_{s \le b} \frac{w_s}{e^{m_b}} = e^{m_a - m_b} \sum_{s \le a} \frac{w_s}{e^{m_a}}
            + \sum_{a < s \le b} \frac{w_s}{e^{m_b}}, \quad m_a = \max_{s \le a} \log w_s

    The value and the gradients are those of the unchunked

    .. code-block:: python

        z, log_q = q.rsample_log_prob(num_samples, seed=seed, path_derivative=estimator != "iwae")
        importance_bound(log_joint(z) - log_q, estimator=estimator, z=z if estimator == "dreg" else
        None)

    up to rounding, with the same noise for every chunk size. Forward keeps [...] values, not even
    log w. Backward draws and evaluates each chunk again (it replays it), and sums the gradients.
    log_joint is thus evaluated twice over S samples, in forward and in backward, and has a graph of
    one chunk at a time. Small chunks take less memory and stay in cache, large ones share the cost
    of a call between more samples: the default suits a decoder on a CPU; choose more on a GPU.

    log_joint must be replayable:

    - It returns the same values for the same z. Autocast is as in forward, and so are torch's
      default random generators (dropout) of the CPU and of the GPUs that q and params are on;
      nothing else is restored. What log_joint changes, it changes twice: running statistics of
      BatchNorm in training mode are updated in forward and in backward.
    - Every tensor that it reads and that requires grad is in `params`: the tensor object that it
      reads, so that one computed outside is listed itself, not what it was computed from. Forward
      evaluates its first chunk with a graph to check that none is missing. q's mean and logvar need
      not be listed.
    - None of `params` is changed between forward and backward; torch's version counters show it.

    Second derivatives are not implemented and raise; so do torch.func's transformations.
    torch.compile breaks its graph at the call (log_joint may call compiled functions itself), so
    that fullgraph=True raises.

    Args:
        q: mean and logvar [..., D]: leaves, or computed, by an encoder for example.
        log_joint: takes z [c, ..., D], c <= chunk, to log p(x, z) [c, ...] of a floating dtype.
        num_samples: S >= 1.
        chunk: how many samples are evaluated together.
        params: the tensors beside z that log_joint's gradients go to; those it does not read get
            None.
        estimator: "iwae", "stl" or "dreg", as `importance_bound` explains.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of q, or None to draw one.
        generator: a torch.Generator to draw the seed from, in place of `seed`.

    Returns:
        The bound [...] in nats, in the dtype of log w = log_joint(z) - log q(z), where log q is
        float32 for half precision. NaN where a log-weight is NaN; -inf where all weights are zero,
        with a gradient of NaN.

    Raises:
        TypeError, ValueError: an argument, or what log_joint returned, is wrong; the message names
            it.
        RuntimeError: log_joint reads a tensor that params lack, or one of params that has hooks or
            was computed from another that it reads; at the call or, where chunks differ, in
            backward. One of params was changed in place before backward.

    Source:
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8;
        Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), for the sums;
        Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost" (2016), for
        evaluating again in place of keeping.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.DiagonalGaussian(torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2))
        >>> offset = torch.ones(2, requires_grad=True)
        >>> bound = lk.streamed_bound(
        ...     q, lambda z: lk.gaussian_log_prob(z, offset, 0.0), 1000, params=[offset], seed=0
        ... )
        >>> bound.shape
        torch.Size([3])
        >>> bound.sum().backward()
        >>> offset.grad.shape
        torch.Size([2])

    """
    if (
        torch.compiler.is_compiling()
    ):  # not a decorator, which would import the compiler with this module
        options: dict[str, Any] = {
            "chunk": chunk,
            "params": params,
            "estimator": estimator,
            "seed": seed,
            "generator": generator,
        }
        eager: Tensor = torch._dynamo.disable(streamed_bound)(q, log_joint, num_samples, **options)
        return eager
    if not isinstance(q, DiagonalGaussian):
        raise TypeError(f"q must be a DiagonalGaussian; got {type(q).__name__}")
    if not callable(log_joint):
        raise TypeError(f"log_joint must be a function of z; got {type(log_joint).__name__}")
    num_samples = _checks.integer("num_samples", num_samples)
    chunk = _checks.integer("chunk", chunk)
    if estimator not in STREAMED_ESTIMATORS:
        if estimator == "vimco":
            raise ValueError(
                "estimator 'vimco' compares all samples and cannot be streamed: use "
                "importance_bound"
            )
        known = ", ".join(repr(name) for name in STREAMED_ESTIMATORS)
        raise ValueError(f"estimator must be one of {known}; got {estimator!r}")
    tensors = (q.mean, q.logvar, *_listed(params))
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "streamed_bound does not work under torch.func (vmap, grad, ...): use importance_bound"
        )
    drawn, _ = _checks.stream(seed, 0, num_samples * q.mean.numel(), q.device, generator)
    seed = as_int(drawn, q.device)
    if isinstance(seed, Tensor):
        seed = seed.clone()  # the caller may advance it before backward
    sources = Sources("log_joint", tensors, "params") if torch.is_grad_enabled() else None
    apply: Any = _StreamedBound.apply
    bound: Tensor = apply(
        _Stream(log_joint, num_samples, chunk, estimator, seed, sources), *tensors
    )
    return bound


def _listed(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an iterable of tensors; got {type(params).__name__}")
    listed = tuple(params)
    for x in listed:
        if not isinstance(x, Tensor):
            raise TypeError(f"params must hold tensors; got {type(x).__name__}")
    return listed


@dataclass(frozen=True)
class _Stream:
    """The samples, and their log-weights, of which any chunk can be computed at any time."""

    log_joint: Callable[[Tensor], Tensor]
    samples: int
    chunk: int
    estimator: str
    seed: int | Tensor
    sources: Sources | None  # None: without gradients

    def starts(self) -> range:
        """Return the indices of the chunks' first samples."""
        return range(0, self.samples, self.chunk)

    def log_weights(self, q: DiagonalGaussian, start: int) -> tuple[Tensor, Tensor]:
        """Return z [c, ..., D] and log w [c, ...] of the chunk that begins at `start`."""
        count, path = min(self.chunk, self.samples - start), self.estimator != "iwae"
        offset = start * q.mean.numel()
        z, log_q = q.rsample_log_prob(count, seed=self.seed, offset=offset, path_derivative=path)
        log_p = self.log_joint(z)
        if not isinstance(log_p, Tensor):
            raise TypeError(f"log_joint must return a torch.Tensor; got {type(log_p).__name__}")
        if log_p.dtype not in _checks.FLOATS:
            raise TypeError(
                f"log_joint must return float32, float64, bfloat16 or float16; got {log_p.dtype}"
            )
        if log_p.shape != log_q.shape:
            wanted, given = tuple(log_q.shape), tuple(z.shape)
            raise ValueError(
                f"log_joint must return shape {wanted} for z {given}; got {tuple(log_p.shape)}"
            )
        _checks.device_of("what log_joint returns", log_p, "z", z)
        return z, log_p - log_q


class _StreamedBound(torch.autograd.Function):
    """The bound as a function of (stream, mean, logvar, *params)."""

    @staticmethod
    def forward(ctx: Any, stream: _Stream, mean: Tensor, logvar: Tensor, *params: Tensor) -> Tensor:
        """Return the bound, from sums that are relative to the largest log-weight so far."""
        surroundings = Surroundings((mean, logvar, *params))
        found: tuple[Tensor, Tensor] | None = None
        with surroundings.autocast():
            for start in stream.starts():
                part = _chunk_sums(stream, mean, logvar, start)
                found = part if found is None else _merged(found, part)
        assert found is not None
        value, sums = found
        surroundings.end()
        ctx.stream, ctx.surroundings = stream, surroundings
        ctx.save_for_backward(mean, logvar, *params, sums)
        # The largest bound of a chunk is inf where the whole is, and NaN where that is: the total
        # is NaN for both.
        bound = sums[0] + (torch.log(sums[1]) - math.log(stream.samples))
        return torch.where(value == math.inf, math.inf, bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the sums of the chunks' gradients."""
        *tensors, sums = ctx.saved_tensors  # raises where one of params was changed since
        held: list[Tensor | None] = [None] * len(tensors)
        with torch.no_grad(), ctx.surroundings.restored():
            for start in ctx.stream.starts():
                for place, g in _chunk_gradients(ctx, tensors, start, sums, gradient):
                    so_far = held[place]
                    # A copy: several gradients may be one tensor. Wide, since a sum of many halves
                    # is no half's.
                    held[place] = (
                        g.to(row_dtype(g.dtype), copy=True) if so_far is None else so_far.add_(g)
                    )
        found = [None if g is None else g.to(x.dtype) for x, g in zip(tensors, held, strict=True)]
        if torch.is_grad_enabled():  # create_graph=True
            once: Any = _Once.apply
            given = [g for g in found if g is not None]
            outputs = iter(once(len(given), *given, gradient, *tensors))
            found = [None if g is None else next(outputs) for g in found]
        return (None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Raise, since log_joint would have to run with tangents."""
        raise NotImplementedError(
            "latent_kernels: streamed_bound has no forward-mode derivatives: use importance_bound"
        )


class _Once(torch.autograd.Function):
    """The gradients as a function of (count, `count` gradients, all that they depend on).

    They have no gradients themselves.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients."""
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Raise, since the graphs of the chunks are gone."""
        raise RuntimeError(
            "latent_kernels: second derivatives of streamed_bound are not implemented: use "
            "importance_bound"
        )


def _chunk_sums(stream: _Stream, mean: Tensor, logvar: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Return a chunk's bound and its sums; the first chunk has a graph, to check where it ends."""
    if start or stream.sources is None:
        _, log_w = stream.log_weights(DiagonalGaussian(mean, logvar), start)
        return bound_and_sums(log_w)
    with torch.enable_grad():
        own = [x.detach().requires_grad_(x.requires_grad) for x in (mean, logvar)]
        _, log_w = stream.log_weights(DiagonalGaussian(*own), start)
        stream.sources.reached(log_w, own)
    return bound_and_sums(log_w)


def _merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the larger bound of two chunks, and their sums relative to the larger log-weight."""
    (first, first_total), (second, second_total) = a[1], b[1]
    top = torch.maximum(first, second)
    total = first_total * torch.exp(first - top) + second_total * torch.exp(second - top)
    return torch.maximum(a[0], b[0]), torch.stack((top, total))


def _chunk_gradients(
    ctx: Any, tensors: Sequence[Tensor], start: int, sums: Tensor, gradient: Tensor
) -> list[tuple[int, Tensor]]:
    """Return one chunk's gradients, each with the index of its input.

    It is a function of its own, so that the chunk's graph is freed when it returns.
    """
    stream, needs = ctx.stream, ctx.needs_input_grad[1:]
    with torch.enable_grad():
        own = [x.detach().requires_grad_(need) for x, need in zip(tensors[:2], needs, strict=False)]
        z, log_w = stream.log_weights(DiagonalGaussian(*own), start)
    places = stream.sources.reached(log_w, own)
    if stream.estimator == "dreg" and z.requires_grad:
        scale = weights(log_w, sums).unsqueeze(-1)
        z.register_hook(lambda g: g * scale.to(g.dtype))
    inputs = [(place, x) for place, x in enumerate(own) if needs[place]]
    inputs += [(place, stream.sources.tensors[place]) for place in places]
    if not inputs:
        return []
    found = torch.autograd.grad(
        log_w, [x for _, x in inputs], weights(log_w, sums, gradient), allow_unused=True
    )
    return [(place, g) for (place, _), g in zip(inputs, found, strict=True) if g is not None]
