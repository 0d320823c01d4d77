"""The forms that a classifier can be exported in, by name."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import mmap
import sys
import types
import warnings
import zipfile
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

from ltd_pipe import provenance, rng
from ltd_pipe.errors import (
    CheckpointError,
    LtdPipeError,
    MachineError,
    ModelError,
    WriteError,
    install_extra,
)
from ltd_pipe.models.checkpoint import load_classifier, read_facts
from ltd_pipe.models.foreign import fit
from ltd_pipe.models.registry import build, own_call, timm_options, torchvision_options
from ltd_pipe.publish import staged, staged_folder, write_json, write_text
from ltd_pipe.report.reliability import parse_result
from ltd_pipe.report.runs import RunFacts
from ltd_pipe.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ltd_pipe.models.classifier import Classifier


# --- The classifier as others get it: the same arithmetic, without what needs this package.


class Deployed(nn.Module):
    """A classifier's steps in its order, without its checks, which no graph can hold.

    Parameters
    ----------
    model : Classifier
        In evaluation mode; its network is shared, not copied.
    """

    mean: torch.Tensor
    std: torch.Tensor
    columns: torch.Tensor | None

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.network = model.network
        self.temperature = model.temperature
        self.register_buffer("mean", model.mean[:, None, None].clone())
        self.register_buffer("std", model.std[:, None, None].clone())
        self.register_buffer("columns", model.columns, persistent=False)
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K) for images of shape (B, C, H, W), float32, in [0, 1]."""
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        if self.columns is not None:
            logits = logits[:, self.columns]
        return logits / self.temperature


# --- ONNX: one file for onnxruntime and others, with a batch of any size.
#
# The exporter's notes on nodes are taken out: they hold the source lines and paths of this
# machine.


FACTS_PROPERTY = "ltd_pipe"
_IMAGES, _LOGITS = "images", "logits"
_CPU = ["CPUExecutionProvider"]


def write_onnx(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Write a classifier as ONNX, and publish it when onnxruntime gives the same logits.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel as the model's metadata property `ltd_pipe`.
    out : Path
        A file; replaced if it exists. Input `images`, output `logits`.

    Raises
    ------
    MachineError
        When a package of the extra `onnx` is not installed.
    ModelError
        When the exporter cannot write it, or it gives other logits.
    WriteError
        When the disk refuses.
    """
    runtime, checker = package("onnxruntime", "onnx"), package("onnx", "onnx").checker
    package("onnxscript", "onnx")
    program = _exported(model)
    _strip(program.model)
    program.model.metadata_props[FACTS_PROPERTY] = facts_text(facts)
    with staged(out) as beside:
        program.save(str(beside))
        with foreign(out, "loaded by onnxruntime"):
            checker.check_model(str(beside), full_check=True)
            session = runtime.InferenceSession(str(beside), providers=_CPU)
            return require_agreement(model, lambda images: _run(session, images), out)


def _run(session: Any, images: torch.Tensor) -> torch.Tensor:
    (logits,) = session.run([_LOGITS], {_IMAGES: images.numpy()})
    return torch.from_numpy(logits)


def read_onnx_facts(path: Path) -> dict[str, Any]:
    """The facts that travel with an ONNX file, read by onnxruntime."""
    runtime = package("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(path), providers=_CPU)
    properties = session.get_modelmeta().custom_metadata_map
    content: dict[str, Any] = json.loads(properties[FACTS_PROPERTY])
    return content


def _exported(model: Classifier) -> Any:
    with foreign(model.architecture, "written as ONNX"):
        return torch.onnx.export(
            Deployed(model),
            (probes(model.shape)[:2],),
            input_names=[_IMAGES],
            output_names=[_LOGITS],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )


def _strip(model: Any) -> None:
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    nodes = list(graph.all_nodes())
    values += [value for node in nodes for value in node.outputs]
    for part in (model, graph, *values, *nodes):
        part.metadata_props.clear()
        part.doc_string = None


# --- TorchScript: one file that torch loads in Python and C++ without the network's code.
#
# The network is traced, and torch's notes of source lines are taken out of the archive: they
# hold the paths of this machine.


def write_torchscript(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Trace a classifier, write it, and publish it when it gives the same logits.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel as the extra file `ltd_pipe.json`.
    out : Path
        A file; replaced if it exists.

    Raises
    ------
    ModelError
        When it cannot be traced, or gives other logits.
    WriteError
        When the disk refuses.
    """
    archive = io.BytesIO()
    with foreign(model.architecture, "traced"):
        # Two images: a trace of one can take the batch for a constant.
        traced = torch.jit.trace(Deployed(model), probes(model.shape)[:2])  # type: ignore[no-untyped-call]
        torch.jit.save(traced, archive, _extra_files={FACTS_FILE: facts_text(facts)})
    with staged(out) as beside:
        _copy_without_notes(archive, beside)
        with foreign(out, "loaded by torch.jit"):
            loaded = torch.jit.load(str(beside), map_location="cpu")  # type: ignore[no-untyped-call]
            return require_agreement(model, loaded, out)


def read_torchscript_facts(path: Path) -> dict[str, Any]:
    """The facts that travel with a TorchScript file, read by torch's own means."""
    files = {FACTS_FILE: ""}
    with foreign(path, "loaded by torch.jit"):
        torch.jit.load(str(path), map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
    content: dict[str, Any] = json.loads(files[FACTS_FILE])
    return content


def _copy_without_notes(archive: io.BytesIO, path: Path) -> None:
    # Without dates and stored as torch itself stores tensors.
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))


