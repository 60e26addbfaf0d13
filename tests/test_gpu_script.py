"""A rehearsal of `make gpu`: bench/gpu.sh with stand-ins for the GPU, the compiler and the long
steps.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import latent_kernels
from tests.processes import ROOT, TIME_LIMIT

# A Python that finds a GPU and no scikit-build-core; a test run of which may fail or hang.
PYTHON = """#!/usr/bin/env bash
all="$*"
case "$all" in
  *cuda.is_available*) exit ${NO_GPU:-0} ;;
  *"import scikit_build_core"*) exit ${NO_SCIKIT_BUILD:-0} ;;
  *"-m pybind11"*) echo nowhere ;;
  *"-m pip"*) echo "pip installed" ;;
  *bench/gpu.py*) exec REAL -c 'from importlib.metadata import version as v
import pathlib, sys
at = next(p for p in sys.path if (pathlib.Path(p) / "latent_kernels").is_dir())
print("version", v("latent-kernels"), "in", at)' ;;
  *--benchmark*) echo op >"${all##*--save-rows=}/timings.csv" ;;
  *tests*) echo "$FATE"; [[ $FATE == hang ]] && sleep 1000; [[ $FATE != fail ]] ;;
  *) exec REAL "$@" ;;
esac
"""
CMAKE = """#!/usr/bin/env bash
[[ ${BROKEN:-} ]] && { echo "no compiler"; exit 1; }
while (($#)); do
  [[ $1 == -B || $1 == --build ]] && mkdir -p "$2" && touch "$2/_core.so"
  shift
done
true
"""
# Cuts short what hangs, and says how long it would have been given.
TIMEOUT = """#!/usr/bin/env bash
echo "$3" >>"$LIMITS"
exec REAL -k 1 $(($3 > 150 && $3 < 180 ? 1 : 60)) "${@:4}"
"""


def rehearse(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Return the outcome of the script in a copy of what it reads, and the folder of its
    results.
    """
    tree, tools, out = folder / "tree", folder / "tools", folder / "out"
    for path in ("bench", "python/latent_kernels/kernels"):
        (tree / path).mkdir(parents=True)
    (tree / "python/latent_kernels/kernels/_core_old.so").touch()
    for path in ("bench/gpu.sh", "pyproject.toml"):
        (tree / path).write_bytes((ROOT / path).read_bytes())
    tools.mkdir()
    timeout = subprocess.run(["which", "timeout"], capture_output=True, text=True, check=True)
    for name, text, real in (
        ("python3", PYTHON, sys.executable),
        ("cmake", CMAKE, ""),
        ("timeout", TIMEOUT, timeout.stdout.strip()),
        ("compute-sanitizer", "#!/usr/bin/env bash\necho no errors\n", ""),
    ):
        (tools / name).write_text(text.replace("REAL", real))
        (tools / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH")}
    environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "LIMITS": str(folder / "limits")}
    done = subprocess.run(
        ["bash", str(tree / "bench/gpu.sh"), str(out)],
        env=environment | {"FATE": "1 passed"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT,
    )
    return done, out


def test_without_scikit_build_core_cmake_builds_what_every_step_imports(tmp_path: Path) -> None:
    done, out = rehearse(tmp_path, NO_SCIKIT_BUILD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    package = tmp_path / "tree/build/gpu-package"
    assert f"version {latent_kernels.__version__} in {package}" in done.stdout
    built = [path.name for path in (package / "latent_kernels/kernels").iterdir()]
    assert built == ["_core.so"]
    assert {path.name for path in out.iterdir()} <= {
        "bits.csv",
        "log.txt",
        "summary.txt",
        "timings.csv",
    }


def test_a_wheel_is_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "latent_kernels-9.8-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("latent_kernels/__init__.py", "")
        file.writestr("latent_kernels-9.8.dist-info/METADATA", "Name: latent-kernels\nVersion: 9.8")
    done, _ = rehearse(tmp_path, WHEEL=str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 9.8 in " in done.stdout


def test_with_scikit_build_core_pip_installs(tmp_path: Path) -> None:
    done, _ = rehearse(tmp_path)
    assert "pip installed" in done.stdout


@pytest.mark.parametrize(("fate", "code"), [("fail", 1), ("hang", 124)])
def test_after_a_step_that_fails_or_hangs_the_others_run(
    tmp_path: Path, fate: str, code: int
) -> None:
    done, out = rehearse(tmp_path, NO_SCIKIT_BUILD="1", FATE=fate)
    assert done.returncode == 1
    summary = done.stdout[done.stdout.index("== summary") :].splitlines()[1:]
    assert summary == (out / "summary.txt").read_text().splitlines()
    found = dict(re.findall(r"(\w+): exit status (\d+)", str(summary)))
    steps = ["install", "bits", "timings", "tests", "memcheck", "racecheck"]
    assert found == dict.fromkeys(steps, "0") | {"tests": str(code)}
    assert sum(map(int, (tmp_path / "limits").read_text().split())) < 600


def test_without_a_package_nothing_else_is_tried(tmp_path: Path) -> None:
    done, _ = rehearse(tmp_path, NO_SCIKIT_BUILD="1", BROKEN="1")
    assert done.returncode == 1
    assert "no compiler" in done.stdout
    assert "== bits" not in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done, _ = rehearse(tmp_path, NO_GPU="1")
    assert (done.returncode, done.stderr) == (2, "make gpu: torch finds no GPU here\n")
