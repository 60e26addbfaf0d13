"""The kernels of the log-densities, compiled; see test_gaussian.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton.compiled.launches import (
    H100,
    POINTERS,
    TARGETS,
    GPUTarget,
    contracted,
    each_target,
    instructions,
    products_are_wide,
    ready,
    spills,
)

DENSITY_KERNELS = [
    ("forward_kernel", "gaussian"),
    ("shared_logvar_kernel", "gaussian"),
    ("backward_kernel", "gaussian"),
    ("forward_kernel", "bernoulli"),
    ("backward_kernel", "bernoulli"),
]
FATES = {"gaussian": (0, 1, 3), "bernoulli": (2, 1, 0)}  # as in kernels/densities/triton_gpu.py


def density(
    name: str,
    density: str,
    dtype: torch.dtype,
    target: GPUTarget,
    *,
    fates: Any = None,
    ones: bool = False,
    cols: int = 64,
) -> Any:
    """Return a kernel of kernels/densities for a number of columns; `fates` of the three
    gradients.
    """
    import triton.language as tl

    from latent_kernels.kernels.densities import triton_gpu
    from latent_kernels.kernels.launch import tile_shape

    kernel = getattr(triton_gpu, name)
    double = dtype == torch.float64
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    types |= dict.fromkeys(("out_ptr", "g_ptr"), "*fp64" if double else "*fp32")
    sizes = (
        "S",
        "N",
        "D",
        "tiles",
        "chunks",
        "samples_per_program",
        "blocks",
        "col_blocks",
        "groups",
    )
    types |= dict.fromkeys(sizes, "i32")
    types |= {arg: "i32" for arg in kernel.arg_names if re.search(r"_(group|row|sample)$", arg)}
    constants: dict[str, Any] = dict(
        zip(("fate_a", "fate_b", "fate_c"), fates or FATES[density], strict=True)
    )
    if name == "forward_kernel":
        steps = 3
        constants |= {"STEPS": steps, "WHOLE": steps - 1}
    if density == "bernoulli":
        constants |= dict.fromkeys(("c_ptr", "d_c_ptr"), None)
        types = {arg: t for arg, t in types.items() if arg not in ("c_ptr", "d_c_ptr")}
    constants |= dict(zip(("BLOCK_N", "BLOCK_D"), tile_shape(4096, cols, dtype), strict=True))
    constants |= {
        "is_gaussian": density == "gaussian",
        "even": not ones,
        "nest": 2,
        "compute": tl.float64 if double else tl.float32,
    }
    even = ("D",) if cols % 16 == 0 else ()
    return ready(kernel, types, constants, target, ones=ones, even=even)


@each_target
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_compiles_without_spills(
    name: str, of: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for fates in (
        [FATES[of], (2, 2, 2 if of == "gaussian" else 0)]
        if name == "backward_kernel"
        else [FATES[of]]
    ):
        # ptxas keeps one 64-bit value of this one aside, at 80 of 255 registers: its own choice, to
        # fit a block more.
        allowed = 8 if (name, of, dtype) == ("backward_kernel", "bernoulli", torch.float32) else 0
        assert spills(density(name, of, dtype, target, fates=fates), tmp_path) <= allowed, fates


@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_compiles_for_a_single_row(name: str, of: str) -> None:
    assert density(name, of, torch.float32, H100, ones=True).asm["cubin"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_compiles_for_amd(name: str, of: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert density(name, of, dtype, TARGETS[3]).asm["amdgcn"]


@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_offsets_have_64_bits(name: str, of: str) -> None:
    for fates in (FATES[of], (3, 2, 1 if of == "gaussian" else 0)):
        kernel = density(name, of, torch.float32, H100, fates=fates)
        products_are_wide(kernel)
        ttir = kernel.asm["ttir"]
        strides = set(re.findall(r"(%[a-z]+_(?:group|row|sample))\b[^,)]*: i32", ttir))
        assert strides
        for line in ttir.splitlines():
            if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
                assert not any(re.search(rf"{re.escape(stride)}\b", line) for stride in strides), (
                    line
                )


@each_target
@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_arithmetic_is_not_contracted(name: str, of: str, target: GPUTarget) -> None:
    """An element has the CPU's bits because the sequence of operations is the same."""
    kernel = density(name, of, torch.float32, target)
    ptx = instructions(kernel)
    assert contracted(kernel) == 0
    assert not re.search(r"\.approx|\.ftz|div\.full", ptx)
    assert ("div.rn.f32" in ptx) == ((name, of) == ("backward_kernel", "bernoulli"))


@each_target
@pytest.mark.parametrize("cols", [64, 20])
@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_rows_move_16_bytes_at_once(name: str, of: str, cols: int, target: GPUTarget) -> None:
    """Rows move 16 bytes at once where their length and the strides are multiples of 4."""
    ptx = instructions(density(name, of, torch.float32, target, cols=cols))
    inputs = 3 if of == "gaussian" else 2
    assert len(re.findall(r"ld\.global\.v4", ptx)) >= inputs
    if name == "backward_kernel":
        assert re.search(r"st\.global\.v4", ptx)


@each_target
def test_what_samples_share_is_computed_once(target: GPUTarget) -> None:
    """The exponential of a log-variance that all samples share is computed before the loop over
    them.
    """
    log2_e = "0f3FB8AA3B"
    kernel = density("shared_logvar_kernel", "gaussian", torch.float32, target)
    before, loop, after = instructions(kernel).partition("Loop Header")
    assert loop
    assert log2_e in before
    assert log2_e not in after


@each_target
@pytest.mark.parametrize("of", ["gaussian", "bernoulli"])
def test_whole_tiles_of_the_forward_pass_need_no_mask(of: str, target: GPUTarget) -> None:
    """Only the loads of the last tile have a predicate; no loop is left."""
    ptx = instructions(density("forward_kernel", of, torch.float32, target))
    loads = re.findall(r"(@\S+ )?ld\.global", ptx)
    assert loads.count("") == 2 * sum(map(bool, loads))
    assert "Loop Header" not in ptx
