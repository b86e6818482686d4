#!/bin/bash
# A Ray cluster of a head that computes nothing and two nodes, all on this machine, and a build on it:
# two-nodes.sh PLAN OUT [CPUS of a node]
set -euo pipefail
plan=${1:?give a plan and a run folder} out=${2:?give a run folder} cpus=${3:-1}

export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
port=${MINITRON_NAS_PORT:-6399}
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT
ray start --head --port="$port" --num-cpus=0 --num-gpus=0 --include-dashboard=false --disable-usage-stats --block \
    > /dev/null &
until ray health-check --address "127.0.0.1:$port" 2> /dev/null; do sleep 1; done
for _ in 1 2; do
    ray start --address="127.0.0.1:$port" --num-cpus="$cpus" --disable-usage-stats --block > /dev/null &
done
sleep 5
minitron-nas build --plan "$plan" --out "$out" --set runner.kind=ray --set "runner.address=127.0.0.1:$port"
