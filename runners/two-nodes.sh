#!/bin/bash
# A Ray cluster of a head that computes nothing and two nodes, all on this machine, and a build on it:
# two-nodes.sh PLAN OUT [CPUS of a node]
set -euo pipefail
plan=${1:?give a plan and a run folder} out=${2:?give a run folder} cpus=${3:-1}

export RAY_AUTH_MODE=token                 # who joins needs the token that the head was started with
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
address=127.0.0.1:${MINITRON_NAS_PORT:-6399}
head='' nodes=()
end() {                                    # nodes that lose their head wait for it
    [ ${#nodes[@]} -eq 0 ] || kill "${nodes[@]}" 2> /dev/null || true
    [ ${#nodes[@]} -eq 0 ] || wait "${nodes[@]}" || true
    [ -z "$head" ] || kill "$head" 2> /dev/null || true
    wait
}
trap end EXIT

wait_for() {                               # until so many nodes are alive; the head is one
    python - "$address" "$1" << 'PYTHON'
import subprocess, sys, time
import ray
address, number, end = sys.argv[1], int(sys.argv[2]), time.monotonic() + 60
while subprocess.run(["ray", "health-check", "--address", address], capture_output=True).returncode:
    if time.monotonic() > end:
        sys.exit(f"no head answers at {address}; is the port taken? MINITRON_NAS_PORT names another")
    time.sleep(0.5)
ray.init(address, log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < number:
    if time.monotonic() > end:
        sys.exit(f"fewer than {number} nodes have joined {address} within a minute")
    time.sleep(0.5)
PYTHON
}

ray start --head --port="${address#*:}" --num-cpus=0 --num-gpus=0 --include-dashboard=false --disable-usage-stats \
    --block > /dev/null &
head=$!
wait_for 1
for number in 2 3; do                      # one after the other: two at once may choose one name for their sockets
    ray start --address="$address" --num-cpus="$cpus" --disable-usage-stats --block > /dev/null &
    nodes+=($!)
    wait_for "$number"
done
minitron-nas build --plan "$plan" --out "$out" --set runner.kind=ray --set "runner.address=$address"
