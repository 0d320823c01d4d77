"""Networks of timm and torchvision by name, always with new weights: nothing is downloaded."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = [
    "build_timm",
    "build_torchvision",
    "declared_normalisation",
    "timm_options",
    "torchvision_options",
]

# Their second output exists in training mode only and would change the result's type.
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
_TORCHVISION_OPTIONS = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}


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
    images = torch.zeros(2, *shape, device=next(network.parameters()).device)
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
