#!/usr/bin/env bash
# Everything that needs a GPU, in one go of less than ten minutes: builds and installs the package beside the machine's
# own torch and triton, compares bits with the CPU, times the kernels and their rivals, runs the GPU tests, and
# compute-sanitizer on small sizes. Every step has its own time limit and goes on after a failure of another; the exit
# status tells of any. The folder given receives bits.csv, log.txt and, as `make bench` saves them, timings.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
status=0
: >"$out/log.txt"

# step NAME SECONDS COMMAND...
step() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name" | tee -a "$out/log.txt"
  timeout "$limit" "$@" >"$out/$name.tmp" 2>&1
  local code=$?
  cat "$out/$name.tmp" >>"$out/log.txt"
  tail -n "$((code == 0 ? 1 : 25))" "$out/$name.tmp"
  rm "$out/$name.tmp"
  ((code == 0)) || status=1
  echo "   exit status $code after $((SECONDS - begin)) s" | tee -a "$out/log.txt"
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "make gpu: torch finds no GPU here" >&2
  exit 2
}
step install 120 "$python" -m pip install --no-build-isolation --no-deps .
step bits 40 "$python" bench/gpu.py "$out"
# each group is written when it is timed: a run cut short leaves what it has
step timings 185 "$python" -m pytest --benchmark -q -p no:cacheprovider -k cuda --save-rows="$out"
# a process for each core: most of the time goes into compiling kernels
step tests 170 "$python" -m pytest tests -m "gpu or triton" -q -p no:cacheprovider -n "$(nproc)" --dist worksteal
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # torch's caching allocator would hide accesses beyond a tensor's end
    step "$tool" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest tests/gaussian/test_gaussian.py tests/triton/test_gpu.py -m "gpu or triton" -q \
      -p no:cacheprovider -k 'test_results and 5 or strides'
  done
else
  echo "== compute-sanitizer is not installed: left out"
fi
exit $status
