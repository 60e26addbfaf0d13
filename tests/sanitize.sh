#!/usr/bin/env bash
# Builds the extension with the address and undefined-behaviour sanitizers, apart from the installed one, and runs the
# tests of the C++ kernels with it: `make sanitize`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/sanitize
cmake=$("$python" -c 'import shutil, sys; print(shutil.which("cmake") or sys.exit("make sanitize needs cmake"))')
"$cmake" -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DLK_OPTIMIZATION=-O1 -DLK_GENERIC=ON -DPython_EXECUTABLE="$(pwd)/$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
"$cmake" --build "$build" -j "$(nproc)"
rm -rf "$build/package" && mkdir -p "$build/package"
cp -rL python/latent_kernels "$build/package/"  # kernels/ lies behind a link
rm -f "$build"/package/latent_kernels/kernels/_core*.so
cp "$build"/_core*.so "$build/package/latent_kernels/kernels/"
# The editable install's import hook comes before any path; it has to go first.
run='import sys; sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__];
sys.path.insert(0, sys.argv.pop(1)); import latent_kernels.kernels._core as core; print(core.__file__);
import pytest; sys.exit(pytest.main(sys.argv[1:]))'
compiler=${CXX:-g++}
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)" \
  "$python" -c "$run" "$build/package" tests/test_core.py tests/noise tests/gaussian/test_gaussian.py \
  tests/gaussian/test_rsample_log_prob.py tests/gaussian/test_dependence.py tests/densities \
  tests/families/test_samples.py tests/relaxed tests/score/test_score.py tests/bounds/test_bounds.py tests/lasso tests/omp \
  tests/vector_quantize \
  tests/lista/test_lista.py -m "not triton" -q -x -p no:cacheprovider