# --- A Python file that holds a classifier without this package: its network, and what is around.
#
# A network of ours is the text of its own file, so that there is no second version of it; one of
# timm or torchvision is a call. The file holds numbers and code, nothing that a data set or a
# person has named.


_HEAD = '''"""A robust image classifier, for RobustBench and all who have torch{needs}.

    from model import load_model
    model = load_model()      # in evaluation mode; takes images in [0, 1], gives logits

Normalisation and temperature are inside. `Model()` has new weights and takes those of
weights.pt by `load_state_dict`, as RobustBench's model zoo does it. Written by ltd-pipe, whose
code this is, under the Apache License 2.0.
"""

from __future__ import annotations

from pathlib import Path
'''
_TAIL = '''

class Model(nn.Module):
    """The network with its normalisation before and its temperature behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = {call}
        mean, std = torch.tensor({mean}), torch.tensor({std})
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)
        self.temperature = {temperature}
        # The weights are the network's own, without a prefix; RobustBench adds `model.` to
        # those of ImageNet and takes it away from all others.
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, {num_classes}) for images of shape (B, {shape}), in [0, 1]."""
        return self.model((images - self.mean) / self.std){order} / self.temperature


def _add_prefix(module, state_dict, prefix, *more):
    del more
    if not all(prefix + name in state_dict for name in module.state_dict()):
        for name in list(state_dict):
            state_dict[prefix + "model." + name[len(prefix) :]] = state_dict.pop(name)


def load_model(weights=Path(__file__).with_name("weights.pt")):
    """The classifier with its weights, on the CPU and in evaluation mode."""
    model = Model()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()
'''


def module_text(model: Classifier) -> str:
    """The text of a module with `Model` and `load_model`; needs torch, and timm or torchvision.

    Parameters
    ----------
    model : Classifier

    Raises
    ------
    ModelError
        When it is a network of RobustBench's zoo.
    """
    package, colon, name = model.architecture.partition(":")
    if package == "robustbench":
        raise ModelError(
            model.architecture,
            "is a network of RobustBench's own zoo",
            remedy="Give its load_model() the weights, or use --to onnx or torchscript.",
        )
    if not colon:
        return _around(model, *_own_network(model))
    if package == "timm":
        options: dict[str, Any] = {"pretrained": False}
        options |= timm_options(name, model.num_classes, model.shape)
        return _around(model, _imports("timm"), _call("timm.create_model", name, options), "timm")
    options = {"weights": None} | torchvision_options(name, model.num_classes, model.shape)
    imports = _imports("torchvision")
    return _around(
        model, imports, _call("torchvision.models.get_model", name, options), "torchvision"
    )


