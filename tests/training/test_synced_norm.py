"""Batch normalisation that does not depend on the number of processes."""

import copy

import pytest
import torch
from refusals import refused
from torch import nn

from ltd_pipe.errors import ParamsError
from ltd_pipe.training.step import SyncedBatchNorm2d, synchronise


@pytest.fixture
def lone_group(tmp_path):
    """A process group of one: its messages go through the same code."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def network(kind=nn.BatchNorm2d, **given):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), kind(5, **given), nn.ReLU(), nn.Sequential(kind(5, **given))
    )


@pytest.mark.parametrize("timm", [False, True], ids=["torch", "timm"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_is_torchs_own_on_one_process(lone_group, timm, momentum):
    """Outputs, gradients and running statistics, to rounding, over two steps.

    Timm's norms have dropout and activation in them.
    """
    kind = pytest.importorskip("timm.layers").BatchNormAct2d if timm else nn.BatchNorm2d
    plain = network(kind, momentum=momentum)
    synced = copy.deepcopy(plain)
    synchronise(synced)
    assert sum(isinstance(module, SyncedBatchNorm2d) for module in synced.modules()) == 2
    images = 3 + torch.randn(6, 2, 7, 7)
    for _ in range(2):
        found = []
        for model in (plain, synced):
            output = model(images)
            output.square().sum().backward()
            found.append((output, [weight.grad for weight in model.parameters()]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.state_dict(), synced.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["SyncBatchNorm", "SyncBatchNormAct"])
def test_a_norm_that_shares_its_statistics_itself_is_kept(lone_group, name):
    """Torch's own needs a GPU for that; and timm's keeps its activation."""
    kind = (
        nn.SyncBatchNorm
        if name == "SyncBatchNorm"
        else pytest.importorskip("timm.layers.norm_act").SyncBatchNormAct
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), kind(5))
    plain = copy.deepcopy(model).eval()
    synchronise(model)
    images = torch.randn(6, 2, 7, 7)
    assert torch.equal(model.eval()(images), plain(images))
    model.train()(images)
    assert bool(model[1].running_mean.ne(0).all())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(5), type("Mine", (nn.BatchNorm2d,), {})(5)], ids=["1d", "its own"]
)
def test_another_kind_of_norm_is_refused(norm):
    """Left alone it would make each process another model."""
    with refused(
        ParamsError,
        where="sync_batch_norm",
        found=type(norm).__name__,
        remedy="false",
    ):
        synchronise(nn.Sequential(nn.Linear(5, 5), norm))


def test_evaluation_needs_no_group():
    """And names, parameters and mode are those of the layer it replaces."""
    plain = network().eval()
    synced = copy.deepcopy(plain)
    weights = [id(weight) for weight in synced.parameters()]
    synchronise(synced)
    assert [id(weight) for weight in synced.parameters()] == weights
    assert plain.state_dict().keys() == synced.state_dict().keys()
    images = torch.randn(3, 2, 7, 7)
    assert torch.equal(plain(images), synced(images))
