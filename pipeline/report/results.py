"""Reading the files that earlier stages left, with a clear line for one that is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import MissingError, ResultError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Document", "Share", "parse_result", "read_bytes", "read_result"]

Result = TypeVar("Result")
Share = Annotated[float, Field(ge=0, le=1)]


class Document(BaseModel):
    """Base of what is read: frozen; keys that a later version adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def read_bytes(path: Path, remedy: str) -> bytes:
    """All bytes of a file.

    Raises
    ------
    MissingError
        When it is not there; the error ends with `remedy`.
    ResultError
        When it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file", remedy=remedy) from error
    except OSError as error:
        raise ResultError(path, f"cannot be read: {error.strerror}") from error


def read_result(path: Path, kind: type[Result], command: str) -> Result:
    """Read a JSON file of a known form.

    Parameters
    ----------
    path : Path
    kind : type
        A `Document`, or a list of them.
    command : str
        What writes the file, for the remedy.

    Raises
    ------
    MissingError
        When it is not there.
    ResultError
        When it is not JSON, or a value is missing or impossible.
    """
    content = read_bytes(path, f"Run '{command}' first.")
    remedy = f"Run '{command}' again."
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise _refused(error, path, remedy) from error


def parse_result(content: dict[str, Any], kind: type[Result], path: Path, command: str) -> Result:
    """Check what was already read from `path`; see `read_result`."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise _refused(error, path, f"Run '{command}' again.") from error


def _refused(error: ValidationError, path: Path, remedy: str) -> ResultError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    what = f"{key}: {first['msg']}" if key else f"is damaged ({first['msg']})"
    found = repr(first["input"])[:60] if key and first["type"] != "missing" else None
    return ResultError(path, what, found=found, remedy=remedy)
