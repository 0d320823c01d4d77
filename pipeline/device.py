"""The device, its precision, and kernels that give the same bits twice."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ltd_pipe.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ltd_pipe.models.classifier import Classifier

    Precision = Literal["float32", "bfloat16", "float16"]

__all__ = [
    "OnHost",
    "autocast",
    "choose_device",
    "choose_precision",
    "deterministic",
    "free_memory",
    "full_float32",
    "on_device",
    "seconds_per_pass",
]

# bfloat16 must be clearly faster to be worth its rounding.
_WORTHWHILE = 1.2


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises
    ------
    MachineError
        When cuda is asked for and there is none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "device: cuda",
            "torch finds no CUDA device",
            remedy="Run 'ltd-pipe doctor', or set device: cpu.",
        )
    return torch.device("cuda")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Only kernels whose result does not depend on scheduling, while the block runs."""
    # cuBLAS is deterministic only with a fixed workspace, read when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms says the same to torch's compiler, too, which we do not use: only
    # to import that takes 2 s.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 while the block runs: a float32 product keeps all 23 bits of its factors.

    Torch lets cuDNN's convolutions round to 10 bits: gradients and logits of an attack would not
    be those that a result in float32 promises.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Run the block's matrix products in half precision, or leave them in float32."""
    half = torch.float16 if precision == "float16" else torch.bfloat16
    with torch.autocast(device.type, half, enabled=precision != "float32"):
        yield


def choose_precision(
    wanted: Literal["auto", "float32", "bfloat16", "float16"], model: Classifier, batch_size: int
) -> Precision:
    """Resolve `auto` by timing an attack's forward and backward pass on this machine.

    Parameters
    ----------
    wanted : str
        `auto`, or the answer.
    model : Classifier
        On its device.
    batch_size : int
        Images per pass.

    Returns
    -------
    str
        `bfloat16` where it is at least 1.2 times as fast as `float32`.
    """
    if wanted != "auto":
        return wanted
    # Beyond that the ratio no longer changes, only the time that the measurement takes.
    batch_size = min(batch_size, _LARGEST_PROBE)
    single, half = (seconds_per_pass(model, batch_size, precision) for precision in _CANDIDATES)
    return "bfloat16" if single > _WORTHWHILE * half else "float32"


_LARGEST_PROBE = 128
_CANDIDATES: tuple[Precision, Precision] = ("float32", "bfloat16")


def seconds_per_pass(model: Classifier, batch_size: int, precision: Precision) -> float:
    """Time an attack's forward and backward pass on the model's device, best of three.

    The first pass, which sets kernels up, is not counted.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    images = torch.rand(batch_size, *model.shape, device=device, requires_grad=True)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        with autocast(device, precision):
            logits = model(images)
        torch.autograd.grad(logits.float().sum(), images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    model.train(was_training)
    return min(seconds[1:])


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that this machine can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024


def on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device, which arrives while the host goes on.

    Whatever the current stream does next comes after it.
    """
    if device.type != "cuda":
        return torch.from_numpy(np.array(array, order="C")).to(device)
    # Only from pinned memory does a copy not hold up whoever asks for it. Torch does not use that
    # memory again before the copy is over.
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    pinned = torch.empty(array.shape, dtype=kind, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)


class OnHost:
    """Copies of tensors on the host, which arrive while the device goes on.

    Parameters
    ----------
    tensors : Tensor
        On any device. On the CPU they are taken as they are, and must not be written to.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._copies = [*tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            # Only into pinned memory does a copy not hold up whoever asks for it.
            self._copies = [torch.empty_like(t, device="cpu", pin_memory=True) for t in tensors]
            for copy, tensor in zip(self._copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def numpy(self) -> tuple[NDArray[Any], ...]:
        """The copies, once they have arrived; from any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return tuple(copy.numpy() for copy in self._copies)
