"""Writing: the same bytes however the rows came, and nothing published that is not whole."""

import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import made_answers
import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import JoinError, StateError, StoreError, WriteError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.files import write_store
from ltd_pipe.labels.softmax import round_soft_labels, soften
from ltd_pipe.labels.writer import StoreWriter


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def append(writer, answers, first, last):
    """Append the samples from `first` to `last`."""
    part = slice(first, last)
    writer.append(answers.logits[..., part, :], answers.labels[part], answers.sample_hash[part])


def open_writer(state, answers, **options):
    """A writer with chunks of four rows."""
    options = {"keep_logits": True, "rows": 4} | options
    return StoreWriter(state, answers.attributes, **options)


def filled(state, answers):
    """A writer that has taken all samples, and they are on disk."""
    writer = open_writer(state, answers)
    append(writer, answers, 0, 11)
    writer.flush()
    return writer


def flipped(content: bytes) -> bytes:
    """With one bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_store_holds_what_was_written(answers, store):
    """Logits, labels, hashes and attributes come back; soft labels are their softmax."""
    found = SoftLabels.open(store)
    everything = np.arange(11)
    logits = answers.logits.astype(np.float16)
    np.testing.assert_array_equal(found.gather_logits(everything), logits)
    np.testing.assert_array_equal(found.gather(everything), soften(logits, 2).astype(np.float16))
    np.testing.assert_array_equal(found.labels, answers.labels)
    np.testing.assert_array_equal(found.sample_hash, answers.sample_hash)
    assert found.attributes == answers.attributes


@pytest.mark.parametrize("step", [1, 3, 4, 5, 11])
def test_the_bytes_do_not_depend_on_the_batch_size(answers, store, tmp_path, step):
    """Rows that come in batches of any size give the same files."""
    writer = open_writer(tmp_path / "state", answers)
    for first in range(0, 11, step):
        append(writer, answers, first, first + step)
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)


@pytest.mark.parametrize("reached", [0, 3, 4, 7, 8, 11])
def test_an_interrupted_run_goes_on_after_its_last_whole_chunk(answers, store, tmp_path, reached):
    """A new writer continues on the same state, and the store is the same to the byte."""
    first = open_writer(tmp_path / "state", answers)
    append(first, answers, 0, reached)
    first.flush()
    writer = open_writer(tmp_path / "state", answers)
    done = 11 if reached == 11 else reached // 4 * 4
    assert writer.rows_left.tolist() == list(range(done, 11))
    append(writer, answers, done, 11)
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)


KILLED = """
import os, signal, sys
from pathlib import Path
from made_answers import make_answers
from test_write import append, open_writer
answers = make_answers()
writer = open_writer(Path(sys.argv[1]), answers)
append(writer, answers, 0, 9)
writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_continued(answers, store, tmp_path):
    """SIGKILL in the middle of a chunk loses that chunk and nothing else."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "state")],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}:{Path.cwd()}/src"},
        check=False,
    )
    assert killed.returncode == -9
    writer = open_writer(tmp_path / "state", answers)
    assert writer.rows_left.tolist() == [8, 9, 10]
    append(writer, answers, 8, 11)
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)


@pytest.mark.parametrize("column", ["logits-0/logits/c/1/0", "labels/labels/c/1"])
@pytest.mark.parametrize(
    "damage",
    [lambda content: bytes(len(content)), lambda content: content[:-1], flipped, lambda _: b""],
    ids=["zeros", "a byte short", "a flipped bit", "empty"],
)
def test_a_damaged_chunk_of_a_draft_is_made_again(answers, store, tmp_path, column, damage):
    """What a power cut left behind is not counted as done."""
    filled(tmp_path / "state", answers)
    chunk = tmp_path / "state" / column
    chunk.write_bytes(damage(chunk.read_bytes()))
    writer = open_writer(tmp_path / "state", answers)
    assert writer.rows_left.tolist() == [4, 5, 6, 7]
    append(writer, answers, 4, 8)
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)


PLACES = (
    *("logits-0/logits/c/{}/0", "labels/labels/c/{}", "sample_hash/sample_hash/c/{}"),
    "chunks/{}.json",
)


@pytest.mark.parametrize("places", [*((place,) for place in PLACES), PLACES], ids=str)
def test_answers_that_were_moved_within_a_draft_are_made_again(answers, store, tmp_path, places):
    """Sound files in the place of others, of one array or of all, would be other images' labels."""
    filled(tmp_path / "state", answers)
    for place in places:
        first, second = (tmp_path / "state" / place.format(chunk) for chunk in (0, 1))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    writer = open_writer(tmp_path / "state", answers)
    assert writer.rows_left.tolist() == [*range(8)]
    append(writer, answers, 0, 8)
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)


