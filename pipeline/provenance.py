"""What made a result: hashes of inputs, versions of software, the hardware it ran on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["code_digest", "commit", "digest", "hardware", "processor", "sha256_file", "software"]

# What can change a result; the rest of the lock file cannot.
_PACKAGES = ("torch", "torchvision", "numpy", "zarr", "ffcv", "timm", "pyautoattack")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal.

    Raises
    ------
    MissingError
        When there is no such file.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file") from error


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over a mapping of plain values, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """SHA-256 over the library's own source files: what makes two runs run the same code."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def commit() -> str | None:
    """The git commit of the working folder, with `+` where files differ from it; or None."""
    # What DVC's users commit, data aside; untracked files are their notes.
    asked = ("rev-parse --short=12 HEAD", "status --porcelain --untracked-files=no")
    try:
        head, changes = (
            subprocess.check_output(["git", *words.split()], stderr=subprocess.DEVNULL, text=True)  # noqa: S603, S607
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + "+" * bool(changes)


def software() -> dict[str, str]:
    """Versions of Python, of this package, and of the packages that can change a result."""
    versions = {"python": platform.python_version(), "ltd-pipe": _version("ltd-pipe")}
    return versions | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def hardware() -> dict[str, str | int]:
    """Processor, threads and accelerator: results are equal to the bit on equal hardware."""
    found: dict[str, str | int] = {"cpu": _cpu_name(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def processor(device: torch.device) -> str:
    """What computes there: results are equal to the bit on equal ones, whatever their number."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