def _around(model: Classifier, network: str, call: str, package: str = "") -> str:
    tail = _TAIL.format(
        call=call,
        mean=model.mean.tolist(),
        std=model.std.tolist(),
        temperature=model.temperature,
        order="" if model.columns is None else f"[:, {model.columns.tolist()}]",
        num_classes=model.num_classes,
        shape=", ".join(map(str, model.shape)),
    )
    needs = f" and {package}" if package else ""
    return f"{_HEAD.format(needs=needs)}{network}{tail}"


def _imports(package: str) -> str:
    return f"\nimport {package}\nimport torch\nfrom torch import nn\n"


def _call(function: str, name: str, options: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{function}({name!r}, {given})"


def _own_network(model: Classifier) -> tuple[str, str]:
    network, arguments = own_call(model.architecture, model.num_classes, model.shape)
    source = inspect.getsource(sys.modules[network.__module__])
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"\n{_body(source)}\n", f"{network.__name__}({given})"


def _body(source: str) -> str:
    """A file without its docstring, `from __future__` and `__all__`: its own head has them."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        ours = (
            (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.ImportFrom) and node.module == "__future__")
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        )
        if ours:
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip()


# --- RobustBench: a folder with a state dict and a module that its model zoo can take in.
#
# `benchmark()` takes any nn.Module in evaluation mode that maps images in [0, 1] to logits
# (robustbench/eval.py), and a zoo entry is a class without arguments beside a file of
# `torch.save` (robustbench/utils.py, `load_model`). A submission is an issue with the claims
# and a link to checkpoint and code: this folder.


MODULE_FILE, WEIGHTS_FILE = "model.py", "weights.pt"


def write_robustbench(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Write a folder for RobustBench, and publish it when its module gives the same logits.

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
        When it is a network of RobustBench's own zoo, or the logits are others.
    WriteError
        When the disk refuses.
    """
    with staged_folder(out) as beside:
        write_text(beside / MODULE_FILE, module_text(model))
        (beside / WEIGHTS_FILE).write_bytes(_weights(model))
        write_json(beside / FACTS_FILE, facts)
        with foreign(out, "loaded from the folder"):
            return require_agreement(model, _loaded(beside / MODULE_FILE), out)


def _weights(model: Classifier) -> bytes:
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.network.state_dict().items()
    }
    # Given a path, torch writes the file's name into the archive.
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _loaded(path: Path) -> Any:
    # Our own text, just written. Not imported, which would leave byte code in the folder.
    module = types.ModuleType("model")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))  # noqa: S102
    return module.load_model()


# --- timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.
#
# timm's models take normalised images, and their transforms take mean and std from config.json,
# so the normalisation stands there. The temperature divides the weights of the last layer,
# whose rows stand in the order of the class names.


# As timm and Hugging Face's hub look for them.
CONFIG_FILE, TIMM_WEIGHTS_FILE = "config.json", "model.safetensors"
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
        safetensors.torch.save_file(state, beside / TIMM_WEIGHTS_FILE, {"format": "pt"})
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
    loaded = timm.create_model(name, checkpoint_path=folder / TIMM_WEIGHTS_FILE, **options).eval()
    return _normalising(loaded, {"mean": model.mean.tolist(), "std": model.std.tolist()})


