"""Sparse encoders in plain torch, as an expert writes them; the test problems, their answers in
float64, and the memory of a training step.

`python bench/lista_peers.py CONTENDER FORM m n batch layers density` prints the bytes that a
training step takes: the benchmark runs it as a process of its own, because the high-water mark of
memory is one of a process.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode

Tensor = torch.Tensor
Shape = tuple[int, int, int, int]  # m, n, batch, layers
Shrink = Callable[[Tensor, Tensor, Tensor], Tensor]

FIELDS = ("x", "weight", "inner", "threshold", "step", "upstream")
# The tensors that training changes: with steps, and in the coupled form, the dictionary is fixed.
LEARNED = {
    "tied": ("weight", "inner", "threshold"),
    "untied": ("weight", "inner", "threshold"),
    "step": ("threshold", "step"),
    "coupled": ("weight", "threshold"),
}
UNIT = 2.0**-24  # of float32's roundings
MARGIN = 32 * UNIT  # relative to the sum of absolute terms; torch's own errors were up to 21 units
SAMPLED_ROWS = 128  # that thresholds are found by


class Problem(NamedTuple):
    """The inputs of all contenders. `inner` is the matrix applied between layers: S, or the
    dictionary in the coupled form.
    """

    form: str
    x: Tensor  # [N, m]
    weight: Tensor  # [m, n]; coupled [T, m, n]
    inner: Tensor  # [n, n]; untied [T, n, n]; coupled [n, m]
    threshold: Tensor  # [T, n]
    step: Tensor | None  # [T]
    upstream: Tensor  # [N, n], the gradient of the loss by the codes

    def learned(self) -> tuple[Tensor, ...]:
        """Return the tensors whose gradients are asked for."""
        return tuple(getattr(self, name) for name in LEARNED[self.form])

    def leaves(self) -> Problem:
        """Return the same problem, whose learned tensors require gradients."""
        return self._replace(
            **{name: getattr(self, name).clone().requires_grad_() for name in LEARNED[self.form]}
        )

    def rows(self, which: Any) -> Problem:
        """Return the problem with some of its rows."""
        return self._replace(x=self.x[which], upstream=self.upstream[which])

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem in another dtype."""
        cast = {
            name: getattr(self, name).to(dtype)
            for name in FIELDS
            if getattr(self, name) is not None
        }
        return self._replace(**cast)


# --- the contenders -------------------------------------------------------------------------------

# Six ways to write soft-thresholding were timed, forward and trained, eager and compiled, at the
# shapes of the rows. A threshold for each component rules out torch.nn.functional.softshrink.


