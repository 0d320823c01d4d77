"""FFCV's thread ends when it is left, and is missed when it dies."""

import threading
import time

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import DataError
from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import BetonReader, ImageStream
from ltd_pipe.params import PrepareParams

CPU = torch.device("cpu")
ORDER = np.arange(240)


@pytest.fixture(scope="module")
def reader(train_beton):
    return BetonReader(train_beton.path, workers=1)


# 4 batches: after the first, all that is left fits into FFCV's queue of three, and its thread
# waits to say that it is done. 48 batches: the thread waits to hand over the next one.
@pytest.mark.parametrize("batch_size", [60, 5], ids=["nothing left to read", "much left to read"])
def test_leaving_early_ends_the_thread_at_once(reader, batch_size):
    """No thread waits at a full queue, and the rest of the epoch is not decoded first."""
    before = threading.active_count()
    parts = reader.read(ORDER, batch_size)
    next(parts)
    time.sleep(0.3)
    assert threading.active_count() == before + 1
    parts.close()
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_an_error(train_beton):
    """FFCV alone would wait for its next batch for ever."""
    reader = BetonReader(train_beton.path, workers=1)
    reader._loader.code = ([(None, [])], [])
    with refused(DataError, where="train.beton", what="thread"):
        next(reader.read(ORDER, 10))


def test_one_reader_serves_any_order_and_batch_size(reader):
    """Nothing of an earlier pass is left in a later one, and two can be open at once."""
    for order, batch_size in ((ORDER[::-1], 7), (ORDER[:3], 100), (np.array([5, 5, 5]), 2)):
        parts = [part[2][:, 0].copy() for part in reader.read(order, batch_size)]
        assert {len(part) for part in parts[:-1]} <= {batch_size}
        np.testing.assert_array_equal(np.concatenate(parts), order)
    pairs = zip(reader.read(ORDER, 10), reader.read(ORDER[::-1], 10), strict=True)
    assert all(int(one[2][0, 0]) + int(two[2][0, 0]) == 239 for one, two in pairs)


def test_nothing_global_is_changed(train_beton):
    """Torch's thread count and numpy's global generator are what they were, at each batch."""
    torch.set_num_threads(2)
    before = np.random.get_state()[1:3]
    for _ in BetonReader(train_beton.path, workers=1).read(ORDER, 60):
        assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert np.random.get_state()[2] == before[1]


def test_more_workers_than_cores_are_no_error(train_beton):
    """Numba itself refuses them."""
    assert len(list(BetonReader(train_beton.path, workers=1000).read(ORDER, 240))) == 1


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("row", [-1, 240])
def test_a_row_outside_is_refused(train_beton, resident, row):
    """FFCV would read past its tables, torch would count from the end."""
    stream = ImageStream(train_beton, CPU, resident=resident)
    with pytest.raises(IndexError, match="outside 0…239"):
        next(stream.batches(np.array([0, row]), 2))


@pytest.mark.parametrize("resident", [True, False])
def test_a_beton_that_was_replaced_is_noticed(train_beton, tmp_path, resident):
    """Other images under the same name do not get the labels of the first."""
    from dataclasses import replace

    params = PrepareParams(dataset="digits", channels=1)
    other = tmp_path / "train.beton"
    write_beton(open_source(params, "train").take(np.arange(1, 241)), other, params, "train")
    with refused(DataError, where=other, what="sample"):
        next(
            ImageStream(replace(train_beton, path=other), CPU, resident=resident).batches(ORDER, 9)
        )
