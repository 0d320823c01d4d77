"""A training run under torchrun: `ranks.py BETON FOLDER CASE…` (see `CASES`)."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from short_runs import ATTACK, SHORT

from ltd_pipe.distributed import World
from ltd_pipe.errors import LtdPipeError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import TrainParams
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

CASES = {
    "at": {},
    # Of 190 images rounding alone turns a sign of the attack, also where one process has all.
    "mart-awp": {"objective": "mart", "awp_gamma": 0.005, "awp_from_epoch": 1, "images": 188},
    "adr": {"label_kind": "adr", "attack_label": "target"},
    "parts": {"accumulation_steps": 3, "clip_norm": 0.5},
    "mixed-parts": {"accumulation_steps": 2, "cutmix_probability": 0.5, "images": 69},
    "own-statistics": {"sync_batch_norm": False},
    "carried": {"attack_start": "previous", "attack_steps": "1..2", "epochs": 3, "flip": True},
    "killed": {"snapshot_steps": 3},
    "stopped": {},
    "killed-validating": {"attack_steps": 1},
    "gone": {},
}
BASE = {**SHORT, **ATTACK, "label_kind": "onehot", "ema_decay": 0.9, "images": 190}


class Signals(Watcher):
    """Kills the second process, or stops the first one, after step 8."""

    def __init__(self, case, rank):
        self._case, self._rank = case, rank
        self._number = {("killed", 1): signal.SIGKILL, ("stopped", 0): signal.SIGTERM}.get(
            (case, rank)
        )

    def validation(self, epoch):
        if self._case == "killed-validating" and self._rank == 1 and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, done, *_):
        if done == 8 and self._number is not None:
            os.kill(os.getpid(), self._number)


def make_fit(beton, folder, case, world, *, fresh=False, stream=None):
    """A run of a case, its state in a folder of its own."""
    params = TrainParams(**BASE | CASES[case])
    cpu = torch.device("cpu")
    model = new_classifier(params, beton.manifest, seed=0, role="student", device=cpu)
    snapshots = Snapshots(Path(folder) / ("fresh-" * fresh + case))
    return student_trainer(
        model,
        stream or ImageStream(beton, cpu),
        split_samples(beton, params.images, 0),
        params,
        RunContext(0, snapshots, world=world),
    )


def result_of(fit):
    """History, and all weights in one vector."""
    values = [value.flatten().double() for value in fit.best.state_dict().values()]
    return {"history": fit.progress.history, "weights": torch.cat(values)}


def main(beton, folder, *cases):
    """Run the cases one after the other; the first process writes what came out."""
    torch.set_num_threads(1)
    world = World.from_environment()
    with world.connected():
        for case in cases:
            fit = make_fit(open_beton(Path(beton)), folder, case, world)
            if case == "gone" and world.rank == 1:
                # While the other one waits for the sums of a batch normalisation.
                fit.model.network.register_forward_pre_hook(lambda *_: os._exit(1))
            fit.run(Signals(case, world.rank))
            if world.is_main:
                torch.save(result_of(fit), Path(folder) / f"{case}-{world.size}.pt")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (LtdPipeError, Interrupted) as error:
        os.write(1, f"{json.dumps(str(error) or 'interrupted')}\n".encode())
        sys.exit(1)
