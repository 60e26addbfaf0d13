"""One checker for every backend of the score-function op; see checks.py for the idea.

The truth is the plain formula (kernels/score/reference.py) in float64, the yardstick the same at
the problem's dtype.
"""

from __future__ import annotations

from types import ModuleType

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.score import reference
from latent_kernels.kernels.score.problem import Problem

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
# Triton's interpreter takes a second for what a GPU does in a microsecond.
SMALL_SCORE_SIZES: list[Sizes] = [
    (1, 16, 24, 20, 3),
    (1, 2, 3, 1, 2),
    (2, 5, 5, 7, 4),
    (1, 3, 2, 1100, 2),
    (1, 77, 1, 5, 3),
    (1, 4, 2, 3, 70),
    (1, 4, 0, 4, 3),
    (1, 4, 3, 0, 3),
]


class ScoreProblem:
    """Parameters, samples, values and an upstream gradient, drawn from a seed; values as their
    dtype holds them.
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
        self.problem = Problem(
            family,
            groups,
            samples,
            rows,
            cols,
            classes,
            per_element,
            method,
            folds if method == "optimal" else 1,
        )
        self.dtype, self.offset = dtype, offset
        count = 2 if family == "gaussian" else 1
        self.parameters = tuple(draw(groups, rows, cols, *tail) for _ in range(count))
        self.seeds = torch.arange(groups) * 2**33 + 5
        self.z: Tensor | None = None
        if not from_seed:
            shape = (groups, *pairs, samples, rows, cols)
            if classes:
                self.z = torch.randint(classes, shape, generator=g)
            elif family == "gaussian":
                self.z = draw(*shape)
            else:
                self.z = (draw(*shape) > 0).to(dtype)
        self.values = 3 + draw(groups, *pairs, samples, *row, as_dtype=of_values)
        self.baseline: Tensor | None = None
        if control.endswith("baseline") and family != "antithetic":
            sampled = samples if control.startswith("sampled") else 1
            self.baseline = draw(groups, sampled, *row, as_dtype=of_values)
        self.upstream = draw(groups, *row, as_dtype=compute) if upstream else None

    def run(self, kernels: ModuleType, device: str = "cpu") -> dict[str, Tensor]:
        """The gradients and variances of a backend, through its own interface; the results on the
        CPU.
        """

        def there(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        def room(dtype: torch.dtype) -> tuple[Tensor, ...]:
            return tuple(
                torch.full(x.shape, torch.nan, dtype=dtype, device=device) for x in self.parameters
            )

        found: dict[str, Tensor] = {}
        for with_variance in (False, True):
            gradients = room(self.dtype)
            variances = room(row_dtype(self.dtype)) if with_variance else None
            inside = kernels.gradient(
                self.problem,
                tuple(x.to(device) for x in self.parameters),
                there(self.z),
                self.seeds.to(device),
                self.offset,
                there(self.values),
                there(self.baseline),
                there(self.upstream),
                gradients,
                variances,
            )
            assert inside
            suffix = " beside its variance" if with_variance else ""
            found |= {f"gradient {j}{suffix}": x.cpu() for j, x in enumerate(gradients)}
            if variances is not None:
                found |= {f"variance {j}": x.cpu() for j, x in enumerate(variances)}
        return found

    def formula(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The same by the plain formula in `dtype`, and the size of the terms that each is a mean
        of.
        """
        q = tuple(x.to(dtype) for x in self.parameters)
        z = (
            self.z
            if self.z is not None
            else reference.regenerate(self.problem, self.parameters, self.seeds, self.offset)
        )
        if self.z is None and self.problem.family == "gaussian":
            z = reference.regenerate(self.problem, q, self.seeds, self.offset)
        z = z if self.problem.classes else z.to(dtype)
        baseline = None if self.baseline is None else self.baseline.to(dtype)
        terms = reference.terms(self.problem, q, z, self.values.to(dtype), baseline)
        weight = torch.ones((), dtype=dtype)
        if self.upstream is not None:
            weight = self.upstream.to(dtype)
            weight = weight if self.problem.per_element else weight.unsqueeze(-1)
            weight = weight.unsqueeze(-1) if self.problem.classes else weight
        found: dict[str, Tensor] = {}
        sizes: dict[str, float] = {}
        for j, term in enumerate(terms):
            mean, variance = term.mean(1) * weight, reference.variance_of_mean(term)
            size = float((term.abs().mean(1) * weight.abs()).max()) if term.numel() else 0.0
            square = float((term**2).mean(1).max()) / self.problem.samples if term.numel() else 0.0
            for name in (f"gradient {j}", f"gradient {j} beside its variance"):
                found[name], sizes[name] = mean, size
            found[f"variance {j}"], sizes[f"variance {j}"] = variance, square
        return found, sizes


def check_score(kernels: ModuleType, problem: ScoreProblem, device: str = "cpu") -> None:
    """Error against float64 at most twice that of same-dtype torch.

    Or, where torch's is nothing by luck, what a sum of S rounded terms may lose: four roundings of
    their mean size, times the root of S. Float64 results have no better truth than float64 itself:
    twice that.
    """
    ours = problem.run(kernels, device)
    truth, sizes = problem.formula(torch.float64)
    torchs, _ = problem.formula(problem.dtype)
    assert ours.keys() == truth.keys()
    for name, got in ours.items():
        want = truth[name]
        assert got.shape == want.shape, name
        assert not got.isnan().any(), f"{name}: an element was not written"
        if got.numel() == 0:
            continue
        unit = torch.finfo(got.dtype).eps * (8 if problem.dtype == torch.float64 else 4)
        floor = unit * (problem.problem.samples**0.5 * sizes[name] + float(want.abs().max()))
        error = float((got.double() - want).abs().max())
        theirs = float((torchs[name].double() - want).abs().max())
        assert error <= max(2 * theirs, floor), (
            f"{name}: error {error:.3g}, torch's {theirs:.3g}, floor {floor:.3g}"
        )
