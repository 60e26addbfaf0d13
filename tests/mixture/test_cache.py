"""numba's cache of compiled kernels on disk: damaged files, several processes, no folder for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event

from latent_kernels.kernels.mixture import compiled
from tests.processes import ROOT, run

FLOATS = numba.types.Array(numba.float64, 2, "A", readonly=True)
SINGLES = numba.types.Array(numba.float32, 2, "A", readonly=True)

DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "garbage": lambda data: bytes((37 * i + 11) % 256 for i in range(len(data))),
    "zeros": lambda data: bytes(len(data)),
    "zeros in the middle": lambda data: (
        data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) * 3 // 4 :]
    ),
    "another pickle": lambda data: b"\x80\x04N.",
}


def kernel(X: Any, last: int) -> float:
    """Return a kernel that compiles fast."""
    total = 0.0
    for i in range(last):
        total += X[i, 0]
    return total


def compile_and_call() -> int:
    """Return how often numba compiled the kernel."""
    with event.install_recorder("numba:compile") as recorder:
        function = compiled._compile(kernel, (FLOATS, numba.int64))
    assert function(np.ones((5, 1)), 5) == 5
    return len({id(found.data["dispatcher"]) for _, found in recorder.buffer})


def files(extension: str) -> list[Path]:
    return sorted(Path(os.environ["NUMBA_CACHE_DIR"]).rglob(f"*.{extension}"))


def damage_every_file() -> None:
    """Damage each file in each way; it is compiled again once, and then found."""
    assert (compile_and_call(), compile_and_call()) == (1, 0)
    for extension in ("nbc", "nbi"):
        for name, damaged in DAMAGES.items():
            for file in files(extension):
                file.write_bytes(damaged(file.read_bytes()))
            assert (compile_and_call(), compile_and_call()) == (1, 0), (extension, name)
        for file in files(extension):
            file.unlink()
        assert (compile_and_call(), compile_and_call()) == (1, 0)


def damage_every_part_of_the_code() -> None:
    compile_and_call()
    (file,) = files("nbc")
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 10)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        compile_and_call()


def no_place() -> None:
    """Return the path of a file that can be neither read nor written, because a folder has its
    name.
    """
    compile_and_call()
    for extension in ("nbi", "nbc"):
        (file,) = files(extension)
        file.unlink()
        file.mkdir()
        assert (compile_and_call(), compile_and_call()) == (1, 1)
        file.rmdir()


def each_signature_has_files_of_its_own() -> None:
    compile_and_call()
    compiled._compile(kernel, (SINGLES, numba.int64))
    assert len(files("nbi")) == len(files("nbc")) == 2


@pytest.mark.parametrize(
    "check",
    [
        damage_every_file,
        damage_every_part_of_the_code,
        no_place,
        each_signature_has_files_of_its_own,
    ],
)
def test_damage(check: Any, tmp_path: Path) -> None:
    run(
        f"from tests.mixture import test_cache; test_cache.{check.__name__}()",
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),
    )


def test_processes_that_find_the_damage_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = (
        "from tests.mixture.test_cache import *\n"
        "for _ in range(3):\n"
        "    for file in files('nbi') + files('nbc'): file.write_bytes(b'')\n"
        "    compile_and_call()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()


@pytest.mark.slow
def test_a_mixture_survives_a_damaged_cache(tmp_path: Path) -> None:
    code = (
        "import numpy as np, latent_kernels as lk\n"
        "X = np.arange(40.0).reshape(20, 2)\n"
        "model = lk.GaussianMixture(2, covariance_type='spherical', random_state=0).fit(X)\n"
        "print(model.predict(X).tolist())"
    )
    expected = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(b"" if file.suffix == ".nbi" else file.read_bytes()[:1000])
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)) == expected
