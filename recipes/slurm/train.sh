#!/usr/bin/env bash
# Trains on all nodes of the job, then runs the remaining stages on one of them: `python -m pipeline slurm train`. The
# first node runs DVC, which starts training there; the other nodes join it.
set -uo pipefail
# torchrun numbers machines by name and DVC must run on the first of them. SLURM sorts node9 before node10.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | LC_ALL=C sort | head -n 1)
export NNODES=$SLURM_JOB_NUM_NODES RDZV_ID=$SLURM_JOB_ID
export PORT=$((20000 + SLURM_JOB_ID % 10000))
export RDZV_ENDPOINT=$first:$PORT

if ((NNODES > 1)); then
  # They wait until training starts there: DVC may first hash its data for minutes, or have nothing to do.
  srun --nodes=$((NNODES - 1)) --ntasks=$((NNODES - 1)) --exclude="$first" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" bash -c '
      until (: > "/dev/tcp/${RDZV_ENDPOINT%:*}/$PORT") 2> /dev/null; do sleep 1; done
      NODE_RANK=$((SLURM_PROCID + 1)) exec python -m pipeline launch stages.train
    ' &
fi
exec bash recipes/slurm/step.sh "$first" bash -c 'NODE_RANK=0 dvc repro train && NNODES=1 dvc repro'
