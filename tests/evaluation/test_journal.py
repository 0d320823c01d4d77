"""The journal: whole records come back, torn ones are computed again."""

import pytest

from ltd_pipe.errors import WriteError
from ltd_pipe.evaluation.bench import Journal

RECORDS = [{"left": [0, 1]}, {"confidence": [0.1 + 0.2, 1e-30]}, {"flags": ["Square\n…"]}]


@pytest.fixture
def journal(tmp_path):
    """Three records under one name."""
    written = Journal(tmp_path / "state")
    for record in RECORDS:
        written.append("pgd.0", record)
    return written


def test_records_come_back_in_order(journal):
    """To the bit, floats included, each under its own name."""
    assert journal.read("pgd.0") == RECORDS
    assert journal.read("pgd.1") == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_end_is_cut_off(journal, cut):
    """What a killed process left of its last line is no record, and more can follow it."""
    file = journal.folder / "pgd.0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert journal.read("pgd.0") == RECORDS[:2]
    journal.append("pgd.0", RECORDS[2])
    assert journal.read("pgd.0") == RECORDS


def test_nothing_after_a_damaged_line_is_believed(journal):
    """A flipped bit in the first line costs all three."""
    file = journal.folder / "pgd.0.jsonl"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    assert journal.read("pgd.0") == []


def test_without_a_folder_nothing_is_kept():
    """The audit's bench."""
    journal = Journal(None)
    journal.append("clean", RECORDS[0])
    assert journal.read("clean") == []


def test_a_disk_that_refuses_is_named(tmp_path):
    """With the file and the reason."""
    (tmp_path / "state").write_text("a file, no folder")
    with pytest.raises(WriteError, match=r"clean\.jsonl: cannot be written"):
        Journal(tmp_path / "state").append("clean", RECORDS[0])
