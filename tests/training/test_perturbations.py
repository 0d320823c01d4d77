"""Perturbations carried from one epoch to the next, through its crops and flips."""

import numpy as np
import pytest
import torch
from refusals import refused
from test_loop import StopAt, assert_same, result

from ltd_pipe.distributed import World
from ltd_pipe.errors import MachineError
from ltd_pipe.images.augment import augment, restored
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.training import perturbations
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.perturbations import Perturbations
from ltd_pipe.training.trainer import Watcher

CPU = torch.device("cpu")
CARRIED = {"attack_start": "previous", "attack_steps": 1, "epochs": 3, "crop_padding": 2}
MOVES = [
    Augmentation(),
    Augmentation(crop_padding=3),
    Augmentation(flip=True),
    Augmentation(crop_padding=3, flip=True),
]


def numbered(count=64, side=9):
    """Values that tell where in which image they stand, as far as int8 can."""
    values = torch.arange(count * 2 * side * side) * 7919 % 254 - 127
    return values.view(count, 2, side, side).to(torch.int8)


@pytest.mark.parametrize("moves", MOVES, ids=str)
def test_what_a_view_shows_goes_back_to_its_place(moves):
    """And what it does not show stays: all of it is as it was before it was moved."""
    values, index = numbered(), torch.arange(64)
    views = augment(values, index, moves, seed=3, epoch=5)
    assert torch.equal(restored(views, index, moves, values, seed=3, epoch=5), values)


@pytest.mark.parametrize("moves", MOVES, ids=str)
def test_nothing_is_written_where_a_view_does_not_look(moves):
    """By hand: one image, its crop and flip found by where its pixels went."""
    values, index = numbered(), torch.arange(64)
    views = augment(values, index, moves, seed=3, epoch=5)
    unseen = torch.full_like(values, 77)
    found = restored(views, index, moves, unseen, seed=3, epoch=5)
    seen = found != 77
    assert torch.equal(found[seen], values[seen])
    # A crop moves by at most its padding: 6 × 6 of 9 × 9 pixels are seen in any case.
    least = (9 - moves.crop_padding) ** 2
    assert (seen | (values == 77)).sum(dim=(2, 3)).min() >= least
    if not moves.crop_padding:
        assert torch.equal(found, values)


@pytest.mark.parametrize("size", [1, 500, 2**24])
def test_they_are_shared_a_part_at_a_time(monkeypatch, size):
    """Whatever its size; another process that has found nothing takes nothing away."""
    monkeypatch.setattr(perturbations, "_SHARED_BYTES", size)
    world = World(0, 2)
    monkeypatch.setattr(World, "all_reduce_", lambda *_: None)
    found, index = Perturbations(40, (2, 9, 9), CPU, world), torch.arange(0, 40, 4)
    draws = Augmentation(), 0, 0
    found.keep(torch.full((10, 2, 9, 9), 0.1), index, 0.1, draws)
    found.share()
    found.keep(torch.full((10, 2, 9, 9), -0.1), index + 1, 0.1, draws)
    found.share()
    kinds = torch.tensor([127, -127, 0, 0], dtype=torch.int8).repeat(10)
    assert torch.equal(found.state_dict(), kinds.view(-1, 1, 1, 1).expand(40, 2, 9, 9))


@pytest.mark.parametrize("cutout", [0, 3])
def test_the_next_view_begins_with_what_it_shows_of_the_last(cutout):
    """A perturbation that belongs to its pixel is found under that pixel again."""
    augmentation = Augmentation(crop_padding=2, flip=True, cutout=cutout)
    carried, index = Perturbations(40, (2, 9, 9), CPU), torch.tensor([3, 30, 7])
    values = numbered(40)
    for epoch in range(12):  # so many views show every pixel
        draws = augmentation, 1, epoch
        moved = augment(values[index], index, augmentation.moves, seed=1, epoch=epoch)
        carried.keep(moved * (0.1 / 127), index, 0.1, draws)
    later = augmentation, 1, 20
    images = torch.zeros(3, 2, 9, 9)
    expected = augment(values[index], index, augmentation.moves, seed=1, epoch=20)
    points = carried.points(images, index, 0.2, later)
    torch.testing.assert_close(points, expected * (0.2 / 127))
    rest = np.setdiff1d(np.arange(40), index)
    assert not carried.state_dict()[torch.from_numpy(rest)].any()


def test_an_attack_begins_where_the_last_one_ended(make_student):
    """In the first epoch it has a start of its own."""
    fit = make_student(**CARRIED)
    carried, epochs, points = fit._task.perturbations, [], []
    inner = carried.points

    def spy(images, index, eps, draws):
        epochs.append(draws[2])
        points.append(inner(images, index, eps, draws))
        return points[-1]

    carried.points = spy
    fit.run(Watcher())
    assert set(epochs) == {1, 2}
    assert min(float(p.std()) for p in points) > 0


@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_an_interrupted_run_ends_with_the_same_bits(make_student, tmp_path, step):
    """The perturbations are part of its snapshots."""
    whole = result(make_student(**CARRIED, state=tmp_path / "whole"))
    other = result(make_student(**CARRIED | {"attack_start": None}, state=tmp_path / "other"))
    assert not torch.equal(whole[1], other[1])
    with pytest.raises(Interrupted):
        make_student(**CARRIED).run(StopAt(step))
    assert_same(whole, result(make_student(**CARRIED)))


def test_what_does_not_fit_is_refused(monkeypatch):
    """Before anything is taken, in one line."""
    with refused(MachineError, where="train.attack_start: previous, on cpu"):
        Perturbations(10**9, (3, 224, 224), CPU)
