"""The device, its precision, and kernels that give the same bits twice."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from ltd_pipe.attacks import Frozen
from ltd_pipe.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.trainer import Snapshots

if TYPE_CHECKING:
    Precision = Literal["float32", "bfloat16", "float16"]


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
class Passes:
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
    kept : bool
        Whether this is the choice of an interrupted run that goes on.
    """

    precision: Precision = "float32"
    channels_last: bool = True
    compiled: Compilation = "none"
    measured: dict[str, float] = field(default_factory=dict, compare=False, hash=False)
    kept: bool = field(default=False, compare=False)

    @property
    def decides(self) -> dict[str, Any]:
        """What of it decides a run's bits."""
        content = asdict(self)
        return {name: content[name] for name in ("precision", "channels_last", "compiled")}

    @property
    def chosen(self) -> dict[str, Any]:
        """What a snapshot keeps of it: the answers, and what was measured to find them."""
        return self.decides | {"measured": self.measured}

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


def choose_passes(params: FitParams, model: Classifier) -> Passes:
    """Resolve what the parameters leave open, by timing an attack's pass.

    Parameters
    ----------
    params : FitParams
        `precision`, `channels_last`, `compile`: `auto` or the answer.
    model : Classifier
        On its device; it is not changed.

    Returns
    -------
    Passes
        The fastest; bfloat16 and compilation only where they gain clearly. Of several processes
        one chooses for all.
    """
    device = next(model.parameters()).device
    candidates = list(_candidates(params, device))
    if len(candidates) == 1:
        return candidates[0]
    images = min(params.batch_size, _PROBE_IMAGES.get(device.type, 128))
    seconds = {passes: _seconds(passes, model, images) for passes in candidates}
    best = min(candidates, key=lambda passes: seconds[passes] * _handicap(passes))
    measured = {str(passes): round(images / seconds[passes], 1) for passes in candidates}
    return Passes(best.precision, best.channels_last, best.compiled, measured)


def kept_passes(snapshots: Snapshots) -> Passes | None:
    """The choice with which an interrupted run began: measured again it could be another one.

    Parameters
    ----------
    snapshots : Snapshots
        Of the run.

    Returns
    -------
    Passes or None
        None when there is nothing to go on from.

    Raises
    ------
    StateError
        When no snapshot can be read.
    """
    chosen = snapshots.passes()
    return None if chosen is None else Passes(**chosen, kept=True)


def _candidates(params: FitParams, device: torch.device) -> Iterator[Passes]:
    precisions: tuple[Precision, ...] = (
        ("float32", "bfloat16") if params.precision == "auto" else (params.precision,)
    )
    layouts = [params.channels_last] if params.channels_last != "auto" else [True, False]
    # On a CPU compilation takes a minute and was never found faster.
    open_ones = get_args(Compilation) if device.type == "cuda" else ("none",)
    compilations = [params.compile] if params.compile != "auto" else open_ones
    for precision, layout, compiled in itertools.product(precisions, layouts, compilations):
        yield Passes(precision, layout, compiled)


def _seconds(passes: Passes, model: Classifier, images: int) -> float:
    tried = Frozen(copy.deepcopy(model).requires_grad_(requires_grad=False)).current()
    passes.apply(tried)
    return seconds_per_pass(tried, images, passes.precision)


def _handicap(passes: Passes) -> float:
    return _WORTHWHILE_GAIN.get(passes.precision, 1.0) * _WORTHWHILE_GAIN.get(passes.compiled, 1.0)
