"""Batches are decided by the caller's order alone."""

import os

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import DataError
from ltd_pipe.images import stream
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import FolderStream, ImageStream, read_raw
from ltd_pipe.params import PrepareParams

CPU = torch.device("cpu")
ORDER = np.random.default_rng(0).permutation(240)


def everything(stream, batch_size, **options):
    batches = list(stream.batches(ORDER, batch_size, **options))
    joined = [torch.cat([getattr(b, name) for b in batches]) for name in ("images", "labels")]
    rows = np.concatenate([batch.rows for batch in batches])
    return *joined, rows, np.concatenate([batch.sample_hash for batch in batches])


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def resident(train_beton):
    """Images kept in memory."""
    return ImageStream(train_beton, CPU, resident=True)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def streamed(request, train_beton):
    """Images read by FFCV, which compiles its reader for each stream."""
    return ImageStream(train_beton, CPU, resident=False, workers=request.param)


@pytest.mark.parametrize("batch_size", [1, 7, 240, 500])
def test_streamed_and_resident_give_the_same(streamed, resident, batch_size):
    """Whatever the residency, workers and batch size."""
    assert same(everything(streamed, batch_size), everything(resident, 32))


def test_processes_of_one_machine_share_its_processors(train_beton, monkeypatch):
    """Each that torchrun starts takes its part, and one at least."""
    threads = []

    def opened(_, workers):
        threads.append(workers)
        raise InterruptedError

    monkeypatch.setattr(stream, "usable_cores", lambda: 8)
    monkeypatch.setattr(stream, "BetonReader", opened)
    for processes in (1, 2, 16):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        batches = ImageStream(train_beton, CPU, resident=False).batches(ORDER, 8)
        with pytest.raises(InterruptedError):
            next(batches)
    assert threads == [8, 4, 1]


def test_images_of_several_pages_are_all_copied(tmp_path):
    """A page of raw images is 2 MiB, and ends with a gap; FFCV reads the same from it."""
    params = PrepareParams(dataset="digits", image_size=64)
    write_beton(open_source(params, "train").take(np.arange(240)), tmp_path / "x", params, "train")
    beton = open_beton(tmp_path / "x")
    assert beton.manifest.size > 2 * 2**21
    one, two = (ImageStream(beton, CPU, resident=resident) for resident in (True, False))
    assert same(everything(one, 32), everything(two, 32))


def test_a_beton_that_is_cut_short_while_it_is_copied_is_an_error(train_beton, tmp_path):
    """No image is what happened to be in memory."""
    path = tmp_path / "train.beton"
    path.write_bytes(train_beton.path.read_bytes())
    parts = read_raw(path, train_beton.manifest, 60)
    next(parts)
    os.truncate(path, 1000)
    with refused(DataError, where=path, what="shorter"):
        next(parts)


@pytest.mark.parametrize("resident", [True, False])
def test_start_leaves_out_whole_batches(train_beton, resident):
    """A resumed epoch gives the batches that were still to come."""
    stream = ImageStream(train_beton, CPU, resident=resident)
    whole = [batch.rows.tolist() for batch in stream.batches(ORDER, 50)]
    assert [batch.rows.tolist() for batch in stream.batches(ORDER, 50, start=2)] == whole[2:]
    assert list(stream.batches(ORDER, 50, start=5)) == []


def test_rows_are_the_order(resident):
    """Rows, and the indices on the device, are what was asked for."""
    batch = next(resident.batches(ORDER, 20))
    np.testing.assert_array_equal(batch.rows, ORDER[:20])
    np.testing.assert_array_equal(batch.index.numpy(), ORDER[:20])


def test_yielded_batches_are_not_written_over(train_beton):
    """FFCV uses its buffers again: what was yielded before must not change."""
    stream = ImageStream(train_beton, CPU, resident=False)
    kept, copies = [], []
    for batch in stream.batches(ORDER, 10):
        kept.append(batch.images)
        copies.append(batch.images.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_stopping_early_leaves_no_thread(train_beton):
    """A loop that is left in the middle ends FFCV's thread."""
    import threading
    import time

    before = threading.active_count()
    stream = ImageStream(train_beton, CPU, resident=False)
    for _ in stream.batches(ORDER, 5):
        break
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_folder_streams_like_its_beton(photos, params, tmp_path):
    """Straight from the files, batches are those of the beton."""
    source = open_source(params, "train")
    write_beton(source, tmp_path / "train.beton", params, "train")
    beton = open_beton(tmp_path / "train.beton")
    stream = FolderStream(source, image_size=None, channels=3, device=CPU)
    assert stream.notes == []
    assert stream.manifest.fingerprint == beton.manifest.fingerprint
    order = np.array([3, 11, 0, 7])
    for one, two in zip(
        stream.batches(order, 3), ImageStream(beton, CPU).batches(order, 3), strict=True
    ):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        np.testing.assert_array_equal(one.sample_hash, two.sample_hash)


def test_a_folder_with_a_bad_image_is_refused(photos, params):
    """Before anything is labelled."""
    (photos / "train/dog/1.png").write_bytes(b"")
    with refused(DataError, where=photos / "train/dog/1.png", what="empty"):
        FolderStream(open_source(params, "train"), image_size=None, channels=3, device=CPU)
