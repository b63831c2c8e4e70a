#!/bin/sh
exec env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 /usr/bin/python3 -m trainer.main --epochs=100 --dataset=mnist '--data_dir=~/mnist' --workdir=runs/first
