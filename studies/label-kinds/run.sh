#!/usr/bin/env bash
# Run a study, with as many of its stages side by side as there are processors.
#
#   studies/label-kinds/run.sh digits
#   studies/label-kinds/run.sh cifar10 1        one at a time, for a GPU
#
# Stopped, it goes on where it was. `dvc repro` in the study's folder gives the same, slower.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/${1:?name a study: digits, cifar10-small or cifar10}"
for stage in prepare teacher label train evaluate drop; do
  # Each alone: DVC would lock what they share while it looks whether that has changed.
  dvc stage list --name-only | { grep "^$stage" || true; } |
    xargs --no-run-if-empty -n 1 -P "${2:-$(nproc)}" dvc --wait-for-lock repro --quiet --single-item
done
dvc repro
