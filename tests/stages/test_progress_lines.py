"""Progress where there is no terminal: a line for each thing, and now and then the time left."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from ltd_pipe.stages.console import Ticker, bar, counter, doing, tell, transfer


def test_without_a_terminal_the_time_left_is_told_each_minute(capsys, monkeypatch):
    """Not at each batch: a log must stay readable."""
    clock = iter([0.0, 10.0, 70.0, 80.0, 140.0])
    tick = Ticker(Progress(disable=True))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(clock))
        for left in (300, 200, 100):
            tick("PGD-50", 100, left)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "PGD-50 …"
    assert lines[1:] == ["PGD-50: 200 done, 1 min left"]


@pytest.mark.parametrize("rank", [0, 1])
def test_of_torchruns_processes_the_first_alone_speaks(capsys, monkeypatch, rank):
    """They share a terminal, on which two bars would overwrite each other."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("RANK", str(rank))
    with doing("loading"):
        pass
    with counter("counting", 2) as count, transfer("fetching") as fetch:
        count(1)
        fetch(1, 2)
    tell("done")
    shown = capsys.readouterr().err
    words = ("loading", "counting", "fetching", "done")
    assert [word in shown for word in words] == [not rank] * 4


def test_on_a_terminal_the_bar_knows_how_much_is_to_come():
    """Done and left make the total, which may shrink when images fall."""
    progress = Progress(disable=False)
    tick = Ticker(progress)
    tick("PGD-50", 100, 300)
    tick("PGD-50", 100, 50)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (200, 250)


def test_the_starts_of_an_attack_are_one_bar_with_its_accuracy_in_the_end():
    """Announced before the first batch, so that nothing finished is shown for minutes."""
    progress = Progress(disable=False)
    tick = Ticker(progress)
    tick("attack 5 of 8, PGD-50 start 1 of 5", 0, 500)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (0, 500)
    tick("attack 5 of 8, PGD-50 start 1 of 5", 100, 400)
    tick("attack 5 of 8, PGD-50 start 2 of 5", 80, 320)
    (task,) = progress.tasks
    assert task.description == "attack 5 of 8, PGD-50 start 2 of 5"
    tick.finished("attack 5 of 8, PGD-50 x 5", 0.723)
    (task,) = progress.tasks
    assert task.finished
    assert task.fields["note"] == "accuracy 72.3%"


def test_the_starts_of_an_attack_without_number_are_one_bar_and_another_of_one_start_its_own():
    """As audit has them; none is left unfinished."""
    progress = Progress(disable=False)
    tick = Ticker(progress)
    tick("PGD-100", 40, 0)
    for start, left in ((1, 30), (2, 0)):
        tick(f"PGD-100 start {start} of 2", 30, left)
    assert [(task.description, task.completed) for task in progress.tasks] == [
        ("PGD-100", 40),
        ("PGD-100 start 2 of 2", 60),
    ]
    assert progress.finished


def test_what_runs_is_seen_on_a_full_screen():
    """Finished bars make room, the oldest first; a bar around the others stays."""
    progress = Progress(console=Console(height=10), disable=False)
    tick = Ticker(progress)
    tick("curve over eps", 0, 100)
    for number in range(12):
        tick(f"eps {number}", 0, 1)
        tick(f"eps {number}", 1, 0)
    shown = [task.description for task in progress.tasks if task.visible]
    assert shown == ["curve over eps", *(f"eps {number}" for number in range(5, 12))]


def test_stdout_stays_as_it_is_behind_a_bar(monkeypatch):
    """Who keeps it, as colorama does until the process ends, keeps no stand-in."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    before = sys.stdout
    with bar():
        assert sys.stdout is before


@pytest.mark.parametrize("width", [80, 110])
def test_what_matters_fits_on_the_screen(monkeypatch, width):
    """What runs, step and time left are whole; the rest is cut off where the line ends."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress, name = bar(), "attack 12 of 18, CW-PGD-100 start 2 of 5"
    note = "loss 0.123  1,234 images/s  accuracy 12.3%  validation: clean accuracy 12.3%  more"
    progress.add_task(name, total=1234, completed=617, note=note)
    with progress.console.capture() as captured:
        progress.console.print(progress.get_renderable())
    (line,) = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    assert len(line) <= width
    assert line.startswith(name)
    assert re.search(r"617/1234 [-\d:]+ left", line)


def on_terminal(words, columns):
    """What a command shows on a terminal so wide, without its control sequences."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    root = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": root, "TERM": "xterm"}
    command = [sys.executable, "-m", "ltd_pipe", *words]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment) as run:
        os.close(side)
        shown = b""
        try:
            while part := os.read(main, 65536):
                shown += part
        except OSError:  # how a terminal ends
            pass
    os.close(main)
    assert run.returncode == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


SHOWN = {
    "train": ["loading torch", "loading images", "student, epoch 1 of 1", "validation of epoch 1"],
    "evaluate": ["loading images and models", "clean", "attack 1 of 2, PGD-5", "attack 2 of 2, "],
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", SHOWN)
def test_a_terminal_says_what_runs_from_the_beginning(project, verb):
    """In this order, on a real terminal of 80 columns."""
    more = ["--epochs", "1"] if verb == "train" else []
    shown, place = on_terminal([verb, "--force", *more], 80), 0
    for text in SHOWN[verb]:
        place = shown.find(text, place)
        assert place >= 0, (text, shown)
    assert " left" in shown
