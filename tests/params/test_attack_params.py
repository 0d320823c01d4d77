"""The attack's parameters: what is left open is decided, what contradicts itself is refused."""

import re

import pytest
from pydantic import ValidationError

from ltd_pipe.params import TrainParams
from ltd_pipe.training.run import threat_model, training_adversary


def attack(**changes):
    return TrainParams(**{"architecture": "x", "epochs": 1, "eps": "8/255"} | changes)


DECIDED = {
    "PGD of ten steps": ({}, (10, 2.5 * 8 / 255 / 10)),
    "PGD of fewer steps": ({"attack_steps": 3}, (3, 2.5 * 8 / 255 / 3)),
    "as given": ({"step_size": "2/255", "attack_steps": 7}, (7, 2 / 255)),
    "N-FGSM": ({"attack": "n-fgsm"}, (1, 8 / 255)),
    "FGSM-RS": ({"attack": "fgsm-rs"}, (1, 10 / 255)),
    "FGSM-RS as given": ({"attack": "fgsm-rs", "step_size": "16/255"}, (1, 16 / 255)),
    "L2": ({"norm": "l2", "eps": "128/255"}, (10, 2.5 * 128 / 255 / 10)),
}


@pytest.mark.parametrize(("changes", "expected"), DECIDED.values(), ids=DECIDED)
def test_steps_and_their_size_are_the_methods_own(changes, expected):
    """Null means what the method's authors do, in units of eps."""
    params = attack(**changes)
    assert (params.steps, params.step) == (expected[0], pytest.approx(expected[1]))


GROWING = {
    "from the first epoch to the last": ("2..10", 12, [2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10]),
    "an arrow": ("1→3", 5, [1, 1, 2, 3, 3]),
    "another arrow": ("1 -> 3", 2, [1, 3]),
    "one number": (3, 2, [3, 3]),
    "one number as text": ("3", 1, [3]),
}


@pytest.mark.parametrize(("written", "epochs", "expected"), GROWING.values(), ids=GROWING)
def test_steps_grow_linearly_over_the_epochs(written, epochs, expected):
    """The first and the last have the numbers that are written."""
    assert attack(attack_steps=written, epochs=epochs).steps_by_epoch == tuple(expected)


def test_growing_steps_have_one_size():
    """That of the last epoch; they are kept, and told, in one spelling."""
    params = attack(attack_steps="2→10", epochs=3)
    told = {"name": "pgd", "steps": "2..10", "step_size": pytest.approx(2 / 255)}
    assert threat_model(params)["attack"] == told
    assert params.model_dump(mode="json")["attack_steps"] == "2..10"
    assert training_adversary(params).at(0.5).steps == 2


