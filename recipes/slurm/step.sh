#!/usr/bin/env bash
# Runs a command of DVC as a job step on one node: step.sh NODE COMMAND ...
#
# Before the time limit (--signal=TERM@...), and on preemption, SLURM sends SIGTERM to every process of the job's steps.
# Training saves a checkpoint and stops. DVC must not end before training does, so it ignores the signal here and ends
# when its stage has failed. The job is then requeued, and continues from the checkpoint.
set -uo pipefail
node=$1
shift
# A task of an array can have the id of the array, which would mean all tasks, so it is named by its index.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" bash -c '
  trap "stopped=143" TERM
  (trap "" TERM; exec "$@")
  code=$?
  exit "${stopped:-$code}"
' bash "$@"
code=$?
# Not after scancel, where the state is COMPLETING: SLURM would requeue that job too.
if ((code == 143)) && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
  scontrol requeue "$job"
fi
exit "$code"
