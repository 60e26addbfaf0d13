"""The checks of unrolled soft-thresholding on every backend, as in tests/gaussian.

The truth is the plain formula (kernels/lista/reference.py) in float64 with autograd, the yardstick
the same at the problem's dtype. Where an entry sits on its threshold to within rounding, either
side is right and gradients jump between them: problems are drawn until no entry does
(`clear_problem`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.description import Tape
from latent_kernels.kernels.lista import reference
from latent_kernels.kernels.lista.problem import Gradients, Outputs, Problem
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode
from tests.checks import bits_equal

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # rows, features, components, layers

# With a matrix between the layers or a dictionary, each with steps and without.
FORMS = ["recurrent", "steps", "residual", "residual steps"]
NAMES = Gradients._fields

# One of each, no multiple of a register, registers exactly, more than a tile of rows, more than a
# chunk, no rows.
LISTA_SIZES: list[Sizes] = [
    (1, 1, 1, 1),
    (1, 5, 7, 3),
    (3, 1, 4, 2),
    (5, 4, 1, 3),
    (2, 17, 33, 4),
    (9, 16, 64, 3),
    (70, 20, 50, 4),
    (40, 33, 65, 2),
    (4, 9, 300, 2),
    (8, 70, 15, 6),
    (600, 6, 10, 3),
    (0, 3, 4, 2),
]
# Thresholds of every shape and from none to all of the codes beyond them, everything shared or of
# its layer.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"threshold": "components", "bias": True, "initial": True},
    {"threshold": "layers", "layered": True, "positive": True},
    {"threshold": "both", "layered": True, "bias": True, "initial": True, "select": 2},
    {"threshold": "components", "bias": True, "select": "growing", "positive": True},
    {"theta": 0.05, "initial": True, "inputs": 0.2},
    {"theta": 1.2, "layered": True},
    {"theta": 2.0, "threshold": "components", "initial": True, "bias": True},
    {"theta": 0.0, "initial": True, "threshold": "both"},
    {"theta": 0.0, "positive": True, "bias": True, "select": 1},
    {"theta": 1e6, "bias": True, "initial": True},
]


class Tensors(NamedTuple):
    """The tensors of a problem."""

    x: Tensor
    weight: Tensor
    threshold: Tensor
    bias: Tensor | None = None
    recurrent: Tensor | None = None
    dictionary: Tensor | None = None
    step: Tensor | None = None
    initial: Tensor | None = None


class Choices(NamedTuple):
    """The options of a problem."""

    layers: int
    positive: bool = False
    select: tuple[int, ...] | None = None


def as_problem(tensors: Tensors, choices: Choices) -> Problem:
    sizes = (*tensors.x.shape, tensors.weight.size(-1))
    return Problem(sizes, *tensors, *choices)  # type: ignore[arg-type]


def forward(
    kernels: ModuleType, tensors: Tensors, choices: Choices, with_tape: bool = False
) -> tuple[Tensor, Tape | None]:
    """Return the codes through a backend's own interface, and the tape if it is asked for."""
    problem = as_problem(tensors, choices)
    tape = Tape((False,) * len(NAMES)) if with_tape else None
    z = tensors.x.new_full((problem.sizes[0], problem.sizes[2]), torch.nan)
    kernels.forward(problem, Outputs(z, tape))
    return z, tape


def backward(
    kernels: ModuleType,
    tensors: Tensors,
    choices: Choices,
    tape: Tape | None,
    upstream: Tensor,
    wanted: tuple[bool, ...],
) -> Gradients:
    """Return the gradients of the wanted tensors through a backend's own interface."""
    gradients = Gradients(
        *(
            None if t is None or not w else torch.full_like(t, torch.nan)
            for t, w in zip(tensors, wanted, strict=True)
        )
    )
    kernels.backward(as_problem(tensors, choices), Outputs(upstream, tape), gradients)
    return gradients


