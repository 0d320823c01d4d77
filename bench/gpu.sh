#!/usr/bin/env bash
# The GPU path in eight minutes, offline: the gpu tests, a step's counts, the training benchmark in
# all modes, and a short pipeline, as one JSON and one log.
#
#     bash bench/gpu.sh [FOLDER]       default: bench/results/gpu
#
# Each part has a time limit, one that fails does not stop the next, and gpu.json holds what is
# known after each. TINY=1 tries the script itself on a CPU; BUDGET=480 is the seconds for all.
# Packages of another place are found through PYTHONPATH.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
mkdir -p "${1:-bench/results/gpu}"
out=$(realpath "${1:-bench/results/gpu}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -d .venv ] && PATH=$root/.venv/bin:$PATH
mkdir "$work/bin" "$work/json"
command -v python > /dev/null || ln -s "$(command -v python3)" "$work/bin/python"
export PATH=$PATH:$work/bin PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
last=$((SECONDS + ${BUDGET:-480}))
: > "$out/gpu.log"

narrow=resnet18 wide=wrn-34-10 batch=256 wide_batch=128 rounds=12 photos=4096 epochs=3 images=64
modes="none default reduce-overhead" wide_modes="none default"
if [ -n "${TINY:-}" ]; then
  narrow=small-cnn-w8 wide=small-cnn-w8 batch=16 wide_batch=16 rounds=2 photos=320 epochs=2 images=32
  modes=none wide_modes=none
fi

# part NAME SECONDS COMMAND…: its output on the screen and in gpu.log, all results so far in gpu.json.
part() {
  local name=$1 limit=$2 begin=$SECONDS left=$((last - SECONDS))
  shift 2
  if [ "$left" -lt 15 ]; then
    printf '%s\tleft out\t0\n' "$name" >> "$work/parts.tsv"
    gather
    return 1
  fi
  echo "=== $name" | tee -a "$out/gpu.log"
  timeout -k 5 $((limit < left ? limit : left)) "$@" 2>&1 | tee -a "$out/gpu.log" | tail -n 25
  local code=${PIPESTATUS[0]}
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - begin)) >> "$work/parts.tsv"
  echo "=== $name: exit $code after $((SECONDS - begin)) s"
  gather
  return "$code"
}

gather() {
  python - "$work" "$out/gpu.json" <<'P'
import json
import sys
from pathlib import Path

work, target = map(Path, sys.argv[1:])
rows = [line.split("\t") for line in (work / "parts.tsv").read_text().splitlines()]
result = {"parts": {name: {"exit": code, "seconds": int(s)} for name, code, s in rows}}
for file in sorted(work.glob("json/*.json")):
    try:
        result[file.stem] = json.loads(file.read_text())
    except ValueError:
        pass  # its part was ended while it wrote
target.write_text(json.dumps(result, indent=1) + "\n")
P
}

part machine 60 python -c 'import importlib.metadata as known, json, re, sys, torch as t
lines = open("setup.cfg").read().partition("install_requires =")[2].partition("[")[0].split("\n")
names = [m[0] for line in lines if (m := re.match(r"[a-zA-Z0-9_-]+", line.strip()))]
there = {name.lower().replace("_", "-") for d in known.distributions() if (name := d.metadata["Name"])}
missing = [name for name in names if name.lower().replace("_", "-") not in there]
gpu = t.cuda.is_available() and t.cuda.get_device_name()
found = {"torch": t.__version__, "gpu": gpu, "cudnn": t.backends.cudnn.version(), "missing": missing}
open(sys.argv[1], "w").write(json.dumps(found))
print(found)' "$work/json/machine.json"
part tests 120 python -m pytest -m gpu -q -p no:cacheprovider $(grep -rl --include='*.py' mark.gpu tests)
for mode in $modes; do
  part "launches-$mode" 60 python bench/launches.py --architecture "$narrow" --batch "$batch" \
    --compile "$mode" --json "$work/json/launches-$mode.json"
done
for mode in $modes; do
  part "training-$narrow-$mode" 90 python bench/training.py --architecture "$narrow" \
    --batch "$batch" --precision bfloat16 --compile "$mode" --rounds "$rounds" \
    --json "$work/json/$narrow-$mode.json"
done

# Photographs whose class can be learnt, as class folders; then the pipeline on them.
mkdir "$work/run"
cd "$work/run"
python - "$photos" <<'P'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

draw, count = np.random.default_rng(0), int(sys.argv[1])
for split, images in (("train", count), ("test", max(count // 8, 100))):
    for number in range(10):
        folder = Path("photos", split, f"class{number}")
        folder.mkdir(parents=True)
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3))
        base = np.kron(coarse, np.ones((4, 4, 1)))
        for i in range(images // 10):
            pixels = 0.6 * base + 0.4 * draw.integers(0, 256, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
P
sed -e 's/dataset: cifar10/dataset: folder/; s/path: data.cifar10.*/path: photos/; /download: true/d' \
  -e 's/validation_fraction: 0.02.*/validation_fraction: 0.1/' "$root/recipes/cifar10-fast.yaml" > params.yaml
run="python -m ltd_pipe"
sets="-S teacher.architecture=$narrow -S train.architecture=$narrow -S teacher.epochs=$epochs"
sets="$sets -S train.epochs=$epochs -S teacher.batch_size=128 -S train.batch_size=$batch"
sets="$sets -S train.awp_from_epoch=1 -S train.validation_every=1 -S train.allow_poor_labels=true"
# Compiled passes have their own parts above.
sets="$sets -S teacher.compile=none -S train.compile=none -S train.precision=bfloat16"
part prepare 60 $run prepare && part teacher 60 $run teacher $sets &&
  part label 40 $run label --teacher data/teacher/model.safetensors $sets &&
  part train 90 $run train $sets && cp data/student/timing.json "$work/json" &&
  part evaluate 100 $run evaluate data/student/model.safetensors $sets --images "$images" \
    --pgd-steps 10 --pgd-restarts 1 --eps-grid '[0, 8/255]' && cp data/metrics.json "$work/json"
cd "$root"

for mode in $wide_modes; do
  part "training-$wide-wide-$mode" 110 python bench/training.py --architecture "$wide" \
    --batch "$wide_batch" --precision bfloat16 --compile "$mode" --rounds "$rounds" \
    --json "$work/json/wide-$mode.json"
done
echo "$out/gpu.json"
