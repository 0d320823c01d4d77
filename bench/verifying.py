"""Verifying a store: everything that ltd-pipe checks, against `sha256sum -c`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from rivals import files_of
from timing import Comparison, Rounds, interleave

from ltd_pipe.labels.verify import verify_store

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["compare_verifying"]

OURS, SHA256SUM = "verify_store", "sha256sum -c"


def compare_verifying(path: Path, rounds: Rounds) -> Comparison:
    """Verify a store that is in the page cache."""
    command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"]
    ways = {
        SHA256SUM: lambda _: subprocess.run(command, cwd=path, check=True),
        OURS: lambda _: verify_store(path),
    }
    amount = sum(file.stat().st_size for file in files_of(path))
    return interleave(ways, rounds).comparison("verify", SHA256SUM, amount, "bytes")
