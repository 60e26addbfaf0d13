"""Every Triton kernel compiled for real targets, with no GPU and no driver: what the machine code
must look like.

Checked: no register spills, 16-byte loads and stores where rows are aligned, no shared memory where
no row is summed, and no fused multiply-add or approximate square root in the noise, which its
contract forbids.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_kernels.kernels import backends

pytestmark = pytest.mark.skipif(backends.interpreting(), reason="the interpreter has no compiler")
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
CUDA = TARGETS[:3]
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
LAYOUTS = {"aligned": 0, "shifted": 1, "scattered": 2}


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], target: GPUTarget
) -> Any:
    """The kernel compiled as a launch would: addresses and sizes that are multiples of 16 are known
    as such.
    """
    from latent_kernels.kernels.launch import OPTIONS

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    divisible = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_row", "_group", "D", "_sample", "_stride")) or name == "n"
    ]
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i in divisible
        if signature[kernel.arg_names[i]] != "constexpr"
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=dict(OPTIONS))


def gaussian(
    name: str, dtype: torch.dtype, layout: str, target: GPUTarget, *, ones: bool = False
) -> Any:
    """A Gaussian kernel; with `ones`, as a launch on a problem of one row and column specializes
    it.
    """
    import triton.language as tl

    from latent_kernels.kernels.gaussian import triton_gpu
    from latent_kernels.kernels.launch import tile_shape

    kernel = getattr(triton_gpu, name)
    rows = "*fp64" if dtype == torch.float64 else "*fp32"
    types = {arg: POINTERS[dtype] for arg in kernel.arg_names if arg.endswith("_ptr")}
    types |= dict.fromkeys(("kl_ptr", "log_q_ptr", "gkl_ptr", "gq_ptr"), rows)
    sizes = ("S", "N", "D", "seed_stride", "samples_per_program", "tiles", "chunks", "col_blocks")
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(("seed", "offset", "chunk_stride"), "i64")
    types |= {arg: "i32" for arg in kernel.arg_names if re.search(r"_(group|row|sample)$", arg)}
    compute = tl.float64 if dtype == torch.float64 else tl.float32
    block_n, block_d = tile_shape(4096, 64, dtype, small=layout == "scattered")
    constants: dict[str, Any] = {"compute": compute, "BLOCK_N": block_n, "BLOCK_D": block_d}
    constants |= {"layout": LAYOUTS[layout], "seed_is_pointer": False, "is_scale": False}
    constants |= {arg: True for arg in kernel.arg_names if re.match(r"(with|has|need)_", arg)}
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
    constants = {
        "substream": 0 if kind == "normal" else 1,
        "seed_is_pointer": False,
        "shift": 0,
        "BLOCK": 1024,
    }
    return compiled(triton_gpu.fill_kernel, types, constants, target)


def instructions(kernel: Any) -> str:
    """The PTX without its debugging sections, which hold names and comments."""
    text: str = kernel.asm["ptx"]
    text = text[: text.index(".section")] if ".section" in text else text
    # floor flushes subnormals, of which its arguments (2t + 1/2, a multiple of 2^-30 or so) have
    # none
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


KERNELS = ["forward_kernel", "backward_kernel", "path_backward_kernel"]


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(
    name: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for layout in LAYOUTS:
        assert spills(gaussian(name, dtype, layout, target), tmp_path) == 0, layout


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_a_single_row(name: str) -> None:
    """A launch makes constants of arguments that are 1."""
    for layout in LAYOUTS:
        assert gaussian(name, torch.float32, layout, CUDA[1], ones=True).asm["cubin"]


@pytest.mark.parametrize("name", KERNELS)
def test_offsets_have_64_bits(name: str) -> None:
    """Strides come as 32-bit arguments; every product with one that reaches an address is of 64
    bits.
    """
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
def test_noise_has_no_fma_and_no_approximation(
    kind: str, target: GPUTarget, tmp_path: Path
) -> None:
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
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, "v4"), (torch.bfloat16, "v4|v2")], ids=str
)
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_aligned_rows_move_16_bytes_at_once(
    name: str, dtype: torch.dtype, width: str, target: GPUTarget
) -> None:
    ptx = instructions(gaussian(name, dtype, "aligned", target))
    assert re.search(rf"ld\.global\.({width})", ptx)
    assert re.search(rf"st\.global\.({width})", ptx)
    wide = len(re.findall(rf"(?:ld|st)\.global\.({width})", ptx))
    narrow = len(re.findall(r"(?:ld|st)\.global\.b(?:32|16)", ptx))
    assert wide > narrow, f"{wide} wide accesses, {narrow} narrow ones (per-row values are narrow)"


# --- score function and discrete samples ----------------------------------------------------------

SCORE_KERNELS = ["gaussian_kernel", "bernoulli_kernel", "antithetic_kernel", "categorical_kernel"]
PLAIN, ROWS, ELEMENTS, OPTIMAL = range(4)  # as in kernels/score/triton_sums.py


def ready(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], target: GPUTarget, *, ones: bool
) -> Any:
    """The kernel compiled as a launch would: only specialized arguments are known as multiples of
    16, or as 1.
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
    even = {"D", "seed_stride", "size", "count", "plane"}
    divisible = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name in types and name in free and (name.endswith("_ptr") or name in even)
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=dict(OPTIONS))


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
) -> Any:
    """A score-function kernel, with the tile that a launch takes; `layout` where it draws its
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
        types |= {"z_ptr": "*i64", "c_ptr": "*fp32"}
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
        4096, 64, dtype, small=mode >= ELEMENTS or with_variance or layout == "scattered"
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
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "BLOCK_K": 16,
        "BLOCK_E": 16 if double else 32,
        "kind": 0 if name.startswith("gaussian") else 1,
        "sums": 12,
        "classes": name.startswith("categorical"),
        "BLOCK": 512,
    }
    return ready(kernel, types, constants, target, ones=ones)


def finish(
    kind: int, dtype: torch.dtype, target: GPUTarget, mode: int, *, ones: bool = False
) -> Any:
    """The kernel that adds the parts' sums up."""
    import triton.language as tl

    from latent_kernels.kernels.score import triton_sums

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
    constants |= {"has_upstream": True, "with_variance": True, "BLOCK": 512}
    constants |= {"compute": tl.float64 if double else tl.float32}
    return ready(kernel, types, constants, target, ones=ones)


