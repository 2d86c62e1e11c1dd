#!/usr/bin/env bash
# All that a GPU has to pass before a change of a kernel lands, for CI has none: products, ops in full sizes, the publisher's
# goldens, the engine, drafts; memcheck where compute-sanitizer is there, the library where Node is. On an H200 with 16 cores
# some ten minutes, building apart.
#
#   kernels/cuda/verify.sh [BUILD]      # a build folder; build-cuda, configured if it is not there
#
# Needs: a CUDA toolkit, g++ >= 12, CMake >= 3.20. Logs: BUILD/verify. Ends with "N passed, N failed".
set -u -o pipefail
cd "$(dirname "$0")/../.."

build=${1:-build-cuda}
logs=$build/verify
passed=0
failed=0
mkdir -p "$logs"

# stage NAME COMMAND...: runs it, keeps its output in the log of that name, counts how it ended. Returns its status.
stage() {
  local name=$1 start status
  shift
  start=$(date +%s)
  "$@" >"$logs/$name.log" 2>&1
  status=$?
  if [ $status -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  echo "$([ $status -eq 0 ] && echo passed || echo FAILED)  $name, $(($(date +%s) - start)) s"
  [ $status -eq 0 ] || grep -m 8 -E 'ERROR|WRONG|failed|error' "$logs/$name.log"
  return $status
}

finish() {
  echo "$passed passed, $failed failed"
  [ $failed -eq 0 ]
  exit
}

[ -f "$build/CMakeCache.txt" ] ||
  stage configure cmake -S . -B "$build" -DSIGMOE_CUDA=ON -DSIGMOE_TESTS=ON -DCMAKE_BUILD_TYPE=Release || finish
stage build cmake --build "$build" -j || finish

tests=$build/test/native/sigmoe_tests
export SIGMOE_CUDA_LIBRARY=$PWD/$build/kernels/cuda/libsigmoe_cuda.so
stage products "$build/bench/native/sigmoe_cuda_gemm_bench" check || finish  # also: whether there is a GPU
stage ops env SIGMOE_TEST_LONG=1 "$tests" -tc='cuda*'
export SIGMOE_TEST_PATHS=cuda SIGMOE_TEST_DEVICE=cuda
stage goldens "$tests" -tc='golden*,determinism*'
stage engine "$tests" -tc='engine:*,run ahead*'
stage speculation "$tests" -tc='draft*,speculation*'
if command -v compute-sanitizer >/dev/null; then
  stage memcheck env SIGMOE_TEST_SMALL=1 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 \
    "$tests" -tc='cuda brief*,cuda experts*,cuda linear*,cuda many*,cuda attention: prompts*'
fi
if command -v npx >/dev/null; then
  stage library npx vitest run test/device
fi
finish