ACCEPTED = {
    "a target": {"attack_label": "target"},
    "an L2 radius above 1": {"norm": "l2", "eps": 3},
    "an L2 step above 1": {"norm": "l2", "eps": 3, "step_size": 1.5},
    "the largest radius": {"eps": 1},
    "a start": {"attack_start": "none"},
    "one step of PGD": {"attack_steps": 1, "step_size": "8/255"},
    "one step, said so": {"attack": "n-fgsm", "attack_steps": 1},
    "L2 with FGSM-RS": {"attack": "fgsm-rs", "norm": "l2", "eps": 1.5},
    "no noise": {"attack": "n-fgsm", "attack_noise": 0},
    "KL from noise": {"attack_loss": "kl", "attack": "n-fgsm"},
    "TRADES with another loss": {
        "objective": "trades",
        "attack_loss": "margin",
        "attack_start": "none",
    },
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(changes):
    """Sound settings are taken."""
    attack(**changes)


REFUSED = {
    "linf above 1": ({"eps": 3}, "eps\n.*radii of linf are at most 1, .* found 3"),
    "linf step": ({"step_size": 2}, "step_size\n.*radii of linf are at most 1"),
    "bytes as L2": (
        {"norm": "l2", "eps": 128},
        "eps\n.*radii of l2 are at most 20, .* found 128; perhaps 128/255",
    ),
    "no ball": ({"eps": 0}, "eps\n.*greater than 0"),
    "another norm": ({"norm": "l1"}, "norm\n.*'linf'"),
    "another attack": ({"attack": "fgsm"}, "attack\n.*'pgd'"),
    "many steps of one": (
        {"attack": "n-fgsm", "attack_steps": 10},
        "attack: n-fgsm takes 1 step, of eps or more: found attack_steps 10: set attack_steps to",
    ),
    "PGD's step for one": (
        {"attack": "fgsm-rs", "step_size": "2/255"},
        "attack: fgsm-rs takes 1 step, .* found step_size 0.00784314: set step_size to null",
    ),
    "PGD's steps and step for one": (
        {"attack": "n-fgsm", "attack_steps": 10, "step_size": "2/255"},
        "found attack_steps 10, step_size 0.00784314: set attack_steps and step_size to null",
    ),
    "a start of its own": (
        {"attack": "fgsm-rs", "attack_start": "normal"},
        "attack_start: fgsm-rs begins where it begins",
    ),
    "N-FGSM in L2": ({"attack": "n-fgsm", "norm": "l2"}, "attack: n-fgsm is defined for norm linf"),
    "KL at the image": (
        {"attack_loss": "kl", "attack_start": "none"},
        "attack_loss: kl has no gradient at the image",
    ),
    "KL without noise": (
        {"attack_loss": "kl", "attack": "n-fgsm", "attack_noise": 0},
        "attack_loss: kl has no gradient at the image",
    ),
    "TRADES at the image": (
        {"objective": "trades", "attack_start": "none"},
        "attack_start: the attack_loss of trades has no gradient at the image",
    ),
    "another loss": ({"attack_loss": "dlr"}, "attack_loss\n.*'ce'"),
    "an alarm that is on": ({"overfitting_alarm": True}, "overfitting_alarm\n.*'stop'"),
    "a warm-up before the start": ({"eps_warmup_epochs": -1}, "eps_warmup_epochs\n.*or equal to 0"),
    "a warm-up to the end": (
        {"eps_warmup_epochs": 1},
        "eps_warmup_epochs: expected less than epochs, 1, found 1: eps would never be reached",
    ),
    "a target without a part": (
        {"attack_label": "target", "attack_loss": "ce"},
        "attack_label: target has no part in attack_loss ce: set attack_loss: null, or",
    ),
    "growing steps of one": (
        {"attack": "fgsm-rs", "attack_steps": "2..10"},
        "attack: fgsm-rs takes 1 step, .* found attack_steps 2..10",
    ),
    "steps that grow within an epoch": (
        {"attack_steps": "2..10"},
        "attack_steps: 2..10 grow over the epochs, found 1 epoch: give one number, or raise",
    ),
    "a start that no epoch has": (
        {"attack_start": "previous"},
        "attack_start: previous goes on from the epoch before, found 1 epoch: set attack_start: n",
    ),
    **{
        f"steps {written}": (
            {"attack_steps": written},
            rf"attack_steps\n.*whole number from 1, or 2\.\.10 .* found {re.escape(repr(written))}",
        )
        for written in (0, -1, 2.5, "2-10", "2..", "0..4", "10..2", "2..2", "1..2..3", [2, 10], "x")
    },
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, message):
    """What cannot be meant is named with its key."""
    with pytest.raises(ValidationError, match=message):
        attack(**changes)


def test_the_adversary_is_what_the_parameters_say():
    """Each field arrives; FGSM-RS is PGD of one step from a uniform start."""
    adversary = training_adversary(attack(attack="fgsm-rs", norm="l2", eps=0.5))
    assert (adversary.ball.norm, adversary.ball.eps) == ("l2", 0.5)
    assert (adversary.method, adversary.start, adversary.steps) == ("pgd", "uniform", 1)
    assert training_adversary(attack(eps_warmup_epochs="1/2")).warmup_epochs == 0.5
    noisy = training_adversary(attack(attack="n-fgsm", attack_noise=1.5))
    assert (noisy.method, noisy.noise) == ("n-fgsm", 1.5)
    assert training_adversary(attack(attack_start="none")).start == "none"
    assert training_adversary(attack()).start is None


@pytest.mark.parametrize(("written", "meant"), [(False, "off"), ("off", "off"), ("warn", "warn")])
def test_off_is_a_word(written, meant):
    """YAML reads an unquoted off as false."""
    assert attack(overfitting_alarm=written).overfitting_alarm == meant


def test_facts_name_the_threat_model():
    """With the numbers that the parameters left open."""
    assert threat_model(attack(norm="l2", eps=0.5)) == {
        "norm": "l2",
        "eps": 0.5,
        "attack": {"name": "pgd", "steps": 10, "step_size": 0.125},
    }
