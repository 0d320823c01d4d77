"""The device and its precision: what is asked for, or a clear line."""

import subprocess
import sys

import pytest
import torch
from refusals import refused

from ltd_pipe.device import (
    OnHost,
    autocast,
    choose_device,
    choose_precision,
    deterministic,
    free_memory,
    full_float32,
)
from ltd_pipe.errors import MachineError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def model():
    """A small classifier."""
    network = build("small-cnn-w8", 2, SHAPE)
    return Classifier(network, architecture="small-cnn-w8", class_names=("a", "b"), shape=SHAPE)


def test_auto_takes_cuda_where_there_is_one():
    """And the processor where not."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    """With what to do."""
    with refused(MachineError, where="device: cuda", what="torch", remedy="ltd-pipe doctor"):
        choose_device("cuda")


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Each that torchrun starts may keep no more than its part."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    # Other programs take and give back some meanwhile.
    assert free_memory(torch.device("cpu")) < whole / 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_model_runs_on_the_gpu(model):
    """The same logits as on the processor, within float32 rounding."""
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        here, there = model.eval()(images), model.cuda()(images.cuda()).cpu()
    model.cpu()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_precision_that_is_named_is_taken(model, wanted):
    """Without measuring."""
    chosen = choose_precision(model, 8, precision=wanted)
    assert (chosen.precision, chosen.measured) == (wanted, {})


def test_auto_measures_and_leaves_the_model_as_it_was(model):
    """One of the two; mode and gradients untouched."""
    model.train()
    assert choose_precision(model, 8).precision in {"float32", "bfloat16"}
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_autocast_changes_the_precision(model):
    """The network computes in bfloat16 inside; the model's logits, and so all losses, do not."""
    images, cpu, kinds = torch.rand(2, *SHAPE), torch.device("cpu"), []
    model.network.register_forward_hook(lambda _model, _given, made: kinds.append(made.dtype))
    with torch.no_grad(), autocast(cpu, "bfloat16"):
        assert model.eval()(images).dtype == torch.float32
    with torch.no_grad(), autocast(cpu, "float32"):
        assert model(images).dtype == torch.float32
    assert kinds == [torch.bfloat16, torch.float32]


def test_deterministic_is_put_back():
    """Also after an error."""
    with pytest.raises(ValueError, match="x"), deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        raise ValueError("x")
    assert not torch.are_deterministic_algorithms_enabled()


UNCOMPILED = """
import sys
from ltd_pipe.device import deterministic
with deterministic():
    print("torch._inductor" in sys.modules)
"""


def test_deterministic_does_not_import_the_compiler():
    """It would take 2 s of every command."""
    assert subprocess.check_output([sys.executable, "-c", UNCOMPILED], text=True) == "False\n"


NUMBERS, CLASSES = torch.rand(300, 1000), torch.arange(300)


def test_answers_arrive_on_the_host():
    """Several tensors at once, as they were when they were given."""
    found = OnHost(NUMBERS, CLASSES).numpy()
    assert [array.tolist() for array in found] == [NUMBERS.tolist(), CLASSES.tolist()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_answers_arrive_from_the_gpu():
    """Pinned copies, which are not looked at before they are there."""
    found = OnHost(NUMBERS.cuda(), CLASSES.cuda()).numpy()
    assert [array.tolist() for array in found] == [NUMBERS.tolist(), CLASSES.tolist()]


def test_nothing_is_rounded_to_tf32_while_a_model_is_measured():
    """Neither in convolutions, where torch allows it, nor in products; also not after an error."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [each.allow_tf32 for each in backends]
    with pytest.raises(KeyError), full_float32():
        assert [each.allow_tf32 for each in backends] == [False, False]
        raise KeyError
    assert [each.allow_tf32 for each in backends] == before
