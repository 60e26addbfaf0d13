"""`lk.score_function_gradient` and samples of the families against surrogate losses, formulas and
torch.compile.

Values and z are given, but for the rows that sample: there every contender draws its own. f itself
is not timed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cuda
import harness
import latent_kernels as lk
import peers
from harness import Contest, Group, close, groups, rows

Tensor = torch.Tensor
Shape = tuple[int, int, int]  # S, B, D
Call = Callable[[], Any]

FAMILIES = {
    "gaussian": lk.DiagonalGaussian,
    "bernoulli": lk.Bernoulli,
    "categorical": lk.Categorical,
}
CLASSES = 10
SMALL, LARGE = (16, 64, 20), (64, 256, 256)
SHAPES: tuple[Shape, ...] = (SMALL, (16, 256, 128), LARGE, (1024, 1, 30), (16, 1024, 64))
GPU_SHAPES: tuple[Shape, ...] = ((16, 4096, 256), (64, 4096, 256))
BOTH_SHAPES: tuple[Shape, ...] = (SMALL, (16, 256, 128))
SAMPLED: tuple[Shape, ...] = (SMALL, (16, 1024, 64))

# Operations of an element. Weighted sums: bernoulli a product and a sum; gaussian z - mean, its
# scale, its square and two of each; categorical one sum. Samples: a uniform as bench_noise.py
# counts it; two logarithms of 17, a difference and a comparison; or a product and log2 K
# comparisons.
SUMS = {"gaussian": 7, "bernoulli": 2, "categorical": 1}
DRAW = {"bernoulli": 24 + 36, "categorical": 24 + 1 + math.ceil(math.log2(CLASSES))}
TOLERANCE = 2e-5  # float32 sums of up to 1024 terms of size 1


def _parameters(family: str, shape: Shape, device: str = "cpu") -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    tail = (CLASSES,) if family == "categorical" else ()
    first = torch.randn(*shape[1:], *tail, generator=generator).to(device)
    if family != "gaussian":
        return (first,)
    return first, (torch.randn(shape[1:], generator=generator) * 0.5 - 0.5).to(device)


def _values(shape: Shape, device: str = "cpu") -> Tensor:
    return 3 + torch.randn(shape[:2], generator=torch.Generator().manual_seed(8)).to(device)


def _wide(z: Tensor) -> Tensor:
    return z.double() if z.is_floating_point() else z


def _close(got: Any, expected: Any, what: str) -> None:
    assert len(got) == len(expected)
    for j, (x, y) in enumerate(zip(got, expected, strict=True)):
        close(x.detach(), y, TOLERANCE, f"{what} {j}")


# --- gradients from given samples -----------------------------------------------------------------


def _prepare_gradient(family: str, shape: Shape, backward: bool, device: str) -> Contest:
    """Make calls of the gradient by itself; or, `backward`, of the mean of values and the gradient
    under an upstream one.
    """
    make = FAMILIES[family]
    plain = _parameters(family, shape, device)
    leaves = tuple(x.clone().requires_grad_() for x in plain)
    z, values = make(*plain).sample(shape[0], seed=1), _values(shape, device)
    upstream = None
    if backward:
        upstream = torch.randn(shape[1], generator=torch.Generator().manual_seed(9)).to(device)
    compiled = torch.compile(functools.partial(peers.formula, family))

    def ours() -> Any:
        if upstream is None:
            return lk.score_function_gradient(make(*plain), values, z)
        out = lk.score_function_expectation(make(*leaves), values, z)
        return out, *torch.autograd.grad(out, leaves, upstream)

    def by(name: str, function: Callable[..., Any]) -> Call:
        if upstream is None:
            given = leaves if name == "surrogate" else plain
            return lambda: function(values, z, given, None)
        if name == "surrogate":
            return lambda: (values.mean(0), *function(values, z, leaves, upstream))

        def call() -> Any:
            out = peers.Estimator.apply(function, values, z, *leaves)
            return out, *torch.autograd.grad(out, leaves, upstream)

        return call

    functions = {"surrogate": peers.surrogate, "formula": peers.formula, "sums": peers.sums}
    calls = {name: by(name, functools.partial(f, family)) for name, f in functions.items()}
    calls = {"ours": ours, **calls, "compile": by("compile", compiled)}
    if device == "cuda":
        calls["ours graph"] = cuda.graphed(calls["ours"])
        calls["graph"] = cuda.graphed(calls["sums"])
    f = values.double()
    weight = None if upstream is None else upstream.double()
    expected = peers.formula(family, f, _wide(z), tuple(x.double() for x in plain), weight)
    if backward:
        expected = (f.mean(0), *expected)
    return Contest(calls, lambda contender, out: _close(out, expected, f"{contender}'s output"))


def _counts(family: str, shape: Shape) -> tuple[int, int]:
    """Count the bytes that a gradient reads and writes, and its operations."""
    s, b, d = shape
    of_q = b * d * (CLASSES if family == "categorical" else 2 if family == "gaussian" else 1)
    # z read (classes are int64), values read, parameters read, gradients written
    count = s * b * d * (8 if family == "categorical" else 4) + 4 * s * b + 8 * of_q
    return count, s * b * d * SUMS[family] + 3 * of_q


def _gradient(family: str, backward: bool, shape: Shape, threads: int, device: str) -> Group:
    name = f"score {family} {'forward+backward' if backward else 'gradient'}"
    n, (count, operations) = math.prod(shape), _counts(family, shape)
    if backward:  # values again, their mean and the upstream gradient
        count += 4 * (shape[0] * shape[1] + 2 * shape[1])
    ours, peer_graph = (("ours", "ours graph"), ("graph",)) if device == "cuda" else (("ours",), ())
    names = (*ours, "surrogate", "formula", "sums", "compile", *peer_graph)
    prepare = functools.partial(_prepare_gradient, family, shape, backward, device)
    return Group(name, shape, threads, device, names, n, count, operations, prepare, ours)


# --- samples and gradient -------------------------------------------------------------------------


def _prepare_both(family: str, shape: Shape) -> Contest:
    """Make calls that draw z, then use it; `ours seed` draws it again instead of keeping it."""
    make = FAMILIES[family]
    plain = _parameters(family, shape)
    leaves = tuple(x.clone().requires_grad_() for x in plain)
    values, samples = _values(shape), shape[0]
    draw = peers.sample if family == "gaussian" else peers.sample_by_noise

    def ours() -> Any:
        q = make(*plain)
        z = q.sample(samples)
        return z, lk.score_function_gradient(q, values, z)

    def ours_seed() -> Any:
        q, seed = make(*plain), int(torch.randint(2**63 - 1, ()))
        return q.sample(samples, seed=seed), lk.score_function_gradient(q, values, seed=seed)

    def surrogate() -> Any:
        z = peers.distribution(family, plain).sample((samples,))
        return z, peers.surrogate(family, values, z, leaves, None)

    def formula() -> Any:
        z = peers.sample(family, plain, samples)
        return z, peers.formula(family, values, z, plain, None)

    def one_graph() -> Any:
        z = draw(family, plain, samples)
        return z, peers.formula(family, values, z, plain, None)

    def check(contender: str, out: Any) -> None:
        z, gradients = out
        expected = peers.formula(
            family, values.double(), _wide(z), tuple(x.double() for x in plain), None
        )
        _close(gradients, expected, f"{contender}'s gradient")
        if family == "gaussian":
            harness.moments((z - plain[0]) * torch.exp(-0.5 * plain[1]), 0, 1, 3, "eps")
        else:
            _check_samples(family, plain, z)

    calls = {"ours": ours, "ours seed": ours_seed, "surrogate": surrogate, "formula": formula}
    return Contest(calls | {"compile": torch.compile(one_graph)}, check)


def _sample_and_gradient(family: str, shape: Shape, threads: int, device: str) -> Group:
    n, (count, operations) = math.prod(shape), _counts(family, shape)
    count += n * (8 if family == "categorical" else 4)  # z written
    operations += n * DRAW.get(family, 57)
    name, ours = f"score {family} sample+gradient", ("ours", "ours seed")
    names = (*ours, "surrogate", "formula", "compile")
    prepare = functools.partial(_prepare_both, family, shape)
    return Group(name, shape, threads, device, names, n, count, operations, prepare, ours)


# --- the optimal coefficient, and variances -------------------------------------------------------


def _prepare_variant(family: str, shape: Shape, variant: str) -> Contest:
    plain = _parameters(family, shape)
    q = FAMILIES[family](*plain)
    z, values = q.sample(shape[0], seed=1), _values(shape)
    function = functools.partial(
        peers.formula_optimal if variant == "optimal" else peers.formula_with_variance, family
    )
    compiled = torch.compile(function)

    def ours() -> Any:
        if variant == "optimal":
            return lk.score_function_gradient(q, values, z, control_variate="optimal")
        gradients, variances = lk.score_function_gradient(q, values, z, return_variance=True)
        return gradients + variances

    expected = function(values.double(), _wide(z), tuple(x.double() for x in plain))
    calls = {
        "ours": ours,
        "formula": lambda: function(values, z, plain),
        "compile": lambda: compiled(values, z, plain),
    }
    return Contest(calls, lambda contender, out: _close(out, expected, f"{contender}'s output"))


def _variant(family: str, variant: str, shape: Shape, threads: int, device: str) -> Group:
    n, (count, operations) = math.prod(shape), _counts(family, shape)
    # four sums in place of one, or two; categorical ones over all classes
    operations += 6 * n * (CLASSES if family == "categorical" else 1)
    name, names = f"score {family} {variant}", ("ours", "formula", "compile")
    prepare = functools.partial(_prepare_variant, family, shape, variant)
    return Group(name, shape, threads, device, names, n, count, operations, prepare)


# --- samples --------------------------------------------------------------------------------------


def _check_samples(family: str, parameters: tuple[Tensor, ...], z: Tensor) -> None:
    """Check that the frequency of every class is its probability within six standard errors."""
    logits = parameters[0].double()
    if family == "bernoulli":
        p = torch.sigmoid(logits)
        chances, found = torch.stack([1 - p, p], -1), z.long()
        assert bool(((z == 0) | (z == 1)).all())
    else:
        chances, found = torch.softmax(logits, -1), z
    for k in range(chances.size(-1)):
        p = chances[..., k]
        off = (float((found == k).sum()) - len(z) * float(p.sum())) / (
            len(z) * float((p * (1 - p)).sum())
        ) ** 0.5
        assert abs(off) < 6, f"class {k} is {off:.1f} standard errors off"


def _prepare_samples(family: str, shape: Shape) -> Contest:
    make = FAMILIES[family]
    plain, samples = _parameters(family, shape), shape[0]
    compiled = torch.compile(peers.sample_by_noise)
    calls: dict[str, Call] = {
        "ours": lambda: make(*plain).sample(samples),
        "eager": lambda: peers.sample(family, plain, samples),
        "distributions": lambda: peers.distribution(family, plain).sample((samples,)),
        "compile": lambda: compiled(family, plain, samples),
    }

    def check(contender: str, z: Tensor) -> None:
        assert z.shape == shape
        _check_samples(family, plain, z)

    return Contest(calls, check)


def _samples(family: str, shape: Shape, threads: int, device: str) -> Group:
    classes, width = (CLASSES, 8) if family == "categorical" else (1, 4)
    n, of_q = math.prod(shape), classes * shape[1] * shape[2]
    # parameters read, z written
    count, operations = 4 * of_q + width * n, DRAW[family] * n + 2 * of_q
    name, names = f"sample {family}", ("ours", "eager", "distributions", "compile")
    prepare = functools.partial(_prepare_samples, family, shape)
    return Group(name, shape, threads, device, names, n, count, operations, prepare)


GROUPS: list[Group] = []
# A second thread where it can show most: every row compiles its rival anew, and seconds add up.
for family in FAMILIES:
    one = functools.partial(groups, two=())
    GROUPS += groups(functools.partial(_gradient, family, False), SHAPES, GPU_SHAPES, two=(LARGE,))
    GROUPS += one(functools.partial(_gradient, family, True), BOTH_SHAPES)
    GROUPS += one(functools.partial(_sample_and_gradient, family), SAMPLED)
    GROUPS += one(functools.partial(_variant, family, "optimal"), (LARGE,))
    GROUPS += one(functools.partial(_variant, family, "variance"), (LARGE,))
    if family != "gaussian":
        GROUPS += groups(functools.partial(_samples, family), SAMPLED, two=SAMPLED[-1:])


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_score(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time gradients, by themselves, through autograd or with samples; and samples."""
    harness.run(benchmark, group, contender)
