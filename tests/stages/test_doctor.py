"""`ltd-pipe doctor` on this machine, and on one without ffcv's libraries."""

import json
import os
import subprocess
import sys

from ltd_pipe.doctor import CHECKS
from ltd_pipe.models import NETWORKS


def test_this_machine_is_sound(ltd_pipe):
    """Where the tests pass, nothing may fail; each check has its line."""
    outcome = ltd_pipe("doctor")
    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines() if not line.startswith(" ")]
    assert [words[1] for words in lines] == list(CHECKS)
    assert {words[0] for words in lines} <= {"ok", "warn"}


def test_an_ffcv_that_does_not_import_is_explained(tmp_path):
    """The most frequent trouble: a library is gone. The line names what to run; exit code 1."""
    message = "libopencv_core.so.406: cannot open shared object file"
    (tmp_path / "ffcv.py").write_text(f"raise ImportError({message!r})\n")
    ended = subprocess.run(
        [sys.executable, "-m", "ltd_pipe", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    finding = json.loads(ended.stdout)["ffcv"]
    assert finding["status"] == "fail"
    assert message in finding["found"]
    for manager in ("apt-get install", "dnf install", "conda install"):
        assert manager in finding["remedy"]


def test_models_are_listed(ltd_pipe):
    """Names alone on stdout; how to vary them on stderr."""
    outcome = ltd_pipe("doctor", "--models")
    assert outcome.out.splitlines() == list(NETWORKS)
    assert "timm:NAME" in outcome.err
    assert json.loads(ltd_pipe("doctor", "--models", "--json").out) == list(NETWORKS)
