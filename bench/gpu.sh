#!/usr/bin/env bash
# Everything that needs a GPU, in one go: builds and installs the package beside the machine's own torch and triton,
# runs the GPU tests, compute-sanitizer on small sizes, the comparison with the CPU and the timings, and leaves
# gpu.json, the benchmarks' JSON and the logs in the folder given. Goes on after a failure; fails at the end.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
status=0

step() {
  local name=$1
  shift
  echo "== $name"
  if ! "$@" >"$out/$name.log" 2>&1; then
    status=1
    echo "   failed; the end of $name.log:"
    tail -n 25 "$out/$name.log"
  fi
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "make gpu: torch finds no GPU here" >&2
  exit 2
}
step install "$python" -m pip install --no-build-isolation --no-deps .
step tests "$python" -m pytest tests/test_gpu.py -q -p no:cacheprovider
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer-$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest tests/test_gpu.py -q -p no:cacheprovider -k 'test_gaussian and 5 or strides'
  done
else
  echo "== compute-sanitizer is not installed: left out"
fi
step measurements "$python" bench/gpu.py "$out"
step benchmarks "$python" -m pytest --benchmark -q -p no:cacheprovider -k cuda --benchmark-json="$out/benchmarks.json"
exit $status
