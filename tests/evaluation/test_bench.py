"""Which test images are attacked: all, or a number of them that the seed alone chooses."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.distributed import World
from ltd_pipe.errors import DataError, ModelError, ParamsError, WriteError
from ltd_pipe.evaluation.bench import Journal, select_images
from ltd_pipe.images.stream import ImageStream

# --- Which test images are attacked: all, or a number of them that the seed alone chooses.


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stream(test_beton):
    """The test images."""
    return ImageStream(test_beton, CPU)


def test_all_are_taken_in_order(stream, test_beton):
    """N None: each once, ascending."""
    test = select_images(stream, 60, None, seed=0)
    assert test.index.tolist() == list(range(60))
    assert test.labels.tolist() == test_beton.labels.tolist()


def test_some_are_chosen_by_the_seed(stream):
    """The same seed chooses the same ones; a larger number only adds to them."""
    ten = set(select_images(stream, 60, 10, seed=1).index.tolist())
    assert len(ten) == 10
    assert ten == set(select_images(stream, 60, 10, seed=1).index.tolist())
    assert ten != set(select_images(stream, 60, 10, seed=2).index.tolist())
    assert ten < set(select_images(stream, 60, 20, seed=1).index.tolist())


def test_images_and_labels_stay_together(stream, test_beton):
    """A chosen image is the one of its index."""
    test = select_images(stream, 60, 7, seed=3)
    (batch,) = stream.batches(test.index.numpy(), 60)
    assert torch.equal(batch.images, test.images)
    assert test_beton.labels[test.index.numpy()].tolist() == test.labels.tolist()
    np.testing.assert_array_equal(test.sample_hash, test_beton.sample_hash[test.index.numpy()])


def test_more_than_there_are_is_refused(stream):
    """With how many there are."""
    with refused(
        ParamsError, where="evaluate.images", what="images", expected="at most 60", found=61
    ):
        select_images(stream, 60, 61, seed=0)


def test_a_part_keeps_each_image_together(stream):
    """Pixels, label, index and hash of the chosen rows."""
    test = select_images(stream, 60, 7, seed=3)
    part, rows = test.part(torch.tensor([5, 2])), [5, 2]
    assert torch.equal(part.images, test.images[rows])
    assert part.labels.tolist() == test.labels[rows].tolist()
    assert part.index.tolist() == test.index[rows].tolist()
    np.testing.assert_array_equal(part.sample_hash, test.sample_hash[rows])


def test_images_without_a_label_are_refused(stream, monkeypatch):
    """Accuracy cannot be measured on them: the first is named."""
    batches = stream.batches

    def unlabelled(*words):
        for batch in batches(*words):
            yield replace(batch, labels=torch.where(batch.index == 4, -1, batch.labels))

    monkeypatch.setattr(stream, "batches", unlabelled)
    with refused(DataError, where="sample 4", what="label"):
        select_images(stream, 60, None, seed=0)


def test_taken_images_are_in_unit_range(stream):
    """float32 in [0, 1], the stored pixels over 255."""
    test = select_images(stream, 60, 5, seed=0)
    images, labels, index = test.take(torch.tensor([4, 0]))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images * 255, test.images[[4, 0]].float())
    assert labels.tolist() == test.labels[[4, 0]].tolist()
    assert index.tolist() == test.index[[4, 0]].tolist()


# --- The journal: whole records come back, torn ones are computed again.


RECORDS = [{"left": [0, 1]}, {"confidence": [0.1 + 0.2, 1e-30]}, {"flags": ["Square\n…"]}]


@pytest.fixture
def journal(tmp_path):
    """Three records under one name."""
    written = Journal(tmp_path / "state")
    for number in (2, 0, 1):
        written.append("pgd.0", number, RECORDS[number])
    return written


def test_records_come_back_by_number(journal):
    """To the bit, floats included, each under its own name; several processes keep them."""
    assert journal.read("pgd.0") == dict(enumerate(RECORDS))
    assert journal.read("pgd.1") == {}


@pytest.mark.parametrize("cut", [1, 5, 20, 48])
def test_a_torn_end_is_no_record(journal, cut):
    """A killed process may leave it, and more can follow it."""
    file = journal.folder / "pgd.0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert journal.read("pgd.0") == {0: RECORDS[0], 2: RECORDS[2]}
    journal.append("pgd.0", 1, RECORDS[1])
    assert journal.read("pgd.0") == dict(enumerate(RECORDS))


def test_a_damaged_line_is_not_believed(journal):
    """A flipped bit costs the batch that it is in."""
    file = journal.folder / "pgd.0.jsonl"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    assert journal.read("pgd.0") == {0: RECORDS[0], 1: RECORDS[1]}


def test_without_a_folder_nothing_is_kept():
    """The audit's bench."""
    journal = Journal(None)
    journal.append("clean", 0, RECORDS[0])
    assert journal.read("clean") == {}