def discrete(
    name: str, dtype: torch.dtype, target: GPUTarget, *, ones: bool = False, wraps_once: bool = True
) -> Any:
    """A kernel of kernels/families."""
    from latent_kernels.kernels.families import triton_gpu

    types = {"z_ptr": POINTERS[dtype], "logits_ptr": POINTERS[dtype], "c_ptr": "*fp32"}
    types |= {"z_ptr": "*i64"} if name == "categorical_kernel" else {}
    types |= dict.fromkeys(("count", "plane", "K", "seed_stride", "blocks"), "i32")
    types |= dict.fromkeys(("seed", "offset"), "i64")
    constants = {"antithetic": True, "seed_is_pointer": False, "shift": 0, "wraps_once": wraps_once}
    constants |= {
        "aligned": not ones,
        "steps": 4,
        "BLOCK": 128 if name == "cumulative_kernel" else 1024,
    }
    return ready(getattr(triton_gpu, name), types, constants, target, ones=ones)


def modes(name: str) -> list[tuple[int, bool]]:
    """The least and the most that a kernel keeps in registers: mode, and whether values are per
    element.
    """
    return [(PLAIN, False)] if name == "antithetic_kernel" else [(ROWS, False), (OPTIMAL, True)]


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_compiles_without_spills(
    name: str, dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for mode, per_element in modes(name):
        for layout in (None, "scattered"):
            kernel = score(name, dtype, target, mode, per_element=per_element, layout=layout)
            assert spills(kernel, tmp_path) == 0, (mode, layout)


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finishing_compiles_without_spills(
    dtype: torch.dtype, target: GPUTarget, tmp_path: Path
) -> None:
    for kind in range(3):
        for mode in (PLAIN, OPTIMAL) if kind < 2 else (PLAIN,):
            assert spills(finish(kind, dtype, target, mode), tmp_path) == 0, (kind, mode)


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCORE_KERNELS[:3])
def test_aligned_samples_are_read_16_bytes_at_once(
    name: str, dtype: torch.dtype, target: GPUTarget
) -> None:
    """With values for each element there is nothing narrow to read."""
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
                CUDA[1],
                mode,
                per_element=per_element,
                layout=layout,
                ones=True,
            )
            assert kernel.asm["cubin"]


def test_small_kernels_compile_for_a_single_row() -> None:
    for kind in range(3):
        assert finish(kind, torch.float32, CUDA[1], PLAIN if kind == 2 else OPTIMAL, ones=True).asm[
            "cubin"
        ]
    for name in ("bernoulli_kernel", "cumulative_kernel", "categorical_kernel"):
        assert discrete(name, torch.float32, CUDA[1], ones=True, wraps_once=False).asm["cubin"]


def products_are_wide(kernel: Any) -> None:
    """No product of 32 bits with a size of the problem: `folds * chunks`, the number of parts, is
    one of none.
    """
    ttir = kernel.asm["ttir"]
    sizes = set(
        re.findall(r"(%(?:[NDSK]|groups|size|plane|count|baseline_\w+))\b[^,)]*: i32", ttir)
    )
    assert sizes
    for line in ttir.splitlines():
        if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
            assert not any(re.search(rf"{re.escape(name)}\b", line) for name in sizes), line


