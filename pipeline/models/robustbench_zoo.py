"""Networks of RobustBench's model zoo by name, with weights that are already here.

The package is asked for the network alone. Its own loader would fetch and unpickle the weights;
here they are read as any other project's are, tensors only.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MachineError, MissingError, ModelError, install_extra

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_robustbench", "zoo_weights"]

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