def test_a_disk_that_refuses_is_named(tmp_path):
    """With the file and the reason."""
    (tmp_path / "state").write_text("a file, no folder")
    with refused(WriteError, where=tmp_path / "state/clean.jsonl", what="written"):
        Journal(tmp_path / "state").append("clean", 0, RECORDS[0])


# --- Processes that share the batches; here threads of this one.


@dataclass(frozen=True)
class Thread(World):
    """One of several processes, which meet in a list."""

    meeting: Any = None
    said: list[Any] = field(default_factory=list)

    def all_gather(self, mine):
        self.said[self.rank] = mine
        self.meeting.wait()
        everyone = [*self.said]
        self.meeting.wait()
        return everyone


def shared(bench, processes, work):
    """The records that each process gets of 24 rows in tens, or its error; ticks of the first."""
    meeting, said, ticks = threading.Barrier(processes, timeout=60), [None] * processes, []

    def run(rank):
        tick = (lambda *told: ticks.append(told)) if rank == 0 else bench.tick
        world = Thread(rank, processes, rank, meeting, said)
        mine, rows = replace(bench, world=world, tick=tick), torch.arange(24)
        try:
            found = mine.records("pgd", rows, lambda part: work(rank, part), title="PGD")
        except ModelError as error:
            return error
        assert torch.equal(torch.cat([part for part, _ in found]), rows)
        return [record for _, record in found]

    with ThreadPoolExecutor(processes) as pool:
        return [*pool.map(run, range(processes))], ticks


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_batches(bench, tmp_path, processes):
    """Each batch is one process's, in turn; all have all, and the bar of the first ends."""

    def work(rank, rows):
        return {"rank": rank, "rows": rows.tolist()}

    found, ticks = shared(bench(tmp_path), processes, work)
    for records in found:
        assert [record["rank"] for record in records] == [i % processes for i in range(3)]
        assert [row for record in records for row in record["rows"]] == [*range(24)]
    assert (sum(done for _, done, _ in ticks), ticks[0][2], ticks[-1][2]) == (24, 24, 0)


def test_another_number_of_processes_goes_on(bench, tmp_path):
    """Of what two have done in whatever order, three do nothing again."""
    Journal(tmp_path).append("pgd", 2, {"rank": 7})
    found, ticks = shared(bench(tmp_path), 2, lambda rank, _: {"rank": rank})
    assert [[record["rank"] for record in records] for records in found] == [[0, 1, 7]] * 2
    assert [told[1:] for told in ticks] == [(0, 20), (20, 0)]
    again, ticks = shared(bench(tmp_path), 3, lambda *_: pytest.fail("was done"))
    assert again == [*found, found[0]]
    assert not ticks


def test_a_batch_that_refuses_the_model_is_told_by_all(bench):
    """By the first such batch, whoever had it, as one process alone would."""

    def work(rank, rows):
        if rows[0] >= 10:
            raise ModelError("model", f"is refused at {int(rows[0])}")
        return {"rank": rank}

    found, _ = shared(bench(), 3, work)
    assert [one.what for one in found] == ["is refused at 10"] * 3
