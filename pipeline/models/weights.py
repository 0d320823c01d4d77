"""State dicts: read from files that may be hostile, and fitted to a network by name and shape."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import safetensors
import torch

from pipeline.errors import CheckpointError, MissingError, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

__all__ = [
    "fit",
    "is_pickle",
    "read_metadata",
    "read_pickle",
    "read_tensors",
    "require_file",
    "require_finite",
    "weights_digest",
]

# A zip archive, as torch.save writes them, and a bare pickle (protocol 2 or later).
_PICKLES = (b"PK", b"\x80")
# What torch raises for files that are damaged; a few come from its unpickler's own slips.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, MemoryError, AssertionError, OSError, struct.error,
)  # fmt: skip
_CODE = re.compile(r"(?:unsupported GLOBAL|Unsupported global: GLOBAL) (\S+)")


def require_file(path: Path) -> None:
    """Refuse what is no file.

    Raises
    ------
    MissingError, CheckpointError
    """
    if path.is_dir():
        raise CheckpointError(path, "is a folder", remedy="Name the checkpoint inside it.")
    if not path.is_file():
        raise MissingError(path, "no such file")
    refuse_pointer(path, path, CheckpointError)


def is_pickle(path: Path) -> bool:
    """Whether the file looks like one of torch.save's or Python's pickles."""
    with path.open("rb") as handle:
        head = handle.read(9)
    # safetensors begins with the length of its JSON, whose bytes may be those of a pickle.
    is_safetensors = head[4:] == b"\0\0\0\0{"
    return head.startswith(_PICKLES) and not is_safetensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata; the package bounds the header by the file's size.

    Raises
    ------
    MissingError, CheckpointError
    """
    with _safetensors(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file's tensors to the CPU.

    Raises
    ------
    MissingError, CheckpointError
    """
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    require_file(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path,
            f"is not a whole safetensors file ({_one_line(error)})",
            remedy="Copy it again from where it came from.",
        ) from error


def read_pickle(path: Path) -> Any:
    """Read a file of torch.save with everything but tensors and plain containers refused.

    Raises
    ------
    MissingError, CheckpointError
    """
    require_file(path)
    _require_honest_archive(path)
    try:
        # Given a path, torch goes by the name's ending instead of by the content.
        # timm's training scripts, and many like them, keep their options beside the weights: a
        # Namespace, which holds what the file gives it and runs nothing.
        harmless = torch.serialization.safe_globals([argparse.Namespace])
        with path.open("rb") as handle, warnings.catch_warnings(), harmless:
            # torch wonders about protocols that it then reads or refuses.
            warnings.simplefilter("ignore")
            return torch.load(handle, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _require_honest_archive(path: Path) -> None:
    """Refuse zip bombs: torch.save never compresses, so entries cannot exceed the file."""
    try:
        # is_zipfile raises too, on some damaged directories.
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(path, f"is a damaged archive ({_one_line(error)})") from error
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            path,
            "holds compressed or overlapping entries, which torch.save never writes",
            expected=f"at most {size:,} bytes unpacked",
            found=f"{unpacked:,}",
            remedy="Save the weights again with torch.save(model.state_dict(), ...).",
        )


def _unreadable(path: Path, error: BaseException) -> CheckpointError:
    remedy = "Load it where you trust it and save torch.save(model.state_dict(), ...) instead."
    if code := _CODE.search(str(error)):
        name = code[1].rstrip(".")
        what = f"holds code ({name}), which is never loaded; only tensors are"
        return CheckpointError(path, what, remedy=remedy)
    if isinstance(error, pickle.UnpicklingError):
        what = "holds more than tensors, or code, and is never loaded"
        return CheckpointError(path, what, remedy=remedy)
    what = f"is no readable file of torch.save ({_one_line(error)})"
    return CheckpointError(path, what, remedy="Copy it again from where it came from.")


def fit(network: nn.Module, state: Mapping[str, torch.Tensor], where: object) -> None:
    """Copy weights into a network after checking every name, shape, kind and value.

    Parameters
    ----------
    network : nn.Module
        Its own weights are overwritten.
    state : mapping of str to Tensor
    where : object
        The file, for the message.

    Raises
    ------
    CheckpointError
        Naming the first differences; the network keeps its weights.
    """
    expected = network.state_dict()
    _require_names(expected.keys(), state.keys(), where)
    for name, tensor in expected.items():
        _require_like(tensor, state[name], f"{where}: {name}")
    # After the shapes: a view of huge shape over a few bytes must not be looked through.
    require_finite(state, where)
    network.load_state_dict(dict(state))


def _require_names(expected: Iterable[str], found: Iterable[str], where: object) -> None:
    wanted, given = dict.fromkeys(expected), dict.fromkeys(found)
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        theirs = any("downsample" in name for name in unexpected)
        whose = " as torchvision:NAME or timm:NAME" if theirs else ""
        raise CheckpointError(
            where,
            f"holds weights of another network: {_listed('missing', missing)}, "
            f"{_listed('unexpected', unexpected)}",
            remedy=f"Name the architecture that it was trained with{whose}.",
        )


def _listed(what: str, names: list[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({first})" if names else f"none {what}"


def _require_like(expected: torch.Tensor, found: torch.Tensor, where: str) -> None:
    if found.layout != torch.strided or found.is_meta or found.is_quantized:
        raise CheckpointError(where, "is no plain dense tensor")
    if found.shape != expected.shape:
        raise CheckpointError(
            where,
            "shape",
            expected=tuple(expected.shape),
            found=tuple(found.shape),
            remedy="Check architecture, number of classes and image shape.",
        )
    if found.is_floating_point() != expected.is_floating_point() or found.is_complex():
        raise CheckpointError(where, "dtype", expected=expected.dtype, found=found.dtype)


def require_finite(state: Mapping[str, torch.Tensor], where: object) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    CheckpointError
        Naming the first tensor that holds one.
    """
    for name, tensor in state.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise CheckpointError(
                f"{where}: {name}",
                "NaN or infinite weights",
                found=f"{bad:,} of {tensor.numel():,}",
                remedy="The training that wrote it diverged: take an earlier checkpoint.",
            )


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of tensors on the CPU, in any order."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
