"""The exceptions that users meet.

Each is one line, and the builtin error that it resembles:
`<where>: <what>: expected <x>, found <y>. <What to do.>`
"""

from __future__ import annotations

import importlib.metadata
import json
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from ltd_pipe.text import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

_Document = TypeVar("_Document", bound="BaseModel")
_POINTER = b"version https://git-lfs.github.com/spec/v1"
# What reading an archive of which any byte may be another ends in.
DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError),
)


def install_extra(extra: str) -> str:
    """How to install what an extra of ours needs: by the packages' names, as we are on no index."""
    try:
        lines = importlib.metadata.requires("ltd-pipe") or ()
    except importlib.metadata.PackageNotFoundError:
        return f"Install the packages of setup.cfg's extra {extra}."
    needed = [line.partition(";")[0].strip() for line in lines if f'extra == "{extra}"' in line]
    return f"Run: pip install {' '.join(repr(name) for name in needed)}."


def reason_of(error: BaseException) -> str:
    """What an exception says, in a line: of the system's errors neither number nor path."""
    said = error.strerror if isinstance(error, OSError) else None
    lines = str(said or error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".")


class LtdPipeError(Exception):
    """Base of all errors that are the input's fault, not ours.

    Commands end with exit code 1, and for ParamsError with 2, as for wrong options.

    Parameters
    ----------
    where : object
        The file, parameter or place that is wrong, as the user knows it.
    what : str
        What is wrong there. Without it, `where` is the whole line: so do DataLoader and pickle
        make an error again that was raised in another process.
    expected, found : object, optional
        What should have been there, and what was.
    remedy : str, optional
        What to do about it: a whole sentence.
    """

    def __init__(
        self,
        where: object,
        what: str = "",
        *,
        expected: object = None,
        found: object = None,
        remedy: str = "",
    ) -> None:
        self.where, self.what = str(where), what
        self.expected, self.found, self.remedy = expected, found, remedy
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        if not self.what:
            return self.where
        values = {"expected": self.expected, "found": self.found}
        told = [f"{name} {value}" for name, value in values.items() if value is not None]
        line = f"{self.where}: {self.what}{': ' if told else ''}{', '.join(told)}"
        line = line if line.endswith((".", "!", "?")) else line + "."
        # Names of files come from anyone, and may hold line feeds and a terminal's commands.
        return printable(f"{line} {self.remedy}".rstrip())

    def __str__(self) -> str:
        # OSError subclasses would otherwise print their errno form.
        return self._sentence()


class ParamsError(LtdPipeError, ValueError):
    """A parameter is unknown, missing, or out of its range."""


class MissingError(LtdPipeError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class DataError(LtdPipeError, ValueError):
    """Images, a folder of images or a beton cannot be used as they are."""


class StoreError(LtdPipeError, ValueError):
    """A soft-label store is damaged, incomplete, or of a format we do not read."""


class JoinError(StoreError):
    """A soft-label store and a data set do not belong together."""


class SignatureError(StoreError):
    """A store's signature is missing, damaged, or not of a key that is trusted."""


class LocationError(LtdPipeError, ValueError):
    """A URL is of a kind that no store is fetched from, or holds another store."""


class TransferError(LtdPipeError, ConnectionError):
    """A store elsewhere cannot be fetched; what is whole of it is kept for the next attempt."""


class KeyFileError(LtdPipeError, ValueError):
    """A key file is unsafe, damaged, locked, or of a kind that we do not use."""


class CheckpointError(LtdPipeError, ValueError):
    """A checkpoint is unsafe to load or does not fit the network."""


class ModelError(LtdPipeError, ValueError):
    """A model computes something it must not: NaN logits, random outputs, training mode."""


class StateError(LtdPipeError, ValueError):
    """A snapshot of an interrupted run cannot be continued."""


class ResultError(LtdPipeError, ValueError):
    """A result of an earlier stage is damaged, or belongs to another run."""


class BusyError(LtdPipeError, RuntimeError):
    """Another process holds the place that this one wants to write to."""


class WriteError(LtdPipeError, OSError):
    """A result could not be written; whatever stood under its name is untouched."""


class MachineError(LtdPipeError, RuntimeError):
    """The machine lacks something that is needed."""


def require_file(path: Path, where: object = None, remedy: str = "") -> Path:
    """The path of a file or folder that has to be there.

    Raises
    ------
    MissingError
        At `where`, or else at the path.
    """
    if not path.exists():
        raise MissingError(
            path if where is None else where, "no such file or folder", remedy=remedy
        )
    return path


def parse_document(
    text: str,
    model: type[_Document],
    where: object,
    error: type[LtdPipeError],
    *,
    name: str = "",
    remedy: str = "",
) -> _Document:
    """JSON of a format of ours; what is none is refused as an error of that type.

    The model has fields `format` and `version`, whose types are the literals that it reads. `name`
    says which part of `where` the text is.
    """
    from pydantic import ValidationError

    (known,), versions = (
        get_args(model.model_fields[key].annotation) for key in ("format", "version")
    )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as cause:
        what = f"{name} is not JSON ({reason_of(cause)})".lstrip()
        raise error(where, what, remedy=remedy) from cause
    if not isinstance(content, dict) or content.get("format") != known:
        raise error(where, f"{name} is not of format '{known}'".lstrip(), remedy=remedy)
    # Before the other keys: a newer version may have keys that this one does not know.
    version = content.get("version")
    if isinstance(version, int) and version > versions[-1]:
        raise error(
            where,
            "was written by a newer ltd-pipe",
            expected=f"version {versions[-1]}",
            found=f"version {version}",
            remedy="Upgrade ltd-pipe.",
        )
    try:
        return model.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(map(str, first["loc"])) or "content"
        what = f"{name + ': ' if name else ''}{place}: {first['msg']}"
        found = None if first["type"] == "missing" else repr(first["input"])[:80]
        raise error(where, what, found=found, remedy=remedy) from cause


def refuse_pointer(
    content: bytes | Path, where: object, error: type[LtdPipeError], name: str = ""
) -> None:
    """Refuse, as an error of that type, what a clone without Git LFS has in a file's place.

    `content` is what was read, or the file; one that cannot be read is somebody else's to refuse.
    """
    if not isinstance(content, bytes):
        try:
            with content.open("rb") as handle:
                content = handle.read(len(_POINTER))
        except OSError:
            return
    if content.startswith(_POINTER):
        what = f"{name} is a Git LFS pointer, not the file itself".lstrip()
        raise error(where, what, remedy="Run 'git lfs pull' in its repository.")
