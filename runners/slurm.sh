#!/bin/bash
# A build on all nodes of a Slurm job: sbatch --nodes=2 slurm.sh PLAN OUT
# The environment, the plan, what the plan names and OUT lie on storage that all nodes share.
#SBATCH --job-name=minitron-nas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
plan=${1:?give a plan and a run folder} out=${2:?give a run folder}

. "${MINITRON_NAS_VENV:?set it to the shared environment}/bin/activate"
export RAY_AUTH_MODE=token                 # from 2.59 on, nodes that join need the token that the first one made
ray get-auth-token --generate > /dev/null  # in ~/.ray, which all nodes must see; or set RAY_AUTH_TOKEN_PATH

head=$SLURMD_NODENAME                      # a batch script runs on the first node
ray start --head --port=6379 --disable-usage-stats
trap 'ray stop' EXIT
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        ray start --address="$head:6379" --disable-usage-stats --block &
fi
python - "$SLURM_NNODES" << 'PYTHON'       # until all nodes have joined
import sys, time
import ray
ray.init("auto", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(5)
PYTHON
minitron-nas build --plan "$plan" --out "$out" --set runner.kind=ray --set runner.address=auto &
build=$!
trap 'kill -TERM $build' TERM              # five minutes before the end: a checkpoint, and 143
code=0
wait $build || code=$?
while kill -0 $build 2> /dev/null; do wait $build || code=$?; done
[ "$code" -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
