"""Networks by name, always with new weights: nothing is downloaded.

======================= =================================================================
small-cnn[-wN]          three convolutions, N = 32 channels in the first; 8×8 to 32×32 images
resnet18[-wN]           N = 64 channels in the first stage
preactresnet18[-wN]     N = 64 channels in the first stage
wrn-D-W                 wide ResNet of depth D and widening factor W, such as wrn-34-10
small-cnn-exits[-wN]    small-cnn with an exit after each convolution
resnet18-exits[-wN]     resnet18 with an exit after each of its four stages
timm:NAME               any network of timm
torchvision:NAME        any classification network of torchvision
robustbench:NAME        a network of RobustBench's model zoo
FILE.py:FUNCTION        what a function of the user's own file returns
======================= =================================================================

A network with exits gives the logits of its last one; with `@E` behind its name those of exit
E, counted from 1.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ltd_pipe.device import evaluation_mode
from ltd_pipe.errors import MachineError, MissingError, ModelError, install_extra, require_file
from ltd_pipe.models import NETWORKS
from ltd_pipe.models.networks import (
    MultiExitResNet18,
    MultiExitSmallCNN,
    PreActResNet18,
    ResNet18,
    SmallCNN,
    WideResNet,
)

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier

# What networks raise for images that they cannot take.
_UNFIT = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)


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
    MachineError
        When it is RobustBench's, and robustbench is not installed.
    """
    if num_classes < 2:
        raise ModelError(architecture, "num_classes", expected="2 or more", found=num_classes)
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        expected = "(1 or 3, height, width)"
        raise ModelError(architecture, "shape", expected=expected, found=tuple(shape))
    package, _, name = architecture.partition(":")
    network: Any
    if package == "robustbench":
        # Each network of the zoo is for the images of its data set.
        network = _zoo_entry(name, num_classes)[0]["model"]()
    elif package in _OPTIONS or names_file(architecture):
        create = _create if package in _OPTIONS else _run_file
        network = create(architecture, num_classes, shape)
        # Tried now, rather than fail after the data was read.
        _require_logits(network, architecture.partition("#")[0], num_classes, shape)
    else:
        network_class, arguments = own_network(architecture, num_classes, shape)
        network = network_class(**arguments)
        if (number := arguments.get("exit_number")) is not None:
            _require_within(architecture, "exit", number, network.num_exits)
    built: nn.Module = network.train()
    return built


# --- Networks of this package.


_WIDE = re.compile(r"wrn-(\d{1,3})-(\d{1,2})")
_NAMED = re.compile(
    r"(?P<family>(small-cnn|resnet18)(?P<exits>-exits)?|preactresnet18)"
    r"(-w(?P<width>\d{1,3}))?(?(exits)(@(?P<exit>\d))?)"
)
_FAMILIES: dict[str, type[Any]] = {
    "small-cnn": SmallCNN,
    "small-cnn-exits": MultiExitSmallCNN,
    "resnet18": ResNet18,
    "resnet18-exits": MultiExitResNet18,
    "preactresnet18": PreActResNet18,
}
# A checkpoint names its architecture: without bounds a hostile name would take all memory.
_MAX_WIDTH, _MAX_DEPTH, _MAX_WIDEN = 512, 118, 32


def own_network(
    architecture: str, num_classes: int, shape: tuple[int, int, int]
) -> tuple[type[Any], dict[str, Any]]:
    """The class of a network of this package, and the arguments that make it; see `build`."""
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if wide := _WIDE.fullmatch(architecture):
        depth, widen = int(wide[1]), int(wide[2])
        _require_within(architecture, "depth", depth, _MAX_DEPTH)
        _require_within(architecture, "widening factor", widen, _MAX_WIDEN)
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(
                f"depth {depth}",
                "no wide ResNet is that deep",
                expected="6n + 4, such as 28 or 34",
                remedy=f"The nearest depth is {max(10, 6 * round((depth - 4) / 6) + 4)}.",
            )
        return WideResNet, arguments | {"depth": depth, "widen": widen, "channels": shape[0]}
    match = _NAMED.fullmatch(architecture)
    if match is None:
        raise _unknown(architecture)
    if match["family"].startswith("small-cnn"):
        arguments |= {"shape": tuple(shape), "width": int(match["width"] or 32)}
    else:
        arguments |= {"channels": shape[0], "width": int(match["width"] or 64)}
    _require_within(architecture, "width", arguments["width"], _MAX_WIDTH)
    if match["exits"]:
        arguments["exit_number"] = int(match["exit"]) if match["exit"] else None
    return _FAMILIES[match["family"]], arguments


def _require_within(architecture: str, what: str, found: int, largest: int) -> None:
    if not 1 <= found <= largest:
        raise ModelError(architecture, what, expected=f"1 to {largest}", found=found)