class ListaProblem:
    """The tensors of some layers and an upstream gradient, drawn from a seed, with values that
    their dtype holds exactly.

    Sizes of the matrices keep the codes of all layers near one.
    """

    def __init__(
        self,
        form: str,
        sizes: Sizes,
        dtype: torch.dtype = torch.float32,
        *,
        threshold: str = "number",
        theta: float = 0.3,
        layered: bool = False,
        bias: bool = False,
        initial: bool = False,
        positive: bool = False,
        select: int | str | None = None,
        inputs: float = 1.0,
        seed: int = 0,
    ):
        g = torch.Generator().manual_seed(sum(sizes) + 1000 * seed)
        rows, m, n, layers = sizes
        self.sizes, self.dtype = sizes, dtype

        def draw(*shape: int, scale: float = 1.0, share: float = 1.0) -> Tensor:
            x = torch.randn(shape, generator=g, dtype=torch.float64) * scale
            return (x * (torch.rand(shape, generator=g) <= share)).to(dtype)

        def around(middle: float, *shape: int) -> Tensor:
            return (middle * (0.5 + torch.rand(shape, generator=g, dtype=torch.float64))).to(dtype)

        residual = form.startswith("residual")
        of_layers = (layers,) if layered else ()
        shapes = {"number": (), "components": (n,), "layers": (layers, 1), "both": (layers, n)}
        none = layers == 1 and not initial and seed % 2 == 0
        self.tensors = Tensors(
            x=draw(rows, m, share=inputs),
            weight=draw(*(of_layers if residual else ()), m, n, scale=max(m, 1) ** -0.5),
            threshold=around(theta, *shapes[threshold]),
            bias=draw(n, scale=0.3) if bias and not residual else None,
            recurrent=None
            if residual or none
            else draw(*of_layers, n, n, scale=0.6 * max(n, 1) ** -0.5),
            dictionary=draw(n, m, scale=0.6 * max(n, 1) ** -0.5) if residual else None,
            step=around(0.6, *of_layers) if "steps" in form else None,
            initial=draw(rows, n, share=min(inputs, 0.6)) if initial else None,
        )
        counts = None
        if select is not None:
            counts = tuple(t if select == "growing" else int(select) for t in range(layers))
        self.choices = Choices(layers, positive, counts)
        self.upstream = draw(rows, n)
        self._formula: dict[torch.dtype, dict[str, Tensor]] = {}
        self._clear: bool | None = None

    def run(self, kernels: ModuleType, wanted: tuple[bool, ...] | None = None) -> dict[str, Tensor]:
        """Return the codes and the gradients of the wanted tensors through a backend's own
        interface.

        With a tape, twice from one, and without: the same bits.
        """
        tensors, choices = self.tensors, self.choices
        if wanted is None:
            wanted = tuple(t is not None for t in tensors)
        z, tape = forward(kernels, tensors, choices, True)
        again, nothing = forward(kernels, tensors, choices, False)
        assert nothing is None
        assert bits_equal(again, z)
        found = backward(kernels, tensors, choices, tape, self.upstream, wanted)
        for kept in (tape, None):
            same = backward(kernels, tensors, choices, kept, self.upstream, wanted)
            for name, a, b, w in zip(NAMES, found, same, wanted, strict=True):
                assert (a is not None) == w == (b is not None), name
                assert a is None or bits_equal(a, b), f"{name}: the tape makes a difference"
        return {"z": z} | {
            f"d_{name}": g for name, g in zip(NAMES, found, strict=True) if g is not None
        }

    def formula(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the same results by the plain formula and autograd, computed in `dtype`."""
        if dtype in self._formula:
            return self._formula[dtype]
        leaves = Tensors(
            *(None if t is None else t.to(dtype).requires_grad_() for t in self.tensors)
        )  # type: ignore[arg-type]
        z = reference.encode(as_problem(leaves, self.choices))
        given = {name: t for name, t in zip(NAMES, leaves, strict=True) if t is not None}
        gradients = torch.autograd.grad(
            z, list(given.values()), self.upstream.to(dtype), allow_unused=True
        )
        found = {"z": z.detach()}
        for (name, t), g in zip(given.items(), gradients, strict=True):
            found[f"d_{name}"] = torch.zeros_like(t) if g is None else g
        self._formula[dtype] = {name: x.detach() for name, x in found.items()}
        return self._formula[dtype]

    def is_clear(self) -> bool:
        """Return whether rounding cannot move any entry across its threshold, or across the bound
        of the selection.
        """
        if self._clear is None:
            self._clear = self.stands_clear()
        return self._clear

    def stands_clear(self, least: float = 0.0) -> bool:
        """Return whether entries are away from their thresholds by four times the difference that
        the dtype makes to them, or by `least`.
        """
        if self.tensors.x.numel() == 0:
            return True
        exact = by_hand(self.tensors, self.choices, torch.float64)
        rounded = by_hand(self.tensors, self.choices, self.dtype)
        for t, ((u, _), (v, _)) in enumerate(zip(exact, rounded, strict=True)):
            error = 4 * max(
                float((u - v).abs().max()),
                torch.finfo(self.dtype).eps * (1 + float(u.abs().max())),
                least / 4,
            )
            theta = of_layer_and_component(
                self.tensors.threshold.double(), self.choices.layers, u.size(-1)
            )[t]
            size = u if self.choices.positive else u.abs()
            if bool((((size - theta).abs() <= error) & (u != 0)).any()):
                return False
            k = 0 if self.choices.select is None else self.choices.select[t]
            if 0 < k < u.size(-1):
                size = torch.where(size > theta, size, 0.0)
                first = size.topk(k + 1).values
                if bool(((first[:, k - 1] - first[:, k] <= error) & (first[:, k] > 0)).any()):
                    return False
        return True


def clear_problem(
    form: str,
    sizes: Sizes,
    dtype: torch.dtype = torch.float32,
    *,
    margin: float = 0.0,
    **options: Any,
) -> ListaProblem:
    """Return the first problem with all entries away from their thresholds, by rounding or by
    `margin`.
    """
    first = options.pop("seed", 0)
    for seed in range(first, first + 60):
        problem = ListaProblem(form, sizes, dtype, seed=seed, **options)
        if problem.stands_clear(margin):
            return problem
    raise AssertionError("every problem has an entry on its threshold")


def encode(tensors: Tensors, choices: Choices) -> Tensor:
    """Return the codes by the public functions."""
    t = tensors
    options: dict[str, Any] = {
        "n_layers": choices.layers,
        "positive": choices.positive,
        "select": choices.select,
    }
    if t.dictionary is not None:
        return coupled_lista_encode(
            t.x, t.dictionary, t.weight, t.threshold, step=t.step, initial=t.initial, **options
        )
    return lista_encode(
        t.x,
        t.weight,
        t.recurrent,
        t.threshold,
        bias=t.bias,
        step=t.step,
        initial=t.initial,
        **options,
    )


# --- the formula once more, written another way ---------------------------------------------------


def of_layer_and_component(threshold: Tensor, layers: int, n: int) -> Tensor:
    """Return the thresholds as [T, n], whatever their shape."""
    return threshold.expand(layers, n)


def by_hand(tensors: Tensors, choices: Choices, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer its entries before the threshold and its codes, by columns, with every
    default written out.

    Column form as the papers have it: A = W^T, S^T and so on, one sample a column.
    """
    x, weight, threshold, bias, recurrent, dictionary, step, initial = (
        None if t is None else t.detach().to(dtype) for t in tensors
    )
    assert x is not None
    assert weight is not None
    assert threshold is not None
    layers, n = choices.layers, weight.size(-1)
    thetas = of_layer_and_component(threshold, layers, n)
    steps = torch.ones(layers, dtype=dtype) if step is None else step.expand(layers)
    z = torch.zeros(n, x.size(0), dtype=dtype) if initial is None else initial.T
    found = []
    for t in range(layers):
        if dictionary is not None:
            w = weight.expand(layers, *weight.shape[-2:])[t]
            u = z - steps[t] * (w.T @ (dictionary.T @ z - x.T))
        else:
            s = (
                torch.zeros(n, n, dtype=dtype)
                if recurrent is None
                else recurrent.expand(layers, n, n)[t]
            )
            u = weight.T @ x.T + s.T @ z
            if bias is not None:
                u = u + bias[:, None]
            if step is not None:
                u = z + steps[t] * u
        theta = thetas[t][:, None]
        z = torch.clamp(u - theta, min=0)
        if not choices.positive:
            z = z - torch.clamp(-u - theta, min=0)
        k = 0 if choices.select is None else choices.select[t]
        if k > 0:
            size = u if choices.positive else u.abs()
            rank = size.argsort(0, descending=True).argsort(0)
            z = torch.where((rank < k) & (size > theta), u, z)
        found.append((u.T.double(), z.T.double()))
    return found


# --- the checker ----------------------------------------------------------------------------------


def terms_of(name: str, sizes: Sizes) -> int:
    """Return how many terms are summed for one element, of the result or of an intermediate."""
    rows, m, n, _ = sizes
    summed = {"z": 0, "d_x": 0, "d_initial": 0, "d_threshold": rows * n, "d_step": rows * n}
    return max(m, n) + summed.get(name, rows)


def check_lista(kernels: ModuleType, problem: ListaProblem, build: str = "") -> dict[str, Tensor]:
    """Check that the error against float64 is at most twice that of torch in the same dtype, as
    checks.check does; return the results.

    Where torch happens to be more exact than its dtype promises, the bound does not fall below one
    rounding for each layer, times the root of the number of terms that a sum has: of the largest
    value, or of one, which is the scale of a term, since a sum may cancel. Terms of a step's or
    threshold's gradient are products of two such results, of two factors each: four roundings.
    Gradients only where no entry stands on its threshold.
    """
    ours, truth, torchs = (
        problem.run(kernels),
        problem.formula(torch.float64),
        problem.formula(problem.dtype),
    )
    assert ours.keys() == truth.keys()
    clear = problem.is_clear()
    for name, got in ours.items():
        want = truth[name]
        assert got.shape == want.shape, name
        assert got.dtype == problem.dtype, name
        assert not got.isnan().any(), f"{name}: an element was not written"
        if got.numel() == 0 or (name != "z" and not clear):
            continue
        unit = (
            torch.finfo(got.dtype).eps
            * problem.choices.layers
            * (8 if problem.dtype == torch.float64 else 1)
        )
        roundings = (4 if name in ("d_step", "d_threshold") else 1) * terms_of(
            name, problem.sizes
        ) ** 0.5
        floor = unit * roundings * (1 + float(want.abs().max()))
        error = float((got.double() - want).abs().max())
        theirs = float((torchs[name].double() - want).abs().max())
        bound = max(2 * theirs, floor)
        assert error <= bound, (
            f"{name}: error {error:.3g}, torch's {theirs:.3g}, floor {floor:.3g} {build}"
        )
    return ours


def check_every_build(kernels: ModuleType, problem: ListaProblem) -> None:
    """Check the same with every build of the C++ kernels that this processor supports; their
    results must be equal bit for bit.
    """
    first: dict[str, Tensor] = {}
    for build in _core.simd_builds():
        assert _core.select_simd_build(build)
        found = check_lista(kernels, problem, build)
        first = first or found
        for name, x in found.items():
            assert bits_equal(x, first[name]), (
                f"{name}: {build} differs from {_core.simd_builds()[0]}"
            )