def _normalising(loaded: nn.Module, config: dict[str, Any]) -> Any:
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))

    def answer(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = loaded((images - mean) / std)
        return logits

    return answer


# --- Whether what was written gives the logits of the classifier that it was written from.


if TYPE_CHECKING:
    Answer = Callable[[torch.Tensor], torch.Tensor]


# Each through a batch of its own size: a graph may have learnt the size that it was traced with.
_BATCHES = (1, 2, 13)
# Of the largest logit. Other kernels sum in another order, which costs a deep network a few
# 1e-6 of it; another mean, temperature or weight shows far above.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes
    ----------
    images : int
        How many were compared.
    difference : float
        The largest between two logits.
    allowed : float
        What rounding may cause.
    """

    images: int
    difference: float
    allowed: float


def probes(shape: tuple[int, int, int]) -> torch.Tensor:
    """The images that are compared, always the same: black, white, and uniform noise.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W).

    Returns
    -------
    Tensor of shape (16, C, H, W), dtype float32, in [0, 1]
    """
    count = sum(_BATCHES)
    images = rng.uniform(rng.stream_key(0, "export-probes"), torch.arange(count), shape)
    # Not at the edges of a batch, so that the small batches hold noise, which tells more.
    images[-3], images[-2] = 0.0, 1.0
    return images


@torch.no_grad()
def require_agreement(model: Classifier, answer: Answer, where: object) -> Agreement:
    """Refuse what does not give the classifier's logits, for batches of several sizes.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    answer : callable
        What was written, loaded again: images of shape (B, C, H, W), float32, in [0, 1] to
        logits of shape (B, K).
    where : object
        What was written, for the message.

    Returns
    -------
    Agreement

    Raises
    ------
    ModelError
        When shapes or values differ, beyond what the order of sums can cause, or the
        classifier's own logits are NaN or infinite.
    """
    batches = _batches(probes(model.shape))
    expected, found = [model(batch) for batch in batches], [answer(batch) for batch in batches]
    for wanted, logits in zip(expected, found, strict=True):
        if not bool(wanted.isfinite().all()):
            raise ModelError(model.architecture, "gives logits that are NaN or infinite")
        if logits.shape != wanted.shape:
            raise ModelError(
                where,
                f"shape of the logits of {len(wanted)} images",
                expected=tuple(wanted.shape),
                found=tuple(logits.shape),
            )
    allowed = _TOLERANCE * float(torch.cat(expected).abs().max())
    difference = float((torch.cat(found) - torch.cat(expected)).abs().max())
    # Written so that NaN is refused, too.
    if not difference <= allowed:
        raise ModelError(
            where,
            "gives other logits than the checkpoint, and was not published",
            expected=f"a difference of at most {allowed:.2g}",
            found=f"{difference:.2g}",
            remedy="Its network cannot be written in this form; try another --to.",
        )
    return Agreement(sum(_BATCHES), difference, allowed)


def _batches(images: torch.Tensor) -> list[torch.Tensor]:
    ends = list(accumulate(_BATCHES, initial=0))
    return [images[begin:end] for begin, end in pairwise(ends)]


# --- What travels with an exported classifier: what it is, and what it was made from.
#
# Equal checkpoints give equal facts: no dates, paths or host names.


FACTS_FILE = "ltd_pipe.json"
_SOFTWARE = ("ltd-pipe", "torch", "torchvision", "timm")


def export_facts(checkpoint: Path) -> dict[str, Any]:
    """Plain values that describe a checkpoint to whoever has only the export.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.

    Returns
    -------
    dict
        What is not known, or does not apply, is None.

    Raises
    ------
    MissingError, CheckpointError, ResultError
        When it is not there, or does not say what it is.
    """
    header = read_facts(checkpoint)
    run = parse_result(header, RunFacts, checkpoint, "ltd-pipe train")
    versions = provenance.software()
    return {
        "format": "ltd-export",
        "version": 1,
        "checkpoint_sha256": provenance.sha256_file(checkpoint),
        "weights_sha256": header["weights_sha256"],
        "architecture": run.architecture,
        "class_names": list(run.class_names),
        "input": {
            "shape": ["batch", *run.shape],
            "dtype": "float32",
            "range": [0, 1],
            # Inside, so that nobody has to apply them.
            "mean": list(header["mean"]),
            "std": list(header["std"]),
        },
        "temperature": run.temperature,
        "threat_model": threat_model(run),
        "data": None if run.data is None else run.data.model_dump(),
        "labels": _labels(run),
        "seed": run.seed,
        "software": {name: versions[name] for name in _SOFTWARE},
    }


def threat_model(run: RunFacts) -> dict[str, Any] | None:
    """The ball that a model was trained in: norm and eps in pixel units; None: clean images."""
    eps = run.params.get("eps")
    if run.kind != "student" or not isinstance(eps, int | float):
        return None
    return {"norm": str(run.params.get("norm", "linf")), "eps": float(eps)}


def facts_text(facts: dict[str, Any]) -> str:
    """The facts as one JSON text, for formats that carry texts beside the weights."""
    return json.dumps(facts, sort_keys=True, allow_nan=False)


def _labels(run: RunFacts) -> dict[str, Any] | None:
    kind = run.params.get("label_kind")
    if run.labels is not None:
        store = {"identity": run.labels.identity, "temperature": run.labels.temperature}
        return {"kind": kind, **store}
    if run.teacher is not None:
        return {"kind": kind, "teacher_sha256": run.teacher.sha256}
    return None if kind is None else {"kind": kind}


# --- What all forms share: what --force may replace, and other packages' code.


_MARK = b'"format": "ltd-export"'


def require_replaceable(out: Path, *, folder: bool, replace: bool) -> None:
    """Refuse to publish over what is there, unless it is an export and may be replaced.

    Parameters
    ----------
    out : Path
    folder : bool
        Whether a folder is going to be written, or a file.
    replace : bool

    Raises
    ------
    WriteError
        When `out` exists and `replace` is false, or it is no export of that kind: something
        else must never be lost to a slip of the keyboard.
    """
    if not out.exists() and not out.is_symlink():
        return
    if folder != out.is_dir():
        kind = "is a folder" if out.is_dir() else "is no folder"
        raise WriteError(out, kind, remedy="Choose another --out.")
    if not replace:
        raise WriteError(
            out, "exists already", remedy="Pass --force to replace it, or another --out."
        )
    if out.is_symlink() or not ((out / FACTS_FILE).is_file() if folder else _is_export(out)):
        raise WriteError(
            out,
            "is no exported model, and --force replaces those only",
            remedy="Choose another --out.",
        )


def _is_export(path: Path) -> bool:
    # Uncompressed in each of our files; the weights around it may be large.
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_MARK) >= 0


def package(name: str, extra: str) -> Any:
    """Import a package that not every installation has.

    Raises
    ------
    MachineError
        Naming the extra that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MachineError(
            name,
            f"is not installed, and '--to {extra}' needs it",
            remedy=install_extra(extra),
        ) from error


