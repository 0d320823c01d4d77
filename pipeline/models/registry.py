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
import hashlib
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ltd_pipe.errors import MachineError, MissingError, ModelError, install_extra
from ltd_pipe.models.resnet import MultiExitResNet18, PreActResNet18, ResNet18
from ltd_pipe.models.small_cnn import MultiExitSmallCNN, SmallCNN
from ltd_pipe.models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltd_pipe.models.classifier import Classifier


# --- Whether a network takes images of other sizes than it was built for.


def require_sizes(model: Classifier, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse a network that cannot be trained on images of growing sizes, by trying each.

    Parameters
    ----------
    model : Classifier
    sizes : sequence of tuple of int
        Heights and widths; none may be larger than the images that the model is for.

    Raises
    ------
    ModelError
        At the first size that it cannot take.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with model.also_taking(sizes), torch.no_grad():
            for size in sizes:
                _require_size(model, size)
    finally:
        for module, training in modes.items():
            module.training = training


def _require_size(model: Classifier, size: tuple[int, int]) -> None:
    channels, height, width = model.shape
    where, (tall, wide) = model.architecture, size
    if height != width or tall > height or wide > width:
        raise ModelError(
            where,
            f"cannot grow to images of {tall}×{wide}",
            expected="square images of the data, and sizes up to theirs",
            found=f"{height}×{width}",
            remedy="Lower progressive_resize, or prepare larger images.",
        )
    images = torch.zeros(1, channels, tall, wide, device=model.mean.device)
    try:
        found = tuple(model(images).shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(where, size, " ".join(str(error).split())[:120]) from error
    if found != (1, model.num_classes):
        raise _unfit(where, size, f"logits of shape {found}")


def _unfit(where: str, size: tuple[int, int], reason: str) -> ModelError:
    return ModelError(
        where,
        f"cannot take images of {size[0]}×{size[1]} ({reason})",
        remedy="Train it without progressive_resize, or choose a network that averages over "
        "places, such as a ResNet.",
    )


# --- Networks of timm and torchvision by name, and of a user's own Python file.
#
# Always with new weights: nothing is downloaded. A file is run only after `allow_file`, which the
# command line calls for what was typed there: no checkpoint, store or params.yaml has code run.


# Their second output exists in training mode only and would change the result's type.
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
_TORCHVISION_OPTIONS = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}


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
    found = _FILE.fullmatch(architecture)
    if found is None or found["sha"] is not None:
        return architecture
    path = Path(found["path"] + found["name"])
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file") from error
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})") from error
    sha256 = hashlib.sha256(content).hexdigest()
    _ALLOWED[found["call"], sha256] = path, content
    return f"{found['name']}:{found['call']}#{sha256}"


