"""Shares of the chunks: each chunk in one of them, whoever counts."""

import threading
import time

import pytest
from refusals import refused

from ltd_pipe.errors import ParamsError, StateError
from ltd_pipe.labels.staging import WHOLE, Part, wait_for_chunks


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("num_chunks", [1, 2, 7, 313])
def test_each_chunk_is_in_one_part(num_chunks, count):
    """In order, without gaps, and no part has two more than another."""
    parts = [Part(number, count).chunks(num_chunks) for number in range(1, count + 1)]
    assert [chunk for part in parts for chunk in part] == list(range(num_chunks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_processes_that_share_a_part_make_just_that(ranks):
    """The chunks of the ranks of part 3/8 are the chunks of part 3/8."""
    part = Part(3, 8)
    shares = [part.split(rank, ranks).chunks(61) for rank in range(ranks)]
    assert [chunk for share in shares for chunk in share] == list(part.chunks(61))


def test_the_whole_is_one_part():
    """Of all chunks."""
    assert WHOLE.chunks(9) == range(9)
    assert str(Part(3, 8)) == "3/8"
    assert Part.parse("3/8") == Part(3, 8)


@pytest.mark.parametrize(
    "text", ["", "3", "0/8", "9/8", "3/0", "-1/8", "3/8/2", "3 / 8", "a/b", "³/8"]
)
def test_what_is_no_part_is_refused(text):
    """With an example of one."""
    with refused(ParamsError, where="--part", found=text):
        Part.parse(text)


def test_waiting_ends_with_the_last_chunk():
    """However long it takes, as long as chunks come."""
    missing = [3, 4, 5, 6]

    def write():
        while missing:
            time.sleep(0.3)
            missing.pop()

    writer = threading.Thread(target=write)
    writer.start()
    wait_for_chunks(lambda: list(missing), stall_s=5)
    assert not missing
    writer.join()


def test_processes_that_write_nothing_are_given_up():
    """After a while, naming what is missing and what to do."""
    with refused(
        StateError, where="label", what="process", found="2 missing, the first is 5", remedy="Run"
    ):
        wait_for_chunks(lambda: [5, 6], stall_s=0.1)
