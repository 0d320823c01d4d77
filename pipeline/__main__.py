"""`python -m ltd_pipe NAME`: what dvc.yaml runs."""

import importlib.util
import sys

# DVC runs whatever `python` comes first in PATH: when that is the system's, say so at once.
if importlib.util.find_spec("torch") is None or importlib.util.find_spec("ffcv") is None:
    sys.exit(
        f"ltd-pipe: {sys.executable}: this Python lacks ltd-pipe's packages. "
        "Run 'source .venv/bin/activate' first, or use 'make repro'."
    )

from ltd_pipe.stages.cli import program

program()
