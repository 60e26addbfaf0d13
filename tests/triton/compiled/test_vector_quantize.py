"""The kernels of vector quantization, compiled; see test_gaussian.py."""

from __future__ import annotations

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

KERNELS = ("pack", "assign", "sums", "forward", "row_gradients")
INTEGERS = ("N", "C", "D", "tiles", "all_rows")


def kernel(name: str, dtype: torch.dtype, target: GPUTarget, *, ones: bool = False) -> Any:
    """Return a kernel of kernels/vector_quantize for whole blocks."""
    import triton.language as tl

    from latent_kernels.kernels.vector_quantize import triton_gpu

    found = getattr(triton_gpu, f"{name}_kernel")
    double = dtype == torch.float64
    types = {arg: POINTERS[dtype] for arg in found.arg_names if arg.endswith("_ptr")}
    sums = ("packed_ptr", "commitment_ptr", "codebook_loss_ptr", "g_ptr", "g_commitment_ptr")
    types |= dict.fromkeys(sums, "*fp64" if double else "*fp32")
    types |= dict.fromkeys(("codes_ptr", "order_ptr", "ends_ptr"), "*i64")
    types |= dict.fromkeys(INTEGERS, "i32")
    block = 32 if double else 64
    constants: dict[str, Any] = dict.fromkeys(
        ("weighted", "with_quantized", "with_commitment", "with_codebook_loss"), True
    )
    constants |= {"nest": 1, "compute": tl.float64 if double else tl.float32}
    constants |= {"BLOCK_N": block, "BLOCK_C": block, "BLOCK_D": 64 if name != "assign" else 16}
    if name in ("forward", "row_gradients"):
        constants["BLOCK_N"] = 16 if not double else 8
    return ready(found, types, constants, target, ones=ones, even=("C", "D"))


@each_target
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_as_it_is_written(name: str, target: GPUTarget, tmp_path: Path) -> None:
    """No register is spilled, and nothing fused but what says so: codes have the CPU's bits."""
    found = kernel(name, torch.float32, target)
    assert spills(found, tmp_path) == 0
    of_dot = 16 * 32 if name == "assign" else 0  # columns at once, and scores of a thread
    assert contracted(found) == of_dot
    products_are_wide(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_do_not_spill(dtype: torch.dtype, tmp_path: Path) -> None:
    for name in ("assign", "forward"):
        assert spills(kernel(name, dtype, H100), tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_one_code_and_for_amd(name: str) -> None:
    assert kernel(name, torch.float32, H100, ones=True).asm["cubin"]
    assert kernel(name, torch.float32, TARGETS[3]).asm["amdgcn"]


def test_scores_stay_in_registers() -> None:
    """Products are fused on ordinary cores, and one value of each row is stored: its code."""
    ptx = instructions(kernel("assign", torch.float32, H100))
    assert "mma" not in ptx
    assert "mul.rn.f32" not in ptx
    assert ptx.count("st.global") == 1