@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_score_offsets_have_64_bits(name: str) -> None:
    for mode, per_element in modes(name):
        products_are_wide(score(name, torch.float32, CUDA[1], mode, per_element=per_element))
        products_are_wide(
            score(name, torch.float32, CUDA[1], mode, per_element=per_element, layout="scattered")
        )


def test_small_kernels_offsets_have_64_bits() -> None:
    for kind in range(3):
        products_are_wide(finish(kind, torch.float32, CUDA[1], PLAIN if kind == 2 else OPTIMAL))
    for name in ("bernoulli_kernel", "cumulative_kernel", "categorical_kernel"):
        products_are_wide(discrete(name, torch.float32, CUDA[1]))


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
def test_samples_have_no_fma_and_no_approximation(
    name: str, target: GPUTarget, tmp_path: Path
) -> None:
    kernel = discrete(name, torch.float32, target)
    if "ptx" not in kernel.asm:
        fused = re.findall(r"\bv_(?:pk_)?(?:fma|fmac|mad)\w*_f32.*", kernel.asm["amdgcn"])
        # by 2^32 and -2^32: a program number of 64 bits is divided with the help of floats
        assert all(re.search(r"0x[4c]f800000", instruction) for instruction in fused), fused
        return
    ptx = instructions(kernel)
    assert not re.search(r"\bfma\.|\bmad\.[a-z]*\.?f32|\.approx|\.ftz", ptx)
    assert spills(kernel, tmp_path) == 0
    if name == "bernoulli_kernel":
        stores = re.findall(r"st\.global\S*", ptx)
        assert stores
        assert all("v4" in store for store in stores), stores
    if name == "categorical_kernel":
        assert all("v2.b64" in store for store in re.findall(r"st\.global\S*", ptx))


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize("name", SCORE_KERNELS)
def test_samples_drawn_again_are_not_contracted(name: str, target: GPUTarget) -> None:
    """They are the samples that the values belong to, so nothing in the kernel may fuse."""
    kernel = score(name, torch.float32, target, PLAIN, layout="aligned")
    assert not re.search(r"\bfma\.rn\.f32|\bmad\.[a-z]*\.?f32|\.approx|\.ftz", instructions(kernel))


# --- log-densities --------------------------------------------------------------------------------

DENSITY_KERNELS = [
    (n, of) for n in ("forward_kernel", "backward_kernel") for of in ("gaussian", "bernoulli")
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
) -> Any:
    """A kernel of kernels/densities; `fates` of the three gradients."""
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
    if density == "bernoulli":
        constants |= dict.fromkeys(("c_ptr", "d_c_ptr"), None)
        types = {arg: t for arg, t in types.items() if arg not in ("c_ptr", "d_c_ptr")}
    constants |= dict(zip(("BLOCK_N", "BLOCK_D"), tile_shape(4096, 64, dtype), strict=True))
    constants |= {
        "is_gaussian": density == "gaussian",
        "compute": tl.float64 if double else tl.float32,
    }
    return ready(kernel, types, constants, target, ones=ones)


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
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
def test_density_compiles_for_a_single_row_and_for_amd(name: str, of: str) -> None:
    assert density(name, of, torch.float32, CUDA[1], ones=True).asm["cubin"]
    for dtype in (torch.float32, torch.bfloat16):
        assert density(name, of, dtype, TARGETS[3]).asm["amdgcn"]


@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_offsets_have_64_bits(name: str, of: str) -> None:
    for fates in (FATES[of], (3, 2, 1 if of == "gaussian" else 0)):
        kernel = density(name, of, torch.float32, CUDA[1], fates=fates)
        products_are_wide(kernel)
        ttir = kernel.asm["ttir"]
        strides = set(re.findall(r"(%[abc]_(?:group|row|sample))\b[^,)]*: i32", ttir))
        assert strides
        for line in ttir.splitlines():
            if re.search(r"arith\.muli .*: (?:tensor<[^>]*)?i32", line):
                assert not any(re.search(rf"{re.escape(stride)}\b", line) for stride in strides), (
                    line
                )


@pytest.mark.parametrize("target", CUDA, ids=lambda t: f"sm_{t.arch}")
@pytest.mark.parametrize(("name", "of"), DENSITY_KERNELS)
def test_density_arithmetic_is_not_contracted(name: str, of: str, target: GPUTarget) -> None:
    """An element has the CPU's bits because it is the same sequence of operations."""
    ptx = instructions(density(name, of, torch.float32, target))
    assert not re.search(r"\bfma\.rn\.f32|\bmad\.[a-z]*\.?f32|\.approx|\.ftz|div\.full", ptx)
    assert ("div.rn.f32" in ptx) == (of == "bernoulli")