def build_file(architecture: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Build the network of a file that `allow_file` has allowed, with new weights.

    Raises
    ------
    ModelError
        When it was not allowed, is another file than is asked for, fails, or gives no network
        that classifies such images.
    """
    found = _FILE.fullmatch(architecture)
    assert found is not None  # noqa: S101
    call, sha256 = found["call"], (found["sha"] or "#")[1:]
    where = f"{found['name']}:{call}"
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
        found_type = type(network).__name__
        raise ModelError(where, "gives no network", expected="an nn.Module", found=found_type)
    return _tried(network, where, num_classes, shape)


def build_timm(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Build a network of timm with new weights.

    Parameters
    ----------
    name : str
        As in `timm.list_models()`.
    num_classes : int
    shape : tuple of int
        (C, H, W); the first layer is built for C channels.

    Raises
    ------
    ModelError
        When timm has no such network, or it cannot take such images.
    """
    import timm

    where = f"timm:{name}"
    if ":" in name or not timm.is_model(name):
        raise _unknown_in_package(where, name, timm.list_models())
    options = timm_options(name, num_classes, shape)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit_package(where, shape, error) from error
    return _tried(network, where, num_classes, shape)


def build_torchvision(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Build a classification network of torchvision with new weights.

    Parameters
    ----------
    name : str
        As in `torchvision.models.list_models(module=torchvision.models)`.
    num_classes : int
    shape : tuple of int
        (C, H, W); C must be 3.

    Raises
    ------
    ModelError
        When torchvision has no such network, or it cannot take such images.
    """
    from torchvision import models

    where, names = f"torchvision:{name}", models.list_models(module=models)
    if name not in names:
        raise _unknown_in_package(where, name, names)
    if shape[0] != 3:
        raise ModelError(
            where,
            "torchvision's networks take RGB images",
            expected="3 channels",
            found=shape[0],
            remedy=f"Set prepare.channels to 3, or try timm:{name}.",
        )
    options = torchvision_options(name, num_classes, shape)
    try:
        network: nn.Module = models.get_model(name, weights=None, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit_package(where, shape, error) from error
    return _tried(network, where, num_classes, shape)


def declared_normalisation(
    architecture: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that timm or torchvision declare for their own weights of a network.

    None where they declare none, or for another number of channels. Whether somebody else's
    weights want them is not said by it.
    """
    package, _, name = architecture.partition(":")
    declared: Any = None
    if package == "timm":
        import timm

        declared = timm.get_pretrained_cfg(name)
    elif package == "torchvision":
        from torchvision import models

        declared = models.get_model_weights(name).DEFAULT.transforms()
    if declared is None or len(declared.mean) != channels:
        return None
    return tuple(declared.mean), tuple(declared.std)


def timm_options(name: str, num_classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What `timm.create_model` is given beside the name; plain values."""
    import timm

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}
    # Transformers are built for one size of image; the others refuse the option.
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = tuple(shape[1:])
    return options


def torchvision_options(name: str, num_classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What `torchvision.models.get_model` is given beside the name; plain values."""
    options = {"num_classes": num_classes, **_TORCHVISION_OPTIONS.get(name, {})}
    if name.startswith("vit_"):
        options["image_size"] = shape[1]
    return options


def _tried(
    network: nn.Module, where: str, num_classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """Pass two images through it now, rather than fail after the data was read."""
    network.eval()
    weight = next(network.parameters(), torch.zeros(0))
    images = torch.zeros(2, *shape, device=weight.device)
    try:
        with torch.no_grad():
            found = tuple(network(images).shape)
    except (AssertionError, RuntimeError, AttributeError, ValueError) as error:
        raise _unfit_package(where, shape, error) from error
    if found != (2, num_classes):
        raise ModelError(
            where,
            "does not classify",
            expected=f"logits of shape (2, {num_classes})",
            found=found,
            remedy="Choose a network for classification.",
        )
    return network.train()


def _unknown_in_package(where: str, name: str, names: Sequence[str]) -> ModelError:
    close = difflib.get_close_matches(name, names, n=3)
    remedy = f"Did you mean {', '.join(close)}?" if close else "See that package's list_models()."
    return ModelError(where, "no such network", remedy=remedy)


def _unfit_package(where: str, shape: tuple[int, int, int], error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    size = "×".join(str(side) for side in shape)
    return ModelError(
        where,
        f"cannot take images of {size} ({reason})",
        remedy="Choose another network, or another prepare.image_size.",
    )


# --- Networks of RobustBench's model zoo by name, with weights that are already here.
#
# The package is asked for the network alone. Its own loader would fetch and unpickle the weights;
# here they are read as any other project's are, tensors only.


# By the number of classes of 32×32 images, and of larger ones.
_DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
# Where RobustBench's loader puts what it fetches, below the working directory.
_FOLDER = Path("models")


def build_robustbench(name: str, num_classes: int) -> nn.Module:
    """Build a network of the zoo with new weights.

    Parameters
    ----------
    name : str
        As in the leaderboard's `load_model`, or `THREAT/NAME` where it stands under several of
        Linf, L2 and corruptions.
    num_classes : int
        Tells the data set: 10 is CIFAR-10, 100 CIFAR-100, 1000 ImageNet.

    Raises
    ------
    MachineError
        When robustbench is not installed.
    ModelError
        When the zoo has no such network.
    """
    entry, _ = _entry(name, num_classes)
    network: nn.Module = entry["model"]()
    return network


def zoo_weights(name: str, num_classes: int) -> Path:
    """The file in which RobustBench's loader leaves a network's weights.

    Raises
    ------
    MissingError
        When it is not there: nothing is downloaded.
    MachineError, ModelError
        See `build_robustbench`.
    """
    _, threat = _entry(name, num_classes)
    dataset, short = _DATASETS[num_classes], name.rpartition("/")[2]
    path = _FOLDER / dataset / threat / f"{short}.pt"
    if not path.is_file():
        call = f"robustbench.load_model('{short}', dataset='{dataset}', threat_model='{threat}')"
        raise MissingError(
            path,
            f"the weights of robustbench:{name} are not there",
            remedy=f"Pass them with --weights, or let {call} fetch them.",
        )
    return path


def _entry(name: str, num_classes: int) -> tuple[dict[str, Any], str]:
    """What the zoo knows of a network, and the threat model that it stands under."""
    where, zoo = f"robustbench:{name}", _zoo(name)
    if num_classes not in _DATASETS:
        raise ModelError(
            where,
            "number of classes",
            expected="10, 100 or 1000, as its data sets",
            found=num_classes,
        )
    threats = zoo[_DATASETS[num_classes]]
    wanted, _, short = name.rpartition("/")
    for threat, entries in threats.items():
        if wanted in ("", threat) and short in entries:
            return entries[short], threat
    names = [known for entries in threats.values() for known in entries]
    close = difflib.get_close_matches(short, names, n=3)
    remedy = f"Did you mean {', '.join(close)}?" if close else "See RobustBench's leaderboard."
    raise ModelError(where, f"not in the zoo for {_DATASETS[num_classes]}", remedy=remedy)


def _zoo(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        from robustbench.model_zoo import model_dicts
    except ImportError as error:
        raise MachineError(
            f"robustbench:{name}",
            f"needs the package robustbench ({error})",
            remedy=f"{install_extra('robustbench')} Best in an environment of its own: it asks for "
            "old versions of other packages.",
        ) from error
    return {
        dataset.value: {threat.value: dict(entries) for threat, entries in threats.items()}
        for dataset, threats in model_dicts.items()
    }


# --- Networks by name.


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
