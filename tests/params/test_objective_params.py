"""Which objectives, labels and teachers go together."""

import pytest

from ltd_pipe.errors import ParamsError
from ltd_pipe.params import parse_standalone

BASE = {"architecture": "x", "epochs": "1", "eps": "0.1", "step_size": "0.1"}
TEACHER = {"teacher": "teacher.safetensors"}
MTARD = {"objective": "mtard", "label_temperature": "1", **TEACHER}


def params(**changes):
    overrides = {f"train.{name}": value for name, value in (BASE | changes).items()}
    return parse_standalone("train", overrides).train


ACCEPTED = {
    "rslad": {"objective": "rslad"},
    "rslad-onehot": {"objective": "rslad", "label_kind": "onehot"},
    "ard": {"objective": "ard", "label_temperature": "30"},
    "ard-live": {"objective": "ard", "label_kind": "live", **TEACHER},
    "adaad": {"objective": "adaad", "label_kind": "live", **TEACHER},
    "mtard": MTARD,
    "igdm": {"igdm_weight": "20", **TEACHER},
    "adr": {"label_kind": "adr", "ema_decay": "0.995"},
    "exits": {"objective": "exits", "exits": "[1, 3]", "attacked_exits": "average"},
    "idle": TEACHER,
    "awp": {"awp_gamma": "0.01", "awp_from_epoch": "0"},
    "no-awp": {"awp_from_epoch": "10"},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(changes):
    """What the documentation's table has, and a teacher that nobody asks."""
    assert params(**changes)


REFUSED = {
    "adaad": ({"objective": "adaad"}, "ask a teacher: set teacher to its checkpoint"),
    "live": ({"label_kind": "live"}, "ask a teacher: set teacher"),
    "igdm": ({"igdm_weight": "1"}, "ask a teacher: set teacher"),
    "ard-onehot": (
        {"objective": "ard", "label_kind": "onehot"},
        "ard distils a teacher's labels: set label_kind to ltd or live",
    ),
    "ard": ({"objective": "ard"}, "set label_temperature"),
    "adr": ({"label_kind": "adr"}, "learns from the weights' moving average: set ema_decay"),
    "mtard-soft": (MTARD | {"label_temperature": "2"}, "mtard softens both teachers itself"),
    "mtard-mixed": (MTARD | {"soft_weight": "0.5"}, "mtard softens both teachers itself"),
    "mtard-live": (MTARD | {"label_kind": "live"}, "mtard softens both teachers itself"),
    "mtard-warm": (MTARD | {"teacher_temperature": "2"}, "mtard softens both teachers itself"),
    "order": ({"exits": "[3, 1]"}, "exits must be different numbers in ascending order"),
    "twice": ({"exits": "[1, 1]"}, "exits must be different numbers in ascending order"),
    "none": ({"exits": "[]"}, "exits must be different numbers in ascending order"),
    "cold": ({"adr_temperatures": "[0, 1]"}, "adr_temperatures must be above 0"),
    "heavy": (
        {"adr_weights": "[0, 1.5]"},
        r"adr_weights.1: input should be less than or equal to 1",
    ),
    "mtard-mixtures": (
        MTARD | {"mixup_probability": "0.5"},
        "objective mtard softens a teacher's answers anew, .* set cutmix_probability and",
    ),
    "ard-live-warm": (
        {"objective": "ard", "label_kind": "live", "label_temperature": "4", **TEACHER},
        (
            "label_temperature is that of a store, for label_kind ltd, found live: set "
            "label_temperature: null; the teacher's is teacher_temperature"
        ),
    ),
    "onehot-warm": (
        {"label_kind": "onehot", "label_temperature": "4"},
        "for label_kind ltd, found onehot: set label_temperature: null",
    ),
    "opposed": (
        {"objective": "trades", "attack_label": "target"},
        "attack_label: target is for objective at, found trades, which .* attack_label: truth",
    ),
    "awp-never": (
        {"awp_gamma": "0.01"},
        (
            "awp_from_epoch: expected less than epochs, 1, found 10: no epoch would have "
            "awp_gamma; lower it, or set awp_gamma: 0"
        ),
    ),
    "awp-after": ({"awp_gamma": "0.01", "awp_from_epoch": "1"}, "less than epochs, 1, found 1"),
    "objective": ({"objective": "madry"}, "objective: input should be 'at', 'trades'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, message):
    """With what to set instead."""
    with pytest.raises(ParamsError, match=message):
        params(**changes)


TEMPERATURES = {
    "ltd": ({"label_temperature": "3"}, 3.0),
    "stored": ({}, None),
    "live": ({"label_kind": "live", "teacher_temperature": "4", **TEACHER}, 4.0),
}


@pytest.mark.parametrize(("changes", "expected"), TEMPERATURES.values(), ids=TEMPERATURES)
def test_the_temperature_of_the_labels_is_known_where_it_is_set(changes, expected):
    """What ARD divides the student's logits by."""
    assert params(**changes).distillation_temperature == expected
