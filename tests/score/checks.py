"""The checks of the score-function op on every backend, as in tests/gaussian.

The truth is the plain formula (kernels/score/reference.py) in float64, the yardstick the same at
the problem's dtype.
"""

from __future__ import annotations

from types import ModuleType

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.score import reference
from latent_kernels.kernels.score.problem import Estimate, Problem
from tests.backends import Backend
from tests.checks import compare

Tensor = torch.Tensor
Sizes = tuple[
    int, int, int, int, int
]  # groups, samples, rows, cols, classes of the categorical family

FAMILIES = ["gaussian", "bernoulli", "antithetic", "categorical"]
CONTROLS = ["none", "shared baseline", "sampled baseline", "leave_one_out", "optimal"]

# Odd sizes, one element, rows longer than a tile, many samples of few elements, nothing at all.
SCORE_SIZES: list[Sizes] = [
    (1, 16, 64, 20, 3),
    (1, 2, 3, 1, 2),
    (2, 5, 5, 7, 4),
    (1, 3, 2, 1500, 2),
    (1, 777, 1, 5, 3),
    (3, 64, 2, 8, 17),
    (1, 3, 1, 5000, 1),
    (1, 5000, 3, 6, 2),
    (1, 4, 2, 3, 300),
    (1, 4, 0, 4, 3),
    (1, 4, 3, 0, 3),
]


class ScoreProblem:
    """Parameters, samples, values and an upstream gradient, drawn from a seed, with values that
    their dtype holds exactly.
    """

    def __init__(
        self,
        family: str,
        sizes: Sizes,
        dtype: torch.dtype,
        control: str,
        *,
        per_element: bool = False,
        from_seed: bool = False,
        folds: int = 2,
        upstream: bool = True,
        double_values: bool = False,
        offset: int = 0,
    ):
        g = torch.Generator().manual_seed(sum(sizes) + offset)
        groups, samples, rows, cols, classes = sizes
        classes = classes if family == "categorical" else 0
        compute = row_dtype(dtype)
        pairs = (2,) if family == "antithetic" else ()
        tail = (classes,) if classes else ()
        row = (rows, cols) if per_element else (rows,)

        def draw(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(as_dtype)

        of_values = torch.float64 if double_values else compute
        method = (
            control
            if control in ("leave_one_out", "optimal") and family != "antithetic"
            else "none"
        )
        self.dtype = dtype
        count = 2 if family == "gaussian" else 1
        parameters = [draw(groups, rows, cols, *tail) for _ in range(count)]
        z: Tensor | None = None
        if not from_seed:
            shape = (groups, *pairs, samples, rows, cols)
            if classes:
                z = torch.randint(classes, shape, generator=g)
            elif family == "gaussian":
                z = draw(*shape)
            else:
                z = (draw(*shape) > 0).to(dtype)
        values = 3 + draw(groups, *pairs, samples, *row, as_dtype=of_values)
        baseline: Tensor | None = None
        if control.endswith("baseline") and family != "antithetic":
            sampled = samples if control.startswith("sampled") else 1
            baseline = draw(groups, sampled, *row, as_dtype=of_values)
        self.upstream = draw(groups, *row, as_dtype=compute) if upstream else None
        self.problem = Problem(
            (
                groups,
                *(pairs or (1,)),
                samples,
                1 if baseline is None else baseline.size(1),
                rows,
                cols if per_element else 1,
                cols,
                classes or 1,
            ),
            parameters[0],
            parameters[1] if count == 2 else None,
            z,
            values,
            baseline,
            torch.arange(groups) * 2**33 + 5,
            offset,
            family,
            method,
            folds if method == "optimal" else 1,
            per_element,
        )

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """Return the gradients and variances of a backend, through its own interface, on the
        CPU.
        """

        def outputs(dtype: torch.dtype) -> list[Tensor | None]:
            given = (self.problem.first, self.problem.second)
            return [
                None if x is None else torch.full(x.shape, torch.nan, dtype=dtype, device=device)
                for x in given
            ]

        moved = {
            name: x.to(device)
            for name, x in self.problem._asdict().items()
            if isinstance(x, Tensor)
        }
        problem = self.problem._replace(**moved)
        upstream = None if self.upstream is None else self.upstream.to(device)
        found: dict[str, Tensor] = {}
        for with_variance in (False, True):
            gradients = outputs(self.dtype)
            variances = outputs(row_dtype(self.dtype)) if with_variance else [None, None]
            estimate = Estimate(*gradients, *variances)
            inside = kernels.gradient(problem, upstream, estimate)
            assert inside
            suffix = " beside its variance" if with_variance else ""
            for name, of_both in (
                (f"gradient {{}}{suffix}", gradients),
                ("variance {}", variances),
            ):
                found |= {name.format(j): x.cpu() for j, x in enumerate(of_both) if x is not None}
        return found

    def formula(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the same results by the plain formula in `dtype`, and the size of the terms whose
        mean each result is.
        """
        given = self.problem
        z = reference.regenerate(given) if given.z is None else given.z

        def wide(x: Tensor | None) -> Tensor | None:
            return x.to(dtype) if x is not None and x.is_floating_point() else x

        problem = given._replace(
            **{
                name: wide(getattr(given, name))
                for name in ("first", "second", "values", "baseline")
            },
            z=wide(z),
        )
        if given.z is None and given.family == "gaussian":
            problem = problem._replace(z=reference.regenerate(problem))
        terms = reference.terms(problem)
        weight = torch.ones((), dtype=dtype)
        if self.upstream is not None:
            weight = self.upstream.to(dtype)
            weight = weight if self.problem.per_element else weight.unsqueeze(-1)
            weight = weight.unsqueeze(-1) if self.problem.counts[-1] else weight
        found: dict[str, Tensor] = {}
        sizes: dict[str, float] = {}
        for j, term in enumerate(terms):
            variance = reference.variance_of_mean(self.problem.control, term)
            coupling, term = torch.as_tensor(term.coupling, dtype=dtype), term.each
            mean = term.mean(1) * weight
            size = float((term.abs().mean(1) * weight.abs()).max()) if term.numel() else 0.0
            square = (
                float((term**2).mean(1).max()) / self.problem.counts[1] if term.numel() else 0.0
            )
            # rounding of a coefficient moves (a_k - a_l)^2 B_k B_l in proportion to its root
            if term.numel():
                moved = coupling.abs().sqrt() * term.abs().mean(1)
                square += 2 * float(moved.max()) / self.problem.counts[1]
            for name in (f"gradient {j}", f"gradient {j} beside its variance"):
                found[name], sizes[name] = mean, size
            found[f"variance {j}"], sizes[f"variance {j}"] = variance, square
        return found, sizes


def check_score(backend: Backend, problem: ScoreProblem) -> None:
    """Check that the error against float64 is at most twice that of torch in the same dtype.

    Or, where torch's is nothing by luck, what a sum of S rounded terms may lose: four roundings of
    their mean size, times the root of S. Float64 results have no better truth than float64 itself:
    twice that.
    """
    ours = backend.run("score", problem.run)
    truth, sizes = problem.formula(torch.float64)
    torchs, _ = problem.formula(problem.dtype)

    def floor(name: str, largest: float) -> float:
        unit = torch.finfo(ours[name].dtype).eps * (8 if problem.dtype == torch.float64 else 4)
        return unit * (problem.problem.counts[1] ** 0.5 * sizes[name] + largest)

    compare(ours, truth, torchs, floor)