def by_clamp(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Threshold by clamp, the fastest way forward, eager and compiled; in place it would be 2%
    faster.
    """
    return u - u.clamp(low, high)


def by_relu(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Threshold by two relus, the fastest way to train in eager mode: the gradients of clamp by its
    bounds cost more than a second relu.
    """
    return torch.relu(u - high) - torch.relu(low - u)


def by_sign(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Threshold by sign, the fastest way to train once compiled: it takes 0.7 of the time of
    `by_relu`, but in eager mode 4% more.
    """
    return torch.sign(u) * torch.relu(u.abs() - high)


SHRINK = {  # contender, and whether it is trained
    ("eager", False): by_clamp,
    ("compile", False): by_clamp,
    ("eager", True): by_relu,
    ("compile", True): by_sign,
}


def encode(
    form: str,
    shrink: Shrink,
    x: Tensor,
    weight: Tensor,
    inner: Tensor,
    threshold: Tensor,
    step: Tensor | None,
) -> Tensor:
    """Return the codes: each layer is a product that also adds, followed by soft-thresholding."""
    highs, lows = threshold.unbind(0), (-threshold).unbind(0)
    weights = weight.unbind(0) if form == "coupled" else (weight,) * len(highs)
    inners = inner.unbind(0) if form == "untied" else (inner,) * len(highs)
    drive = x @ weights[0]
    z = shrink(drive if step is None else step[0] * drive, lows[0], highs[0])
    for t in range(1, len(highs)):
        if form == "coupled":
            u = torch.addmm(z, torch.addmm(x, z, inner, alpha=-1), weights[t])
        else:
            u = torch.addmm(drive, z, inners[t])
        if step is not None:
            u = torch.addcmul(z, u, step[t])
        z = shrink(u, lows[t], highs[t])
    return z


def ours(
    form: str, x: Tensor, weight: Tensor, inner: Tensor, threshold: Tensor, step: Tensor | None
) -> Tensor:
    """Return the codes computed by this library."""
    if form == "coupled":
        return coupled_lista_encode(x, inner, weight, threshold, n_layers=len(threshold))
    return lista_encode(x, weight, inner, threshold, n_layers=len(threshold), step=step)


def contender(name: str, form: str, train: bool) -> Callable[..., Tensor]:
    """Return the contender's function from a problem's tensors to its codes."""
    if name == "ours":
        return functools.partial(ours, form)
    function = functools.partial(encode, form, SHRINK[name, train])
    return torch.compile(function, fullgraph=True) if name == "compile" else function


def codes(function: Callable[..., Tensor], given: Problem) -> Tensor:
    """Return the codes, without a graph."""
    with torch.no_grad():
        return function(given.x, given.weight, given.inner, given.threshold, given.step)


def gradients(function: Callable[..., Tensor], given: Problem) -> tuple[Tensor, ...]:
    """Return the gradients of the learned tensors, where `given` has leaves."""
    z = function(given.x, given.weight, given.inner, given.threshold, given.step)
    return torch.autograd.grad(z, given.learned(), given.upstream)


# --- the problem ----------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One layer of the formulas."""

    u: Tensor  # [N, n], before the threshold
    magnitude: Tensor  # [N, n], sums of the absolute terms of u, which scale its rounding errors
    z: Tensor


def layers(given: Problem) -> Iterator[Layer]:
    """Yield the layers in order, written like the formulas and independently of the contenders."""
    form, x, weight, inner, threshold, step, _ = given
    z = torch.zeros_like(given.upstream)
    for t in range(len(threshold)):
        w = weight[t] if form == "coupled" else weight
        s = inner[t] if form == "untied" else inner
        with torch.no_grad():
            size = z.abs() @ s.abs()
            size = (
                z.abs() + (x.abs() + size) @ w.abs()
                if form == "coupled"
                else x.abs() @ w.abs() + size
            )
        u = z + (x - z @ s) @ w if form == "coupled" else x @ w + z @ s
        if step is not None:
            with torch.no_grad():
                size = z.abs() + step[t] * size
            u = z + step[t] * u
        z = torch.sign(u) * (u.abs() - threshold[t]).clamp_min(0)
        yield Layer(u, size, z)


@functools.cache
def problem(form: str, shape: Shape, density: float) -> Problem:
    """Return a problem: ISTA's weights for a unit-norm Gaussian dictionary, sparse signals with
    noise of -40 dB, and thresholds at which the codes have the requested density, as a mean over
    layers and rows. Raise AssertionError if it is off by more than 10%.

    Weights begin at ISTA's, so that density falls from layer to layer as in an encoder that is
    being trained. What differs between layers (steps, or W_t, S_t made of them) is in 0.9 to 1 of 1
    / L: no layer expands an error.

    No |u| lies within `MARGIN` of its threshold: rows with such an entry are drawn again (1 to 3%
    of them, at 60% density 18%). Rounding may leave such an entry 0 or not; its code moves by no
    more than the rounding error, but the gradients have a step there, and two right answers would
    differ by a whole term. Without such entries every contender's support is that of float64, and
    gradients can be held to rounding errors alone.
    """
    m, n, batch, count = shape
    generator = torch.Generator().manual_seed(m + n + batch + count)
    wide: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    d = torch.nn.functional.normalize(torch.randn(n, m, **wide), dim=1)
    lipschitz = torch.linalg.matrix_norm(d, 2) ** 2
    steps = (1 - 0.1 * torch.rand(count, **wide)) / lipschitz
    eye = torch.eye(n, dtype=torch.float64)
    ways: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor | None]]] = {
        "tied": lambda: (d.t() / lipschitz, eye - d @ d.t() / lipschitz, None),
        "untied": lambda: (
            d.t() / lipschitz,
            torch.stack([eye - s * d @ d.t() for s in steps]),
            None,
        ),
        "step": lambda: (d.t(), -d @ d.t(), steps),
        "coupled": lambda: (torch.stack([s * d.t() for s in steps]), d, None),
    }
    weight, inner, step = ways[form]()

    def draw(rows: int) -> Tensor:
        z = torch.randn(rows, n, **wide) * (torch.rand(rows, n, **wide) < min(density, 0.1))
        x = z @ d
        return (x + 0.01 * x.square().mean().sqrt() * torch.randn(rows, m, **wide)).float()

    shape_of_threshold = 0.9 + 0.2 * torch.rand(count, n, **wide)
    upstream = torch.randn(batch, n, **wide)
    given = Problem(
        form, draw(batch), weight.contiguous(), inner, shape_of_threshold, step, upstream
    ).to(torch.float32)
    if density == 1:
        return given._replace(threshold=torch.zeros(count, n))

    def scaled() -> Problem:
        return given._replace(
            threshold=given.threshold * _scale(given.rows(slice(SAMPLED_ROWS)), density)
        )

    found, todo = scaled(), torch.arange(batch)
    densities = torch.zeros(batch, dtype=torch.float64)
    while len(todo):
        near = torch.zeros(len(todo), dtype=torch.bool)
        densities[todo] = 0
        for layer, threshold in zip(
            layers(found.rows(todo).to(torch.float64)), found.threshold, strict=True
        ):
            gap = (layer.u.abs() - threshold.double()).abs()
            near |= (gap < MARGIN * layer.magnitude).any(1)
            densities[todo] += (layer.z != 0).double().mean(1) / count
        todo = todo[near]
        given.x[todo] = draw(len(todo))
        if batch <= SAMPLED_ROWS and len(
            todo
        ):  # few rows: replacing one of them may have changed the density
            found, todo = scaled(), torch.arange(batch)
    measured = densities.mean().item()
    assert abs(measured - density) <= 0.1 * density, (
        f"the codes are {measured:.2%} dense, not {density:.2%}"
    )
    return found


