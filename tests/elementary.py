"""The elementary functions of the C++ kernels, callable one by one."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from latent_kernels.kernels import _core
from tests.processes import ROOT

FUNCTIONS = ("ln", "sin_pi", "cos_pi", "log1p")  # of tests/elementary.cpp, in order


def elementary(function: str, x: np.ndarray) -> np.ndarray:
    """Return function(x), computed as the SIMD build in use computes it."""
    out = np.empty_like(x)
    call = _library(_core.simd_build())[f"elementary_{x.dtype}"]
    size = ctypes.c_int64(len(x))
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, out))
    call(FUNCTIONS.index(function), size, *pointers)
    return out


@functools.cache
def _library(build: str) -> ctypes.CDLL:
    """Compile tests/elementary.cpp with the options that CMakeLists.txt has for a build."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C++ compiler")
    cmake = (ROOT / "CMakeLists.txt").read_text()
    shared = re.search(r"PRIVATE \$\{LK_OPTIMIZATION\}(.*?)\$\{ARGN\}", cmake, re.DOTALL)
    own = re.search(rf"add_build\({build}(.*)\)", cmake)
    assert shared is not None
    assert own is not None
    options = ["-std=c++17", "-O3", *shared[1].split(), *own[1].split()]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "elementary.so"
        subprocess.run(
            [*compiler, *options, "-shared", "-fPIC", f"-DLK_ISA={build}", f"-I{ROOT / 'csrc'}"]
            + [str(ROOT / "tests" / "elementary.cpp"), "-o", str(library)],
            check=True,
        )
        return ctypes.CDLL(str(library))
