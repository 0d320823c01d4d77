"""Networks of timm and torchvision by name, and of a user's own Python file.

Always with new weights: nothing is downloaded. A file is run only after `allow_file`, which the
command line calls for what was typed there: no checkpoint, store or params.yaml has code run.
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

from pipeline.errors import MissingError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "allow_file",
    "build_file",
    "build_timm",
    "build_torchvision",
    "declared_normalisation",
    "names_file",
    "timm_options",
    "torchvision_options",
]

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
        raise _unknown(where, name, timm.list_models())
    options = timm_options(name, num_classes, shape)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(where, shape, error) from error
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
        raise _unknown(where, name, names)
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
        raise _unfit(where, shape, error) from error
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
        raise _unfit(where, shape, error) from error
    if found != (2, num_classes):
        raise ModelError(
            where,
            "does not classify",
            expected=f"logits of shape (2, {num_classes})",
            found=found,
            remedy="Choose a network for classification.",
        )
    return network.train()


def _unknown(where: str, name: str, names: Sequence[str]) -> ModelError:
    close = difflib.get_close_matches(name, names, n=3)
    remedy = f"Did you mean {', '.join(close)}?" if close else "See that package's list_models()."
    return ModelError(where, "no such network", remedy=remedy)


def _unfit(where: str, shape: tuple[int, int, int], error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    size = "×".join(str(side) for side in shape)
    return ModelError(
        where,
        f"cannot take images of {size} ({reason})",
        remedy="Choose another network, or another prepare.image_size.",
    )
