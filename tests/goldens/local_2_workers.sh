#!/bin/sh
pids= stop=
trap stop=1 TERM
trap : INT
A='b c' TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]}, "task": {"type": "worker", "index": 0}}' CUDA_VISIBLE_DEVICES=0,1 /usr/bin/python3 -m trainer.main --strategy=multi_worker --epochs=100 --dataset=mnist '--data_dir=~/mnist' --workdir=runs/first & pids="$pids $!"
A='b c' TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]}, "task": {"type": "worker", "index": 1}}' CUDA_VISIBLE_DEVICES=2,3 /usr/bin/python3 -m trainer.main --strategy=multi_worker --epochs=100 --dataset=mnist '--data_dir=~/mnist' --workdir=runs/first & pids="$pids $!"
trap 'kill -TERM $pids 2>/dev/null' TERM
[ -z "$stop" ] || kill -TERM $pids 2>/dev/null
code=0
for pid in $pids; do
  while :; do
    wait "$pid" && end=0 || end=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$end" = 0 ] || code=$end
done
exit $code
