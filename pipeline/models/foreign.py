"""Other projects' weights: what they are wrapped in, and what they call things."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ltd_pipe.errors import (
    DAMAGED_ZIP,
    CheckpointError,
    ModelError,
    reason_of,
    refuse_pointer,
    require_file,
)
from ltd_pipe.models.checkpoint import fit, read_tensors
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.facts import is_pickle
from ltd_pipe.text import nfc

ClassOrder = Literal["natural", "lexical"]

# Where training scripts keep their state dict. The moving average comes first: it is what
# those scripts evaluate.
_WRAPPERS = (
    "model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model", "net", "last",
)  # fmt: skip
# A hostile file can hold a dict that holds itself.
_DEEPEST = 3
# DataParallel, torch.compile, and wrapping modules.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
# A second first stage in the networks of TRADES, AWP and their kin, and outputs of torchvision's
# googlenet and inception_v3 for training: saved, but never run.
_NEVER_RUN = ("sub_block1.", "aux1.", "aux2.", "AuxLogits.")
# Input normalisation that RobustBench and others keep among the weights.
_CONSTANTS = (("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"))
_ALL_CONSTANTS = frozenset(name for names in _CONSTANTS for name in names)
_SAME_CONSTANT = 1e-4


def load_foreign(
    path: Path,
    architecture: str,
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: Sequence[int] | None = None,
) -> Classifier:
    """Load another project's weights, on the CPU and in evaluation mode.

    Parameters
    ----------
    path : Path
        A state dict as safetensors or of torch.save, bare or under one of the usual keys
        (a moving average is preferred), with or without the usual prefixes.
    architecture : str
        The registry's name of the network that the weights belong to.
    class_names : sequence of str
    shape : tuple of int
        (C, H, W) of the images that it was trained on.
    mean, std : sequence of float, optional
        The network's input normalisation. None: what the file holds, else 0 and 1.
    columns : sequence of int, optional
        For each class the network's output that means it, see `columns_of`.

    Raises
    ------
    MissingError
        When there is no such file.
    CheckpointError
        When it is damaged, holds code, or does not fit the network.
    ModelError
        When there is no such architecture, or the constants make no sense.
    """
    content = _read_pickle(path) if is_pickle(path) else read_tensors(path)
    model = Classifier.unfitted(
        architecture, class_names, shape, mean=mean, std=std, columns=columns
    )
    expected = model.network.state_dict()
    # RobustBench's networks are built with the normalisation that few of its files hold.
    optional = _ALL_CONSTANTS if architecture.startswith("robustbench:") else frozenset()
    state = _renamed(_unwrapped(content, path), expected, path, optional)
    for pair in _CONSTANTS:
        if all(name in state and name not in expected for name in pair):
            held = [state.pop(name).flatten().tolist() for name in pair]
            model.normalise(
                _agreed(mean, held[0], f"{path}: mean"), _agreed(std, held[1], f"{path}: std")
            )
    fit(model.network, state, path)
    return model.eval()


def _unwrapped(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(_DEEPEST):
        if isinstance(content, dict):
            inside = (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict))
            content = next(inside, content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(path, "holds no state dict", found=type(content).__name__)
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise CheckpointError(
                path,
                "holds no state dict",
                found=f"{type(tensor).__name__} under {name!r:.60}",
                remedy=f"Save the state dict alone, or under '{_WRAPPERS[2]}'.",
            )
    return content


def _renamed(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    path: Path,
    optional: frozenset[str],
) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for given, tensor in _without_common_prefix(state, expected).items():
        name = _without_prefixes(given, expected)
        if name.startswith(_NEVER_RUN) and name not in expected:
            continue
        if name in renamed:
            raise CheckpointError(path, f"holds '{name}' twice, under different prefixes")
        renamed[name] = tensor
    for name, tensor in expected.items():
        # torch before 0.4.1 did not count batches; the count only matters to training.
        if name.endswith("num_batches_tracked") or name in optional:
            renamed.setdefault(name, tensor)
    return renamed


def _without_common_prefix(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Without the attribute that held the network elsewhere, whatever its name."""
    # torch's AveragedModel counts its steps beside the weights.
    found = {name: state[name] for name in state if name in expected or name != "n_averaged"}
    while found:
        prefix = next(iter(found)).partition(".")[0] + "."
        if not all(name.startswith(prefix) and not _is_known(name, expected) for name in found):
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _is_known(name: str, expected: Mapping[str, torch.Tensor]) -> bool:
    # RobustBench puts an input normalisation around networks that were saved without.
    return name in expected or f"model.{name}" in expected


def _without_prefixes(name: str, expected: Mapping[str, torch.Tensor]) -> str:
    while name not in expected:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return f"model.{name}" if name not in expected and _is_known(name, expected) else name


def _agreed(given: Sequence[float] | None, held: list[float], where: str) -> Sequence[float]:
    """What was given, or what the file holds; refuse when they differ."""
    if given is None:
        return held
    if len(given) != len(held) or not np.allclose(given, held, rtol=0, atol=_SAME_CONSTANT):
        raise CheckpointError(
            where,
            "other input normalisation",
            expected=list(given),
            found=[round(value, 4) for value in held],
            remedy="Leave it out: the checkpoint brings its own.",
        )
    return given


