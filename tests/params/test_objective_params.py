"""Which objectives, labels and teachers go together."""

import pytest
from refusals import refused

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
    "adaad": ({"objective": "adaad"}, {"what": "checkpoint"}),
    "live": ({"label_kind": "live"}, {"what": "teacher"}),
    "igdm": ({"igdm_weight": "1"}, {"what": "teacher"}),
    "ard-onehot": (
        {"objective": "ard", "label_kind": "onehot"},
        {"what": "distils"},
    ),
    "ard": ({"objective": "ard"}, {"what": "label_temperature"}),
    "adr": ({"label_kind": "adr"}, {"what": "ema_decay"}),
    "mtard-soft": (MTARD | {"label_temperature": "2"}, {"what": "teachers"}),
    "mtard-mixed": (MTARD | {"soft_weight": "0.5"}, {"what": "teachers"}),
    "mtard-live": (MTARD | {"label_kind": "live"}, {"what": "teachers"}),
    "mtard-warm": (MTARD | {"teacher_temperature": "2"}, {"what": "teachers"}),
    "exits-compiled": ({"objective": "exits", "compile": "auto"}, {"what": "compile: auto"}),
    "order": ({"exits": "[3, 1]"}, {"what": "different"}),
    "twice": ({"exits": "[1, 1]"}, {"what": "different"}),
    "none": ({"exits": "[]"}, {"what": "different"}),
    "cold": (
        {"adr_temperatures": "[0, 1]"},
        {"where": "options: adr_temperatures.0", "found": "0"},
    ),
    "heavy": (
        {"adr_weights": "[0, 1.5]"},
        {"where": "options: adr_weights.1", "found": "1.5"},
    ),
    "mtard-mixtures": (
        MTARD | {"mixup_probability": "0.5"},
        {"what": "cutmix_probability"},
    ),
    "ard-live-warm": (
        {"objective": "ard", "label_kind": "live", "label_temperature": "4", **TEACHER},
        {"what": "teacher_temperature"},
    ),
    "onehot-warm": (
        {"label_kind": "onehot", "label_temperature": "4"},
        {"what": "onehot"},
    ),
    "target": (
        {"objective": "trades", "attack_label": "target"},
        {"what": "attack_label"},
    ),
    "awp-never": (
        {"awp_gamma": "0.01"},
        {"what": "awp_from_epoch"},
    ),
    "awp-after": ({"awp_gamma": "0.01", "awp_from_epoch": "1"}, {"what": "epochs"}),
    "objective": (
        {"objective": "madry"},
        {"where": "options: objective", "what": "trades", "found": "'madry'"},
    ),
}


@pytest.mark.parametrize(("changes", "fields"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, fields):
    """With what to set instead."""
    with refused(ParamsError, **fields):
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
