"""A machine with AVX-512 used in place of one without: BENCH_SIMD=avx2 pytest --benchmark.

Our library runs its AVX2 build, and every rival is limited to instructions below AVX-512. Caches,
ports and clocks remain this machine's, so the rows are saved as those of a stand-in, apart from the
real ones.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "BENCH_SIMD"
SUFFIX = " stand-in"  # of the SIMD build's name in saved rows
# Each library reads its own when it is loaded.
_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch, and the width of what torch.compile writes out
    "TORCHINDUCTOR_CPP_MARCH": "haswell",  # what the C++ compiler makes of the rest
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # of NumPy, SciPy and so of scikit-learn
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe,+popcnt",
}


def wanted() -> bool:
    """Return whether AVX2 is asked for; raise ValueError for any other instruction set."""
    name = os.environ.get(VARIABLE, "")
    if name not in ("", "avx2"):
        raise ValueError(f"{VARIABLE} must be avx2; got {name!r}")
    return bool(name)


def limit() -> None:
    """Limit the rivals, before any of them is loaded."""
    if loaded := {"torch", "numpy", "numba"} & sys.modules.keys():
        raise RuntimeError(f"{VARIABLE} comes too late for {', '.join(sorted(loaded))}")
    os.environ.update(_AVX2)


def select() -> None:
    """Select our AVX2 build, and check that torch keeps to its limit."""
    import torch

    from latent_kernels.kernels import _core

    found = torch.backends.cpu.get_cpu_capability()
    if not _core.select_simd_build("avx2") or found != "AVX2":
        raise RuntimeError(f"{VARIABLE}: AVX2 cannot be selected here; torch uses {found}")
