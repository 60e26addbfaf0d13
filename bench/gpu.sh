#!/usr/bin/env bash
# Everything that needs a GPU, in one go of less than ten minutes: builds the package beside the machine's own torch and
# triton, compares bits with the CPU, times the kernels and their rivals, runs the GPU tests, and compute-sanitizer on
# small sizes. Every step has its own time limit and goes on after a failure of another; the exit status tells of any. The
# folder given receives bits.csv, log.txt, summary.txt and, as `make bench` saves them, timings.
#
# Nothing is downloaded. WHEEL=file takes a wheel that was built elsewhere, for this Python; without it the package is
# built by pip where scikit-build-core is installed, and otherwise by cmake and pybind11.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
export python=${PYTHON:-python3} WHEEL=${WHEEL:-} package=$PWD/build/gpu-package
status=0
: >"$out/log.txt"
: >"$out/summary.txt"

# step NAME SECONDS COMMAND...
step() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name" | tee -a "$out/log.txt"
  timeout -k 5 "$limit" "$@" >"$out/$name.tmp" 2>&1
  local code=$?
  cat "$out/$name.tmp" >>"$out/log.txt"
  tail -n "$((code == 0 ? 1 : 25))" "$out/$name.tmp"
  local end="exit status $code after $((SECONDS - begin)) s"
  echo "   $end" | tee -a "$out/log.txt"
  echo "$name: $end: $(tail -n 1 "$out/$name.tmp")" >>"$out/summary.txt"
  rm "$out/$name.tmp"
  ((code == 0)) || status=1
  return $code
}

summary() {
  echo "== summary"
  cat "$out/summary.txt"
  exit $status
}

# The package in a folder of its own, for PYTHONPATH.
unpack() {
  "$python" -m zipfile -e "$WHEEL" "$package"
}
build() {
  local work=build/gpu-cmake version info
  cmake -S . -B $work -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
  cmake --build $work -j "$(nproc)"
  cp -rL python/latent_kernels "$package/" # kernels/ lies behind a link
  rm -f "$package"/latent_kernels/kernels/_core*.so
  cp $work/_core*.so "$package/latent_kernels/kernels/"
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
  info=$package/latent_kernels-$version.dist-info # which the package asks for its version
  mkdir "$info"
  printf 'Metadata-Version: 2.1\nName: latent-kernels\nVersion: %s\n' "$version" >"$info/METADATA"
}
export -f unpack build

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "make gpu: torch finds no GPU here" >&2
  exit 2
}
if [[ -z $WHEEL ]] && "$python" -c 'import scikit_build_core' 2>/dev/null; then
  step install 120 "$python" -m pip install --no-build-isolation --no-deps . || summary
else
  rm -rf "$package" && mkdir -p "$package"
  step install 120 bash -ec "$([[ -n $WHEEL ]] && echo unpack || echo build)" || summary
  export PYTHONPATH=$package${PYTHONPATH:+:$PYTHONPATH}
fi
step bits 40 "$python" bench/gpu.py "$out"
# each group is written when it is timed: a run cut short leaves what it has
step timings 185 "$python" -m pytest --benchmark -q -p no:cacheprovider -k cuda --save-rows="$out"
# a process for each core: most of the time goes into compiling kernels
step tests 160 "$python" -m pytest tests -m "gpu or triton" -q -p no:cacheprovider -n "$(nproc)" --dist worksteal
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # torch's caching allocator would hide accesses beyond a tensor's end
    step "$tool" 30 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest tests/gaussian/test_gaussian.py tests/triton/test_gpu.py -m "gpu or triton" -q \
      -p no:cacheprovider -k 'test_results and 5 or strides'
  done
else
  echo "== compute-sanitizer is not installed: left out" | tee -a "$out/summary.txt"
fi
summary
