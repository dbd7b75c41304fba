#!/usr/bin/env bash
# Runs one experiment of a sweep per task of a job array: `python -m pipeline slurm sweep`. The arguments are names of
# directories in .runs/sweep, in which the command has written what to run.
#
# It runs in a clone, whose result is then pushed to the repository: DVC's own copies (`dvc exp run --temp`, `--queue`)
# share locks that contain process ids, which mean nothing on another node.
set -euo pipefail
keys=("$@")
key=${keys[SLURM_ARRAY_TASK_ID]}
root=$PWD
copy=$root/.dvc/tmp/exps/slurm-$key # where the stages look for .runs/ in the repository above
name=$(< ".runs/sweep/$key/name")
mapfile -t settings < ".runs/sweep/$key/settings"
workspace=$(git rev-parse "refs/sweep/$key") # a commit of the workspace; its parent is the commit that was checked out
cache=$(dvc cache dir)
echo "experiment $name"

rm -rf "$copy"
trap 'rm -rf "$copy"' EXIT
git clone --quiet --shared --no-checkout \
  --config user.name="$(git config user.name)" --config user.email="$(git config user.email)" . "$copy"
cd "$copy"
git update-ref --no-deref HEAD "$workspace^"
git read-tree -u --reset "$workspace"
if [ -e "$root/.dvc/config.local" ]; then cp "$root/.dvc/config.local" .dvc; fi
dvc cache dir --quiet --local "$cache"
dvc checkout --quiet --allow-missing || true # what is not in the cache is made again

bash "$root/recipes/slurm/step.sh" "$SLURMD_NODENAME" dvc exp run --name "$name" "${settings[@]/#/--set-param=}"
dvc exp push --quiet --no-cache origin "$name"
cd "$root"
rm -r ".runs/sweep/$key"
git update-ref -d "refs/sweep/$key"