def test_a_draft_of_other_labels_is_refused(answers, making, tmp_path):
    """State of another data set is never continued."""
    append(open_writer(tmp_path / "state", answers), answers, 0, 11)
    with refused(
        StateError,
        where=tmp_path / "state",
        what="facts.dataset.fingerprint",
        expected=re.compile(r"'\w+"),
        found=re.compile(r"'\w+"),
        remedy="Remove",
    ):
        open_writer(tmp_path / "state", making(seed=1))
    with refused(
        StateError, where=tmp_path / "state", what="rows", expected="5", found="4", remedy="Remove"
    ):
        open_writer(tmp_path / "state", answers, rows=5)


def test_a_damaged_draft_is_refused(answers, tmp_path):
    """A draft whose key cannot be read is not guessed at."""
    open_writer(tmp_path / "state", answers)
    (tmp_path / "state" / "draft.json").write_text("{")
    with refused(StateError, where=tmp_path / "state", what="draft.json", remedy="folder"):
        open_writer(tmp_path / "state", answers)


def test_the_temperature_can_be_solved_at_the_end(answers, tmp_path):
    """auto:P: the published labels have the mean top probability that was asked for."""
    writer = open_writer(tmp_path / "state", answers)
    append(writer, answers, 0, 11)
    temperature = writer.solve_temperature(0.7)
    writer.publish(tmp_path / "a.zarr", temperature)
    found = SoftLabels.open(tmp_path / "a.zarr")
    assert found.attributes.temperature == temperature
    assert found.summary().mean_top_probability == pytest.approx(0.7, abs=1e-3)


def test_several_teachers_are_averaged_as_probabilities(making, tmp_path):
    """The mean of each teacher's softmax at the temperature, and no logits."""
    answers = making(teachers=3)
    answers.write(tmp_path / "a.zarr", keep_logits=False)
    found = SoftLabels.open(tmp_path / "a.zarr")
    expected = soften(answers.logits.astype(np.float16), 2.0).mean(axis=0).astype(np.float16)
    np.testing.assert_array_equal(found.gather(np.arange(11)), expected)
    assert not found.has_logits
    assert len(found.attributes.teachers) == 3


def test_logits_of_several_teachers_are_not_published(making, tmp_path):
    """There is no one row of logits that would give the average."""
    making(teachers=2).write(tmp_path / "a.zarr", keep_logits=True)
    assert not SoftLabels.open(tmp_path / "a.zarr").has_logits


def test_leaving_out_logits_does_not_change_the_soft_labels(answers, store, tmp_path):
    """Whether logits are kept decides only whether they are there."""
    answers.write(tmp_path / "b.zarr", keep_logits=False)
    without, kept = tree(tmp_path / "b.zarr"), tree(store)
    assert not any(name.startswith("logits") for name in without)
    chunks = {name for name in kept if "/c/" in name and not name.startswith("logits")}
    assert {name: kept[name] for name in chunks} == {name: without[name] for name in chunks}


def test_soft_labels_from_elsewhere_are_rounded(answers):
    """Without the sign of a zero, which no store has."""
    soft = soften(answers.logits, 2.0)
    soft[0] = [-0.0, 1.0, 0.0]
    found = round_soft_labels(soft, 0, "x")
    np.testing.assert_array_equal(found, soft.astype(np.float16))
    assert not np.signbit(found).any()


