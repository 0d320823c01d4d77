"""Shares of the chunks, and work behind the caller: in order, bounded, and no error is lost."""

import threading
import time

import pytest
from refusals import refused

from ltd_pipe.errors import ParamsError, StateError
from ltd_pipe.labels.writer import WHOLE, Background, Part, wait_for_chunks


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


# ---------------------------------------------------------------- work behind the caller


def test_one_thread_keeps_the_order():
    """Calls run one after the other, as they were given."""
    seen: list[int] = []
    with Background(threads=1, waiting=4) as behind:
        for number in range(100):
            behind.do(seen.append, number)
    assert seen == list(range(100))


def test_the_caller_goes_on_meanwhile():
    """A call that takes long does not hold up the one who asked for it."""
    release = threading.Event()
    with Background(threads=1, waiting=2) as behind:
        behind.do(release.wait, 10)
        behind.do(release.wait, 10)
        release.set()


def test_no_more_than_so_many_calls_wait():
    """The caller of one too many waits: memory stays bounded."""
    running, most, lock = 0, 0, threading.Lock()
    taken = 0

    def work():
        nonlocal running
        time.sleep(0.001)
        with lock:
            running -= 1

    with Background(threads=2, waiting=3) as behind:
        for _ in range(50):
            behind.do(work)
            with lock:
                running, taken = running + 1, taken + 1
                most = max(most, running)
    assert taken == 50
    # Those that waited, and the one that was just taken before another was seen to end.
    assert most <= 4


def fail():
    raise OSError("the disk")


def test_an_error_is_raised_at_the_next_call():
    """And at every one after it: nothing is taken that would never be done."""
    behind = Background(threads=1, waiting=1)
    behind.do(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk"):
            behind.do(list)
            behind.do(list)
    with pytest.raises(OSError, match="the disk"):
        behind.finish()


def test_nothing_begins_after_an_error():
    """What waited behind a call that failed is left out, so that no row is skipped."""
    seen: list[int] = []
    gate = threading.Event()

    def wait_and_fail():
        gate.wait(10)
        fail()

    behind = Background(threads=1, waiting=8)
    behind.do(wait_and_fail)
    behind.do(seen.append, 1)
    gate.set()
    with pytest.raises(OSError, match="the disk"):
        behind.finish()
    assert seen == []


def test_a_block_that_is_left_by_an_error_waits_and_keeps_its_own():
    """What was taken is done; the error of the block is the one that is told."""
    seen: list[int] = []
    behind = Background(threads=1, waiting=8)
    with pytest.raises(KeyboardInterrupt), behind:
        behind.do(time.sleep, 0.01)
        behind.do(seen.append, 1)
        behind.do(fail)
        raise KeyboardInterrupt
    assert seen == [1]


def test_it_can_be_used_again_after_finishing():
    """Finishing is a pause, not an end."""
    seen: list[int] = []
    behind = Background(threads=1, waiting=1)
    for number in range(3):
        behind.do(seen.append, number)
        behind.finish()
    assert seen == [0, 1, 2]
    assert not [one for one in threading.enumerate() if one.name.startswith("background")]