def _unknown(architecture: str) -> ModelError:
    names = _did_you_mean(architecture, NETWORKS) or f"There are {', '.join(NETWORKS)}."
    width = re.fullmatch(r"(.+?)[-_]?w?[-_]?(\d{1,3})", architecture)
    if width and _NAMED.fullmatch(named := f"{width[1]}-w{width[2]}"):
        names = f"Did you mean {named}?"
    remedy = f"{names} Other packages' networks are timm:NAME and torchvision:NAME."
    return ModelError(architecture, "no such architecture", remedy=remedy)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    return f"Did you mean {', '.join(close)}?" if close else ""


# --- Networks of timm and torchvision.


def _create(where: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    package, _, name = where.partition(":")
    create: Callable[..., nn.Module]
    if package == "timm":
        import timm

        create, names = functools.partial(timm.create_model, pretrained=False), timm.list_models()
        known = ":" not in name and timm.is_model(name)
    else:
        from torchvision import models

        create, names = (
            functools.partial(models.get_model, weights=None),
            models.list_models(models),
        )
        known = name in names
    if not known:
        remedy = _did_you_mean(name, names) or "See that package's list_models()."
        raise ModelError(where, "no such network", remedy=remedy)
    if package == "torchvision" and shape[0] != 3:
        raise ModelError(
            where,
            "torchvision's networks take RGB images",
            expected="3 channels",
            found=shape[0],
            remedy=f"Set prepare.channels to 3, or try timm:{name}.",
        )
    try:
        return create(name, **_OPTIONS[package](name, num_classes, shape))
    except _UNFIT as error:
        raise _unfit(where, shape, error) from error


def timm_options(name: str, num_classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name; plain values."""
    import timm

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}
    # Transformers are built for one size of image; the others refuse the option.
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = tuple(shape[1:])
    return options


# torchvision's own weights of these come with `transform_input`, which no state dict says: it makes
# of pixels normalised as ImageNet's what mean and std of 0.5 would have made.
_RESCALING = ("googlenet", "inception_v3")


def torchvision_options(name: str, num_classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Arguments of `torchvision.models.get_model` beside the name; plain values."""
    options: dict[str, Any] = {"num_classes": num_classes}
    if name in _RESCALING:
        # Their second output exists in training mode only and would change the result's type.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = shape[1]
    return options


_OPTIONS = {"timm": timm_options, "torchvision": torchvision_options}


def declared_normalisation(
    architecture: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that timm or torchvision declare for their own weights of a network.

    None where they declare none, or for another number of channels.
    """
    package, _, name = architecture.partition(":")
    declared: Any = None
    if package == "timm":
        import timm

        declared = timm.get_pretrained_cfg(name)
    elif name in _RESCALING and package == "torchvision":
        return ((0.5,) * 3, (0.5,) * 3) if channels == 3 else None
    elif package == "torchvision":
        from torchvision import models

        declared = models.get_model_weights(name).DEFAULT.transforms()
    if declared is None or len(declared.mean) != channels:
        return None
    return tuple(declared.mean), tuple(declared.std)


def _require_logits(
    network: nn.Module, where: str, num_classes: int, shape: tuple[int, int, int], remedy: str = ""
) -> None:
    """Pass two images of this shape through it, in evaluation mode, and look at what comes out."""
    weight = next(network.parameters(), torch.zeros(0))
    images = torch.zeros(2, *shape, device=weight.device)
    try:
        with evaluation_mode(network), torch.no_grad():
            found = tuple(network(images).shape)
    except _UNFIT as error:
        raise _unfit(where, shape, error, remedy) from error
    if found != (2, num_classes):
        raise ModelError(
            where,
            "does not classify",
            expected=f"logits of shape (2, {num_classes})",
            found=found,
            remedy=remedy or "Choose a network for classification.",
        )


def _unfit(where: str, shape: Sequence[int], error: Exception, remedy: str = "") -> ModelError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    size = "×".join(str(side) for side in shape)
    return ModelError(
        where,
        f"cannot take images of {size} ({reason})",
        remedy=remedy or "Choose another network, or another prepare.image_size.",
    )


# --- Networks of RobustBench's model zoo.
#
# The package is asked for the network alone. Its own loader would fetch and unpickle the weights;
# here they are read as any other project's are, tensors only.


# By the number of classes of 32×32 images, and of larger ones.
_ZOO_DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def zoo_weights(name: str, num_classes: int) -> Path:
    """The file in which RobustBench's loader leaves a network's weights.

    The name is the leaderboard's, or `THREAT/NAME` where it stands under several of Linf, L2 and
    corruptions. Raises MissingError when the file is not there: nothing is downloaded.
    """
    _, threat = _zoo_entry(name, num_classes)
    dataset, short = _ZOO_DATASETS[num_classes], name.rpartition("/")[2]
    # Below the working directory.
    path = Path("models") / dataset / threat / f"{short}.pt"
    if not path.is_file():
        call = f"robustbench.load_model('{short}', dataset='{dataset}', threat_model='{threat}')"
        raise MissingError(
            path,
            f"the weights of robustbench:{name} are not there",
            remedy=f"Pass them with --weights, or let {call} fetch them.",
        )
    return path


def _zoo_entry(name: str, num_classes: int) -> tuple[dict[str, Any], str]:
    """The zoo's entry of a network, and the threat model that it stands under."""
    where = f"robustbench:{name}"
    try:
        from robustbench.model_zoo import model_dicts
    except ImportError as error:
        raise MachineError(
            where,
            f"needs the package robustbench ({error})",
            remedy=f"{install_extra('robustbench')} Best in an environment of its own: it asks for "
            "old versions of other packages.",
        ) from error
    if num_classes not in _ZOO_DATASETS:
        expected = "10, 100 or 1000, as its data sets"
        raise ModelError(where, "number of classes", expected=expected, found=num_classes)
    dataset = _ZOO_DATASETS[num_classes]
    threats = next(entries for key, entries in model_dicts.items() if key.value == dataset)
    wanted, _, short = name.rpartition("/")
    for threat, entries in threats.items():
        if wanted in ("", threat.value) and short in entries:
            return entries[short], threat.value
    names = [known for entries in threats.values() for known in entries]
    remedy = _did_you_mean(short, names) or "See RobustBench's leaderboard."
    raise ModelError(where, f"not in the zoo for {dataset}", remedy=remedy)


# --- The network of a user's own Python file.
#
# A file is run only after `allow_file`, which the command line calls for what was typed there: no
# checkpoint, store or params.yaml has code run.


# `net.py:make` as it is typed, and with the file's SHA-256 as it is kept.
_FILE = re.compile(
    r"(?P<path>.*?)(?P<name>[^/\\:#]{1,60}\.py):(?P<call>[A-Za-z_]\w{0,60})(?P<sha>#.*)?"
)
# What was allowed in this process, by function and SHA-256.
_ALLOWED: dict[tuple[str, str], tuple[Path, bytes]] = {}


def names_file(architecture: str) -> bool:
    """Whether it is the network of a Python file, with or without its hash."""
    return _FILE.fullmatch(architecture) is not None


def allow_file(architecture: str) -> str:
    """Allow a Python file to be run for its network; any other name is given back as it is.

    Parameters
    ----------
    architecture : str
        `net.py:make`, where `make(num_classes, shape)` gives an nn.Module.

    Returns
    -------
    str
        `net.py:make#SHA-256`, which `build` takes from now on; the folder is left out.

    Raises
    ------
    MissingError, ModelError
        When there is no such file.
    """
    match = _FILE.fullmatch(architecture)
    if match is None or match["sha"] is not None:
        return architecture
    path = require_file(Path(match["path"] + match["name"]))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})") from error
    sha256 = hashlib.sha256(content).hexdigest()
    _ALLOWED[match["call"], sha256] = path, content
    return f"{match['name']}:{match['call']}#{sha256}"


def _run_file(architecture: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    file, _, sha256 = architecture.partition("#")
    where, call = Path(file).name, file.rpartition(":")[2]
    if (call, sha256) not in _ALLOWED:
        others = [other for name, other in _ALLOWED if name == call]
        raise ModelError(
            where,
            "is code, and not that which the command line names"
            if others and sha256
            else "is code, which is run only when the command line names it",
            expected=f"SHA-256 {sha256}" if sha256 else None,
            found=others[-1] if others and sha256 else None,
            remedy=f"Pass --arch FOLDER/{where}, as it was when the checkpoint was made."
            if sha256
            else f"Pass --arch {where}.",
        )
    path, content = _ALLOWED[call, sha256]
    module = types.ModuleType(f"network_{sha256[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        # The very bytes that were hashed, typed by the user on the command line.
        exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102
        network = getattr(module, call)(num_classes, shape)
    except Exception as error:  # a user's own code raises whatever it likes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise ModelError(
            where,
            f"gives no network ({reason})",
            remedy=f"It is called as {call}({num_classes}, {tuple(shape)}).",
        ) from error
    if not isinstance(network, nn.Module):
        found = type(network).__name__
        raise ModelError(where, "gives no network", expected="an nn.Module", found=found)
    return network


# --- Whether a network takes images of other sizes than it was built for.


def require_sizes(model: Classifier, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse a network that cannot be trained on images of these heights and widths, by trying.

    None may be larger than the images that the model is for.
    """
    channels, height, width = model.shape
    for tall, wide in sizes:
        if height != width or tall > height or wide > width:
            raise ModelError(
                model.architecture,
                f"cannot grow to images of {tall}×{wide}",
                expected="square images of the data, and sizes up to theirs",
                found=f"{height}×{width}",
                remedy="Lower progressive_resize, or prepare larger images.",
            )
    remedy = "Train it without progressive_resize, or choose a network that averages over places, "
    remedy += "such as a ResNet."
    for size in sizes:
        shape = (channels, *size)
        _require_logits(model.network, model.architecture, model.num_classes, shape, remedy)
