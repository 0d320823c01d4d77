"""Every objective with every kind of label, in short runs of the real loop on real digits."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError, ParamsError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts
from ltd_pipe.labels.labelling import Labeller
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.objectives import ObjectiveWrapper
from ltd_pipe.params import TeacherParams
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.run import new_classifier
from ltd_pipe.training.targets import LiveTeacher
from ltd_pipe.training.trainer import Watcher

CPU = torch.device("cpu")
# Two steps an epoch.
TINY = {
    "images": 48,
    "batch_size": 24,
    "epochs": 1,
    "architecture": "small-cnn-w4",
    "crop_padding": 0,
    "attack_steps": 1,
    "validation_attack_steps": 1,
    "awp_from_epoch": 0,
    "label_kind": "ltd",
}


@pytest.fixture(scope="module")
def model(train_beton):
    """A network whose answers are not uniform, if not right either."""
    params = TeacherParams(architecture="small-cnn-w4", epochs=1)
    return new_classifier(params, train_beton.manifest, seed=5, role="teacher", device=CPU).eval()


@pytest.fixture(scope="module")
def teacher(model, train_beton, tmp_path_factory):
    """That network, asked in the run."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_classifier(model, path)
    return LiveTeacher.open(path, train_beton.manifest)


@pytest.fixture(scope="module")
def store(model, train_beton, train_stream, tmp_path_factory):
    """Its answers to all digits, at temperature 0.25."""
    manifest, folder = train_beton.manifest, tmp_path_factory.mktemp("store")
    facts = StoreFacts(
        num_samples=240,
        num_classes=10,
        class_names=manifest.class_names,
        dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
        teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w4"),),
    )
    writer = StoreWriter(folder / "draft", facts, keep_logits=True, rows=240)
    Labeller([model], train_stream, 240, "float32").label(writer)
    writer.publish(folder / "labels.zarr", 0.25)
    return SoftLabels.open(folder / "labels.zarr")


@pytest.fixture
def put_together(make_student, store, teacher, tmp_path):
    """A function that puts a tiny student's run together."""
    states = iter(range(100))

    def make(**changes):
        state = tmp_path / f"state-{next(states)}"
        own = {"store": store, "teacher": teacher, "state": state}
        return make_student(**TINY | own | changes)

    return make


@pytest.fixture
def run(put_together):
    """A function that trains one; it gives the weights and the history."""

    def train(watcher=None, **changes):
        fit = put_together(**changes)
        history = fit.run(watcher or Watcher())
        return torch.cat([value.flatten() for value in fit.model.parameters()]), history

    return train


