#!/usr/bin/env bash
# An example for Slurm: one torchrun a node, all ranks meet at the first. Submitted again, or requeued after a node was
# lost, the run goes on from its last checkpoint, also with another number of nodes.
#
#   sbatch --nodes 4 training/slurm.sh cpt-2.5b --folder=/shared/runs
#
#SBATCH --job-name=mify
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# exec: the signal that Slurm sends two minutes before the end reaches torchrun, and the trainer saves.
exec srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head_node:29500" \
  -m mify.training.train "$@"
