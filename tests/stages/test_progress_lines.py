"""Progress where there is no terminal: a line for each thing, and now and then the time left."""

import time

from rich.progress import Progress

from stages.progress import ticker


def test_without_a_terminal_the_time_left_is_told_each_minute(capsys, monkeypatch):
    """Not at each batch: a log must stay readable."""
    clock = iter([0.0, 10.0, 70.0, 80.0, 140.0])
    tick = ticker(Progress(disable=True))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(clock))
        for left in (300, 200, 100):
            tick("PGD-50", 100, left)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "PGD-50 …"
    assert lines[1:] == ["PGD-50: 200 done, 1 min left"]


def test_on_a_terminal_the_bar_knows_how_much_is_to_come():
    """Done and left make the total, which may shrink when images fall."""
    progress = Progress(disable=False)
    tick = ticker(progress)
    tick("PGD-50", 100, 300)
    tick("PGD-50", 100, 50)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (200, 250)
