#!/bin/sh
pids=
A='b c' TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]}, "task": {"type": "worker", "index": 0}}' CUDA_VISIBLE_DEVICES=0,1 /usr/bin/python3 -m trainer.main --strategy=multi_worker --epochs=100 --dataset=mnist '--data_dir=~/mnist' --workdir=runs/first & pids="$pids $!"
A='b c' TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]}, "task": {"type": "worker", "index": 1}}' CUDA_VISIBLE_DEVICES=2,3 /usr/bin/python3 -m trainer.main --strategy=multi_worker --epochs=100 --dataset=mnist '--data_dir=~/mnist' --workdir=runs/first & pids="$pids $!"
code=0
for pid in $pids; do
  wait "$pid" || code=$?
done
exit $code