@contextlib.contextmanager
def foreign(where: object, what: str) -> Iterator[None]:
    """Run another package's code: without its warnings, and its failures said as ours are.

    Parameters
    ----------
    where : object
        What is written, or the architecture.
    what : str
        What the package was to do: "cannot be …".

    Raises
    ------
    ModelError
        When it raised anything but an error of ours or of the operating system.
    """
    try:
        with warnings.catch_warnings():
            # What an exporter warns of having got wrong, the comparison of logits finds.
            warnings.simplefilter("ignore")
            yield
    except (LtdPipeError, OSError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            where,
            f"cannot be {what} ({one_line(lines[0])})",
            remedy="Nothing was published. Try another --to.",
        ) from error


# --- The forms that a classifier can be exported in, by name.


@dataclass(frozen=True)
class Target:
    """One form.

    Attributes
    ----------
    write : callable
        Writes, compares and publishes.
    folder : bool
        Whether a folder is written, or a file.
    loading : str
        Python that loads it, with {out} for its name.
    """

    write: Callable[[Classifier, dict[str, Any], Path], Agreement]
    folder: bool
    loading: str


TARGETS = {
    "robustbench": Target(
        write_robustbench,
        folder=True,
        loading="sys.path.insert(0, {out!r}); from model import load_model; model = load_model()",
    ),
    "timm": Target(
        write_timm,
        folder=True,
        loading="timm.create_model({name!r}, pretrained=True).eval()",
    ),
    "onnx": Target(write_onnx, folder=False, loading="onnxruntime.InferenceSession({out!r})"),
    "torchscript": Target(write_torchscript, folder=False, loading="torch.jit.load({out!r})"),
}


def export(checkpoint: Path, to: str, out: Path, *, replace: bool = False) -> Agreement:
    """Write a checkpoint in another form, prove that it gives the same logits, publish it.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.
    to : str
        One of `TARGETS`.
    out : Path
        File or folder, as the form has it.
    replace : bool
        Replace an older export of that name.

    Returns
    -------
    Agreement

    Raises
    ------
    LtdPipeError
        When the checkpoint is none of ours, cannot be written in that form, or does not give
        the same logits in it; nothing is published then.
    """
    target = TARGETS[to]
    require_replaceable(out, folder=target.folder, replace=replace)
    return target.write(load_classifier(checkpoint), export_facts(checkpoint), out)
