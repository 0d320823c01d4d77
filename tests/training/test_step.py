"""A step in parts, with clipped gradients, in half precision, or with too little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused

from ltd_pipe.device import PrecisionSettings, deterministic
from ltd_pipe.errors import MachineError, ModelError
from ltd_pipe.objectives import StepInfo
from ltd_pipe.params import FitParams
from ltd_pipe.training.optim import make_optimiser
from ltd_pipe.training.trainer import Meters, Watcher

ROOT = Path(__file__).parents[2]


def after_a_step(fit):
    """The weights' gradients of the first step, and its tally."""
    batch = next(fit._stream.batches(fit._samples, 32))
    fit.model.train()
    step = fit._step
    tally = step.differentiate(step.attack(batch, StepInfo(), 32))
    return [weight.grad.clone() for weight in fit.model.parameters()], tally


def test_parts_of_a_batch_add_up_to_its_gradient(make_student, tmp_path):
    """32 images in 5 parts of 6 and 7, without batch statistics in between."""
    found = []
    for parts in (1, 5):
        fit = make_student(accumulation_steps=parts, state=tmp_path / str(parts))
        for module in fit.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
                module.forward = lambda images, norm=module: torch.nn.functional.batch_norm(
                    images, norm.running_mean, norm.running_var, norm.weight, norm.bias
                )
        found.append(after_a_step(fit))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_half_precision_learns(make_student, tmp_path):
    """Float16 with scaled gradients goes about where float32 goes, and can be resumed."""
    fits = [
        make_student(precision=PrecisionSettings(precision=name), state=tmp_path / name, epochs=3)
        for name in ("float32", "float16")
    ]
    rows = [fit.run(Watcher())[-1] for fit in fits]
    assert rows[1]["train/loss"] == pytest.approx(rows[0]["train/loss"], rel=0.1)
    assert fits[1]._step.state_dict()["scaler"]["scale"] > 1


def test_long_gradients_are_clipped(make_student, tmp_path):
    """A tiny bound changes the run; a huge one nothing, to the bit."""
    losses = {
        bound: make_student(clip_norm=bound, state=tmp_path / str(bound)).run(Watcher())[-1][
            "train/loss"
        ]
        for bound in (None, 1e9, 1e-3)
    }
    assert losses[None] == losses[1e9]
    assert losses[None] < losses[1e-3]


def test_norms_and_biases_can_be_left_undecayed(make_student):
    """Vectors are in a group without weight decay, all else is in the other."""
    model = make_student().model
    params = FitParams(architecture="x", epochs=1, weight_decay=0.1, decay_norms=False)
    decayed, free = make_optimiser(model, params).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {weight.dim() for weight in free["params"]} == {1}
    assert {weight.dim() for weight in decayed["params"]} == {2, 4}
    everything = make_optimiser(model, params.model_copy(update={"decay_norms": True}))
    assert len(everything.param_groups) == 1


def test_meters_remember_the_first_broken_step():
    """However late they are read; and sums go on where they were."""
    meters = Meters(torch.device("cpu"))
    assert meters.read() == {}
    meters.add(torch.tensor([2.5, 3.0]), 4, 0)
    other = Meters(torch.device("cpu"))
    other.restore(meters.read())
    other.add(torch.tensor([1.0, 1.0]), 4, 1)
    assert other.read() == {"images": 8.0, "loss": 3.5, "hits": 4.0}
    for step, loss in enumerate([float("nan"), float("inf"), 1.0], start=7):
        other.add(torch.tensor([loss, 0.0]), 4, step)
    with refused(ModelError, where="training step 7", what="finite"):
        other.read()


def test_a_broken_run_keeps_its_last_sound_snapshot(make_student, tmp_path):
    """Weights that an infinite loss has spoilt are never saved."""
    fit = make_student(learning_rate=1e20, epochs=3, snapshot_steps=1)
    with refused(ModelError, where="training step 1", what="finite"):
        fit.run(Watcher())
    found = fit.context.snapshots.load()
    assert found is None or all(torch.isfinite(value).all() for value in found[1]["model"].values())


STARVED = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import torch
import ranks
from ltd_pipe.errors import MachineError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.distributed import World
from ltd_pipe.training.trainer import Watcher

torch.set_num_threads(1)
accumulated = int(sys.argv[5])
ranks.BASE |= {"batch_size": 190, "accumulation_steps": accumulated}
fit = ranks.make_fit(open_beton(Path(sys.argv[1])), sys.argv[2], "at", World())
# MiB, as a large network would need: 380 for a part of the step, 190 for its half; beside it
# the heap of the thread that reads ahead reserves 128.
def need(network, images):
    torch.empty(len(images[0]) * accumulated * 2**21, dtype=torch.uint8)

fit.model.network.register_forward_pre_hook(need)
_, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[4]) * 2**20, hard))
try:
    fit.run(Watcher())
except MachineError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("accumulated", "images", "parts"), [("1", 95, 2), ("2", 48, 4)])
def test_out_of_memory_says_what_fits(train_beton, tmp_path, accumulated, images, parts):
    """A kernel limit makes the step fail; the number that is named was tried."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, train_beton.path, tmp_path, here, "350", accumulated],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cpu: 190 images per step: do not fit into memory" in done.stdout
    remedy = f"{images} at a time do: set accumulation_steps: {parts}, which makes steps of as many"
    assert f"{remedy} images, or batch_size: 95." in done.stdout


def test_an_optimiser_of_another_device_steps_as_this_one_does(make_student):
    """A GPU's fused step is none of the CPU's, nor the other way about."""
    step = make_student()._step
    state = step.state_dict()
    for group in state["optimiser"]["param_groups"]:
        group["fused"] = True
    step.load_state_dict(state)
    assert [group["fused"] for group in step._optimiser.param_groups] == [None]


@pytest.mark.parametrize(
    "text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"]
)
def test_too_little_memory_for_a_validation_is_explained(make_student, text):
    """Whoever says so: torch's allocator, CUDA's or a library."""
    fit = make_student()

    def fail(*_):
        raise RuntimeError(text)

    fit.average.network.register_forward_pre_hook(fail)
    with refused(MachineError, what="do not fit into memory", remedy="accumulation_steps: 2"):
        fit.run(Watcher())


def test_an_operator_without_a_deterministic_kernel_is_named(make_student):
    """With the network and the device, and what to do."""
    fit = make_student()

    def scatter(_, inputs):
        return inputs[0].clone().put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))

    fit.model.network.register_forward_pre_hook(scatter)
    with deterministic(), refused(MachineError, where="cpu: small-cnn-w8", what="put_"):
        fit.run(Watcher())
