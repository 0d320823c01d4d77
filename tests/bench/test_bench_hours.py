"""GPU hours by calculation: the passes are those of real runs, and the page has what is printed."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hours import AUTOATTACK, hours_table, of_evaluation, of_training
from pyautoattack import AutoAttack
from stepping import forward_flops
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ltd_pipe.evaluation.bench import TestImages as Images
from ltd_pipe.evaluation.robustness import evaluate
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params import EvaluateParams, TeacherParams, TrainParams
from ltd_pipe.params.file import recipe_names
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer, teacher_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

PAGE = (Path(__file__).parents[2] / "docs/claims.md").read_text()
CPU = torch.device("cpu")
COMMON = {"architecture": "small-cnn-w8", "epochs": 3, "batch_size": 32}
ATTACK = {"eps": 0.1, "attack_steps": 4, "validation_attack_steps": 3, "label_kind": "onehot"}
TRADES = {"objective": "trades"}
AWP = {"awp_gamma": 0.005, "awp_from_epoch": 1}
RUNS = {
    "at": {},
    "adr": {"label_kind": "adr", "ema_decay": 0.9},
    "at-awp": AWP,
    "trades": TRADES | {"validation_every": 2},
    "trades-awp": TRADES | AWP,
}


@pytest.fixture
def counter():
    """Counts operations; torch's own tracker of modules refuses gradients of the input alone."""
    mode = FlopCounterMode(display=False)
    mode.mod_tracker = SimpleNamespace(
        parents={"Global"}, __enter__=lambda: None, __exit__=lambda *_: None
    )
    return mode


def operations(counter, work):
    """Of what a function does."""
    with counter:
        work()
    return counter.get_total_flops()


def one_pass(counter, model):
    """Operations of a forward pass of one image."""
    with torch.no_grad():
        return operations(counter, lambda: model.eval()(torch.zeros(1, *model.shape)))


@pytest.mark.parametrize("changes", [None, *RUNS.values()], ids=["teacher", *RUNS])
def test_passes_of_training_are_those_of_a_run(
    train_beton, train_stream, tmp_path, counter, changes
):
    """Less the first layer's gradients of an image that nobody asked for."""
    student = changes is not None
    params = TrainParams(**COMMON | ATTACK | changes) if student else TeacherParams(**COMMON)
    split, manifest = split_samples(train_beton), train_beton.manifest
    model = new_classifier(params, manifest, seed=0, role="student", device=CPU)
    make = student_trainer if student else teacher_trainer
    context = RunContext(0, Snapshots(tmp_path))
    trainer = make(model, train_stream, split, params, context)
    found = operations(counter, lambda: trainer.run(Watcher())) / one_pass(counter, model)
    assert found == pytest.approx(sum(of_training(params, *map(len, split))), rel=0.03)


def test_passes_of_an_evaluation_are_those_of_one_in_which_all_stand(counter):
    """And a few more, with which the model is proved sound."""
    params = EvaluateParams(
        eps=1e-6,
        pgd_steps=8,
        pgd_restarts=2,
        attacks=("fgsm", "cw-10x2"),
        autoattack="none",
        eps_grid=(0, 1e-7, 1e-6),
        eps_grid_images=20,
    )
    network, names, n = build("small-cnn-w8", 10, (1, 8, 8)), tuple("0123456789"), 40
    model = Classifier(
        network, architecture="small-cnn-w8", class_names=names, shape=(1, 8, 8)
    ).eval()
    pixels = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)
    labels = model(pixels / 255).argmax(dim=1)
    images = Images(pixels, labels, torch.arange(n), np.arange(n, dtype=np.uint64), CPU)
    found = operations(counter, lambda: evaluate(model, images, params, seed=0))
    expected = of_evaluation(params, n, 1.0).full
    assert expected <= found / one_pass(counter, model) < 1.1 * expected


@pytest.mark.nightly
@pytest.mark.parametrize("attack", AUTOATTACK)
def test_passes_of_autoattack_are_the_package_s(counter, attack):
    """Of images that stand."""
    weight, images = torch.randn(10, 25), torch.rand(2, 1, 5, 5)

    def model(x):
        return functional.linear(x.flatten(1), weight)

    adversary = AutoAttack(model, norm="Linf", eps=1e-6, seed=0, device=CPU)
    adversary.attacks_to_run = [attack]
    labels = model(images).argmax(dim=1)
    found = operations(
        counter, lambda: adversary.run_standard_evaluation(images, labels, batch_size=2)
    )
    assert found == 2 * 25 * 10 * len(images) * AUTOATTACK[attack]


def test_counts_of_autoattack_agree_with_the_time_that_it_took_its_authors_model():
    """LTD's log of WRN-34-10 on CIFAR-10: images that stand before each attack, and seconds."""
    log = [(8521, 1991.6), (6061, 12134.7), (5694, 16819.6), (5694, 26380.8)]
    flops = forward_flops("wrn-34-10", 10, 32)
    rates = [
        flops * images * count / seconds / 1e12
        for (images, seconds), count in zip(log, AUTOATTACK.values(), strict=True)
    ]
    assert [round(rate, 1) for rate in rates] == [12.1, 12.2, 12.3, 14.4]


def test_the_page_has_the_table_that_is_printed():
    """`python bench/hours.py`."""
    assert hours_table() in PAGE


def test_the_page_s_recipes_are_there():
    """Those of its commands."""
    named = re.findall(r"(?:--recipe|recipe use) ([a-z0-9-]+)", PAGE)
    assert named
    assert set(named) <= set(recipe_names())