WRONG_LOGITS = {
    "NaN": (
        np.nan,
        {
            "what": "sample",
            "expected": "finite numbers of float16, whose largest is 65504",
            "found": re.compile("nan"),
        },
    ),
    "infinity": (
        -np.inf,
        {
            "what": "sample",
            "expected": "finite numbers of float16, whose largest is 65504",
            "found": re.compile(r"-inf"),
        },
    ),
    "beyond float16": (
        70000.0,
        {
            "what": "sample",
            "expected": "finite numbers of float16, whose largest is 65504",
            "found": 70000.0,
        },
    ),
}


@pytest.mark.parametrize(("value", "fields"), WRONG_LOGITS.values(), ids=WRONG_LOGITS.keys())
def test_logits_that_cannot_be_stored_are_refused(answers, tmp_path, value, fields):
    """The error names the sample, counted over all batches; the chunks before are kept."""
    answers.logits[9, 1] = value
    writer = open_writer(tmp_path / "state", answers)
    append(writer, answers, 0, 6)
    with refused(StoreError, where=tmp_path / "state", **fields):
        append(writer, answers, 6, 11)
    writer.flush()
    assert open_writer(tmp_path / "state", answers).rows_left[0] == 4


WRONG_ROWS = {
    "negative": [1.1, -0.1, 0.0],
    "not one": [0.5, 0.4, 0.0],
    "NaN": [np.nan, 1.0, 0.0],
    "infinite": [np.inf, 0.0, 0.0],
}


