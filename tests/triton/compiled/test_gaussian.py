"""The kernels of samples and of noise, compiled: what their machine code must look like.

No register spills, 16-byte loads and stores where rows are aligned, no shared memory where no row
is summed, and no fused multiply-add or approximate square root in the noise, which its contract
forbids.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_kernels.kernels.gaussian.problem import ANTITHETIC, INDEPENDENT, SOBOL
from tests.triton.compiled.launches import (
    H100,
    LAYOUTS,
    POINTERS,
    TARGETS,
    GPUTarget,
    compiled,
    contracted,
    each_target,
    instructions,
    spills,
)


def gaussian(
    name: str,
    dtype: torch.dtype,
    layout: str,
    target: GPUTarget,
    *,
    ones: bool = False,
    cols: int = 64,
    dependence: int = INDEPENDENT,
) -> Any:
    """Return a Gaussian kernel for a number of columns; with `ones`, as a launch on a problem of
    one row and column specializes it.
    """
    import triton.language as tl

    from latent_kernels.kernels.gaussian import triton_gpu
    from latent_kernels.kernels.launch import tile_shape

    kernel = getattr(triton_gpu, name)
    rows = "*fp64" if dtype == torch.float64 else "*fp32"
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    types |= dict.fromkeys(("kl_ptr", "log_q_ptr", "gkl_ptr", "gq_ptr"), rows)
    types["points_ptr"] = "*i32"
    sizes = (
        "S",
        "N",
        "D",
        "seed_stride",
        "samples_per_program",
        "tiles",
        "chunks",
        "col_blocks",
        "bits",
    )
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(("seed", "offset", "chunk_stride"), "i64")
    types |= {arg: "i32" for arg in kernel.arg_names if re.search(r"_(group|row|sample)$", arg)}
    compute = tl.float64 if dtype == torch.float64 else tl.float32
    block_n, block_d = tile_shape(4096, cols, dtype, small=layout == "scattered")
    constants: dict[str, Any] = {"compute": compute, "BLOCK_N": block_n, "BLOCK_D": block_d}
    constants |= {
        "layout": LAYOUTS[layout],
        "seed_is_pointer": False,
        "is_scale": False,
        "antithetic": False,
    }
    constants["even"] = layout == "aligned" and not ones
    constants["nest"] = 2
    constants |= {arg: True for arg in kernel.arg_names if re.match(r"(with|has|need)_", arg)}
    if ones:
        free = {p.name for p in kernel.params if not p.do_not_specialize}
        single = [arg for arg, t in types.items() if t in ("i32", "i64") and arg in free]
        constants |= dict.fromkeys(single, 1)
        types = {arg: t for arg, t in types.items() if arg not in single}
    types = {arg: t for arg, t in types.items() if arg in kernel.arg_names}
    constants = {arg: v for arg, v in constants.items() if arg in kernel.arg_names}
    return compiled(kernel, types, constants, target, sixteens=cols % 16 == 0)


def noise(kind: str, target: GPUTarget) -> Any:
    from latent_kernels.kernels.noise import triton_gpu

    types = {"out_ptr": "*fp32", "n": "i32", "seed": "i64", "offset": "i64"}
    constants = {
        "substream": 0 if kind == "normal" else 1,
        "seed_is_pointer": False,
        "shift": 0,
        "BLOCK": 1024,
    }
    return compiled(triton_gpu.fill_kernel, types, constants, target)


KERNELS = ["forward_kernel", "backward_kernel", "path_backward_kernel"]
# Each layout and each dtype once; make test-all compiles the others.
FEW = [
    (torch.float32, "aligned"),
    (torch.bfloat16, "shifted"),
    (torch.float32, "scattered"),
    (torch.float64, "scattered"),
    (torch.float16, "aligned"),
]


@each_target
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        pytest.param(dtype, layout, marks=() if (dtype, layout) in FEW else pytest.mark.slow)
        for dtype in POINTERS
        for layout in LAYOUTS
    ],
    ids=str,
)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(
    name: str, dtype: torch.dtype, layout: str, target: GPUTarget, tmp_path: Path
) -> None:
    assert spills(gaussian(name, dtype, layout, target), tmp_path) == 0


@pytest.mark.parametrize("dependence", [ANTITHETIC, SOBOL])
@pytest.mark.parametrize("name", KERNELS)
def test_dependent_samples_compile_without_spills(
    name: str, dependence: int, tmp_path: Path
) -> None:
    kernel = gaussian(name, torch.float32, "aligned", H100, dependence=dependence)
    assert spills(kernel, tmp_path) == 0


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_a_single_row(name: str) -> None:
    """The kernels compile although a launch makes constants of arguments that are 1."""
    for layout in LAYOUTS:
        assert gaussian(name, torch.float32, layout, H100, ones=True).asm["cubin"]


@pytest.mark.parametrize("name", KERNELS)
def test_offsets_have_64_bits(name: str) -> None:
    """Strides come as 32-bit arguments; every product of one that contributes to an address has 64
    bits.
    """
    ttir = gaussian(name, torch.float32, "aligned", H100).asm["ttir"]
    strides = set(re.findall(r"(%\w+_(?:group|row|sample)|%[NDS])\b[^,)]*: i32", ttir))
    assert strides
    for line in ttir.splitlines():
        if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
            assert not any(re.search(rf"{re.escape(name)}\b", line) for name in strides), line


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_amd(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert gaussian(name, dtype, "aligned", TARGETS[3]).asm["amdgcn"]
    assert noise("normal", TARGETS[3]).asm["amdgcn"]


@each_target
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_what_the_source_says(kind: str, target: GPUTarget, tmp_path: Path) -> None:
    kernel = noise(kind, target)
    ptx = instructions(kernel)
    assert contracted(kernel) == 0
    assert not re.search(r"\.approx|\.ftz", ptx)
    assert ("sqrt.rn.f32" in ptx) == (kind == "normal")
    assert "mul.wide.u32" in ptx
    assert spills(kernel, tmp_path) == 0
    assert kernel.metadata.shared == 0, "the four words of a group meet in registers"
    stores = re.findall(r"st\.global\S*", ptx)
    assert stores
    assert all("v4" in store for store in stores), stores


@each_target
def test_float32_arithmetic_is_not_contracted(target: GPUTarget) -> None:
    """z has the CPU's bits because exp and the sum are the same sequence of operations."""
    kernel = gaussian("forward_kernel", torch.float32, "aligned", target)
    assert contracted(kernel) == 0
    assert not re.search(r"ex2\.approx|\.ftz", instructions(kernel))


@each_target
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, "v4"), (torch.bfloat16, "v4|v2")], ids=str
)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cols", [64, 20])
def test_aligned_rows_move_four_elements_at_once(
    cols: int, name: str, dtype: torch.dtype, width: str, target: GPUTarget
) -> None:
    """Four elements move at once where the rows' length is a multiple of 4, not only of 16, which
    Triton finds by itself.
    """
    ptx = instructions(gaussian(name, dtype, "aligned", target, cols=cols))
    assert re.search(rf"ld\.global\.({width})", ptx)
    assert re.search(rf"st\.global\.({width})", ptx)
    wide = len(re.findall(rf"(?:ld|st)\.global\.({width})", ptx))
    # addresses, since Triton 3.8 loads the value of a row once for each of four elements
    narrow = len(set(re.findall(r"(?:ld|st)\.global\.b(?:32|16)[^;]*(\[[^]]*\])", ptx)))
    assert wide > narrow, f"{wide} wide accesses, {narrow} narrow ones (per-row values are narrow)"
