"""The kernels of the bounds, compiled; see test_gaussian.py."""

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
    contracted,
    each_target,
    instructions,
    ready,
    spills,
)

KERNELS = ["sums_kernel", "merge_kernel", "weights_kernel", "others_kernel",
           "merge_others_kernel", "signal_kernel"]  # fmt: skip


def bounds(name: str, dtype: torch.dtype, target: Any, *, ones: bool = False) -> Any:
    """Return a kernel compiled as for a launch on [1, 5000, 256]."""
    import triton.language as tl

    from latent_kernels.kernels.bounds import triton_gpu

    kernel = getattr(triton_gpu, name)
    double = dtype == torch.float64
    types = {
        arg: "*fp64" if double else "*fp32" for arg in kernel.arg_names if arg.endswith("_ptr")
    }
    types["log_w_ptr"] = POINTERS[dtype]
    if name != "merge_kernel":
        types["out_ptr"] = POINTERS[dtype]
    types |= dict.fromkeys(("S", "N", "per_chunk", "tiles", "chunks"), "i32")
    _, block_s, block_n = triton_gpu._blocks((1, 5000, 256), dtype)
    constants = {
        "has_gradient": True,
        "even": not ones,
        "nest": 2,
        "compute": tl.float64 if double else tl.float32,
    }
    return ready(
        kernel, types, constants | {"BLOCK_S": block_s, "BLOCK_N": block_n}, target, ones=ones
    )


@each_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(
    name: str, dtype: torch.dtype, target: Any, tmp_path: Path
) -> None:
    kernel = bounds(name, dtype, target)
    assert spills(kernel, tmp_path) == 0
    assert contracted(kernel) == 0


@pytest.mark.parametrize(
    "target", [H100, *[pytest.param(t, marks=pytest.mark.slow) for t in TARGETS if t != H100]]
)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_ones(name: str, target: Any) -> None:
    bounds(name, torch.float32, target, ones=True)


@each_target
@pytest.mark.parametrize("name", ["weights_kernel", "signal_kernel"])
def test_weights_move_16_bytes_at_once(name: str, target: Any) -> None:
    ptx = instructions(bounds(name, torch.float32, target))
    assert "ld.global.v4" in ptx
    stores = re.findall(r"st\.global\S*", ptx)
    assert stores
    assert all("v4" in store for store in stores), stores


@each_target
@pytest.mark.parametrize("name", ["sums_kernel", "others_kernel"])
def test_sums_over_samples_stay_in_a_thread(name: str, target: Any) -> None:
    assert "bar.sync" not in instructions(bounds(name, torch.float32, target))
