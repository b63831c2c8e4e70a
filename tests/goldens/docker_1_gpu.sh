#!/bin/sh
set -eu
set --
mkdir -p 'my runs/first'
directory="$(realpath 'my runs/first')"
set -- "$@" --mount="type=bind,source=$directory,target=/workdir"
directory="$(realpath "$HOME"/mnist)"
set -- "$@" --mount="type=bind,source=$directory,target=/data,readonly"
exec docker run \
  --detach \
  --name=train-3d2592df \
  --read-only \
  --tmpfs=/tmp:rw,exec,mode=1777 \
  --tmpfs=/scratch:rw,exec,mode=1777 \
  --env=HOME=/scratch \
  --cap-drop=ALL \
  --security-opt=no-new-privileges \
  --shm-size=8g \
  --stop-timeout=60 \
  --gpus=1 \
  --cpus=8 \
  --memory=30g \
  --network=gans \
  --label=team=faces \
  --label=gan-trainer-job=train-3d2592df \
  --label=gan-trainer-digest=3d2592df \
  --label=gan-trainer-attempt=1 \
  --env=GAN_TRAINER_IMAGE=registry.example.com/gan-trainer@sha256:0000000000000000000000000000000000000000000000000000000000000000 \
  '--env=GREETING=it'"'"'s 5 o'"'"'clock' \
  --user="$(id -u):$(id -g)" \
  "$@" \
  registry.example.com/gan-trainer@sha256:0000000000000000000000000000000000000000000000000000000000000000 \
  --epochs=100 \
  --dataset=mnist \
  --data_dir=/data \
  --workdir=/workdir