OBJECTIVES = {
    "at": {"objective": "at"},
    "at-target": {"objective": "at", "attack_label": "target"},
    "trades": {"objective": "trades", "beta": 1.0},
    "mart": {"objective": "mart", "beta": 1.0},
    "awp": {"objective": "trades", "beta": 1.0, "awp_gamma": 0.01},
    "rslad": {"objective": "rslad"},
    "igdm": {"objective": "at", "igdm_weight": 5.0},
    "adaad": {"objective": "adaad", "robust_weight": 0.5},
    "exits": {"objective": "exits", "architecture": "small-cnn-exits-w4"},
}
LABELS = {
    "onehot": {"label_kind": "onehot"},
    "smooth": {"label_kind": "smooth"},
    "ltd": {"label_kind": "ltd"},
    "mixed": {"label_kind": "ltd", "soft_weight": 0.5, "rectify": True},
    "warm": {"label_kind": "ltd", "label_temperature": 2.0},
    "live": {"label_kind": "live", "teacher_temperature": 0.5},
    "adr": {"label_kind": "adr"},
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective_takes_every_kind_of_label(run, objective):
    """Each kind trains to weights of its own, and its loss is finite."""
    found = {name: run(**objective, **labels) for name, labels in LABELS.items()}
    assert all(np.isfinite(history[0]["train/loss"]) for _, history in found.values())
    different = {tuple(weights.tolist()) for weights, _ in found.values()}
    assert len(different) == len(LABELS)


class Witness(ObjectiveWrapper):
    """Remembers which batches an objective was given, and by which call."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def attack(self, adversary, model, batch, **how):
        self.seen.append(("attack", batch))
        return super().attack(adversary, model, batch, **how)

    def loss(self, model, batch, adversarial):
        self.seen.append(("loss", batch))
        return super().loss(model, batch, adversarial)


def witnessed(fit, monkeypatch):
    """The objective of a run, watched."""
    witness = Witness(fit._step._objective)
    monkeypatch.setattr(fit._step, "_objective", witness)
    return witness


def test_stored_labels_reach_attack_proxy_and_step(put_together, store, monkeypatch):
    """The same q in the attack, in AWP's proxy and in the step: the store's, of these samples."""
    fit = put_together(objective="trades", awp_gamma=0.01)
    witness = witnessed(fit, monkeypatch)
    fit.run(Watcher())
    assert [call for call, _ in witness.seen] == ["attack", "loss", "loss"] * 2
    stored = torch.from_numpy(store.gather(np.arange(240)).astype(np.float32))
    for step in (witness.seen[:3], witness.seen[3:]):
        assert len({id(batch) for _, batch in step}) == 1
        target = step[0][1].target
        distances = torch.cdist(target, stored).amin(dim=1)
        assert distances.max() < 2e-3
        assert (target.amax(dim=1) < 0.999).any()


def test_a_step_knows_when_it_is(put_together, monkeypatch):
    """Steps and epochs done, and in all."""
    fit = put_together(objective="at", epochs=2)
    witness = witnessed(fit, monkeypatch)
    fit.run(Watcher())
    infos = [batch.info for call, batch in witness.seen if call == "loss"]
    found = [(i.step, i.steps, i.epoch, i.epochs) for i in infos]
    assert found == [(0, 4, 0, 2), (1, 4, 0, 2), (2, 4, 1, 2), (3, 4, 1, 2)]


STATEFUL = {
    "adr": {"objective": "at", "label_kind": "adr", "attack_label": "target"},
    "igdm": {"objective": "at", "igdm_weight": 5.0},
    "mtard": {"objective": "mtard", "label_temperature": 1.0, "awp_gamma": 0.01},
    "ard": {"objective": "ard", "label_temperature": 4.0},
    "exits": {"objective": "exits", "architecture": "small-cnn-exits-w4", "exits": (1, 3)},
}


class StopAt(Watcher):
    """Asks the run to stop after its third step."""

    def step(self, done, *_):
        if done == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("changes", STATEFUL.values(), ids=STATEFUL)
def test_an_interrupted_run_ends_with_the_same_bits(run, tmp_path, changes):
    """What schedules and balances go by is in the snapshot, or follows from the step."""
    whole = run(**changes, epochs=2)
    state = tmp_path / "interrupted"
    with pytest.raises(Interrupted):
        run(StopAt(), **changes, epochs=2, state=state)
    continued = run(**changes, epochs=2, state=state)
    assert torch.equal(whole[0], continued[0])
    assert whole[1] == continued[1]


@pytest.mark.parametrize("kind", ["live", "adr"])
def test_measuring_the_targets_changes_no_bit(put_together, kind, monkeypatch):
    """Of weights and history; a run that does not measure them has nothing to say of them."""
    measured, blind = (put_together(label_kind=kind, epochs=2) for _ in range(2))
    history = measured.run(Watcher())
    monkeypatch.setattr("ltd_pipe.training.step.target_sums", lambda *_: None)
    assert history == blind.run(Watcher())
    theirs = blind.model.state_dict()
    assert all(torch.equal(mine, theirs[n]) for n, mine in measured.model.state_dict().items())
    assert measured.target_softness.targets > blind.progress.step
    assert blind.target_softness is None


def test_the_targets_of_the_last_epoch_are_measured(put_together, monkeypatch, tmp_path):
    """As they were trained with, in several parts, and across an interruption."""
    changes = {"label_kind": "adr", "epochs": 2, "accumulation_steps": 2}
    fit = put_together(**changes)
    witness = witnessed(fit, monkeypatch)
    fit.run(Watcher())
    batches = [batch for call, batch in witness.seen if call == "loss"]
    last = [each for each in batches if each.info.epoch == 1]
    target = torch.cat([each.target for each in last]).double()
    wrong = target.argmax(dim=1) != torch.cat([each.truth for each in last]).argmax(dim=1)
    found = fit.target_softness
    assert found.targets == len(target)
    assert found.mean_top_probability == pytest.approx(target.amax(dim=1).mean().item(), rel=1e-5)
    entropy = torch.special.entr(target).sum(dim=1).mean().item()
    assert found.mean_entropy == pytest.approx(entropy, rel=1e-5)
    assert found.contradictions == wrong.double().mean().item()
    state = tmp_path / "interrupted"
    with pytest.raises(Interrupted):
        put_together(**changes, state=state).run(StopAt())
    continued = put_together(**changes, state=state)
    continued.run(Watcher())
    assert continued.target_softness == found


def test_another_moment_is_another_target(run):
    """ADR's schedule goes by the step: a run of more epochs has other first steps."""
    rows = [run(label_kind="adr", epochs=e, schedule="constant")[1][0] for e in (1, 2)]
    assert rows[0]["train/loss"] != rows[1]["train/loss"]


def test_the_teacher_in_the_run_stays_as_it_was(put_together, teacher):
    """Weights, batch statistics and mode."""
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    put_together(objective="adaad", igdm_weight=1.0, label_kind="live").run(Watcher())
    after = teacher.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not teacher.model.training


def test_a_network_without_exits_is_refused(put_together):
    """Before the first step, with the names of those that have some."""
    with refused(ModelError, where="small-cnn-w4", what="exit", remedy="small-cnn-exits"):
        put_together(objective="exits")


def test_an_exit_that_is_not_there_is_refused(put_together):
    """With how many there are."""
    with refused(
        ParamsError,
        where="train.exits",
        what="small-cnn-exits-w4",
        expected="numbers from 1 to 3",
        found=[2, 4],
    ):
        put_together(objective="exits", architecture="small-cnn-exits-w4", exits=(2, 4))


@pytest.mark.parametrize(("end", "own", "exits"), [("", 3, (1, 2)), ("@1", 1, (2, 3))])
def test_the_exit_that_is_the_networks_own_is_trained(put_together, end, own, exits):
    """It is validated, saved and attacked: with which network the others would be."""
    name = "small-cnn-exits-w4"
    with refused(
        ParamsError,
        where="train.exits",
        what=f"{name}{end}",
        expected=f"{own} among them",
        found=[*exits],
        remedy=f"{name}@{exits[-1]}",
    ):
        put_together(objective="exits", architecture=f"{name}{end}", exits=exits)
    put_together(objective="exits", architecture=f"{name}@{exits[-1]}", exits=exits)


def test_only_the_chosen_exits_are_trained(put_together):
    """The head of the others keeps its weights, under weight perturbation as well."""
    options = {"architecture": "small-cnn-exits-w4@2", "awp_gamma": 0.01, "weight_decay": 0.0}
    fit = put_together(objective="exits", exits=(2,), **options)
    heads = fit.model.network.heads
    before = [head[-1].weight.clone() for head in heads]
    fit.run(Watcher())
    kept = [torch.equal(head[-1].weight, old) for head, old in zip(heads, before, strict=True)]
    assert kept == [True, False]
