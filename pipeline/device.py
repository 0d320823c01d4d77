"""The device, its precision, and kernels that give the same bits twice."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import MachineError

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier

    Precision = Literal["float32", "bfloat16", "float16"]


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
            for held, tensor in zip(self._copies, tensors, strict=True):
                held.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def numpy(self) -> tuple[NDArray[Any], ...]:
        """The copies, once they have arrived; from any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return tuple(held.numpy() for held in self._copies)


# --- How a network's passes are computed: precision, memory format and compilation.
#
# Whatever is left open is chosen by a short measurement on this machine. The choice decides a
# run's bits, so it is kept in the run's snapshots, which a later measurement does not overrule, and
# in what a checkpoint says of itself.


Compilation = Literal["none", "default", "reduce-overhead"]

# Beyond that the ratio no longer changes, only the time that the measurement takes.
_PROBE_IMAGES = {"cpu": 16, "cuda": 128}
# What must be gained: by rounding to 8 bits, and by minutes of compilation.
_WORTHWHILE_GAIN = {"bfloat16": 1.2, "float16": 1.2, "default": 1.1, "reduce-overhead": 1.15}


@dataclass(frozen=True)
class PrecisionSettings:
    """How passes of training and attack are computed.

    Attributes
    ----------
    precision : {"float32", "bfloat16", "float16"}
    channels_last : bool
        Memory format of weights and activations.
    compiled : {"none", "default", "reduce-overhead"}
        Modes of torch.compile; the last one replays the passes as CUDA graphs.
    measured : dict of str to float
        Images per second of an attack's pass for each candidate, where there were several. What
        was measured decides nothing any more.
    resumed : bool
        Whether this is the choice of an interrupted run that goes on.
    """

    precision: Precision = "float32"
    channels_last: bool = True
    compiled: Compilation = "none"
    measured: dict[str, float] = field(default_factory=dict, compare=False, hash=False)
    resumed: bool = field(default=False, compare=False)

    @property
    def decides(self) -> dict[str, Any]:
        """What of it decides a run's bits."""
        content = asdict(self)
        return {name: content[name] for name in ("precision", "channels_last", "compiled")}

    def apply(self, model: Classifier) -> None:
        """Lay the weights out in memory, and let the network be compiled at its first pass."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(memory_format=layout)
        if self.compiled != "none":
            model.network.compile(mode=self.compiled)

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        how = "not compiled" if self.compiled == "none" else f"compiled ({self.compiled})"
        return f"{self.precision}, {layout}, {how}"


def choose_precision(
    model: Classifier,
    batch_size: int,
    *,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    channels_last: bool | Literal["auto"] = False,
    compile: Literal["auto", "none", "default", "reduce-overhead"] = "none",  # noqa: A002
) -> PrecisionSettings:
    """Resolve what is `auto`, by timing an attack's forward and backward pass on this machine.

    Parameters
    ----------
    model : Classifier
        On its device; it is not changed.
    batch_size : int
        Images per pass.
    precision, channels_last, compile
        `auto` or the answer.

    Returns
    -------
    PrecisionSettings
        The fastest; bfloat16 and compilation only where they gain clearly. Of several processes
        one chooses for all.
    """
    device = model.mean.device
    precisions: tuple[Precision, ...] = (
        ("float32", "bfloat16") if precision == "auto" else (precision,)
    )
    layouts = (True, False) if channels_last == "auto" else (channels_last,)
    # On a CPU compilation takes a minute and was never found faster.
    modes = get_args(Compilation) if device.type == "cuda" else ("none",)
    modes = modes if compile == "auto" else (compile,)
    candidates = [
        PrecisionSettings(*choice) for choice in itertools.product(precisions, layouts, modes)
    ]
    if len(candidates) == 1:
        return candidates[0]
    images = min(batch_size, _PROBE_IMAGES.get(device.type, 128))
    seconds: dict[PrecisionSettings, float] = {}
    for settings in candidates:
        tried = copy.deepcopy(model).requires_grad_(requires_grad=False)
        settings.apply(tried)
        seconds[settings] = seconds_per_pass(tried, images, settings.precision)

    def handicapped(settings: PrecisionSettings) -> float:
        gain = _WORTHWHILE_GAIN.get(settings.precision, 1.0)
        return seconds[settings] * gain * _WORTHWHILE_GAIN.get(settings.compiled, 1.0)

    best = min(candidates, key=handicapped)
    measured = {str(settings): round(images / seconds[settings], 1) for settings in candidates}
    return PrecisionSettings(best.precision, best.channels_last, best.compiled, measured)


def seconds_per_pass(model: Classifier, batch_size: int, precision: Precision) -> float:
    """Time an attack's forward and backward pass on the model's device, best of three.

    The first pass, which sets kernels up, is not counted.
    """
    device = model.mean.device
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
