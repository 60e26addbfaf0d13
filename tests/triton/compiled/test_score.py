"""The kernels of the score function and of discrete samples, compiled; see test_gaussian.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton.compiled.launches import (
    H100,
    LAYOUTS,
    POINTERS,
    TARGETS,
    GPUTarget,
    asked_to_fuse,
    contracted,
    each_target,
    instructions,
    products_are_wide,
    ready,
    spills,
)

SCORE_KERNELS = ["gaussian_kernel", "bernoulli_kernel", "antithetic_kernel", "categorical_kernel"]
PLAIN, ROWS, ELEMENTS, OPTIMAL = range(4)  # as in kernels/score/triton_sums.py


def score(
    name: str,
    dtype: torch.dtype,
    target: GPUTarget,
    mode: int,
    *,
    per_element: bool = False,
    with_variance: bool = True,
    layout: str | None = None,
    ones: bool = False,
    cols: int = 64,
) -> Any:
    """Return a score-function kernel, with the tile of a launch; `layout` where it draws its
    samples again.
    """
    import triton.language as tl

    from latent_kernels.kernels.launch import tile_shape
    from latent_kernels.kernels.score import triton_gpu

    kernel = getattr(triton_gpu, name)
    double = dtype == torch.float64
    compute = "*fp64" if double else "*fp32"
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    types |= {
        arg: compute
        for arg in types
        if re.match(r"v_|.*_variance|partial|values|upstream|p_ptr|q_ptr", arg)
    }
    types["baseline_ptr"] = compute if per_element else "*fp64"
    if name == "categorical_kernel":
        types |= {"z_ptr": "*i64", "c_ptr": "*i64"}
    sizes = (
        "S",
        "N",
        "D",
        "K",
        "seed_stride",
        "folds",
        "chunks",
        "tiles",
        "col_blocks",
        "class_blocks",
        "groups",
    )
    types |= dict.fromkeys((*sizes, "baseline_group", "baseline_sample", "size", "width"), "i32")
    types |= dict.fromkeys(("seed", "offset"), "i64")
    block_n, block_d = tile_shape(
        4096, cols, dtype, small=mode >= ELEMENTS or with_variance or layout == "scattered"
    )
    constants: dict[str, Any] = {
        "mode": mode,
        "per_element": per_element,
        "has_baseline": not per_element,
        "has_upstream": True,
        "with_variance": with_variance,
        "finish": mode != OPTIMAL,
        "from_seed": layout is not None,
        "seed_is_pointer": False,
        "compute": tl.float64 if double else tl.float32,
        "layout": LAYOUTS[layout or "aligned"],
        "even": not ones,
        "nest": 2,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "BLOCK_K": 16,
        "BLOCK_E": 16 if double else 32,
        "kind": 0 if name.startswith("gaussian") else 1,
        "sums": 12,
        "classes": name.startswith("categorical"),
        "BLOCK": 512,
    }
    even = ("D", "seed_stride", "size") if cols % 16 == 0 else ()
    return ready(kernel, types, constants, target, ones=ones, even=even)


def finish(
    kind: int, dtype: torch.dtype, target: GPUTarget, mode: int, *, ones: bool = False
) -> Any:
    """Return the kernel that adds up the sums of the parts."""
    import triton.language as tl

    from latent_kernels.kernels.score import triton_sums
    from latent_kernels.kernels.score.triton_gpu import FINISH_TILE

    kernel = triton_sums.finish_kernel
    double = dtype == torch.float64
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    compute = "*fp64" if double else "*fp32"
    types |= {arg: compute for arg in types if re.match(r".*_variance|partial|upstream", arg)}
    types |= dict.fromkeys(("S", "folds", "chunks", "size", "width"), "i32")
    constants = {
        "kind": kind,
        "sums": triton_sums.count_of_sums(kind, mode, True),
        "classes": False,
        "mode": mode,
    }
    constants |= {"has_upstream": True, "with_variance": True, "BLOCK": FINISH_TILE}
    constants |= {"compute": tl.float64 if double else tl.float32}
    return ready(kernel, types, constants, target, ones=ones)


def discrete(
    name: str, dtype: torch.dtype, target: GPUTarget, *, ones: bool = False, wraps_once: bool = True
) -> Any:
    """Return a kernel of kernels/families."""
    from latent_kernels.kernels.families import triton_gpu

    types = {
        "z_ptr": POINTERS[dtype],
        "logits_ptr": POINTERS[dtype],
        "c_ptr": "*i64",
        "unit": "fp32",
    }
    types |= {"z_ptr": "*i64"} if name == "categorical_kernel" else {}
    types |= dict.fromkeys(("count", "plane", "K", "seed_stride", "blocks"), "i32")
    types |= dict.fromkeys(("seed", "offset"), "i64")
    constants = {"antithetic": True, "seed_is_pointer": False, "shift": 0, "wraps_once": wraps_once}
    constants |= {
        "aligned": not ones,
        "one_group": ones,
        "steps": 4,
        "BLOCK": 64 if name == "cumulative_kernel" else 1024,
        "BLOCK_K": 16,
    }
    return ready(getattr(triton_gpu, name), types, constants, target, ones=ones)


def softmax(dtype: torch.dtype, target: GPUTarget, *, ones: bool = False) -> Any:
    """Return the kernel of the class probabilities."""
    import triton.language as tl

    from latent_kernels.kernels.score import triton_gpu

    compute, constant = ("*fp64", tl.float64) if dtype == torch.float64 else ("*fp32", tl.float32)
    types = {"p_ptr": compute, "q_ptr": compute, "logits_ptr": POINTERS[dtype]}
    types |= {"count": "i32", "K": "i32"}
    constants = {"compute": constant, "BLOCK": 64, "BLOCK_K": 16}
    return ready(triton_gpu.softmax_kernel, types, constants, target, ones=ones)


def modes(name: str) -> list[tuple[int, bool]]:
    """Return the modes that keep the least and the most in registers: mode, and whether values are
    per element.
    """
    return [(PLAIN, False)] if name == "antithetic_kernel" else [(ROWS, False), (OPTIMAL, True)]


@each_target
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_compiles_without_spills(
    name: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for mode, per_element in modes(name):
        for layout in (None, "scattered"):
            kernel = score(name, dtype, target, mode, per_element=per_element, layout=layout)
            assert spills(kernel, tmp_path) == 0, (mode, layout)


@each_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_kernels_compile_without_spills(
    dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for kind in range(3):
        for mode in (PLAIN, OPTIMAL) if kind < 2 else (PLAIN,):
            assert spills(finish(kind, dtype, target, mode), tmp_path) == 0, (kind, mode)
    assert spills(softmax(dtype, target), tmp_path) == 0


@each_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCORE_KERNELS[:3])
def test_aligned_samples_are_read_16_bytes_at_once(
    name: str, dtype: torch.dtype, target: GPUTarget
) -> None:
    """Aligned samples are read 16 bytes at once; with values for each element all accesses are that
    wide.
    """
    ptx = instructions(score(name, dtype, target, PLAIN, per_element=True, with_variance=False))
    found = re.findall(r"(?:ld|st)\.global\.\S*", ptx)
    assert found
    assert all(re.search(r"\.v4\.b32", access) for access in found), found


@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_compiles_for_a_single_row(name: str) -> None:
    for layout in (None, "shifted"):
        for mode, per_element in modes(name):
            kernel = score(
                name,
                torch.float32,
                H100,
                mode,
                per_element=per_element,
                layout=layout,
                ones=True,
            )
            assert kernel.asm["cubin"]


def test_small_kernels_compile_for_a_single_row() -> None:
    for kind in range(3):
        assert finish(kind, torch.float32, H100, PLAIN if kind == 2 else OPTIMAL, ones=True).asm[
            "cubin"
        ]
    for name in ("bernoulli_kernel", "cumulative_kernel", "categorical_kernel"):
        assert discrete(name, torch.float32, H100, ones=True, wraps_once=False).asm["cubin"]
    assert softmax(torch.float32, H100, ones=True).asm["cubin"]


@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_offsets_have_64_bits(name: str) -> None:
    for mode, per_element in modes(name):
        products_are_wide(score(name, torch.float32, H100, mode, per_element=per_element))
        products_are_wide(
            score(name, torch.float32, H100, mode, per_element=per_element, layout="scattered")
        )


def test_small_kernels_offsets_have_64_bits() -> None:
    for kind in range(3):
        products_are_wide(finish(kind, torch.float32, H100, PLAIN if kind == 2 else OPTIMAL))
    for name in ("bernoulli_kernel", "cumulative_kernel", "categorical_kernel"):
        products_are_wide(discrete(name, torch.float32, H100))
    products_are_wide(softmax(torch.float32, H100))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_compiles_for_amd(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for mode, per_element in modes(name):
            assert score(name, dtype, TARGETS[3], mode, per_element=per_element).asm["amdgcn"]
            assert score(
                name, dtype, TARGETS[3], mode, per_element=per_element, layout="aligned"
            ).asm["amdgcn"]
    for kind in range(3):
        assert finish(kind, torch.float32, TARGETS[3], PLAIN if kind == 2 else OPTIMAL).asm[
            "amdgcn"
        ]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.arch}")
@pytest.mark.parametrize("name", ["bernoulli_kernel", "cumulative_kernel", "categorical_kernel"])
def test_samples_are_what_the_source_says(name: str, target: GPUTarget, tmp_path: Path) -> None:
    kernel = discrete(name, torch.float32, target)
    if "ptx" not in kernel.asm:
        code = kernel.asm["amdgcn"]
        fused = re.findall(r"\bv_(?:pk_)?(?:fma|fmac|mad)\w*_f32.*", code)
        # By 2^32 and -2^32: a program number of 64 bits is divided with the help of floats, and a
        # float becomes an integer of 64 bits in two halves. The factor may stand in a register.
        moved = re.findall(r"\bs_mov_b32 (s\d+), (\S+)", code)
        factors = {register for register, value in moved if re.match(r"0x[4c]f800000", value)}
        factors -= {r for r, value in moved if not re.match(r"0x[4c]f800000", value)}
        allowed = "|".join([r"0x[4c]f800000", *(rf"\b{register}\b" for register in factors)])
        rest = [instruction for instruction in fused if not re.search(allowed, instruction)]
        lanes = sum(2 if "v_pk_" in instruction else 1 for instruction in rest)
        assert lanes == asked_to_fuse(kernel), rest
        return
    ptx = instructions(kernel)
    assert contracted(kernel) == 0
    assert not re.search(r"\.approx|\.ftz", ptx)
    assert spills(kernel, tmp_path) == 0
    if name == "bernoulli_kernel":
        stores = re.findall(r"st\.global\S*", ptx)
        assert stores
        assert all("v4" in store for store in stores), stores
    if name == "categorical_kernel":
        assert all("v2.b64" in store for store in re.findall(r"st\.global\S*", ptx))


@each_target
@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_samples_drawn_again_are_not_contracted(name: str, target: GPUTarget) -> None:
    """The compiler may fuse no operation, so that samples drawn again are those that the values
    belong to.
    """
    kernel = score(name, torch.float32, target, PLAIN, layout="aligned")
    assert contracted(kernel) == 0
    assert not re.search(r"\.approx|\.ftz", instructions(kernel))


@each_target
@pytest.mark.parametrize("cols", [64, 20])
@pytest.mark.parametrize("name", SCORE_KERNELS[:3])
def test_rows_move_16_bytes_at_once(name: str, cols: int, target: GPUTarget) -> None:
    """Rows move 16 bytes at once where their length is a multiple of 4, not only of 16, which
    Triton finds by itself.
    """
    kernel = score(name, torch.float32, target, PLAIN, with_variance=False, cols=cols)
    ptx = instructions(kernel)
    assert "ld.global.v4" in ptx
    assert "st.global.v4" in ptx
