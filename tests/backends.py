"""The backends of an op, as parameters of tests: the C++ builds, the reference, Triton on a GPU or,
where there is none, with its PTX in the interpreter of tests/triton/ptx.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
import torch

from latent_kernels.kernels import _core, backends
from tests.checks import DTYPES, bits_equal

Tensor = torch.Tensor
Results = dict[str, Tensor]
Sizes = tuple[int, ...]

# For tests that run in the interpreter only; on a GPU the same kernels run on the device.
interpreted = pytest.mark.skipif(
    not backends.interpreting(), reason="Triton's PTX is not interpreted here"
)


class Backend:
    """One backend, as a name and as the modules of kernels that it has for ops."""

    def __init__(self, name: str) -> None:
        self.name = name
        on_gpu = name == "triton" and not backends.interpreting()
        self.device = "cuda" if on_gpu else "cpu"
        self.interprets = name == "triton" and not on_gpu

    def __str__(self) -> str:
        return "interpreter" if self.interprets else self.name

    def kernels(self, op: str) -> ModuleType:
        return backends._module(op, self.name)

    def run(self, op: str, work: Callable[[ModuleType, str], Results]) -> Results:
        """Return what `work` computes with the op's kernels on a device.

        Of the C++ kernels every build computes it, on one thread and on three, with the same bits.
        """
        kernels = self.kernels(op)
        if self.name != "cpp":
            # The reference is plain torch, which would record itself.
            with torch.no_grad():
                return work(kernels, self.device)
        first: Results = {}
        for build, threads in itertools.product(_core.simd_builds(), (1, 3)):
            _core.select_simd_build(build)
            torch.set_num_threads(threads)
            found = work(kernels, self.device)
            first = first or found
            assert found.keys() == first.keys()
            for name, x in found.items():
                assert bits_equal(x, first[name]), (build, threads, name)
        return first


CPP, REFERENCE, TRITON = (Backend(name) for name in ("cpp", "reference", "triton"))
_needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def on_every_backend(
    sizes: Sequence[Sizes],
    dtypes: Sequence[torch.dtype] = DTYPES,
    *,
    reference: Sequence[Sizes] | None = None,
    on_gpu: Sequence[Sizes] | None = None,
    interpreted: Sequence[Sizes],
    always: int = 2,
    also: Sequence[torch.dtype] = (torch.bfloat16, torch.float64, torch.float16),
) -> pytest.MarkDecorator:
    """Run a test of (backend, sizes, dtype) on every backend.

    The reference and Triton on a GPU take all sizes unless they are given their own; the reference,
    whose dtypes are torch's, in the first dtype, and the first three in the others. Without a GPU
    each kind of problem compiles kernels of its own, half a second each: Triton takes the sizes
    `interpreted` in float32, and the first of them in the dtypes `also`. The first `always` of the
    sizes, and if there are any the first of `also`, are in every run; the others are slow.
    """
    cases = [(CPP, size, dtype) for size in sizes for dtype in dtypes]
    usual, *others = dtypes
    cases += [(REFERENCE, size, usual) for size in reference or sizes]
    cases += [(REFERENCE, size, dtype) for size in (reference or sizes)[:3] for dtype in others]
    if TRITON.interprets:
        by_size = [(TRITON, size, torch.float32) for size in interpreted]
        by_dtype = [(TRITON, interpreted[0], dtype) for dtype in also]
        first = min(always, 1)
        few = by_size[:always] + by_dtype[:first]
        rest = by_size[always:] + by_dtype[first:]
    else:
        few, rest = [(TRITON, size, dtype) for size in on_gpu or sizes for dtype in dtypes], []
    marks = (pytest.mark.triton, _needs_triton)
    marked = [pytest.param(*case, marks=marks) for case in few]
    marked += [pytest.param(*case, marks=(*marks, pytest.mark.slow)) for case in rest]
    return pytest.mark.parametrize(("backend", "sizes", "dtype"), [*cases, *marked], ids=str)
