"""Networks that draw for themselves: the same numbers at the same step, however it is reached."""

import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.step import seed_dropout
from ltd_pipe.training.trainer import Watcher

CPU = torch.device("cpu")
# Every second part of a batch, every weight perturbation and every attack draws again.
CHANGES = {
    "at": {},
    "parts": {"accumulation_steps": 2},
    "awp": {"objective": "trades", "awp_gamma": 0.005, "awp_from_epoch": 1},
}


class StopAt(Watcher):
    """Asks the run to stop after some steps."""

    def __init__(self, step):
        self._step = step

    def step(self, done, *_):
        if done == self._step:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def share(monkeypatch):
    """A function that sets the share of features which the network drops, at first 0.3."""

    def choose(probability):
        def build(_, num_classes, shape):
            del shape
            layers = nn.Linear(64, 32), nn.ReLU(), nn.Dropout(probability)
            return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, num_classes))

        monkeypatch.setattr("ltd_pipe.training.run.build", build)

    choose(0.3)
    return choose


def ended(fit):
    """Weights and history of a run that draws from generators which were somewhere."""
    torch.seed()
    history = fit.run(Watcher())
    return torch.cat([value.flatten() for value in fit.model.state_dict().values()]), history


def same(one, two):
    return torch.equal(one[0], two[0]) and one[1] == two[1]


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("step", [1, 7, 10])
def test_an_interrupted_run_ends_with_the_same_bits(share, make_student, tmp_path, changes, step):
    """Stopped within either epoch: nothing differs from a run that was not stopped."""
    whole = ended(make_student(state=tmp_path / "whole", **changes))
    with pytest.raises(Interrupted):
        make_student(**changes).run(StopAt(step))
    assert same(ended(make_student(**changes)), whole)


def test_a_teacher_draws_by_its_step_too(share, make_teacher):
    """Clean training goes through the same steps."""
    fit = make_teacher()
    whole = ended(fit)
    fit.context.snapshots.clear()
    with pytest.raises(Interrupted):
        make_teacher().run(StopAt(7))
    assert same(ended(make_teacher()), whole)


def test_what_is_dropped_matters(share, make_student, tmp_path):
    """Or the other tests would say nothing."""
    dropped = ended(make_student(state=tmp_path / "a"))
    share(0.0)
    assert not same(ended(make_student(state=tmp_path / "b")), dropped)


def test_the_callers_generator_is_where_it_was(share, make_student):
    """After a run, and after one that was stopped."""
    before = torch.get_rng_state()
    with pytest.raises(Interrupted):
        make_student().run(StopAt(7))
    assert torch.equal(torch.get_rng_state(), before)
    make_student().run(Watcher())
    assert torch.equal(torch.get_rng_state(), before)


def kept(device=CPU, **changes):
    """Which of a thousand features stay, in two passes of a step."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_dropout(**{"seed": 0, "step": 3, "rank": 0, "device": device} | changes)
        return torch.stack([dropout(torch.ones(1000, device=device)) for _ in range(2)]) > 0


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 4}, {"rank": 1}], ids=str)
def test_seed_step_and_rank_decide_what_is_dropped(change):
    """And nothing else; the passes of a step differ."""
    assert torch.equal(kept(), kept())
    assert not torch.equal(*kept())
    assert 0.4 < (kept() == kept(**change)).float().mean() < 0.6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_generator_is_seeded_too():
    """And put back; nothing waits for the device."""
    gpu = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    try:
        torch.cuda.set_sync_debug_mode("error")
        seed_dropout(0, 3, 0, gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_rng_state(before)
    assert torch.equal(kept(gpu), kept(gpu))
    assert not torch.equal(kept(gpu), kept(gpu, seed=1))
    assert torch.equal(torch.cuda.get_rng_state(), before)
