"""Networks by name.

======================= =================================================================
small-cnn[-wN]          three convolutions, N = 32 channels in the first; 8×8 to 32×32 images
resnet18[-wN]           N = 64 channels in the first stage
preactresnet18[-wN]     N = 64 channels in the first stage
wrn-D-W                 wide ResNet of depth D and widening factor W, such as wrn-34-10
small-cnn-exits[-wN]    small-cnn with an exit after each convolution
resnet18-exits[-wN]     resnet18 with an exit after each of its four stages
timm:NAME               any network of timm
torchvision:NAME        any classification network of torchvision
======================= =================================================================

A network with exits gives the logits of its last one; with `@E` behind its name those of exit
E, counted from 1.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.external import build_file, build_timm, build_torchvision, names_file
from pipeline.models.resnet import MultiExitResNet18, PreActResNet18, ResNet18
from pipeline.models.robustbench_zoo import build_robustbench
from pipeline.models.small_cnn import MultiExitSmallCNN, SmallCNN
from pipeline.models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "known", "own_call"]

_KNOWN = (
    "small-cnn",
    "resnet18",
    "preactresnet18",
    "wrn-28-10",
    "wrn-34-10",
    "wrn-34-20",
    "small-cnn-exits",
    "resnet18-exits",
)
_WITH_WIDTH = re.compile(r"(small-cnn|resnet18|preactresnet18)(?:-w(\d{1,3}))?")
_WITH_EXITS = re.compile(r"(small-cnn|resnet18)-exits(?:-w(\d{1,3}))?(?:@(\d))?")
_WIDE = re.compile(r"wrn-(\d{1,3})-(\d{1,2})")
# A checkpoint names its architecture: without bounds a hostile name would take all memory.
_LARGEST_WIDTH, _LARGEST_DEPTH, _LARGEST_WIDEN = 512, 118, 32


def known() -> list[str]:
    """The names that the documentation uses; widths, depths and packages give more."""
    return list(_KNOWN)


def build(architecture: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Build a network with new weights, drawn from torch's global generator.

    Parameters
    ----------
    architecture : str
        See the table above.
    num_classes : int
        2 or more.
    shape : tuple of int
        (C, H, W) of the images; C is 1 or 3.

    Returns
    -------
    nn.Module
        Gives logits of shape (B, num_classes), in training mode.

    Raises
    ------
    ModelError
        When there is no such network, or it cannot take such images.
    """
    _require_sizes(architecture, num_classes, shape)
    package, colon, name = architecture.partition(":")
    if names_file(architecture):
        return build_file(architecture, num_classes, shape)
    if colon and package == "timm":
        return build_timm(name, num_classes, shape)
    if colon and package == "torchvision":
        return build_torchvision(name, num_classes, shape)
    if colon and package == "robustbench":
        return build_robustbench(name, num_classes)
    call, arguments = own_call(architecture, num_classes, shape)
    network: Any = call(**arguments)
    if arguments.get("judged") is not None:
        _require_within(architecture, "exit", arguments["judged"], int(network.num_exits))
    built: nn.Module = network
    return built


def own_call(
    architecture: str, num_classes: int, shape: tuple[int, int, int]
) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a network of ours, and the arguments that make it.

    Parameters
    ----------
    architecture : str
        One of the first six kinds of the table above.
    num_classes : int
    shape : tuple of int
        (C, H, W) of the images.

    Raises
    ------
    ModelError
        When there is no such network of ours.
    """
    if wide := _WIDE.fullmatch(architecture):
        depth, widen = int(wide[1]), int(wide[2])
        _require_within(architecture, "depth", depth, _LARGEST_DEPTH)
        _require_within(architecture, "widening factor", widen, _LARGEST_WIDEN)
        _require_depth(depth)
        sizes: dict[str, Any] = {"depth": depth, "widen": widen, "channels": shape[0]}
        return WideResNet, {"num_classes": num_classes, **sizes}
    if exits := _WITH_EXITS.fullmatch(architecture):
        judged = None if exits[3] is None else int(exits[3])
        call, sizes = own_call(_plain_name(exits[1], exits[2]), num_classes, shape)
        network = MultiExitSmallCNN if call is SmallCNN else MultiExitResNet18
        return network, {**sizes, "judged": judged}
    plain = _WITH_WIDTH.fullmatch(architecture)
    if plain is None:
        raise _unknown(architecture)
    family, width = plain[1], plain[2]
    if family == "small-cnn":
        sizes = {"shape": tuple(shape), "width": _width(architecture, width, 32)}
        return SmallCNN, {"num_classes": num_classes, **sizes}
    sizes = {"channels": shape[0], "width": _width(architecture, width, 64)}
    kind = ResNet18 if family == "resnet18" else PreActResNet18
    return kind, {"num_classes": num_classes, **sizes}


def _plain_name(family: str, width: str | None) -> str:
    return family if width is None else f"{family}-w{width}"


def _require_depth(depth: int) -> None:
    if depth < 10 or (depth - 4) % 6:
        nearest = max(10, 6 * round((depth - 4) / 6) + 4)
        raise ModelError(
            f"depth {depth}",
            "no wide ResNet is that deep",
            expected="6n + 4, such as 28 or 34",
            remedy=f"The nearest depth is {nearest}.",
        )


def _width(architecture: str, given: str | None, default: int) -> int:
    width = default if given is None else int(given)
    _require_within(architecture, "width", width, _LARGEST_WIDTH)
    return width


def _require_within(architecture: str, what: str, found: int, largest: int) -> None:
    if not 1 <= found <= largest:
        raise ModelError(architecture, what, expected=f"1 to {largest}", found=found)


def _require_sizes(architecture: str, num_classes: int, shape: tuple[int, int, int]) -> None:
    if num_classes < 2:
        raise ModelError(architecture, "num_classes", expected="2 or more", found=num_classes)
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ModelError(
            architecture, "shape", expected="(1 or 3, height, width)", found=tuple(shape)
        )


def _unknown(architecture: str) -> ModelError:
    close = difflib.get_close_matches(architecture, _KNOWN, n=3)
    width = re.fullmatch(r"(.+?)[-_]?w?[-_]?(\d{1,3})", architecture)
    if width and _WITH_WIDTH.fullmatch(named := f"{width[1]}-w{width[2]}"):
        close = [named]
    names = f"Did you mean {', '.join(close)}?" if close else f"There are {', '.join(_KNOWN)}."
    remedy = f"{names} Other packages' networks are timm:NAME and torchvision:NAME."
    return ModelError(architecture, "no such architecture", remedy=remedy)