def _scale(given: Problem, density: float) -> float:
    """Return the factor of the thresholds at which the codes have the requested mean density, by
    bisection.
    """
    low, high = 0.0, 4.0
    for _ in range(20):
        middle = (low + high) / 2
        found = layers(given._replace(threshold=given.threshold * middle))
        dense = sum((layer.z != 0).double().mean().item() for layer in found) / len(given.threshold)
        low, high = (middle, high) if dense > density else (low, middle)
    return (low + high) / 2


# --- the answer -----------------------------------------------------------------------------------


class Truth(NamedTuple):
    """The answer in float64 and the error that float32 may have."""

    codes: Tensor
    gradients: tuple[Tensor, ...]
    allowed: Tensor  # [N], by the 2-norm of a row of codes
    allowed_gradients: float  # by the Frobenius norm of a gradient, relative to its own


@functools.lru_cache(maxsize=1)
def truth(form: str, shape: Shape, density: float, train: bool) -> Truth:
    """Return the codes and, for training, the gradients of `problem(form, shape, density)` in plain
    torch and float64, with tolerances.

    Codes: a u that adds k terms is off by about sqrt(k) units of its magnitude (at most k of them;
    Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019). Neither
    soft-thresholding nor the layers' matrices (eigenvalues of I - gamma D D^T: 0 to 1) lengthen a
    row of errors, and errors of different layers are independent: the sum of their squares bounds
    the square of the whole. Supports do not enter, since the codes are continuous.

    Gradients: supports are those of float64, see `problem`. Then a gradient is a sum of products of
    a code and a gradient of u, each with an error, relative to the code, of what has just been
    said. Errors of random sign add up in squares as the terms themselves do, so that the whole
    gradient is off, relative to its norm, by as much as a term: sqrt(K) units times magnitude /
    code, with K the roundings of all layers, and of the sum over rows. A single term left out, of a
    million, is about 1e-3 of the norm: tolerances are below 1e-4.
    """
    given = problem(form, shape, density).to(torch.float64)
    if train:
        given = given.leaves()
    m, _, batch, count = shape
    squares, condition, z = torch.zeros(batch, dtype=torch.float64), 1.0, given.upstream
    terms = m + 4.0
    for layer in layers(given):
        most = float((z != 0).sum(1).max()) if z is not given.upstream else 0.0
        squares += (m + most + 4) * UNIT**2 * layer.magnitude.square().sum(1)
        z = layer.z
        size = (layer.magnitude * (z != 0)).norm() / z.detach().norm()
        condition, terms = max(condition, size.item()), max(terms, m + most + 4)
    relative = condition * UNIT * math.sqrt(count * terms + count * density * batch)
    found = torch.autograd.grad(z, given.learned(), given.upstream) if train else ()
    return Truth(z.detach(), found, squares.sqrt(), relative)


