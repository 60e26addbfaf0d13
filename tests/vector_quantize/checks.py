"""The checks of vector quantization on every backend, as in tests/gaussian.

Codes are held to float64's distances. Everything else follows from the codes, and the truth of it
is the formula in float64 for the backend's own codes.
"""

from __future__ import annotations

from types import ModuleType

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.vector_quantize.problem import (
    Assigned,
    AssignProblem,
    Gradients,
    Outputs,
    Problem,
)
from tests.backends import Backend, Results
from tests.checks import Sizes, bits_equal, compare

Tensor = torch.Tensor


class QuantizeProblem:
    """Rows, a codebook and upstream gradients, with values that the dtype holds exactly."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, *, whole: bool = False):
        """`whole`: small whole numbers, whose scores are exact, so that many codes tie."""
        g = torch.Generator().manual_seed(sum(sizes))
        groups, rows, codes, cols = sizes

        def draw(*shape: int) -> Tensor:
            if whole:
                return torch.randint(-2, 3, shape, generator=g).to(dtype)
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

        self.sizes, self.dtype = sizes, dtype
        self.z, self.codebook = draw(groups, rows, cols), draw(groups, codes, cols)
        self.g_quantized = draw(groups, rows, cols)
        self.g_commitment, self.g_codebook_loss = (
            draw(groups, rows).to(row_dtype(dtype)) for _ in range(2)
        )

    def run(self, kernels: ModuleType, device: str = "cpu") -> Results:
        """Return everything that a backend computes, through its own interface, on the CPU."""
        groups, rows, codes, cols = self.sizes
        z, codebook = self.z.to(device), self.codebook.to(device)
        row = row_dtype(self.dtype)

        def memory(*shape: int, dtype: torch.dtype = row) -> Tensor:
            return torch.full(shape, -7 if dtype == torch.int64 else torch.nan, dtype=dtype).to(
                device
            )

        assigned = Assigned(
            memory(groups, rows, dtype=torch.int64),
            memory(groups, codes, dtype=torch.int64),
            memory(groups, codes, cols),
        )
        kernels.assign(AssignProblem(self.sizes, z, codebook), assigned)
        problem = Problem(self.sizes, z, codebook, assigned.codes)
        outputs = Outputs(
            memory(groups, rows, cols, dtype=self.dtype), memory(groups, rows), memory(groups, rows)
        )
        kernels.forward(problem, outputs)
        upstream = Outputs(
            *[x.to(device) for x in (self.g_quantized, self.g_commitment, self.g_codebook_loss)]
        )
        gradients = Gradients(
            memory(groups, rows, cols, dtype=self.dtype),
            memory(groups, codes, cols, dtype=self.dtype),
        )
        kernels.backward(problem, upstream, gradients)
        alone = Gradients(
            memory(groups, rows, cols, dtype=self.dtype),
            memory(groups, codes, cols, dtype=self.dtype),
        )
        kernels.backward(problem, Outputs(None, upstream.commitment, None), alone)  # type: ignore[arg-type]
        passed = memory(groups, rows, cols, dtype=self.dtype)
        kernels.backward(
            problem,
            Outputs(upstream.quantized, None, None),  # type: ignore[arg-type]
            Gradients(passed, None),
        )
        found = {
            **assigned._asdict(),
            **outputs._asdict(),
            "z": gradients.z,
            "codebook": gradients.codebook,
            "z_of_commitment": alone.z,
            "codebook_of_nothing": alone.codebook,
            "passed": passed,
        }
        return {name: x.cpu() for name, x in found.items()}

    def formula(self, codes: Tensor, dtype: torch.dtype) -> Results:
        """Return what follows from codes >= 0, by the formulas in `dtype`."""
        count = self.sizes[2]
        z, codebook = self.z.to(dtype), self.codebook.to(dtype)
        members = torch.nn.functional.one_hot(codes, count).to(dtype).transpose(1, 2)
        difference = z - torch.stack([e[own] for e, own in zip(codebook, codes, strict=True)])
        of_commitment = 2 * self.g_commitment.to(dtype).unsqueeze(-1) * difference
        terms = -2 * self.g_codebook_loss.to(dtype).unsqueeze(-1) * difference
        return {
            "sums": members @ z,
            "commitment": difference.square().sum(-1),
            "codebook_loss": difference.square().sum(-1),
            "z": self.g_quantized.to(dtype) + of_commitment,
            "codebook": members @ terms,
            "z_of_commitment": of_commitment,
        }

    def distances(self) -> Tensor:
        """Return the squared distances in float64, [G, N, C]."""
        return (self.z.double().unsqueeze(2) - self.codebook.double().unsqueeze(1)).square().sum(-1)


def check_quantized(backend: Backend, problem: QuantizeProblem) -> None:
    """Check everything that a backend computes.

    A score is a chain of D fma over terms whose sizes sum to at most |z| |e| + |e|^2 / 2, which
    rounding moves by at most (D + 1) u of that (Higham, 2002, section 3.1). Two scores are
    compared, and a distance is twice a score.
    """
    ours = backend.run("vector_quantize", problem.run)
    _, _, count, cols = problem.sizes
    codes, unit = ours.pop("codes"), torch.finfo(row_dtype(problem.dtype)).eps / 2
    lengths = problem.codebook.double().norm(dim=-1).amax(-1)[:, None]
    scores = (problem.z.double().norm(dim=-1) + lengths / 2) * lengths
    distances = problem.distances()
    assert bool(((codes >= 0) & (codes < count)).all())
    excess = distances.gather(-1, codes.unsqueeze(-1))[..., 0] - distances.amin(-1)
    assert bool((excess <= 4 * (cols + 2) * unit * scores).all())

    members = torch.nn.functional.one_hot(codes, count).sum(1)
    assert torch.equal(ours.pop("counts"), members)
    rows = [e[own] for e, own in zip(problem.codebook, codes, strict=True)]
    assert bits_equal(ours.pop("quantized"), torch.stack(rows))
    assert bits_equal(ours["commitment"], ours["codebook_loss"])
    assert bits_equal(ours.pop("passed"), problem.g_quantized)
    assert not ours.pop("codebook_of_nothing").any()

    def floor(name: str, largest: float) -> float:
        dtype = ours[name].dtype
        roundings = {torch.float32: 4, torch.float64: 8}.get(dtype, 1)
        terms = {"commitment": cols, "codebook_loss": cols}.get(name, 1)
        if name in ("sums", "codebook"):  # in float64; only there are they rounded at each row
            terms = problem.sizes[1] if dtype == torch.float64 else 1
        return torch.finfo(dtype).eps * roundings * max(terms, 1) ** 0.5 * (1 + largest)

    truth, torchs = (problem.formula(codes, x) for x in (torch.float64, problem.dtype))
    compare(ours, truth, torchs, floor)
