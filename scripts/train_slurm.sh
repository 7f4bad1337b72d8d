#!/usr/bin/env bash
#SBATCH --job-name=lite-transformer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --output=slurm-%j.log
#
# Trains one experiment on all GPUs of a Slurm allocation; the arguments are those of `lite-transformer train`:
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/train_slurm.sh wmt14_en_fr_lite_496 --data DIR/bin --save-dir runs/NAME
#
# The batch stays the experiment's: its update_freq is divided among all processes. Submit it from a folder that every
# node sees, with the environment of lite-transformer active; checkpoints must lie on a shared disk. Submitted again, it
# goes on from the last checkpoint. PROCESSES_PER_NODE replaces the number of GPUs of a node, MASTER_PORT the port.
set -euo pipefail

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    echo "train_slurm.sh: no Slurm job. Type: sbatch scripts/train_slurm.sh CONFIG --data DIR/bin --save-dir DIR" >&2
    exit 2
fi
processes="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
address="${hosts%%$'\n'*}" # the first
port="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}" # jobs that share a node do not share a port

# one torchrun a node; each learns its own number from srun
# shellcheck disable=SC2016
exec srun --nodes "$SLURM_NNODES" --ntasks-per-node 1 --kill-on-bad-exit=1 bash -c '
    nodes="$1" processes="$2" address="$3" port="$4"
    shift 4
    exec torchrun --nnodes "$nodes" --node_rank "$SLURM_NODEID" --nproc_per_node "$processes" \
        --master_addr "$address" --master_port "$port" --no-python lite-transformer train "$@"
' train_slurm "$SLURM_NNODES" "$processes" "$address" "$port" "$@"
