#!/usr/bin/env bash
# For owners of an Atlas A2 (910B): builds the Ascend backend with CANN, checks it against the goldens, measures and profiles it,
# and writes one JSON report to attach to an issue. Nobody has run this on hardware yet; where it stops is worth a report too.
#
#   source /usr/local/Ascend/ascend-toolkit/set_env.sh
#   kernels/ascend/verify_910b.sh [report.json [model folder]]     # the model to measure; the bundled one otherwise
#
# Needs: driver and CANN toolkit, g++ >= 12, CMake >= 3.20, Node >= 20.17 with `npm ci` done in this repository.
set -u -o pipefail
cd "$(dirname "$0")/../.."

report=${1:-ascend-report.json}
model=${2:-models/nano}
build=build-910b
logs=$build/logs
mkdir -p "$logs"
declare -a stages=()

# stage NAME COMMAND...: runs it, keeps its output in logs/NAME.log, notes how it ended. Returns its status.
stage() {
  local name=$1 start status
  shift
  start=$(date +%s)
  echo "== $name: $*"
  "$@" >"$logs/$name.log" 2>&1
  status=$?
  tail -n 3 "$logs/$name.log"
  stages+=("{\"stage\": \"$name\", \"status\": $status, \"seconds\": $(($(date +%s) - start))}")
  return $status
}

# write_report OUTCOME: everything a reader needs, with the ends of all logs.
write_report() {
  local joined
  joined=$(IFS=,; echo "${stages[*]}")
  OUTCOME=$1 STAGES="[$joined]" LOGS=$logs REPORT=$report node -e '
    const { readdirSync, readFileSync, writeFileSync } = require("node:fs");
    const { execFileSync } = require("node:child_process");
    const run = (program, ...args) => {
      try { return execFileSync(program, args, { encoding: "utf8" }).trim(); } catch (error) { return `failed: ${error.message}`; }
    };
    const logs = Object.fromEntries(readdirSync(process.env.LOGS).map((name) =>
      [name, readFileSync(`${process.env.LOGS}/${name}`, "utf8").split("\n").slice(-200).join("\n")]));
    const home = process.env.ASCEND_HOME_PATH ?? process.env.ASCEND_TOOLKIT_HOME ?? "";
    let cann = "unknown";
    try { cann = readFileSync(`${home}/version.cfg`, "utf8").trim(); } catch { /* older toolkits lie elsewhere */ }
    writeFileSync(process.env.REPORT, JSON.stringify({
      outcome: process.env.OUTCOME,
      commit: run("git", "rev-parse", "HEAD"),
      date: new Date().toISOString(),
      machine: run("uname", "-srm"),
      npu: run("npu-smi", "info"),
      cann, ascendHome: home,
      stages: JSON.parse(process.env.STAGES),
      logs,
    }, null, 2));
  '
  echo "report: $report ($1)"
}

home=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}
if [ -z "$home" ]; then
  echo 'ASCEND_HOME_PATH is not set: source set_env.sh of the CANN toolkit first' >&2
  exit 1
fi

stage configure cmake -S . -B $build -DSIGMOE_TESTS=ON -DSIGMOE_ASCEND_CANN="$home" -DCMAKE_BUILD_TYPE=Release ||
  { write_report 'the build could not be configured'; exit 1; }
stage kernels cmake --build $build --target sigmoe_ascend_kernels -j || { write_report 'the kernels did not compile'; exit 1; }
stage host cmake --build $build --target sigmoe_ascend sigmoe_tests -j || { write_report 'the host side did not compile'; exit 1; }

# The libraries lie beside the test program, where it looks for them.
tests=$build/test/native/sigmoe_tests
export SIGMOE_ASCEND_LIBRARY=$PWD/$build/test/native/libsigmoe_ascend.so
export SIGMOE_ASCEND_KERNELS=$PWD/$build/test/native/libsigmoe_ascend_kernels.so
export SIGMOE_TEST_PATHS=ascend SIGMOE_TEST_DEVICE=ascend
outcome='everything passed'
stage goldens "$tests" -tc='golden: float32*,golden: BF16*,golden: W8A8*,golden: the bundled*' || outcome='goldens failed'
stage engine "$tests" -tc='engine:*' || outcome='tests of the engine failed'
stage speculation "$tests" -tc='speculation: batches*,speculation: tiny*' || outcome='tests of speculation failed'

if stage addon npm run build; then
  stage answer node dist/cli/main.js generate models/nano 'What is fever?' --device ascend --json || outcome='no answer'
  for compute in bfloat16 int8; do
    stage "latency-$compute" node dist/cli/main.js bench latency --model "$model" --device ascend --compute $compute --json ||
      outcome="bench latency in $compute failed"
  done
  if command -v msprof >/dev/null; then
    stage profile msprof --output=$build/prof --application="node dist/cli/main.js generate $model fever --device ascend"
  fi
fi
write_report "$outcome"
[ "$outcome" = 'everything passed' ]
