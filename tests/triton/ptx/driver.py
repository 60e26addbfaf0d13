"""A backend and a driver for Triton whose binary is the PTX and whose device is the interpreter.

Triton itself binds the arguments, specializes and compiles, as for a real H100: this backend is
Triton's own for CUDA without its last stage, ptxas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.backends.nvidia.driver import CudaDriver
from triton.compiler.compiler import CompiledKernel

from tests.triton.ptx.execute import Program
from tests.triton.ptx.memory import GlobalMemory
from tests.triton.ptx.parse import parse

TARGET = GPUTarget("ptx", 90, 32)


class PTXBackend(CUDABackend):
    """Triton's backend for CUDA, cut off after the PTX."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == TARGET.backend

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages: dict[str, Any], *options: Any) -> None:
        super().add_stages(stages, *options)
        del stages["cubin"]

    def hash(self) -> str:
        return "ptx, not assembled"


class Launcher:
    """The function that Triton calls to launch a compiled kernel: (grid, ..., function, ...,
    *arguments).
    """

    def __init__(self, src: Any, _metadata: Any) -> None:
        names = src.fn.arg_names
        # By name, number or path, as Triton's version has it.
        constants = {
            x if isinstance(x, str) else names[x if isinstance(x, int) else x[0]]
            for x in src.constants
        }
        # Triton before 3.3 passes only those arguments that are not constexpr.
        self.given = [x for x in names if x in src.signature]
        self.types = {
            name: kind
            for name, kind in src.signature.items()
            if name not in constants and kind != "constexpr"
        }

    def __call__(self, *launch: Any) -> None:
        grid, loaded, arguments = launch[:3], launch[4], launch[9:]
        program = loaded.program if _edit is None else loaded.edited(_edit)
        tensors: list[torch.Tensor] = []
        values: list[int | torch.Tensor] = []
        for name, value in zip(self.given, arguments, strict=True):
            if name in self.types:
                values.append(value)
                if isinstance(value, torch.Tensor):
                    tensors.append(value)
        memory = GlobalMemory(tensors)
        begins = iter(memory.regions)
        bits = [
            next(begins).begin if isinstance(value, torch.Tensor) else _bits(value, kind)
            for value, kind in zip(values, self.types.values(), strict=True)
        ]
        # Triton's own last parameters: addresses of scratch memory, which these kernels lack.
        bits += [0] * (len(program.kernel.parameters) - len(bits))
        blocks = None if _choose is None else _choose(grid[0] * grid[1] * grid[2])
        program.run(grid, bits, memory, loaded.shared, blocks)


class Loaded:
    """A kernel's PTX, the shared memory of its blocks, and the function that runs it."""

    def __init__(self, ptx: str, shared: int) -> None:
        self.ptx, self.shared = ptx, shared
        self.program = self.edited(lambda text: text)

    def edited(self, edit: Callable[[str], str]) -> Program:
        """Return a function that runs the kernel with its text changed."""
        threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", self.ptx)
        assert threads is not None
        return Program(parse(edit(self.ptx)), int(threads[1]))


def _bits(value: Any, kind: str) -> int:
    if kind in ("fp32", "f32"):
        return int(np.float32(value).view(np.uint32))
    if kind in ("fp64", "f64"):
        return int(np.float64(value).view(np.uint64))
    # As on a device, where the launcher would refuse it.
    assert kind != "i32" or -(2**31) <= int(value) < 2**31, f"{value} is no {kind}"
    return int(value)


_choose: Callable[[int], Sequence[int]] | None = None
_edit: Callable[[str], str] | None = None


@contextmanager
def launches(
    *,
    only: Callable[[int], Sequence[int]] | None = None,
    edited: Callable[[str], str] | None = None,
) -> Iterator[None]:
    """Change the launches within: run only the blocks that `only` selects of their number, or the
    text that `edited` makes of each kernel's.
    """
    global _choose, _edit
    _choose, _edit = only, edited
    try:
        yield
    finally:
        _choose, _edit = None, None


class Utilities:
    """The functions of a driver that Triton uses besides launches."""

    @staticmethod
    def get_device_properties(_device: int) -> dict[str, int]:
        """Return the properties of an H100."""
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132, "warpSize": 32}

    @staticmethod
    def load_binary(_name: str, ptx: bytes, shared: int, _device: int) -> tuple[Any, ...]:
        """Return no module, the function, its registers and spills, and the largest number of
        threads.
        """
        text = ptx.decode() if isinstance(ptx, bytes) else ptx
        loaded = (object(), Loaded(text, shared), 0, 0, 1024)
        # Triton before 3.4 does not ask for the last.
        asks = "n_max_threads" in CompiledKernel._init_handles.__code__.co_names
        return loaded if asks else loaded[:4]

    @staticmethod
    def unload_module(_module: Any) -> None: ...


class Driver:
    """A driver with one device: this interpreter."""

    launcher_cls = Launcher
    utils = Utilities()

    def get_current_target(self) -> GPUTarget:
        """Return the target that kernels are compiled for."""
        return TARGET

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """Return the only stream."""
        return 0


def install() -> None:
    """Let Triton launch on this interpreter, with CPU tensors."""
    backends[TARGET.backend] = Backend(PTXBackend, CudaDriver)
    triton.runtime.driver.set_active(Driver())
