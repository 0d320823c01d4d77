"""The ledger: whole records come back, torn ones are computed again."""

import pytest

from ltd_pipe.errors import WriteError
from ltd_pipe.evaluation.results import Ledger

RECORDS = [{"left": [0, 1]}, {"confidence": [0.1 + 0.2, 1e-30]}, {"flags": ["Square\n…"]}]


@pytest.fixture
def ledger(tmp_path):
    """Three records under one name."""
    written = Ledger(tmp_path / "state")
    for record in RECORDS:
        written.append("pgd.0", record)
    return written


def test_records_come_back_in_order(ledger):
    """To the bit, floats included, each under its own name."""
    assert ledger.read("pgd.0") == RECORDS
    assert ledger.read("pgd.1") == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_end_is_cut_off(ledger, cut):
    """What a killed process left of its last line is no record, and more can follow it."""
    file = ledger.folder / "pgd.0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert ledger.read("pgd.0") == RECORDS[:2]
    ledger.append("pgd.0", RECORDS[2])
    assert ledger.read("pgd.0") == RECORDS


def test_nothing_after_a_damaged_line_is_believed(ledger):
    """A flipped bit in the first line costs all three."""
    file = ledger.folder / "pgd.0.jsonl"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    assert ledger.read("pgd.0") == []


def test_without_a_folder_nothing_is_kept():
    """The audit's bench."""
    ledger = Ledger(None)
    ledger.append("clean", RECORDS[0])
    assert ledger.read("clean") == []


def test_a_disk_that_refuses_is_named(tmp_path):
    """With the file and the reason."""
    (tmp_path / "state").write_text("a file, no folder")
    with pytest.raises(WriteError, match=r"clean\.jsonl: cannot be written"):
        Ledger(tmp_path / "state").append("clean", RECORDS[0])
