"""A collapse is found, and nothing that only looks like one."""

import pytest
import torch

from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import PrepareParams
from ltd_pipe.training.collapse import Collapse, first_collapse
from ltd_pipe.training.trainer import Watcher


def rows(pairs, first=0):
    """From `attack:pgd` in percent, one per epoch; `-` where there was no validation."""
    history = []
    for epoch, pair in enumerate(pairs.split(), first):
        attack, pgd = pair.split(":")
        row = {"epoch": epoch, "train/robust_accuracy": int(attack) / 100}
        if pgd != "-":
            row["validation/robust_accuracy"] = int(pgd) / 100
        history.append(row)
    return history


# Where runs are called measured, they are of digits, 124 validation images; the first number is
# accuracy under the training attack, the second that under PGD-10, in percent.
COLLAPSES = {
    "within an epoch, as in the literature": ("22:20 30:35 38:42 41:45 83:1 95:0", 124, 4),
    "on many images": ("22:20 30:35 38:42 41:45 60:15", 5000, 4),
    "measured: FGSM at five times eps": (
        "3:15 6:8 8:17 13:28 24:18 38:10 42:8 54:10 70:2 81:1 81:2 83:2 88:1 91:0",
        124,
        8,
    ),
    "measured: FGSM without a start, never robust": (
        "60:0 85:0 67:0 56:0 51:0 47:0",
        124,
        1,
    ),
    "between validations": ("22:20 30:- 38:42 41:- 60:- 83:1", 124, 5),
    "of its first attack's best": ("40:30 20:10 45:2", 124, 2),
}


@pytest.mark.parametrize(("pairs", "images", "epoch"), COLLAPSES.values(), ids=COLLAPSES)
def test_a_collapse_is_seen_at_its_epoch(pairs, images, epoch):
    """Neither before nor after, and what follows does not change the verdict."""
    history = rows(pairs)
    assert first_collapse(history[:epoch], images=images) is None
    for end in range(epoch + 1, len(history) + 1):
        assert first_collapse(history[:end], images=images).epoch == epoch


SOUND = {
    "nothing yet": ("", 124),
    "one row": ("90:0", 124),
    "measured: N-FGSM": ("9:23 19:45 25:53 29:48 33:59 35:64 37:67 40:68 42:69 44:71 48:72", 124),
    "measured: FGSM-RS": ("25:25 50:39 58:55 64:56 71:68 75:70 79:71 83:73 86:77 91:76", 124),
    "measured: PGD, large eps": ("5:7 12:10 15:19 20:25 30:33 37:40 44:43 53:55 57:59", 124),
    "measured: slow to become robust": ("3:8 9:0 11:2 15:2 18:1 23:2 30:2 36:0 43:2 47:4", 124),
    "measured: a noisy one": ("8:8 22:9 30:15 37:15 45:10 46:13 51:15 55:35 75:17 77:31", 124),
    "measured: a loss that diverges": ("14:17 37:19 46:21 50:17 42:17 25:0 9:9 8:14 10:7", 124),
    "robust overfitting": ("30:38 40:46 50:52 65:48 80:45 92:42 97:40", 5000),
    "robust overfitting, 100 classes": ("15:19 25:27 40:26 70:22 95:19 99:18", 5000),
    "few images": ("30:40 60:10", 10),
    "chance": ("10:10 12:4 30:3", 124),
}


@pytest.mark.parametrize(("pairs", "images"), SOUND.values(), ids=SOUND)
def test_a_sound_run_has_not_collapsed(pairs, images):
    """Nor does a weak one, a diverging one, or one that overfits as all training does."""
    assert first_collapse(rows(pairs), images=images) is None


def test_rows_of_warm_up_are_passed_over():
    """A small ball's attack leaves nearly all, and validation's nothing: no collapse."""
    history = rows("56:0 88:0 80:0 68:0 48:5 46:10 50:14")
    assert first_collapse(history, images=124, warmup_epochs=4) is None
    assert first_collapse(history, images=124, warmup_epochs=3.5) is None
    assert first_collapse(history, images=124).epoch == 1