def natural_order(class_names: Sequence[str]) -> list[str]:
    """Names as timm sorts them: numbers by their value, letters without regard to case."""

    def key(name: str) -> list[Any]:
        parts: list[Any] = re.split(r"(\d+)", name.lower())
        parts[1::2] = map(int, parts[1::2])
        return parts

    return sorted(class_names, key=key)


def columns_of(
    class_names: Sequence[str], classes: Path | None, order: ClassOrder | None
) -> list[int] | None:
    """For each class of the data, the output of another project's network that means it.

    `class_names` are the data's, in its order; `classes` is a file of the network's, in its order:
    a name per line, a JSON list, or a JSON dict from numbers to names (each may be a list of one
    class's names) or from names to numbers. Without it `order` says how the network's are sorted;
    None: as the data's are. A MissingError or ModelError when the file is not there, or names other
    classes.
    """
    if classes is not None:
        class_names = [nfc(name) for name in class_names]
        theirs = [nfc(name) for name in _read_classes(classes, frozenset(class_names))]
        if sorted(theirs) != sorted(class_names):
            ours, given = set(class_names), set(theirs)
            lacking, unknown = sorted(ours - given), sorted(given - ours)
            raise ModelError(
                classes,
                "names other classes than the data has",
                expected=f"{len(class_names)} classes, {_few(class_names)}",
                found=f"{len(theirs)}"
                + (f", without {_few(lacking)}" if lacking else "")
                + (f", with {_few(unknown)}, which the data have not" if unknown else "")
                + ("" if lacking or unknown else ", some of them twice"),
                remedy="Give a name per line, as the data's folders have them, in the order of "
                "the network's outputs.",
            )
    elif order is not None:
        theirs = natural_order(class_names) if order == "natural" else sorted(class_names)
    else:
        return None
    return [theirs.index(name) for name in class_names]


def _few(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")


def _read_classes(path: Path, known: frozenset[str]) -> list[str]:
    refuse_pointer(require_file(path), path, ModelError)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(path, f"is no text of class names ({reason_of(error)})") from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text)
        if isinstance(content, dict) and all(type(at) is int for at in content.values()):
            content = {at: name for name, at in content.items()}
        if isinstance(content, dict):
            numbered = {int(at): names for at, names in content.items()}
            content = [numbered[at] for at in range(len(numbered))]
        # One class may have several names, as ImageNet's "n01440764" and "tench".
        several = [names if isinstance(names, list) else [names] for names in content]
        found = [
            next((name for name in names if nfc(name) in known), names[0]) for names in several
        ]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ModelError(
            path,
            "is no list of class names",
            expected='["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}',
        ) from error
    return [str(name) for name in found]


# --- Files of torch.save, which may be hostile.


# What torch raises for files that are damaged; a few come from its unpickler's own slips.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, MemoryError, AssertionError, OSError, struct.error,
)  # fmt: skip
_CODE = re.compile(r"(?:unsupported GLOBAL|Unsupported global: GLOBAL) (\S+)")


def _read_pickle(path: Path) -> Any:
    """Read a file of torch.save with everything but tensors and plain containers refused."""
    _require_honest_archive(path)
    try:
        # Given a path, torch goes by the name's ending instead of by the content.
        # timm's training scripts, and many like them, keep their options beside the weights: a
        # Namespace, which holds what the file gives it and runs nothing.
        harmless = torch.serialization.safe_globals([argparse.Namespace])
        with path.open("rb") as handle, warnings.catch_warnings(), harmless:
            # torch wonders about protocols that it then reads or refuses.
            warnings.simplefilter("ignore")
            return torch.load(handle, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        remedy = "Load it where you trust it and save torch.save(model.state_dict(), ...) instead."
        if "TorchScript" in str(error):
            what = "is TorchScript, which holds code and is never loaded"
            remedy = "Give the checkpoint that it was exported from, or that network's state_dict."
        elif code := _CODE.search(str(error)):
            what = f"holds code ({code[1].rstrip('.')}), which is never loaded; only tensors are"
        elif isinstance(error, pickle.UnpicklingError):
            what = "holds more than tensors, or code, and is never loaded"
        else:
            what = f"is no readable file of torch.save ({reason_of(error)})"
            remedy = "Copy it again from where it came from."
        raise CheckpointError(path, what, remedy=remedy) from error


def _require_honest_archive(path: Path) -> None:
    """Refuse zip bombs: torch.save never compresses, so entries cannot exceed the file."""
    try:
        # is_zipfile raises too, on some damaged directories.
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGED_ZIP as error:
        raise CheckpointError(path, f"is a damaged archive ({reason_of(error)})") from error
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            path,
            "holds compressed or overlapping entries, which torch.save never writes",
            expected=f"at most {size:,} bytes unpacked",
            found=f"{unpacked:,}",
            remedy="Save the weights again with torch.save(model.state_dict(), ...).",
        )