def check_codes(got: Tensor, expected: Truth) -> None:
    """Check that every row is within its tolerance."""
    assert got.shape == expected.codes.shape
    worst = ((got.double() - expected.codes).norm(dim=1) / expected.allowed).max().item()
    assert worst <= 1, f"a row of codes is {worst:.2g} times as far off as rounding explains"


def check_gradients(got: tuple[Tensor, ...], expected: Truth, names: tuple[str, ...]) -> None:
    """Check that every gradient is within the tolerance."""
    for name, x, y in zip(names, got, expected.gradients, strict=True):
        assert x.shape == y.shape
        off = ((x.double() - y).norm() / y.norm()).item()
        assert off <= expected.allowed_gradients, (
            f"the gradient of {name} is off by {off:.2g} of its norm, "
            f"allowed {expected.allowed_gradients:.2g}"
        )


# --- memory ---------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """The memory of one training step, in bytes."""

    peak: int  # the largest growth of the process, codes and gradients included
    saved: int  # what autograd kept for the backward pass, beside what it was given


def memory_of(name: str, form: str, shape: Shape, density: float) -> Memory:
    """Return the memory of a step on one thread, measured in a new process."""
    command = [sys.executable, str(Path(__file__)), name, form, *map(str, shape), str(density)]
    # Every large tensor is mapped by itself and given back when freed: no hole in the heap hides a
    # later tensor.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Memory(**json.loads(done.stdout))


def _measure_memory(name: str, form: str, shape: Shape, density: float) -> Memory:
    torch.set_num_threads(1)
    given = problem(form, shape, density).leaves()
    function = contender(name, form, True)
    gradients(
        function, given.rows(slice(64))
    )  # libraries and their buffers are in memory after this
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    gradients(function, given)
    peak = _status("VmHWM") - before
    return Memory(peak, _saved(function, given))


def _saved(function: Callable[..., Tensor], given: Problem) -> int:
    known = {a.untyped_storage().data_ptr() for a in given[1:] if isinstance(a, Tensor)}
    found: dict[int, int] = {}

    def pack(a: Tensor) -> Tensor:
        storage = a.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return a

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        z = function(given.x, given.weight, given.inner, given.threshold, given.step)
    assert z.requires_grad
    return sum(found.values())


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    given_name, given_form, *sizes, given_density = sys.argv[1:]
    m, n, batch, count = map(int, sizes)
    print(
        json.dumps(
            _measure_memory(
                given_name, given_form, (m, n, batch, count), float(given_density)
            )._asdict()
        )
    )