def test_clean_training_is_not_judged():
    """A teacher's rows have no robust accuracy."""
    history = [
        {"epoch": n, "train/accuracy": 0.9, "validation/clean_accuracy": 0.1} for n in (0, 1)
    ]
    assert first_collapse(history, images=124) is None


def test_it_says_what_happened():
    """Epochs as people count them, and the three numbers."""
    collapse = first_collapse(rows("22:20 41:45 83:1"), images=124)
    assert str(collapse) == (
        "catastrophic overfitting at epoch 3: PGD leaves 1.0% of the validation images right "
        "(45.0% at epoch 2), the training attack 83.0% of its own"
    )
    assert vars(collapse)["best_epoch"] == 1


# All digits, and FGSM without noise whose step is 5.5 eps: with each of five seeds it had
# collapsed by epoch 9. N-FGSM as its authors have it is far above 50 % by then.
FAST = {
    "attack": "n-fgsm",
    "eps": 0.1,
    "step_size": None,
    "attack_steps": None,
    "validation_attack_steps": 10,
    "architecture": "small-cnn-w16",
    "batch_size": 64,
    "nesterov": True,
    "crop_padding": 0,
    "ema_decay": 0.0,
    "epochs": 25,
}
TOO_FAR = FAST | {"attack_noise": 0, "step_size": 0.55}


@pytest.fixture(scope="module")
def train_beton(tmp_path_factory):
    """All 1,180 training digits, of which 124 are held out: here, more than elsewhere."""
    path = tmp_path_factory.mktemp("every-digit") / "train.beton"
    params = PrepareParams(dataset="digits", channels=1, validation_fraction=0.1)
    write_beton(open_source(params, "train"), path, params, "train")
    return open_beton(path)


@pytest.fixture(scope="module")
def train_stream(train_beton):
    """Their images."""
    return ImageStream(train_beton, torch.device("cpu"))


class Told(Watcher):
    """Remembers what it was told."""

    def __init__(self):
        self.collapses = []

    def collapse(self, collapse):
        self.collapses.append(collapse)


def test_a_run_that_collapses_is_stopped_at_its_best(make_student):
    """The alarm is told once, the run ends, the best epoch is kept; resumed, it has ended."""
    fit, told = make_student(**TOO_FAR), Told()
    history = fit.run(told)
    assert fit.stopped
    assert told.collapses == [fit.collapse]
    assert fit.collapse.epoch == len(history) - 1 < 24
    best = fit.progress.best
    assert best["epoch"] == fit.collapse.best_epoch
    assert best["validation/robust_accuracy"] > 2 * history[-1]["validation/robust_accuracy"]
    again = make_student(**TOO_FAR)
    assert again.run(told) == history
    assert again.stopped
    assert len(told.collapses) == 1


def test_noise_keeps_single_step_training_sound(make_student):
    """N-FGSM on the same digits: no alarm, and robust."""
    fit = make_student(**FAST | {"epochs": 9})
    history = fit.run(Watcher())
    assert fit.collapse is None
    assert history[-1]["validation/robust_accuracy"] > 0.5


AT_ONCE = Collapse(0, 0, 0.0, 0.5, 0.9)


def test_a_warning_does_not_stop(make_student, monkeypatch):
    """With `warn` the run goes to its end, told once of a collapse at its first epoch."""
    fit, told = make_student(epochs=2, overfitting_alarm="warn"), Told()
    found = "ltd_pipe.training.trainer.first_collapse"
    monkeypatch.setattr(found, lambda history, **_: AT_ONCE if history else None)
    assert len(fit.run(told)) == 2
    assert told.collapses == [AT_ONCE]
    assert not fit.stopped


def test_off_does_not_look(make_student):
    """No alarm, no verdict."""
    fit = make_student(overfitting_alarm="off")
    fit.progress.history = rows("22:20 41:45 83:1")
    assert fit.collapse is None
    for alarm, stops in (("warn", False), ("stop", True)):
        fit = make_student(overfitting_alarm=alarm)
        fit.progress.history = rows("22:20 41:45 83:1")
        assert fit.collapse.epoch == 2
        assert fit.stopped == stops
