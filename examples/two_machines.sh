#!/bin/bash
# Adversarial training on two machines, without a scheduler. On each of them:
#
#   examples/two_machines.sh FIRST [OPTION…]    FIRST: name or address of one of the two
#
# The folder has to be on a file system that both share. Options are those of `ltd-pipe train`.
# After an interruption it can be run again, on one machine or on both. PROCESSES=4 starts so
# many on each machine instead of one for each GPU.
set -euo pipefail
first=${1:?the name of the first machine}

torchrun \
    --nnodes 2 --nproc-per-node "${PROCESSES:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" --rdzv-id ltd-pipe \
    -m ltd_pipe train "${@:2}"
