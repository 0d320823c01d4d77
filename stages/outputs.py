"""What a stage may write over: nothing, without --force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import WriteError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["refuse_existing", "refuse_overlap"]


def refuse_existing(*targets: Path, force: bool) -> None:
    """Refuse, before any work, to replace a result.

    Raises
    ------
    WriteError
        When one of the targets exists and force is false.
    """
    for target in targets:
        if target.exists() and not force:
            raise WriteError(
                target, "exists already", remedy="Pass --force to replace it, or another --out."
            )


def refuse_overlap(out: Path, *inputs: Path) -> None:
    """Refuse to write a result over, into or around what it is made from.

    Raises
    ------
    WriteError
        Also with --force.
    """
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise WriteError(
                out, f"lies in, or holds, the input {path}", remedy="Choose another --out."
            )
