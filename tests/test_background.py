"""Work behind the caller: in order, bounded, and no error is lost."""

import threading
import time

import pytest

from ltd_pipe.background import Background


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
