"""Time every Triton kernel by itself at sizes beyond the second-level cache, to see how near it
comes to the speed of a plain copy.

`ours` is the public call, host and device, one after the other; `ours graph` replays a CUDA graph
of it, without launch costs. Both must give the same bits. Rivals stand in the other files; gpu.py
and the tests compare with the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cuda
import harness
import latent_kernels as lk
from harness import Contest, Group, rows
from latent_kernels.cli.timing import Call

Tensor = torch.Tensor
Shape = tuple[int, ...]
Family = lk.DiagonalGaussian | lk.Bernoulli | lk.Categorical

ELEMENTS = 2**26  # of one float32 tensor: 256 MiB, several times the second-level cache
SAMPLES = 16
CLASSES = 10
OURS = ("ours", "ours graph")


def _prepare(make: Callable[[], Call]) -> Contest:
    call = make()
    calls = {"ours": call, "ours graph": cuda.graphed(call)}
    expected = _tensors(call())

    def check(contender: str, out: Any) -> None:
        for x, y in zip(_tensors(out), expected, strict=True):
            assert bool(torch.isfinite(x).all()), "not finite"
            assert torch.equal(x, y), "a graph's bits differ from the call's"

    return Contest(calls, check)


def _tensors(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [x for part in out for x in _tensors(part)]


def _group(
    op: str, shape: Shape, dtype: torch.dtype, count: int, make: Callable[[], Call]
) -> Group:
    """Return the group of a call; operations are not counted."""
    name, n, kind = f"kernel {op}", math.prod(shape), str(dtype).removeprefix("torch.")
    prepare = functools.partial(_prepare, make)
    return Group(name, shape, 1, "cuda", OURS, n, count, 0, prepare, OURS, kind)


def _both(function: Callable[..., Any], leaves: list[Tensor], upstream: Any) -> Call:
    """Return a call that computes the function and its gradients by the leaves."""
    leaves = [x.requires_grad_() for x in leaves]
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


class Kernels:
    """Groups for tensors of about `elements` elements on a device."""

    def __init__(self, elements: int, device: str) -> None:
        self.elements, self.device = elements, device

    def _randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def noise(self, size: Shape, dtype: torch.dtype) -> Iterator[Group]:
        """Yield normals and uniforms: each written once."""
        for function in (lk.normal, lk.uniform):

            def make(function: Callable[..., Tensor] = function) -> Call:
                return lambda: function(size, seed=1, dtype=dtype, device=self.device)

            count = math.prod(size) * dtype.itemsize
            yield _group(function.__name__, size, dtype, count, make)

    def gaussian(
        self, samples: int | None, rows: int, cols: int, dtype: torch.dtype, wide: bool = False
    ) -> Iterator[Group]:
        """Yield the Gaussian ops of one shape, with N D elements of a parameter and S N D of z;
        `wide`: all of the ops.
        """
        shape = (rows, cols) if samples is None else (samples, rows, cols)
        size, drawn = rows * cols, math.prod(shape)
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        forward, backward = dtype.itemsize * (2 * size + drawn), dtype.itemsize * (drawn + 4 * size)

        def parameters() -> list[Tensor]:
            return [self._randn(rows, cols, dtype=dtype) * scale for scale in (1, 0.5)]

        def make(function: Callable[..., Any], *upstream: Shape) -> Call:
            """Return a call of the function; also of its gradients, given upstream shapes."""
            if not upstream:
                given = parameters()
                return lambda: function(*given)
            kinds = (dtype, sums) if len(upstream) > 1 else (sums,)
            g = [self._randn(*s, dtype=kind) for s, kind in zip(upstream, kinds, strict=True)]
            return _both(function, parameters(), g)

        def group(op: str, count: int, function: Callable[..., Any], *upstream: Shape) -> Group:
            return _group(op, shape, dtype, count, functools.partial(make, function, *upstream))

        rsample_kl = functools.partial(lk.rsample_kl, num_samples=samples, seed=1)
        rsample_log_prob = functools.partial(lk.rsample_log_prob, num_samples=samples, seed=1)
        both = forward + backward
        yield group("rsample_kl forward", forward, rsample_kl)
        yield group("rsample_kl forward+backward", both, rsample_kl, shape, (rows,))
        if wide:
            yield group(
                "rsample_log_prob forward+backward", both, rsample_log_prob, shape, shape[:-1]
            )
        if wide and samples is None:
            width = dtype.itemsize * size
            yield group("gaussian_kl forward", 2 * width, lk.gaussian_kl)
            yield group("gaussian_kl forward+backward", 6 * width, lk.gaussian_kl, (rows,))

    def densities(self, dtype: torch.dtype) -> Iterator[Group]:
        """Yield the densities of a decoder: the samples share x, and only the decoder gets
        gradients.
        """
        shape = samples, rows, cols = 50, max(self.elements >> 16, 1), 784
        size, width = math.prod(shape), dtype.itemsize
        sums = torch.float64 if dtype == torch.float64 else torch.float32

        def make(density: str, backward: bool) -> Call:
            x = torch.rand(rows, cols, device=self.device).to(dtype)
            logvar = torch.full((cols,), -1.0, device=self.device, dtype=dtype)

            def function(decoded: Tensor) -> Tensor:
                if density == "gaussian":
                    return lk.gaussian_log_prob(x, decoded, logvar)
                return lk.bernoulli_log_prob(x, decoded)

            decoded = self._randn(*shape, dtype=dtype)
            if not backward:
                return lambda: function(decoded)
            return _both(function, [decoded], self._randn(samples, rows, dtype=sums))

        forward = width * (size + rows * cols)
        for density in ("gaussian", "bernoulli"):
            for passes, count in (
                ("forward", forward),
                ("forward+backward", forward + width * (2 * size + rows * cols)),
            ):
                call = functools.partial(make, density, passes != "forward")
                yield _group(f"{density}_log_prob {passes}", shape, dtype, count, call)

    def bounds(self, shape: tuple[int, int]) -> Iterator[Group]:
        """Yield the bounds: each pass reads log_w, and the backward pass writes its gradient."""

        def make(estimator: str, backward: bool) -> Call:
            log_w = 3 * self._randn(*shape)
            if not backward:
                return lambda: lk.importance_bound(log_w)
            g = self._randn(shape[1])
            if estimator == "iwae":
                return _both(lk.importance_bound, [log_w], g)

            def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
                return lk.importance_bound(log_w, estimator="vimco", log_q=log_q)

            return _both(vimco, [log_w, self._randn(*shape)], g)

        for op, estimator, backward, passes in (
            ("importance_bound forward", "iwae", False, 1),
            ("importance_bound forward+backward", "iwae", True, 3),
            ("importance_bound vimco forward+backward", "vimco", True, 5),
        ):
            call = functools.partial(make, estimator, backward)
            yield _group(op, shape, torch.float32, 4 * passes * math.prod(shape), call)

    def families(self) -> Iterator[Group]:
        """Yield samples of the families, and score-function gradients from z and from the seed."""
        rows, cols = max(self.elements >> 14, 1), 256
        shape, size = (SAMPLES, rows, cols), rows * cols

        def family(name: str) -> Family:
            if name == "categorical":
                return lk.Categorical(self._randn(rows, cols, CLASSES))
            if name == "bernoulli":
                return lk.Bernoulli(self._randn(rows, cols))
            return lk.DiagonalGaussian(self._randn(rows, cols), self._randn(rows, cols))

        def sample(name: str) -> Call:
            q = family(name)
            return lambda: q.sample(SAMPLES, seed=1)

        def score(name: str, control: str, given: bool) -> Call:
            q, values = family(name), 3 + self._randn(SAMPLES, rows)
            drawn = {"z": q.sample(SAMPLES, seed=1)} if given else {"seed": 1}
            return lambda: lk.score_function_gradient(q, values, **drawn, control_variate=control)

        for name, parameters, width in (
            ("gaussian", 2, 4),
            ("bernoulli", 1, 4),
            ("categorical", CLASSES, 8),
        ):
            drawn, own = width * SAMPLES * size, 4 * parameters * size
            make = functools.partial(sample, name)
            yield _group(f"sample {name}", shape, torch.float32, drawn + own, make)
            for control in ("leave_one_out", "optimal"):
                for source, count in (("z", drawn + 2 * own), ("seed", 2 * own)):
                    make = functools.partial(score, name, control, source == "z")
                    op = f"score {name} {control} of {source}"
                    yield _group(op, shape, torch.float32, count, make)

    def all(self) -> Iterator[Group]:
        """Yield all groups: first those of a training step's size, whose time is nearly all launch
        cost.
        """
        yield from self.noise((64, 20), torch.float32)
        yield from self.gaussian(None, 64, 20, torch.float32)
        half = self.elements // 2
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            wide = dtype == torch.float32
            yield from self.noise((self.elements,), dtype)
            yield from self.gaussian(None, half // 256, 256, dtype, wide)
            yield from self.gaussian(SAMPLES, half // (256 * SAMPLES), 256, dtype, wide)
            yield from self.densities(dtype)
        for cols in (20, 64, 784, 8192):
            yield from self.gaussian(None, max(half // cols, 1), cols, torch.float32)
        yield from self.gaussian(SAMPLES, half // (20 * SAMPLES), 20, torch.float32)
        for samples, shift in ((50, 6), (256, 9), (5000, 13), (5000, 18)):
            yield from self.bounds((samples, max(self.elements >> shift, 1)))
        yield from self.bounds((self.elements >> 8, 64))
        yield from self.families()


@pytest.mark.parametrize(("group", "contender"), rows(Kernels(ELEMENTS, "cuda").all()))
def test_kernel(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time a kernel by itself."""
    harness.run(benchmark, group, contender)
