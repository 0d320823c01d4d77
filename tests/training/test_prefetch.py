"""Prefetched batches are the same batches, and leave nothing running."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltd_pipe.images.stream import ImageStream
from ltd_pipe.training.data import prefetch

CPU = torch.device("cpu")
ORDER = np.random.default_rng(0).permutation(240)


def marked(batch):
    return replace(batch, prefetched=(0, (batch.index + 1,)))


class Source:
    """Numbers instead of batches; notes how far it was read, and whether it was closed."""

    def __init__(self, end=10, broken=None):
        self.end, self.broken, self.read, self.closed = end, broken, 0, False

    def batches(self):
        try:
            for number in range(self.end):
                if number == self.broken:
                    raise ValueError("broken")
                self.read = number + 1
                yield number
        finally:
            self.closed = True


def background():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_the_same_batches_in_the_same_order(train_beton, resident):
    """Fetched, and equal to those of the stream alone; also when some are left out."""
    stream = ImageStream(train_beton, CPU, resident=resident)
    plain = list(stream.batches(ORDER, 50, start=1))
    found = list(prefetch(stream.batches(ORDER, 50, start=1), marked, CPU))
    assert [len(batch.rows) for batch in found] == [50, 50, 50, 40]
    for one, two in zip(plain, found, strict=True):
        assert torch.equal(one.images, two.images)
        assert one.rows.tolist() == two.rows.tolist()
        assert torch.equal(two.prefetched[1][0], one.index + 1)
    assert not background()


def test_no_more_than_one_is_prefetched():
    """Memory is bounded: however long a step takes, one batch waits for it."""
    source = Source()
    for number in prefetch(source.batches(), lambda x: x, CPU):
        deadline = threading.Event()
        deadline.wait(0.02)
        assert source.read <= number + 2
    assert source.read == 10


def test_the_next_batch_is_prepared_while_a_step_runs():
    """It is asked for before the step ends."""
    begun = threading.Event()

    def fetch(number):
        if number == 1:
            begun.set()
        return number

    steps = prefetch(Source().batches(), fetch, CPU)
    assert next(steps) == 0
    assert begun.wait(10)
    steps.close()


@pytest.mark.parametrize("where", ["reading", "fetching"])
def test_an_error_comes_when_its_batch_would(where):
    """After those before it, as it was raised; nothing is left running."""

    def fetch(number):
        if where == "fetching" and number == 3:
            raise ValueError("broken")
        return number

    source, seen = Source(broken=3 if where == "reading" else None), []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(prefetch(source.batches(), fetch, CPU))
    assert source.closed
    assert not background()


def test_what_was_prepared_before_an_error_is_given():
    """Each batch in its turn."""
    seen = []
    with pytest.raises(ValueError, match="broken"):
        for number in prefetch(Source(broken=3).batches(), lambda x: x, CPU):
            seen.append(number)  # noqa: PERF402  extend would lose them
    assert seen == [0, 1, 2]


def test_a_run_that_stops_leaves_nothing_running():
    """Closed early: the thread has ended, the source is closed, and was not read to its end."""
    source = Source(end=1000)
    steps = prefetch(source.batches(), lambda x: x, CPU)
    assert [next(steps), next(steps)] == [0, 1]
    steps.close()
    assert source.closed
    assert source.read <= 4
    assert not background()


def test_ffcvs_thread_ends_too(train_beton):
    """A streamed epoch that is left in the middle."""
    before = set(threading.enumerate())
    stream = ImageStream(train_beton, CPU, resident=False)
    steps = prefetch(stream.batches(ORDER, 5), marked, CPU)
    next(steps)
    steps.close()
    # Threads of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= before
    assert torch.get_num_threads() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_copies_have_arrived_when_they_are_used(train_beton, resident):
    """While the device is busy with steps, and memory is used again: each batch is its own."""
    gpu = torch.device("cuda")
    plain = list(ImageStream(train_beton, CPU, resident=True).batches(np.tile(ORDER, 20), 48))
    stream = ImageStream(train_beton, gpu, resident=resident)
    work, sums = torch.rand(2048, 2048, device=gpu), []
    for batch in prefetch(stream.batches(np.tile(ORDER, 20), 48), marked, gpu):
        work = work @ work / 2048  # many milliseconds that the host does not wait for
        sums.append((batch.images.sum(), batch.labels.sum(), batch.prefetched[1][0].sum()))
        del batch
    for one, (images, labels, marks) in zip(plain, sums, strict=True):
        assert images.item() == one.images.sum()
        assert labels.item() == one.labels.sum()
        assert marks.item() == (one.index + 1).sum()
