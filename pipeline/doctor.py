"""What users trip over on a new machine, looked at before it costs them an evening."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltd_pipe.errors import LtdPipeError, reason_of
from ltd_pipe.publish import SHARED_MEMORY, nearest
from ltd_pipe.threads import usable_cores

__all__ = ["CHECKS", "Finding", "examine"]

Status = Literal["ok", "warn", "fail"]

_GIB = 2**30
# A digits run leaves 20 MB, CIFAR-10 with its states about 1 GB, ImageNet over 100 GB.
_LITTLE_DISK, _AMPLE_DISK = 1 * _GIB, 10 * _GIB
# Docker gives 64 MiB.
_LITTLE_SHARED = 2**27
# Where Linux tells of NVIDIA's driver.
_DRIVER = Path("/proc/driver/nvidia/version")
_SET_UP = "Run 'make set-up' again."


@dataclass(frozen=True)
class Finding:
    """What is there, and what to do about it, a sentence; nothing when it is ok.

    warn: works, but not as well or not everywhere; fail: something will not work.
    """

    status: Status
    found: str
    remedy: str = ""


def examine(data: Path = Path("data")) -> Iterator[tuple[str, Finding]]:
    """Yield topic and finding of each check; one that breaks down is a finding, too."""
    for topic, check in CHECKS.items():
        try:
            yield topic, check(data)
        except LtdPipeError as error:
            yield topic, Finding("fail", f"{error.where}: {error.what}", error.remedy)
        except Exception as error:  # whatever is broken, the other checks still help
            yield topic, Finding("fail", f"{type(error).__name__}: {reason_of(error)}", _SET_UP)


def _judge(found: str, *doubts: tuple[bool, Status, str]) -> Finding:
    """What is there, with status and remedy of the first doubt that is true."""
    for is_true, status, remedy in doubts:
        if is_true:
            return Finding(status, found, remedy)
    return Finding("ok", found)


def _python(_data: Path) -> Finding:
    remedy = "Python 3.11 to 3.13 is supported: PYTHON=python3.12 make set-up."
    other = not (3, 11) <= sys.version_info < (3, 14)
    return _judge(f"{platform.python_version()} in {sys.prefix}", (other, "fail", remedy))


def _ffcv(_data: Path) -> Finding:
    from ltd_pipe.images.beton import require_ffcv

    require_ffcv()
    version = importlib.metadata.version("ffcv")
    return Finding("ok", f"{version} imports, with OpenCV and libjpeg-turbo")


def _torch(_data: Path) -> Finding:
    import torch

    if torch.cuda.is_available():
        return _cuda_device()
    found = f"{torch.__version__} on the CPU"
    try:
        words = _DRIVER.read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return Finding("ok", f"{found}; no NVIDIA driver here")
    driver = next((word for word in words if word[:1].isdigit()), "unknown")
    if torch.version.cuda is None:
        remedy = "For the GPU: TORCH_BACKEND=auto make set-up."
        return Finding("warn", f"{found} only: a build without CUDA", remedy)
    return Finding(
        "warn",
        f"{found}: it is built for CUDA {torch.version.cuda}, which NVIDIA driver {driver} "
        "does not serve",
        "Update the driver, or take an older CUDA: TORCH_BACKEND=auto make set-up.",
    )


def _cuda_device() -> Finding:
    import torch

    device = torch.cuda.get_device_properties(0)
    memory = f"{device.total_memory / _GIB:.0f} GiB"
    more = f", and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
    found = f"{torch.__version__} on {device.name}, {memory}{more}"
    try:
        # Only a kernel that runs shows that this build has code for this device.
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        remedy = "Try another build, TORCH_BACKEND=cu126 make set-up, or set device: cpu."
        return Finding("fail", f"{found}: {reason_of(error)}", remedy)
    return Finding("ok", found)


def _precision(_data: Path) -> Finding:
    from ltd_pipe.device import choose_device, choose_precision
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.models.registry import build

    names, shape = tuple("0123456789"), (3, 32, 32)
    network = build("resnet18-w16", len(names), shape)
    model = Classifier(network, architecture="resnet18-w16", class_names=names, shape=shape)
    model = model.to(choose_device("auto"))
    full, half = choose_precision(model, 64).measured.values()
    found = f"bfloat16 runs {half / full:.1f} times as fast as float32 here, now (narrow ResNet-18)"
    return Finding("ok", found)


def _threads(_data: Path) -> Finding:
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    spin, policy = (os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    waits = f"OMP_WAIT_POLICY={policy}" if policy else f"GOMP_SPINCOUNT={spin}"
    slow = f"More threads than cores slow each other down: set OMP_NUM_THREADS={cores}."
    idle = f"Unset OMP_NUM_THREADS, or set it to {cores}, to use all cores."
    return _judge(
        f"{threads} for {cores} cores, {waits}",
        (threads > cores, "warn", slow),
        (threads == 1 < cores, "warn", idle),
    )


def _zarr(_data: Path) -> Finding:
    import zarr

    # Format 3 came with zarr 3; consolidated metadata as we write it with 3.1.
    old = tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 1)
    remedy = f"Soft-label stores need zarr 3.1 or newer. {_SET_UP}"
    return _judge(zarr.__version__, (old, "fail", remedy))


def _dvc(_data: Path) -> Finding:
    found, folder = importlib.metadata.version("dvc"), Path.cwd()
    for place in (folder, *folder.parents):
        if (place / ".dvc").is_dir():
            return Finding("ok", f"{found} in {place}")
    remedy = (
        "'dvc repro' works in a clone, or where 'ltd-pipe init' began a project; "
        "single commands work anywhere."
    )
    return Finding("warn", f"{found}; {folder} is in no DVC project", remedy)


def _path(_data: Path) -> Finding:
    # dvc.yaml says `python -m ltd_pipe …`: it runs whatever python is first on PATH.
    python, activate = shutil.which("python"), Path(sys.prefix, "bin", "activate")
    strange = python is None or Path(python).parent != Path(sys.executable).parent
    remedy = f"'dvc repro' would run that one: use 'make repro', or first 'source {activate}'."
    return _judge(f"python is {python or 'not found'}", (strange, "warn", remedy))


def _disk(data: Path) -> Finding:
    place = nearest(data.resolve())
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("fail", f"{place} is not writable", "Change its owner or its mode.")
    free = shutil.disk_usage(place).free
    little = "Free some: a CIFAR-10 run leaves about 1 GiB."
    enough = "Enough for digits and CIFAR-10; ImageNet takes more than 100 GiB."
    return _judge(
        f"{free / _GIB:,.1f} GiB free in {place}",
        (free < _LITTLE_DISK, "fail", little),
        (free < _AMPLE_DISK, "warn", enough),
    )


def _shared_memory(_data: Path) -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("fail", f"there is no {SHARED_MEMORY}", "Mount a tmpfs there.")
    free = shutil.disk_usage(SHARED_MEMORY).free
    remedy = (
        "prepare wants 49 MiB for ImageNet, DataLoader's workers some batches each: "
        "docker run --shm-size 1g, or --ipc host."
    )
    found = f"{free / 2**20:,.0f} MiB free in {SHARED_MEMORY}"
    return _judge(found, (free < _LITTLE_SHARED, "warn", remedy))


CHECKS: dict[str, Callable[[Path], Finding]] = {
    "Python": _python,
    "PATH": _path,
    "ffcv": _ffcv,
    "torch": _torch,
    "precision": _precision,
    "threads": _threads,
    "zarr": _zarr,
    "DVC": _dvc,
    "disk": _disk,
    "memory": _shared_memory,
}
