#!/bin/sh
set -eu
set --
credentials="${GOOGLE_APPLICATION_CREDENTIALS:-${CLOUDSDK_CONFIG:-$HOME/.config/gcloud}/application_default_credentials.json}"
# Without such a file, the container asks the machine's metadata server.
if [ -f "$credentials" ]; then
  credentials="$(realpath "$credentials")"
  set -- "$@" \
    --mount="type=bind,source=$credentials,target=/run/credentials.json,readonly" \
    --env=GOOGLE_APPLICATION_CREDENTIALS=/run/credentials.json
fi
directory="$(realpath "$HOME"/mnist)"
set -- "$@" --mount="type=bind,source=$directory,target=/data,readonly"
exec docker run \
  --detach \
  --name=train-b9f9e46a \
  --read-only \
  --tmpfs=/tmp:rw,exec,mode=1777 \
  --tmpfs=/scratch:rw,exec,mode=1777 \
  --env=HOME=/scratch \
  --cap-drop=ALL \
  --security-opt=no-new-privileges \
  --shm-size=8g \
  --stop-timeout=90 \
  --gpus=8 \
  --label=gan-trainer-job=train-b9f9e46a \
  --label=gan-trainer-digest=b9f9e46a \
  --label=gan-trainer-attempt=1 \
  --env=GAN_TRAINER_IMAGE=registry.example.com/gan-trainer@sha256:0000000000000000000000000000000000000000000000000000000000000000 \
  --user="$(id -u):$(id -g)" \
  "$@" \
  registry.example.com/gan-trainer@sha256:0000000000000000000000000000000000000000000000000000000000000000 \
  --epochs=100 \
  --dataset=mnist \
  --data_dir=/data \
  --stop_upload_deadline_secs=70 \
  --workdir=gs://bucket/runs/first \
  --local_dir=/scratch/run
