"""Trains and is killed, many times: `killed.py BETON FOLDER TRIALS` prints a hash per trial."""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from ltd_pipe.distributed import World
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.training.trainer import Watcher

ranks.CASES |= {"often": {"snapshot_steps": 1}}
# Of a run on an idle machine; a busy one is killed earlier in it.
LONGEST_S = 0.6


def train(beton, stream, folder):
    """Run to the end, or as far as it gets; the result's hash goes into a file."""
    fit = ranks.make_fit(beton, folder, "often", World(), stream=stream)
    fit.run(Watcher())
    result = ranks.result_of(fit)
    text = json.dumps(result["history"]).encode() + result["weights"].numpy().tobytes()
    (folder / "hash").write_text(hashlib.sha256(text).hexdigest())


def attempt(beton, stream, folder, delay):
    """Train in a child process, killed after some seconds; whether it was."""
    child = os.fork()
    if child == 0:
        train(beton, stream, folder)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(beton_path, folder, trials):
    """Each trial is killed up to three times and then left alone."""
    # Nothing is computed here but in this thread: a fork of a process with threads would hang.
    torch.set_num_threads(1)
    beton = open_beton(Path(beton_path))
    stream = ImageStream(beton, torch.device("cpu"), resident=True)
    delays = random.Random(0)  # noqa: S311  no secrets
    kills = 0
    for trial in range(int(trials)):
        home = Path(folder) / str(trial)
        home.mkdir()
        for _ in range(3 if trial else 0):
            kills += attempt(beton, stream, home, delays.uniform(0, LONGEST_S))
        attempt(beton, stream, home, None)
        os.write(1, ((home / "hash").read_text() + "\n").encode())
    os.write(1, f"{kills} kills\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
