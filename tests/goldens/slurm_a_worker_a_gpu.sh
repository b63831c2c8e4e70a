#!/bin/bash
#SBATCH --job-name=train-feeafd40
#SBATCH --dependency=singleton
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@60
#SBATCH --comment=grace_secs=60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Else it would hide what srun says of who the workers are.
unset TF_CONFIG

# What Slurm sends before the end goes to the steps, so to the trainers. If it
# reaches this shell as well, that must still see how they have ended.
trap : TERM

# The others may end by themselves when one has: the chief may still be saving.
srun \
  --kill-on-bad-exit=0 \
  --wait=60 \
  --distribution=block \
  --cpus-per-task=8 \
  --gpus-per-task=1 \
  python3 -m trainer.main \
  --strategy=multi_worker \
  --dataset=mnist \
  --data_dir=/data/mnist \
  --stop_upload_deadline_secs=40 \
  --workdir=gs://bucket/runs/first
code=$?

queue_again() {
  local state
  for _ in 1 2 3 4 5; do
    state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" \
      --format=%T) && break
    sleep 10
  done
  # It is not running if it was cancelled, or if Slurm queues it by itself.
  if [ "$state" = RUNNING ]; then
    echo "The trainer has exited with $code; the job is queued again."
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

counter="train-feeafd40-$SLURM_JOB_ID.restarts"
case $code in
  143)
    queue_again
    ;;
  1 | 7 | 134 | 135 | 136 | 139 | 142)
    restarts=$(cat "$counter" 2>/dev/null || echo 0)
    if [ "$restarts" -lt 10 ]; then
      echo $((restarts + 1)) >"$counter" && queue_again
    fi
    ;;
esac
exit $code
