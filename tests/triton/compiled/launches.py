"""Triton kernels compiled for real targets, without a GPU or a driver, and functions that inspect
them.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
CUDA = TARGETS[:3]
# The others, and AMD, take minutes of compiling.
A100, H100, B200 = CUDA
each_target = pytest.mark.parametrize(
    "target",
    [pytest.param(A100, marks=pytest.mark.slow), H100, pytest.param(B200, marks=pytest.mark.slow)],
    ids=lambda target: f"sm_{target.arch}",
)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
LAYOUTS = {"aligned": 0, "shifted": 1, "scattered": 2}


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: GPUTarget,
    *,
    sixteens: bool = True,
) -> Any:
    """Return the kernel compiled as a launch would: addresses are known as multiples of 16, and
    sizes where `sixteens` are.
    """
    from latent_kernels.kernels.launch import OPTIONS

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    divisible = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr")
        or (sixteens and (name.endswith(("_row", "_group", "_sample", "_stride")) or name in "Dn"))
    ]
    divisible = [i for i in divisible if signature[kernel.arg_names[i]] != "constexpr"]
    source = _source(kernel, signature, constants, divisible)
    return triton.compile(source, target=target, options=dict(OPTIONS))


def _source(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], divisible: list[int]
) -> ASTSource:
    """Return the source that Triton compiles, in the form of its version; arguments `divisible` are
    multiples of 16.
    """
    if "constexprs" in inspect.signature(ASTSource).parameters:
        attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
        return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    from triton.backends.compiler import AttrsDescriptor  # before 3.3

    signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
    hints = AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
    return ASTSource(kernel, signature=signature, constants=constants, attrs=hints)


def ready(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: GPUTarget,
    *,
    ones: bool,
    even: Collection[str] = ("D", "seed_stride", "size", "count", "plane"),
) -> Any:
    """Return the kernel compiled as a launch would: only specialized arguments are known as
    multiples of 16, of the sizes those of `even`, or as 1.
    """
    from latent_kernels.kernels.launch import OPTIONS

    free = {p.name for p in kernel.params if not p.do_not_specialize}
    types = {name: t for name, t in types.items() if name in kernel.arg_names}
    if ones:
        single = [name for name, t in types.items() if t in ("i32", "i64") and name in free]
        constants = constants | dict.fromkeys(single, 1)
        types = {name: t for name, t in types.items() if name not in single}
    constants = {name: v for name, v in constants.items() if name in kernel.arg_names}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    divisible = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name in types and name in free and (name.endswith("_ptr") or name in even)
    ]
    source = _source(kernel, signature, constants, divisible)
    return triton.compile(source, target=target, options=dict(OPTIONS))


def instructions(kernel: Any) -> str:
    """Return the PTX without its debugging sections, which hold names and comments."""
    text: str = kernel.asm["ptx"]
    text = text[: text.index(".section")] if ".section" in text else text
    # floor flushes subnormals, of which its arguments (2t + 1/2, a multiple of 2^-30 or so) have
    # none
    return text.replace("cvt.rmi.ftz.f32.f32", "floor")


def asked_to_fuse(kernel: Any) -> int:
    """Return the number of calls of tl.fma in float32, each counted lane by lane."""
    asked = re.findall(r"call [^\n]*@llvm\.fma\.(?:v(\d+))?f32\(", kernel.asm["llir"])
    return sum(int(lanes or 1) for lanes in asked)


def contracted(kernel: Any) -> int:
    """Return how many float32 products and sums the compiler has fused on its own: all in the PTX
    except the calls of tl.fma.
    """
    found = re.findall(r"\b(?:fma|mad)\.\w+\.f32(x2)?\b", instructions(kernel))
    return sum(2 if two else 1 for two in found) - asked_to_fuse(kernel)


def cuobjdump() -> str | None:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


def spills(kernel: Any, tmp_path: Path) -> int:
    """Return the bytes of local memory that a thread of the kernel uses."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = cuobjdump()
    assert tool is not None, "cuobjdump comes with Triton"
    text = subprocess.run(
        [tool, "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert len(found) == 1, text
    return int(found[0][1]) + int(found[0][3])


def products_are_wide(kernel: Any) -> None:
    """Check that no 32-bit product involves a size of the problem; `folds * chunks`, the number of
    parts, does not count.
    """
    ttir = kernel.asm["ttir"]
    sizes = set(
        re.findall(r"(%(?:[NDSK]|groups|size|plane|count|baseline_\w+))\b[^,)]*: i32", ttir)
    )
    assert sizes
    for line in ttir.splitlines():
        if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
            assert not any(re.search(rf"{re.escape(name)}\b", line) for name in sizes), line
