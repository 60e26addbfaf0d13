"""The checks of relaxed samples on every backend.

The truth is the formula in float64 with autograd's gradients, on the noise of the reference; the
yardstick is the same in the type that the problem is computed in.
"""

from __future__ import annotations

from types import ModuleType

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.relaxed import reference
from latent_kernels.kernels.relaxed.problem import (
    BernoulliOutputs,
    BernoulliProblem,
    CategoricalOutputs,
    CategoricalProblem,
    Gradients,
    Problem,
)
from tests.backends import Backend, Sizes
from tests.checks import compare, is_half

Tensor = torch.Tensor
SEED, OFFSET = 2**33 + 5, 3

# G, S, N, D, K: odd numbers, one class, a whole number of registers, few and many classes on both
# sides of a tile, many samples, no samples, nothing at all.
CATEGORICAL_SIZES: list[Sizes] = [
    (2, 3, 5, 7, 3),
    (1, 1, 64, 20, 10),
    (1, 1, 3, 1, 1),
    (1, 2, 3, 4, 32),
    (1, 2, 2, 15, 100),
    (1, 3, 1, 2, 1500),
    (3, 20, 2, 8, 2),
    (1, 300, 2, 1, 33),
    (1, 1, 700, 3, 5),
    (1, 0, 3, 4, 3),
    (1, 2, 0, 4, 3),
    (1, 2, 3, 0, 3),
]


class RelaxedProblem:
    """Logits and a gradient of the samples, drawn from a seed: of a Categorical, some of whose
    classes are ruled out, if the sizes have K, else of a Bernoulli.
    """

    def __init__(self, sizes: Sizes, dtype: torch.dtype, *, tau: float = 0.6, hard: bool = False):
        generator = torch.Generator().manual_seed(sum(sizes))
        groups, _, *shape = sizes
        self.categorical = len(sizes) == 5
        logits = 2 * torch.randn(groups, *shape, generator=generator, dtype=torch.float64)
        if self.categorical:
            masked = torch.rand(logits.shape, generator=generator) < 0.1
            masked[..., 0] = False
            logits = logits.masked_fill(masked, -torch.inf)
        self.logits = logits.to(dtype)
        self.of_y = torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)
        self.sizes, self.dtype, self.tau, self.hard = sizes, dtype, tau, hard

    def problem(self, device: str = "cpu") -> Problem:
        made = CategoricalProblem if self.categorical else BernoulliProblem
        return made(
            self.sizes,  # type: ignore[arg-type]
            self.logits.to(device),
            SEED,
            OFFSET,
            self.tau,
            self.hard,
        )

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """Return everything that a backend computes, through its own interface, on the CPU."""
        problem, outputs = (
            self.problem(device),
            CategoricalOutputs if self.categorical else BernoulliOutputs,
        )
        y = torch.full(self.sizes, torch.nan, dtype=self.dtype, device=device)
        kernels.forward(problem, outputs(y, None))
        of_logits = torch.full_like(problem.logits, torch.nan)
        kernels.backward(problem, outputs(self.of_y.to(device), y), Gradients(of_logits))
        return {"y": y.cpu(), "logits": of_logits.cpu()}

    def perturbed(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the logits as a leaf, and with their noise."""
        leaf = self.logits.to(dtype).requires_grad_()
        noise = reference._noise(self.problem()).to(dtype)
        return leaf, leaf.unsqueeze(1) - noise

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the same results by the plain formula and autograd, computed in `dtype`."""
        leaf, t = self.perturbed(dtype)
        y = torch.softmax(t / self.tau, -1) if self.categorical else torch.sigmoid(t / self.tau)
        (of_logits,) = torch.autograd.grad(y, leaf, self.of_y.to(dtype))
        return {"y": self.hard_samples() if self.hard else y.detach(), "logits": of_logits}

    def hard_samples(self) -> Tensor:
        """Return the samples for tau -> 0, of float32 noise and logits in their own type."""
        t = self.perturbed(row_dtype(self.dtype))[1].detach()
        if self.categorical:
            return torch.nn.functional.one_hot(t.argmax(-1), t.size(-1)).double()
        return (t > 0).double()


def check_relaxed(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    """Check relaxed and hard samples, and their gradients.

    The sum t of logit and noise is rounded once, which changes y by a factor of up to
    1 + |t| eps / tau and its gradient, of at most |g| / tau, likewise. The samples of halves are
    computed in float32 and rounded; their gradient is made of the rounded ones, whose errors it
    has two or three times.
    """
    for hard in (False, True):
        problem = RelaxedProblem(sizes, dtype, hard=hard)
        ours = backend.run("relaxed", problem.run)
        if hard:
            assert torch.equal(ours["y"].double(), problem.hard_samples())
        if problem.logits.numel() == 0:
            continue
        truth, torchs = problem.formula(torch.float64), problem.formula(row_dtype(dtype))
        t = problem.perturbed(torch.float64)[1].detach()
        largest = float(t[t.isfinite()].abs().max()) if t.numel() else 0.0
        of_y = float(problem.of_y.abs().max()) if t.numel() else 0.0
        eps = torch.finfo(row_dtype(dtype)).eps * (8 + 2 * largest / problem.tau)
        rounding = torch.finfo(dtype).eps if is_half(dtype) else 0.0
        in_gradient = of_y * max(sizes[1], 1) ** 0.5 / problem.tau

        def floor(
            name: str,
            value: float,
            eps: float = eps,
            rounding: float = rounding,
            in_gradient: float = in_gradient,
        ) -> float:
            if name == "y":
                return eps + rounding
            return in_gradient * (eps + 2 * rounding) + value * rounding

        compare(ours, truth, torchs, floor)
