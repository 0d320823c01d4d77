"""What all forms share: what --force may replace, and other packages' code."""

from __future__ import annotations

import contextlib
import importlib
import io
import mmap
import warnings
from typing import TYPE_CHECKING, Any

from pipeline.errors import LtdPipeError, MachineError, ModelError, WriteError, install_extra
from pipeline.export.facts import FACTS_FILE
from pipeline.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["foreign", "package", "require_replaceable"]

_MARK = b'"format": "ltd-export"'


def require_replaceable(out: Path, *, folder: bool, replace: bool) -> None:
    """Refuse to publish over what is there, unless it is an export and may be replaced.

    Parameters
    ----------
    out : Path
    folder : bool
        Whether a folder is going to be written, or a file.
    replace : bool

    Raises
    ------
    WriteError
        When `out` exists and `replace` is false, or it is no export of that kind: something
        else must never be lost to a slip of the keyboard.
    """
    if not out.exists() and not out.is_symlink():
        return
    if folder != out.is_dir():
        kind = "is a folder" if out.is_dir() else "is no folder"
        raise WriteError(out, kind, remedy="Choose another --out.")
    if not replace:
        raise WriteError(
            out, "exists already", remedy="Pass --force to replace it, or another --out."
        )
    if out.is_symlink() or not ((out / FACTS_FILE).is_file() if folder else _is_export(out)):
        raise WriteError(
            out,
            "is no exported model, and --force replaces those only",
            remedy="Choose another --out.",
        )


def _is_export(path: Path) -> bool:
    # Uncompressed in each of our files; the weights around it may be large.
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_MARK) >= 0


def package(name: str, extra: str) -> Any:
    """Import a package that not every installation has.

    Raises
    ------
    MachineError
        Naming the extra that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MachineError(
            name,
            f"is not installed, and '--to {extra}' needs it",
            remedy=install_extra(extra),
        ) from error


@contextlib.contextmanager
def foreign(where: object, what: str) -> Iterator[None]:
    """Run another package's code: without its warnings, and its failures said as ours are.

    Parameters
    ----------
    where : object
        What is written, or the architecture.
    what : str
        What the package was to do: "cannot be …".

    Raises
    ------
    ModelError
        When it raised anything but an error of ours or of the operating system.
    """
    try:
        with warnings.catch_warnings():
            # What an exporter warns of having got wrong, the comparison of logits finds.
            warnings.simplefilter("ignore")
            yield
    except (LtdPipeError, OSError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            where,
            f"cannot be {what} ({one_line(lines[0])})",
            remedy="Nothing was published. Try another --to.",
        ) from error
