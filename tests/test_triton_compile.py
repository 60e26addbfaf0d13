"""Every Triton kernel compiled for real targets, with no GPU and no driver: what the machine code must look like.

Checked: no register spills, 16-byte loads and stores where rows are aligned, no shared memory where no row is summed,
and no fused multiply-add or approximate square root in the noise, which its contract forbids.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_kernels import _backends

pytestmark = pytest.mark.skipif(_backends.interpreting(), reason="the interpreter has no compiler")
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
CUDA = TARGETS[:3]
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
LAYOUTS = {"aligned": 0, "shifted": 1, "scattered": 2}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], target: GPUTarget) -> Any:
    """The kernel compiled as a launch would: addresses and sizes that are multiples of 16 are known as such."""
    from latent_kernels.kernels.launch import OPTIONS

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    divisible = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_row", "_group", "D", "_sample", "_stride")) or name == "n"
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible if signature[kernel.arg_names[i]] != "constexpr"}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=dict(OPTIONS))


def gaussian(name: str, dtype: torch.dtype, layout: str, target: GPUTarget, *, ones: bool = False) -> Any:
    """A Gaussian kernel; with `ones`, as a launch on a problem of one row and column specializes it."""
    import triton.language as tl
    from latent_kernels.kernels.gaussian import triton_gpu
    from latent_kernels.kernels.launch import tile_shape

    kernel = getattr(triton_gpu, name)
    rows = "*fp64" if dtype == torch.float64 else "*fp32"
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    types |= dict.fromkeys(("kl_ptr", "gkl_ptr", "out_ptr", "g_ptr"), rows)
    sizes = ("S", "N", "D", "seed_stride", "samples_per_program", "tiles", "chunks", "col_blocks")
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(("seed", "offset", "chunk_stride"), "i64")
    types |= {arg: "i32" for arg in kernel.arg_names if re.search(r"_(group|row|sample)$", arg)}
    compute = tl.float64 if dtype == torch.float64 else tl.float32
    block_n, block_d = tile_shape(4096, 64, dtype, small=layout == "scattered")
    constants: dict[str, Any] = {"compute": compute, "BLOCK_N": block_n, "BLOCK_D": block_d}
    constants |= {"layout": LAYOUTS[layout], "seed_is_pointer": False, "spread_is_scale": False}
    constants |= {arg: True for arg in kernel.arg_names if re.match(r"(with|has|need)_", arg)}
    constants |= {"sum_z": False, "sum_mean": True, "sum_logvar": True}
    if ones:
        free = {p.name for p in kernel.params if not p.do_not_specialize}
        single = [arg for arg, t in types.items() if t in ("i32", "i64") and arg in free]
        constants |= dict.fromkeys(single, 1)
        types = {arg: t for arg, t in types.items() if arg not in single}
    types = {arg: t for arg, t in types.items() if arg in kernel.arg_names}
    constants = {arg: v for arg, v in constants.items() if arg in kernel.arg_names}
    return compiled(kernel, types, constants, target)


def noise(kind: str, target: GPUTarget) -> Any:
    from latent_kernels.kernels.noise import triton_gpu

    types = {"out_ptr": "*fp32", "n": "i32", "seed": "i64", "offset": "i64"}
    constants = {"substream": 0 if kind == "normal" else 1, "seed_is_pointer": False, "shift": 0, "BLOCK": 1024}
    return compiled(triton_gpu.fill_kernel, types, constants, target)


def instructions(kernel: Any) -> str:
    """The PTX without its debugging sections, which hold names and comments."""
    text: str = kernel.asm["ptx"]
    text = text[: text.index(".section")] if ".section" in text else text
    # floor flushes subnormals, of which its arguments (2t + 1/2, a multiple of 2^-30 or so) have none
    return text.replace("cvt.rmi.ftz.f32.f32", "floor")


def cuobjdump() -> str | None:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


def spills(kernel: Any, tmp_path: Path) -> int:
    """Bytes of local memory that a thread of the kernel uses."""
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


KERNELS = ["forward_kernel", "backward_kernel", "log_prob_forward_kernel", "log_prob_backward_kernel"]


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(name: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path) -> None:
    layouts = LAYOUTS if not name.startswith("log_prob") else {"aligned": 0}
    for layout in layouts:
        assert spills(gaussian(name, dtype, layout, target), tmp_path) == 0, layout


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_a_single_row(name: str) -> None:
    """A launch makes constants of arguments that are 1."""
    for layout in LAYOUTS if not name.startswith("log_prob") else {"aligned": 0}:
        assert gaussian(name, torch.float32, layout, CUDA[1], ones=True).asm["cubin"]


@pytest.mark.parametrize("name", KERNELS)
def test_offsets_have_64_bits(name: str) -> None:
    """Strides come as 32-bit arguments; every product with one that reaches an address is of 64 bits."""
    ttir = gaussian(name, torch.float32, "aligned", CUDA[1]).asm["ttir"]
    strides = set(re.findall(r"(%\w+_(?:group|row|sample)|%[NDS])\b[^,)]*: i32", ttir))
    assert strides
    for line in ttir.splitlines():
        if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
            assert not any(re.search(rf"{re.escape(name)}\b", line) for name in strides), line


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_amd(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert gaussian(name, dtype, "aligned", TARGETS[3]).asm["amdgcn"]
    assert noise("normal", TARGETS[3]).asm["amdgcn"]


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_has_no_fma_and_no_approximation(kind: str, target: GPUTarget, tmp_path: Path) -> None:
    kernel = noise(kind, target)
    ptx = instructions(kernel)
    assert not re.search(r"\bfma\.|\bmad\.[a-z]*\.?f32|\.approx|\.ftz", ptx)
    assert ("sqrt.rn.f32" in ptx) == (kind == "normal")
    assert "mul.hi.u32" in ptx
    assert spills(kernel, tmp_path) == 0
    assert kernel.metadata.shared == 0, "the four words of a group meet in registers"
    stores = re.findall(r"st\.global\S*", ptx)
    assert stores
    assert all("v4" in store for store in stores), stores


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
def test_float32_arithmetic_is_not_contracted(target: GPUTarget) -> None:
    """z has the CPU's bits because exp and the sum are the same sequence of operations."""
    ptx = instructions(gaussian("forward_kernel", torch.float32, "aligned", target))
    assert not re.search(r"\bfma\.rn\.f32|\bmad\.[a-z]*\.?f32|ex2\.approx|\.ftz", ptx)


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, "v4"), (torch.bfloat16, "v4|v2")], ids=str)
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_aligned_rows_move_16_bytes_at_once(name: str, dtype: torch.dtype, width: str, target: GPUTarget) -> None:
    ptx = instructions(gaussian(name, dtype, "aligned", target))
    assert re.search(rf"ld\.global\.({width})", ptx)
    assert re.search(rf"st\.global\.({width})", ptx)
    wide = len(re.findall(rf"(?:ld|st)\.global\.({width})", ptx))
    narrow = len(re.findall(r"(?:ld|st)\.global\.b(?:32|16)", ptx))
    assert wide > narrow, f"{wide} wide accesses, {narrow} narrow ones (per-row values are narrow)"
