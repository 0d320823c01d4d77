"""The device, its precision, and kernels that give the same bits twice."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import MachineError
from ltd_pipe.threads import keep_memory, memory_quota

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier

    Precision = Literal["float32", "bfloat16", "float16"]


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here, and on a CPU memory kept for passes.

    Raises
    ------
    MachineError
        When cuda is asked for and there is none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        keep_memory()
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
    # use_deterministic_algorithms would import torch's compiler, too, which takes 2 s: that is told
    # by compile_network.
    before = torch.get_deterministic_debug_mode()
    fill: Any = torch.utils.deterministic
    filled = fill.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    # Else every new tensor is filled before it is written: a third of all kernels.
    fill.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        fill.fill_uninitialized_memory = filled


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
    with torch.autocast(device.type, dtype_of(precision), enabled=precision != "float32"):
        yield


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of a pass's matrix products."""
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that this process's part of the machine gives unswapped."""
    if device.type == "cuda":
        # What torch keeps for tensors to come is free, too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    there = int(found["MemAvailable"].split()[0]) * 1024
    quota = memory_quota()
    mine = there if quota is None else min(there, quota)
    return mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def constants(values: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """A vector of numbers, written on the device: to copy them there would make the host wait."""
    return torch.stack([like.new_full((), value) for value in values])


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

# Versions of one network's code: networks, modes, batch sizes and image sizes multiply.
_GRAPHS = 256
# What must be gained: by rounding to 8 bits, and by minutes of compilation.
_WORTHWHILE_GAIN = {"bfloat16": 1.2, "float16": 1.2, "default": 1.1, "reduce-overhead": 1.15}
# A busy machine is busy for one candidate and not for the next: each has its turn in every round,
# the best of a series counts, and what has to gain has to gain in both series.
_SERIES, _ROUNDS = 2, 3
# So long a pass is timed once in a series; and of so few images, if those take as long.
_LONG_S, _FEW = 1.0, 16


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
            compile_network(model.network, self.compiled)

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        how = "not compiled" if self.compiled == "none" else f"compiled ({self.compiled})"
        return f"{self.precision}, {layout}, {how}"


def compile_network(network: torch.nn.Module, mode: str) -> None:
    """Let a network be compiled at its first pass, for each shape of its input anew."""
    from torch._dynamo import config
    from torch._inductor import config as inductor

    inductor.deterministic = True  # no choice of kernels by their time
    # Where torch's compiler would give up and go on uncompiled, it raises.
    config.fail_on_recompile_limit_hit = True
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    # A graph for batches of any size would replace the first one in the middle of a run, and a
    # resumed run would compute with other kernels.
    network.compile(mode=mode, dynamic=False)


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
    # Uncompiled first: to compile all of them takes minutes, and more versions of one network than
    # torch's compiler keeps.
    eager = [PrecisionSettings(*pair, "none") for pair in itertools.product(precisions, layouts)]
    chosen, rates = _fastest(model, batch_size, eager)
    if modes != ("none",):
        compiled = [replace(chosen, compiled=mode) for mode in modes]
        chosen, more = _fastest(model, batch_size, compiled)
        rates |= more
        if len(modes) > 1:
            torch.compiler.reset()
    return replace(chosen, measured=rates)


def _fastest(
    model: Classifier, batch_size: int, candidates: Sequence[PrecisionSettings]
) -> tuple[PrecisionSettings, dict[str, float]]:
    """The best candidate, and the images per second of each; of one alone nothing is measured."""
    if len(candidates) == 1:
        return candidates[0], {}
    models = {}
    for settings in candidates:
        models[settings] = copy.deepcopy(model).requires_grad_(requires_grad=False)
        settings.apply(models[settings])
    images = _images_of_a_probe(models, batch_size)
    series = [_best_of_rounds(models, images) for _ in range(_SERIES)]

    def gain(settings: PrecisionSettings) -> float:
        needed = _WORTHWHILE_GAIN.get(settings.precision, 1.0)
        return needed * _WORTHWHILE_GAIN.get(settings.compiled, 1.0)

    winners = [min(candidates, key=lambda c: gain(c) * seconds[c]) for seconds in series]
    best = min(winners, key=gain)
    least = {settings: min(seconds[settings] for seconds in series) for settings in candidates}
    return best, {str(settings): round(images / least[settings], 1) for settings in candidates}


def _images_of_a_probe(models: dict[PrecisionSettings, Classifier], batch_size: int) -> int:
    """How many images the passes that are timed have; their kernels are set up here."""
    images, few = batch_size, min(batch_size, _FEW)
    for settings, tried in models.items():
        if tried.mean.device.type == "cpu":
            seconds_per_pass(tried, few, settings.precision)
            # Where a pass of few images is long, it shows what one of many would in an hour.
            if seconds_per_pass(tried, few, settings.precision) > _LONG_S:
                images = few
    for settings, tried in models.items():
        seconds_per_pass(tried, images, settings.precision)
    return images


def _best_of_rounds(
    models: dict[PrecisionSettings, Classifier], images: int
) -> dict[PrecisionSettings, float]:
    """Seconds of each candidate's fastest pass, the candidates in turns."""
    seconds = dict.fromkeys(models, math.inf)
    for number in range(_ROUNDS):
        if number >= 1 and max(seconds.values()) > _LONG_S:
            break
        for settings, tried in models.items():
            taken = seconds_per_pass(tried, images, settings.precision)
            seconds[settings] = min(seconds[settings], taken)
    return seconds


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the block, then each part into the mode it was in.

    A part that is frozen in evaluation mode within a model in training mode stays frozen.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def seconds_per_pass(model: Classifier, batch_size: int, precision: Precision) -> float:
    """Time one forward and backward pass of an attack on the model's device."""
    device = model.mean.device
    with evaluation_mode(model):
        images = torch.rand(batch_size, *model.shape, device=device, requires_grad=True)
        begin = time.perf_counter()
        with autocast(device, precision):
            logits = model(images)
        torch.autograd.grad(logits.float().sum(), images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin
