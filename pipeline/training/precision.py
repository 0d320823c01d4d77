"""How a network's passes are computed: precision, memory format and compilation.

Whatever is left open is chosen by a short measurement on this machine. The choice decides a run's
bits, so it is kept in the run's snapshots, which a later measurement does not overrule, and in what
a checkpoint says of itself.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ltd_pipe.attacks import Frozen
from ltd_pipe.device import seconds_per_pass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltd_pipe.device import Precision
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.trainer import Snapshots

Compilation = Literal["none", "default", "reduce-overhead"]

# Beyond that the ratio no longer changes, only the time that the measurement takes.
_PROBE_IMAGES = {"cpu": 16, "cuda": 128}
# What must be gained: by rounding to 8 bits, and by minutes of compilation.
_WORTHWHILE = {"bfloat16": 1.2, "float16": 1.2, "default": 1.1, "reduce-overhead": 1.15}


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
    return _WORTHWHILE.get(passes.precision, 1.0) * _WORTHWHILE.get(passes.compiled, 1.0)
