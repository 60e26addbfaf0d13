"""A small model for the streamed bound's tests, and the unchunked bound beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import latent_kernels as lk

Tensor = torch.Tensor
S, B, D, PIXELS = 20, 4, 5, 3
ESTIMATORS = ("iwae", "stl", "dreg")


class Model:
    """The parameters of q, and a joint density with two parameters of its own."""

    def __init__(self, batch: tuple[int, ...] = (B,), dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.mean, self.logvar = draw(*batch, D).requires_grad_(), draw(*batch, D).requires_grad_()
        self.weight, self.bias = draw(D, PIXELS).requires_grad_(), draw(PIXELS).requires_grad_()
        self.x = draw(*batch, PIXELS)

    @property
    def q(self) -> lk.DiagonalGaussian:
        return lk.DiagonalGaussian(self.mean, self.logvar)

    @property
    def params(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.mean, self.logvar, self.weight, self.bias

    def log_joint(self, z: Tensor) -> Tensor:
        return -((self.x - torch.tanh(z @ self.weight + self.bias)) ** 2).sum(-1) - 0.5 * (
            z * z
        ).sum(-1)

    def streamed(
        self, log_joint: Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> Tensor:
        options = {"params": self.params, "chunk": 7, "seed": 3} | options
        return lk.streamed_bound(self.q, log_joint or self.log_joint, S, **options)


def unchunked(
    q: lk.DiagonalGaussian,
    log_joint: Callable[[Tensor], Tensor],
    samples: int = S,
    estimator: str = "iwae",
    seed: int = 3,
) -> Tensor:
    z, log_q = q.rsample_log_prob(samples, seed=seed, path_derivative=estimator != "iwae")
    return lk.importance_bound(
        log_joint(z) - log_q, estimator=estimator, z=z if estimator == "dreg" else None
    )


def gradients(bound: Tensor, inputs: Sequence[Tensor], **options: Any) -> tuple[Any, ...]:
    """Return the gradients of a weighted sum in which every row has a different weight."""
    rows = torch.linspace(0.5, 2, bound.numel(), dtype=bound.dtype, device=bound.device)
    return torch.autograd.grad((bound * rows.reshape(bound.shape)).sum(), inputs, **options)


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Check equality within 100 float64 roundings of the largest value, since sums of S = 20 terms
    are reordered.
    """
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        assert torch.allclose(a, b, rtol=0, atol=100 * 2.0**-53 * (1 + largest))
