"""timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

timm's models take normalised images, and their transforms take mean and std from config.json,
so the normalisation stands there. The temperature divides the weights of the last layer,
whose rows stand in the order of the class names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

from pipeline.errors import CheckpointError, ModelError
from pipeline.export.agreement import Agreement, require_agreement
from pipeline.export.facts import FACTS_FILE
from pipeline.export.writing import foreign
from pipeline.models.external import timm_options
from pipeline.models.registry import build
from pipeline.models.weights import fit
from pipeline.publish import staged_folder, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.classifier import Classifier

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "timm_name", "write_timm"]

# As timm and Hugging Face's hub look for them.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_REMEDY = "Use --to robustbench, onnx or torchscript, which take every architecture."


def timm_name(architecture: str) -> str:
    """What timm calls a network of the registry.

    Parameters
    ----------
    architecture : str
        `timm:NAME`, or a `torchvision:NAME` whose network timm has under the same name.

    Raises
    ------
    ModelError
        When timm has none of that name.
    """
    import timm

    package, _, name = architecture.partition(":")
    if package in ("timm", "torchvision") and timm.is_model(name):
        return name
    raise ModelError(
        architecture,
        "timm has no such network",
        expected="one that was trained as timm:NAME, or torchvision's ResNets and their like",
        remedy=_REMEDY,
    )


def write_timm(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Write a folder for timm, and publish it when timm gives the same logits from it.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel in `ltd_pipe.json`.
    out : Path
        A folder; replaced if it exists.

    Raises
    ------
    ModelError
        When timm has no such network, its last layer cannot take the temperature, or the
        logits are others.
    WriteError
        When the disk refuses.
    """
    name = timm_name(model.architecture)
    network = _timm_network(model, name)
    state = _with_last_layer(network, model)
    with staged_folder(out) as beside:
        safetensors.torch.save_file(state, beside / WEIGHTS_FILE, {"format": "pt"})
        write_json(beside / CONFIG_FILE, _config(model, name, network))
        write_json(beside / FACTS_FILE, facts)
        with foreign(out, "loaded by timm"):
            loaded = _as_timm_loads(beside)
            agreement = require_agreement(model, loaded, out)
            # The other way, which takes the weights alone.
            require_agreement(model, _as_checkpoint(beside, name, model), out)
    return agreement


def _timm_network(model: Classifier, name: str) -> nn.Module:
    if model.architecture.startswith("timm:"):
        return model.network
    with torch.random.fork_rng(devices=[]):
        network = build(f"timm:{name}", model.num_classes, model.shape)
    try:
        fit(network, model.network.state_dict(), model.architecture)
    except CheckpointError as error:
        raise ModelError(
            model.architecture,
            f"timm's {name} has other weights",
            remedy=_REMEDY,
        ) from error
    return network.eval()


def _with_last_layer(network: nn.Module, model: Classifier) -> dict[str, torch.Tensor]:
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    if model.temperature == 1.0 and model.columns is None:
        return state
    head = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise ModelError(
            model.architecture,
            "its last layer cannot take the temperature and the order of the classes",
            expected="Linear",
            found=type(head).__name__,
            remedy=_REMEDY,
        )
    (prefix,) = (name for name, module in network.named_modules() if module is head)
    for name in (f"{prefix}.weight", f"{prefix}.bias"):
        if name in state:
            ordered = state[name] if model.columns is None else state[name][model.columns]
            state[name] = ordered / model.temperature
    return state


def _config(model: Classifier, name: str, network: nn.Module) -> dict[str, Any]:
    known: Any = network.pretrained_cfg
    options = timm_options(name, model.num_classes, model.shape)
    return {
        # Without the tag of timm's own weights, which these are not.
        "architecture": name.partition(".")[0],
        "num_classes": model.num_classes,
        "label_names": list(model.class_names),
        "model_args": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in options.items()
            if key != "num_classes"
        },
        "pretrained_cfg": {
            "tag": "ltd_pipe",
            "custom_load": False,
            "input_size": list(model.shape),
            "fixed_input_size": "img_size" in options,
            "interpolation": "bilinear",
            # The whole image: the pipeline cuts no border off when it evaluates.
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": model.mean.tolist(),
            "std": model.std.tolist(),
            "num_classes": model.num_classes,
            # What timm replaces when it is asked for other channels or classes.
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _as_timm_loads(folder: Path) -> Any:
    import timm
    from timm.data.config import resolve_model_data_config

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return _normalising(loaded, resolve_model_data_config(loaded))  # type: ignore[no-untyped-call]


def _as_checkpoint(folder: Path, name: str, model: Classifier) -> Any:
    import timm

    options = timm_options(name, model.num_classes, model.shape)
    loaded = timm.create_model(name, checkpoint_path=folder / WEIGHTS_FILE, **options).eval()
    return _normalising(loaded, {"mean": model.mean.tolist(), "std": model.std.tolist()})


def _normalising(loaded: nn.Module, config: dict[str, Any]) -> Any:
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))

    def answer(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = loaded((images - mean) / std)
        return logits

    return answer