@pytest.mark.parametrize("row", WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_row_that_is_no_distribution_is_refused(answers, row):
    """Soft labels from elsewhere are checked before they are stored."""
    soft = soften(answers.logits, 2.0)
    soft[7] = row
    with refused(StoreError, where="x", what="sample 7"):
        round_soft_labels(soft, 0, "x")


def test_an_existing_store_is_replaced_only_when_told(answers, making, store):
    """Without `replace` it stays; with it no file of the old one is left."""
    other = making(num_samples=3, seed=5)
    before = tree(store)
    with refused(WriteError, where=store, what="exists", remedy="--force"):
        other.write(store)
    assert tree(store) == before
    other.write(store, replace=True)
    assert SoftLabels.open(store).num_samples == 3
    assert "labels/c/1" not in tree(store)


def test_an_incomplete_store_is_not_published(answers, tmp_path):
    """Missing samples are refused and the draft is kept."""
    writer = open_writer(tmp_path / "state", answers)
    append(writer, answers, 0, 10)
    with refused(StoreError, where=tmp_path / "state", what="samples", expected=11, found=10):
        writer.publish(tmp_path / "a.zarr", 2.0)
    assert not (tmp_path / "a.zarr").exists()


def test_samples_in_another_order_than_the_data_set_are_refused(answers, tmp_path):
    """The fingerprint of what was appended must be the data set's."""
    writer = open_writer(tmp_path / "state", answers)
    order = np.arange(11)[::-1]
    writer.append(answers.logits[order], answers.labels[order], answers.sample_hash[order])
    with refused(JoinError, where=tmp_path / "state", what="labelled"):
        writer.publish(tmp_path / "a.zarr", 2.0)


def test_too_many_samples_and_wrong_shapes_are_our_own_bugs(answers, tmp_path):
    """They raise ValueError at once rather than broadcast."""
    writer = open_writer(tmp_path / "state", answers)
    with pytest.raises(ValueError, match="expected logits of shape"):
        writer.append(answers.logits[:, :1], answers.labels, answers.sample_hash)
    with pytest.raises(ValueError, match="as many labels and hashes"):
        writer.append(answers.logits, answers.labels, answers.sample_hash[:1])
    append(writer, answers, 0, 11)
    with pytest.raises(ValueError, match="1 samples, and not so many are missing"):
        append(writer, answers, 0, 1)


def test_rows_on_both_sides_of_a_whole_chunk_come_one_by_one(answers, tmp_path):
    """An append that reached over what is there already would be our own bug."""
    filled(tmp_path / "state", answers)
    for chunk in (0, 2):
        (tmp_path / "state/labels/labels/c" / str(chunk)).unlink()
    writer = open_writer(tmp_path / "state", answers)
    assert writer.rows_left.tolist() == [0, 1, 2, 3, 8, 9, 10]
    with pytest.raises(ValueError, match="5 samples, and not so many are missing one after"):
        append(writer, answers, 0, 5)
    append(writer, answers, 0, 4)
    append(writer, answers, 8, 11)
    assert writer.rows_left.tolist() == []


def test_an_interrupted_publication_is_done_again(answers, store, tmp_path):
    """Remains of a publication that died do not get into the store."""
    writer = open_writer(tmp_path / "state", answers)
    append(writer, answers, 0, 11)
    remains = tmp_path / ".again.zarr.part" / "labels" / "c"
    remains.mkdir(parents=True)
    (remains / "77").touch()
    writer.publish(tmp_path / "again.zarr", 2.0)
    assert tree(tmp_path / "again.zarr") == tree(store)
    assert {path.name for path in tmp_path.iterdir()} == {"again.zarr", "labels.zarr"}


def test_a_state_folder_on_another_file_system_is_copied(answers, store, tmp_path):
    """Hard links are a saving, not a need."""
    shared = Path("/dev/shm")  # noqa: S108
    if shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    state = shared / f"ltd-{tmp_path.parent.name}-{tmp_path.name}"
    try:
        writer = open_writer(state, answers)
        append(writer, answers, 0, 11)
        writer.publish(tmp_path / "again.zarr", 2.0)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    assert tree(tmp_path / "again.zarr") == tree(store)


def test_chunks_are_asked_in_order_unless_threads_are_wanted(answers, tmp_path):
    """A source that reads a file once, from its beginning, is served by default."""
    asked: list[tuple[int, int]] = []

    def source(chunk):
        asked.append((chunk, threading.get_ident()))
        return np.full((1, 3), 1 / 3)

    soft, labels = (answers.attributes.layout(name, 1) for name in ("soft_labels", "labels"))
    sources = {soft: source, labels: lambda chunk: answers.labels[chunk : chunk + 1]}
    steps: list[int] = []
    write_store(tmp_path / "a", lambda: answers.attributes, sources, progress=steps.append)
    assert steps == [1] * 11
    assert asked == [(chunk, threading.get_ident()) for chunk in range(11)]


def test_no_chunk_begins_after_an_error(answers, tmp_path):
    """Of many chunks on several threads, few more are asked for once one has failed."""
    asked: list[int] = []

    def source(chunk):
        asked.append(chunk)
        if chunk == 0:
            raise StoreError("chunk 0", "is bad")
        time.sleep(0.01)
        return np.zeros(1, np.int32)

    many = answers.attributes.model_copy(update={"num_samples": 200})
    layout = many.layout("labels", 1)
    with refused(StoreError, where="chunk 0", what="bad"):
        write_store(tmp_path / "a", lambda: many, {layout: source}, threads=2)
    assert not [*tmp_path.iterdir()]
    assert len(asked) < 100


def test_the_identity_is_returned(answers, tmp_path):
    """What publication returns is what readers see."""
    identity = made_answers.write_store(
        tmp_path / "a.zarr",
        answers.attributes,
        answers.logits,
        answers.labels,
        answers.sample_hash,
    )
    assert SoftLabels.open(tmp_path / "a.zarr").identity == identity


def test_a_small_store_is_one_chunk_without_padding(answers, tmp_path):
    """Eleven rows take the room of eleven rows, whatever the default."""
    store = answers.write(tmp_path / "a.zarr", rows=None)
    assert (store / "soft_labels" / "c" / "0" / "0").stat().st_size == 11 * 3 * 2 + 4
    assert (store / "labels" / "c" / "0").stat().st_size == 11 * 4 + 4
