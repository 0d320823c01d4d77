"""A model as it is attacked: in evaluation mode, its batch normalisation folded away.

Ten of the twelve passes of a step of PGD-10, and all of an evaluation's, go through batch norms
that are frozen. Each is one scale and shift per channel, which the convolution before it takes
into its own weights: a third of a small network's time is saved, and of a GPU's kernels half.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ltd_pipe.device import compile_network, evaluation_mode

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier


@contextlib.contextmanager
def input_gradients_only(model: torch.nn.Module) -> Iterator[None]:
    """Let no weight of the model have a gradient while the block runs.

    A compiled network, and an attack that calls `backward`, would compute those of all weights.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad = True


# Folded wrongly, a network of random statistics is wrong by as much as its logits are large.
_ROUNDING = 1e-2


class Frozen:
    """A twin of a model that gives the logits and input gradients of its evaluation mode.

    It shares the model's weights but for those that are folded, which are computed anew when it
    is asked for. A norm that follows no convolution becomes one multiplication and addition; a
    network whose twin would not give its logits is its own twin.

    Parameters
    ----------
    model : Classifier
        On its device, in its memory format. Its mode is left as it is.
    folds : list, optional
        What is folded; by default what can be.
    dtype : torch.dtype, optional
        Of the folded weights: autocast's, which would round them anew in each pass; by default
        the model's.
    """

    def __init__(
        self,
        model: Classifier,
        folds: list[_Fold] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model = self.twin = model
        self._folds = _sound_folds(model, dtype) if folds is None else folds
        if self._folds:
            self.twin = model.twin().eval()
        self._targets = [fold.replace(self.twin.network, dtype) for fold in self._folds]

    def compile(self, mode: str) -> None:
        """Let the twin's network be compiled at its first pass; see `torch.compile`."""
        if self._folds:
            compile_network(self.twin.network, mode)

    @torch.no_grad()
    def current(self) -> Classifier:
        """The twin with the weights and statistics as they are now; the same object each time."""
        if not self._folds:
            return self.twin
        network = self._model.network
        norms: list[Any] = [network.get_submodule(fold.norm) for fold in self._folds]
        # All at once: on a GPU a kernel or two for all norms.
        scales = torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
        torch._foreach_rsqrt_(scales)
        scaled = [(s, n.weight) for s, n in zip(scales, norms, strict=True) if n.weight is not None]
        if scaled:
            torch._foreach_mul_(*map(list, zip(*scaled, strict=True)))
        shifts = torch._foreach_neg(torch._foreach_mul([n.running_mean for n in norms], scales))
        shifted = [(s, n.bias) for s, n in zip(shifts, norms, strict=True) if n.bias is not None]
        if shifted:
            torch._foreach_add_(*map(list, zip(*shifted, strict=True)))
        constants = []
        for number, (fold, target) in enumerate(zip(self._folds, self._targets, strict=True)):
            scale, shift = scales[number], shifts[number]
            if fold.convolution is None:
                constants += [(target.scale, scale), (target.shift, shift)]
                continue
            own: Any = network.get_submodule(fold.convolution)
            torch.mul(own.weight, scale[:, None, None, None], out=target.weight)
            bias = shift if own.bias is None else torch.addcmul(shift, own.bias, scale)
            constants.append((target.bias, bias))
        targets, values = map(list, zip(*constants, strict=True))
        torch._foreach_copy_(targets, values)
        return self.twin


@dataclass(frozen=True)
class _Fold:
    """A norm by its name in the network, and the convolution right before it, if any."""

    norm: str
    convolution: str | None

    def replace(self, network: nn.Module, dtype: torch.dtype | None) -> Any:
        """Put in and return the module whose constants stand for the norm."""
        norm: Any = network.get_submodule(self.norm)
        # timm's norms hold what follows them: dropout and the activation.
        rest: list[nn.Module] = list(norm.children())
        target: nn.Module
        if self.convolution is None:
            target = _ScaleShift(norm)
            rest = [target, *rest]
        else:
            old: Any = network.get_submodule(self.convolution)
            target = copy.copy(old)
            target._parameters, target._buffers = {}, {}
            weight = old.weight.detach().to(dtype or old.weight.dtype, copy=True)
            target.register_buffer("weight", weight)
            target.register_buffer("bias", torch.zeros_like(weight[:, 0, 0, 0]))
            _put(network, self.convolution, target)
        # Not in a Sequential of one: its call would cost as much as a small network's layer.
        _put(network, self.norm, rest[0] if len(rest) == 1 else nn.Sequential(*rest))
        return target


class _ScaleShift(nn.Module):
    """A frozen norm that no convolution takes in."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        empty = torch.zeros_like(norm.running_mean)
        self.register_buffer("scale", empty)
        self.register_buffer("shift", empty.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
        # Rounded once, as a batch norm does where the images are of half precision.
        return torch.addcmul(shift, images, scale).to(images.dtype)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def _find_folds(model: Classifier) -> list[_Fold]:
    """Norms that are called once a pass, each with the convolution whose very output it gets."""
    network = model.network
    # A norm without statistics normalises by the batch in evaluation mode, too.
    norms: dict[nn.Module, str] = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and module.running_mean is not None
    }
    convolutions: dict[nn.Module, str] = {
        module: name
        for name, module in network.named_modules()
        if type(module) is nn.Conv2d and not nn.utils.parametrize.is_parametrized(module)
    }
    outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    calls: list[tuple[nn.Module, nn.Module | None]] = []

    def convolved(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        # Kept, so that no later tensor has its identity.
        outputs[id(output)] = (module, output)
        calls.append((module, None))

    def normed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        source = outputs.get(id(inputs[0]))
        calls.append((module, source and source[0]))

    hooks = [module.register_forward_hook(convolved) for module in convolutions]
    hooks += [module.register_forward_pre_hook(normed) for module in norms]
    try:
        _logits(model, exits=False)
    except Exception:  # a network of unknown code may mind hooks
        return []
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(module for module, _ in calls)
    return [
        _Fold(norms[module], convolutions[source] if source and times[source] == 1 else None)
        for module, source in calls
        if module in norms and times[module] == 1
    ]


@torch.no_grad()
def _sound_folds(model: Classifier, dtype: torch.dtype | None) -> list[_Fold]:
    """Folds whose twin gives the model's logits, whatever its weights and statistics.

    A convolution whose output also goes elsewhere, or a norm that does more than normalise, shows
    when no scale is 1, no shift 0, and no branch is switched off by its gain. `dtype` is as of
    `Frozen`.
    """
    # On the host, whose float32 is one: a GPU's convolutions may round to ten bits.
    tried = copy.deepcopy(model).cpu().eval()
    found = _find_folds(tried)
    if not found:
        return []
    _randomise(tried.network, found)
    expected = _logits(tried)

    def holds(folds: list[_Fold]) -> bool:
        try:
            error = (expected - _logits(Frozen(tried, folds).current())).abs().max()
            if dtype not in {None, torch.float32}:
                # A network may leave autocast in some layers, which then take no rounded weights.
                with torch.autocast(model.mean.device.type, dtype):
                    _logits(Frozen(model, folds, dtype).current())
        except Exception:  # a network may look into its own layers
            return False
        return bool(error <= _ROUNDING * expected.abs().max())

    if not holds(found):
        found = [fold if holds([fold]) else replace(fold, convolution=None) for fold in found]
    return found if holds(found) else []


def _randomise(network: nn.Module, folds: list[_Fold]) -> None:
    """Give a network weights, and the norms of these folds statistics, that hide no wrong fold."""
    draw = torch.Generator().manual_seed(0)
    # All of them: where a last layer or a branch's gain is zero, as some begin, logits agree.
    for weight in filter(torch.is_floating_point, network.parameters()):
        if weight.dim() > 1:
            weight.normal_(std=(2.0 / weight[0].numel()) ** 0.5, generator=draw)
        else:
            weight.uniform_(0.5, 2.0, generator=draw)
    for fold in folds:
        norm: Any = network.get_submodule(fold.norm)
        norm.running_mean.uniform_(-1.0, 1.0, generator=draw)
        norm.running_var.uniform_(0.5, 2.0, generator=draw)
        if norm.bias is not None:
            norm.bias.uniform_(-1.0, 1.0, generator=draw)


@torch.no_grad()
def _logits(model: Classifier, *, exits: bool = True) -> torch.Tensor:
    """What the network says of two inputs in evaluation mode, also at its `exits`.

    The modes are left as they were.
    """
    inputs = torch.linspace(-2.0, 2.0, 2 * math.prod(model.shape)).view(2, *model.shape)
    network: Any = model.network
    inputs = inputs.to(model.mean)
    with evaluation_mode(model):
        logits = [network(inputs)]
        if exits and hasattr(network, "exit_logits"):
            logits += network.exit_logits(inputs)
    return torch.cat(logits)
