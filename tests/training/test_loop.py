"""The loop learns, and what it computes depends on nothing but its inputs."""

import copy
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError, ParamsError, StateError, WriteError
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import Watcher


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def result(fit):
    fit.run(Watcher())
    return weights(fit.best), weights(fit.average), fit.progress.history


def assert_same(one, two):
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert one[2] == two[2]


class StopAt(Watcher):
    """Sends this process a signal after some steps, as a user's Ctrl-C would."""

    def __init__(self, step, number=signal.SIGINT):
        self._step, self._number = step, number

    def step(self, done, *_):
        if done == self._step:
            signal.raise_signal(self._number)


def test_a_teacher_learns(make_teacher):
    """A few epochs of clean training are far above chance, and the loss falls."""
    fit = make_teacher(epochs=6, learning_rate=0.2)
    history = fit.run(Watcher())
    assert history[-1]["validation/clean_accuracy"] > 0.8
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2


def test_a_student_learns_to_resist(make_student):
    """Robust accuracy rises far above chance under an attack that it was trained on."""
    history = make_student(epochs=12, crop_padding=0).run(Watcher())
    assert history[-1]["validation/robust_accuracy"] > 0.5
    assert history[-1]["validation/clean_accuracy"] >= history[-1]["validation/robust_accuracy"]


TECHNIQUES = {
    "at": {"objective": "at"},
    "trades": {"objective": "trades"},
    "mart": {"objective": "mart", "beta": 5.0},
    "awp": {"objective": "trades", "awp_gamma": 0.005, "awp_from_epoch": 1},
}


@pytest.mark.parametrize("changes", TECHNIQUES.values(), ids=TECHNIQUES)
def test_two_runs_are_equal_to_the_bit(make_student, tmp_path, changes):
    """Same parameters, same bits: weights and history."""
    runs = [result(make_student(**changes, state=tmp_path / name)) for name in ("a", "b")]
    assert_same(*runs)


def test_weights_are_perturbed_from_their_epoch_on(make_student, tmp_path):
    """The epoch before is trained without, to the bit; the one after is not."""
    changes = {"plain": {}, "perturbed": {"awp_gamma": 0.01, "awp_from_epoch": 1}}
    histories = [
        result(make_student(**options, state=tmp_path / name))[2]
        for name, options in changes.items()
    ]
    assert histories[0][0] == histories[1][0]
    assert histories[0][1]["train/loss"] != histories[1][1]["train/loss"]


def test_another_seed_is_another_run(make_student, tmp_path):
    """The seed reaches weights, order, crops and attacks."""
    one = result(make_student(state=tmp_path / "a"))
    two = result(make_student(seed=1, state=tmp_path / "b"))
    assert not torch.equal(one[0], two[0])


def test_streaming_changes_nothing(make_student, train_beton, tmp_path):
    """Resident or streamed by two workers, the run is the same to the bit."""
    streamed = ImageStream(train_beton, torch.device("cpu"), resident=False, workers=2)
    one = result(make_student(state=tmp_path / "a"))
    two = result(make_student(state=tmp_path / "b", stream=streamed))
    assert_same(one, two)


def test_attacks_grow_from_epoch_to_epoch(make_student):
    """Each pass of each attack is counted: one for each of its steps."""
    fit, passes = make_student(epochs=4, attack_steps="1..6"), [0] * 4

    def count(*_):
        passes[len(fit.progress.history)] += 1

    fit._step._frozen.twin.register_forward_hook(count)
    fit.run(Watcher())
    assert passes == [steps * fit.steps_per_epoch for steps in (1, 3, 4, 6)]


@pytest.mark.parametrize("step", [3, 6, 8, 12])
def test_growing_attacks_go_on_where_they_were(make_student, tmp_path, step):
    """Interrupted in, or at the end of, an epoch with another number of steps than the next."""
    changes = {"epochs": 3, "attack_steps": "1..3"}
    whole = result(make_student(**changes, state=tmp_path / "whole"))
    other = result(make_student(**changes | {"attack_steps": 3}, state=tmp_path / "other"))
    assert not torch.equal(whole[1], other[1])
    with pytest.raises(Interrupted):
        make_student(**changes).run(StopAt(step))
    assert_same(whole, result(make_student(**changes)))


_STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize(
    ("step", "number"),
    [(step, number) for step in (1, 5, 6, 7, 11) for number in _STOPS[:2]]
    + [(5, number) for number in _STOPS[2:]],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_interrupted_run_ends_with_the_same_bits(make_student, tmp_path, step, number):
    """Stopped within, at the end of, or after an epoch, and continued: nothing differs."""
    whole = result(make_student(state=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        make_student().run(StopAt(step, number))
    fit = make_student()
    continued = result(fit)
    assert_same(whole, continued)


def test_snapshots_may_be_written_while_the_run_goes_on(make_student, tmp_path):
    """They hold the state as it was when they were taken, and the last one is waited for."""
    whole = result(make_student(state=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        make_student(behind=True, snapshot_steps=1).run(StopAt(7))
    assert_same(whole, result(make_student(behind=True, snapshot_steps=2)))


def test_what_keeps_a_snapshot_from_the_disk_is_told(make_student, tmp_path):
    """Though it happens on another thread: at the next one, or at the end."""
    (tmp_path / "state").write_text("a file where the folder should be")
    with refused(WriteError):
        make_student(behind=True).run(Watcher())


def test_a_validation_is_not_waited_for(make_student, tmp_path, monkeypatch):
    """Ctrl-C in it ends the run at once; the next one begins with it, to the same bits."""
    whole = result(make_student(state=tmp_path / "whole"))
    fit, measured, told = make_student(), [], []

    def validate(model, *_):
        signal.raise_signal(signal.SIGINT)
        measured.append(model)

    monkeypatch.setattr("ltd_pipe.training.trainer.validate", validate)
    watcher = Watcher()
    watcher.stopping = lambda: told.append("stopping")
    with pytest.raises(Interrupted):
        fit.run(watcher)
    assert (measured, told) == ([], ["stopping"])
    assert fit.progress.step == fit.steps_per_epoch
    monkeypatch.undo()
    assert_same(whole, result(make_student()))


def test_the_handlers_are_put_back(make_student):
    """After a run, Ctrl-C does what it did before."""
    before = list(map(signal.getsignal, _STOPS))
    with pytest.raises(Interrupted):
        make_student().run(StopAt(1))
    assert list(map(signal.getsignal, _STOPS)) == before


def test_nohup_is_respected(make_student):
    """What it has made ignored does not stop a run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert len(make_student().run(StopAt(1, signal.SIGHUP))) == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once(make_student):
    """An impatient user is not made to wait for the step's end."""

    class Twice(Watcher):
        def step(self, *_):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        make_student().run(Twice())
    assert not isinstance(caught.value, Interrupted)


def test_damaged_snapshots_are_refused(make_student, tmp_path):
    """When the only one is truncated it is named, with the way out."""
    with pytest.raises(Interrupted):
        make_student().run(StopAt(1))
    (snapshot,) = (tmp_path / "state").iterdir()
    snapshot.write_bytes(snapshot.read_bytes()[:1000])
    with refused(StateError, where=snapshot, what="snapshot", remedy="--fresh"):
        make_student().run(Watcher())


def test_a_damaged_snapshot_leaves_the_one_before(make_student, tmp_path):
    """Two are kept; the run goes on from the older one and ends with the same bits."""
    whole = result(make_student(state=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        make_student(snapshot_steps=2).run(StopAt(9))
    first, last = sorted((tmp_path / "state").iterdir())
    assert (first.name, last.name) == (
        "step-000000008-epoch-000001.pt",
        "step-000000009-epoch-000001.pt",
    )
    last.write_bytes(last.read_bytes()[:1000])
    fit = make_student(snapshot_steps=2)
    assert_same(whole, result(fit))


def test_a_diverging_run_is_stopped(make_student):
    """A loss that is not finite ends the run and names the step."""
    with refused(ModelError, where=re.compile(r"^training step \d+$"), what="finite"):
        make_student(learning_rate=1e20, epochs=3).run(Watcher())


def test_validation_samples_are_never_trained_on(make_student, train_beton):
    """The samples of all batches and the validation split are disjoint."""
    fit, seen = make_student(epochs=1), []
    transform = fit._step._transform

    class Watched:
        def apply(self, batch, epoch):
            seen.append(batch.rows)
            return transform.apply(batch, epoch)

    fit._step._transform = Watched()
    fit.run(Watcher())
    from ltd_pipe.training.run import split_samples

    training, validation = split_samples(train_beton)
    assert len(validation) > 20
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), training)
    assert not set(validation) & set(np.concatenate(seen))


def test_an_image_that_would_be_a_step_alone_is_left_out(make_student, tmp_path):
    """Of 65 at 64 another one in each epoch; two are a step, and so is a single one of all."""
    counts = {65: [64], 66: [64, 2], 63: [63], 1: [1]}
    for images, expected in counts.items():
        fit = make_student(images=images, batch_size=64, state=tmp_path / str(images))
        steps = []
        take = fit._step.take

        def watched(batch, info, count, take=take, steps=steps):
            assert count == len(batch.rows)
            steps.append(batch.rows)
            return take(batch, info, count)

        fit._step.take = watched
        fit.run(Watcher())
        assert [len(rows) for rows in steps] == 2 * expected
        if images == 65:
            left = [set(fit._samples) - set(rows) for rows in steps]
            assert left[0] != left[1]


ALONE = {
    "of a batch": {"batch_size": 1},
    "of all": {"batch_size": 64, "images": 1},
}


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
def test_one_image_without_batch_statistics_is_refused(make_teacher, changes):
    """By a network whose last features are one pixel; with what to set."""
    options = {"architecture": "timm:resnet10t", "crop_padding": 0, "images": 2}
    fit = make_teacher(**options | changes)
    with refused(
        ParamsError,
        where="batch_size",
        what="timm",
        expected="two images or more in each pass of each process",
        remedy="batch_size",
    ):
        fit.run(Watcher())


def test_no_part_of_a_batch_is_one_image(make_teacher):
    """Fewer parts are made of a small step: batch statistics take two images or more."""
    options = {"architecture": "timm:resnet10t", "crop_padding": 0, "images": 10}
    make_teacher(**options, batch_size=8, accumulation_steps=4).run(Watcher())


def test_the_best_checkpoint_is_the_best_row(make_student):
    """`best` is the row of highest robust accuracy, the later of equal ones."""
    fit = make_student(epochs=5)
    history = fit.run(Watcher())
    values = [
        (row["validation/robust_accuracy"], row["validation/clean_accuracy"], row["epoch"])
        for row in history
    ]
    assert fit.progress.best["epoch"] == max(values)[2]


def test_validating_every_other_epoch(make_student):
    """Rows between have no measures, the last one always has."""
    history = make_student(epochs=3, validation_every=2).run(Watcher())
    assert ["validation/clean_accuracy" in row for row in history] == [False, True, True]


def test_weights_are_not_averaged_without_decay(make_student):
    """ema_decay 0: the average is the model itself."""
    fit = make_student(ema_decay=0.0)
    fit.run(Watcher())
    assert torch.equal(weights(fit.average), weights(fit.model))


def test_the_models_temperature_is_trained_with(make_student, train_beton):
    """Parameters with another student temperature give another run."""
    fit = make_student()
    other = copy.deepcopy(fit.model)
    other._temperature = 2.0
    image = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(fit.model.eval()(image), 2 * other.eval()(image))


KILLED = """
import os, signal, sys
import numpy as np, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from short_runs import ATTACK, SHORT
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import TrainParams
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

class Kill(Watcher):
    def step(self, done, *_):
        if done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

beton = open_beton(Path(sys.argv[1]))
params = TrainParams(**{**SHORT, **ATTACK, "label_kind": "onehot", "ema_decay": 0.9})
cpu = torch.device("cpu")
model = new_classifier(params, beton.manifest, seed=0, role="student", device=cpu)
student_trainer(
    model, ImageStream(beton, cpu), split_samples(beton), params,
    RunContext(0, Snapshots(Path(sys.argv[2]))),
).run(Kill())
"""


def test_a_killed_run_goes_on_from_the_last_epoch(make_student, train_beton, tmp_path):
    """SIGKILL in the second epoch: the first one's snapshot is there, and the end is the same."""
    state = tmp_path / "state"
    here = str(__file__).rpartition("/")[0]
    command = [sys.executable, "-c", KILLED, str(train_beton.path), str(state), here]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    progress, _ = Snapshots(state).load()
    assert 0 < progress.step < 8
    assert_same(result(make_student(state=tmp_path / "whole")), result(make_student()))
