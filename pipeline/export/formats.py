"""Export a checkpoint to RobustBench, timm, ONNX or TorchScript.

Each format is one function: it writes the classifier to a path and returns it as the format's
own library loads it back. `write_export` compares that one's logits with the checkpoint's, and
publishes what was written only where they agree.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import safetensors.torch
import torch
from torch import nn

from ltd_pipe import errors, provenance, rng
from ltd_pipe.errors import (
    CheckpointError,
    LtdPipeError,
    MachineError,
    ModelError,
    WriteError,
    reason_of,
)
from ltd_pipe.models.checkpoint import fit, load_classifier
from ltd_pipe.models.registry import (
    build,
    names_file,
    own_network,
    timm_options,
    torchvision_options,
)
from ltd_pipe.publish import staged, write_json, write_text
from ltd_pipe.report.runs import read_checkpoint
from ltd_pipe.text import one_line

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier

    Network = Callable[[torch.Tensor], torch.Tensor]

# In each export: beside the weights, or inside the file.
FACTS_FILE = "ltd_pipe.json"
_FACTS_PROPERTY = "ltd_pipe"
_FORMAT = b'"format": "ltd-export"'
_SOFTWARE = ("ltd-pipe", "torch", "torchvision", "timm")
_CHOOSE_ANOTHER = "Choose another --out."


def export(checkpoint: Path, to: str, out: Path, *, replace: bool = False) -> Agreement:
    """Write a checkpoint in another format, check that it gives the same logits, publish it.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.
    to : str
        One of `FORMATS`.
    out : Path
        A file or a folder, as the format has it.
    replace : bool
        Replace an older export of that name.

    Raises
    ------
    LtdPipeError
        When the checkpoint is none of ours, cannot be written in that format, or gives other
        logits in it; nothing is published then.
    """
    _require_replaceable(out, folder=FORMATS[to].folder, replace=replace)
    return write_export(load_classifier(checkpoint), export_facts(checkpoint), to, out)


def write_export(model: Classifier, facts: dict[str, Any], to: str, out: Path) -> Agreement:
    """Write beside `out`, load back with the foreign library, compare the logits, publish.

    The model is on the CPU and in evaluation mode; `facts` of `export_facts` travel with it.

    Raises
    ------
    MachineError
        When a package of the extra `onnx` is not installed.
    ModelError
        When the format cannot hold the network, or the logits differ.
    WriteError
        When the disk refuses.
    """
    target = FORMATS[to]
    with staged(out, folder=target.folder) as beside, _foreign_code(out, to):
        if target.folder:
            write_json(beside / FACTS_FILE, facts)
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
        networks = target.write(model, text, beside)
        agreements = [require_agreement(model, network, out) for network in networks]
    return agreements[0]


def _require_replaceable(out: Path, *, folder: bool, replace: bool) -> None:
    """Refuse to publish over what is there, unless it is an export and may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if folder != out.is_dir():
        kind = "is a folder" if out.is_dir() else "is no folder"
        raise WriteError(out, kind, remedy=_CHOOSE_ANOTHER)
    if not replace:
        remedy = "Pass --force to replace it, or another --out."
        raise WriteError(out, "exists already", remedy=remedy)
    # The facts are uncompressed in each of our files.
    if out.is_symlink() or not (
        (out / FACTS_FILE).is_file() if folder else _FORMAT in out.read_bytes()
    ):
        what = "is no exported model, and --force replaces those only"
        raise WriteError(out, what, remedy=_CHOOSE_ANOTHER)


@contextlib.contextmanager
def _foreign_code(out: Path, to: str) -> Iterator[None]:
    """Run other packages' code without its warnings, and raise its failures as ModelError."""
    try:
        with warnings.catch_warnings():
            # What an exporter warns of having got wrong, the comparison of logits finds.
            warnings.simplefilter("ignore")
            yield
    except (LtdPipeError, OSError):
        raise
    except Exception as error:
        raise ModelError(
            out,
            f"cannot be written for {to} ({one_line(reason_of(error))})",
            remedy="Nothing was published. Try another --to.",
        ) from error


# ---------------------------------------------------------------- the same logits

# Each through a batch of its own size: a graph may have learnt the size that it was traced with.
_BATCHES = (1, 2, 13)
# Of the largest logit. Other kernels sum in another order, which costs a deep network a few
# 1e-6 of it; another mean, temperature or weight shows far above.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How many images were compared, the largest difference of two logits, and what may be."""

    images: int
    difference: float
    allowed: float


def probes(shape: tuple[int, int, int]) -> torch.Tensor:
    """The 16 images that are compared, always the same: black, white, and uniform noise."""
    count = sum(_BATCHES)
    images = rng.uniform(rng.stream_key(0, "export-probes"), torch.arange(count), shape)
    # Not at the edges of a batch, so that the small batches hold noise, which tells more.
    images[-3], images[-2] = 0.0, 1.0
    return images


@torch.no_grad()
def require_agreement(model: Classifier, network: Network, where: object) -> Agreement:
    """Refuse a network that does not give the classifier's logits, for batches of several sizes.

    Raises
    ------
    ModelError
        When shapes or values differ, beyond what the order of sums can cause, or the
        classifier's own logits are NaN or infinite.
    """
    batches = torch.split(probes(model.shape), list(_BATCHES))
    expected, found = [model(batch) for batch in batches], [network(batch) for batch in batches]
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


# ---------------------------------------------------------------- facts


def export_facts(checkpoint: Path) -> dict[str, Any]:
    """Plain values that describe a checkpoint to whoever has only the export.

    Equal checkpoints give equal facts: no dates, paths or host names. What is not known, or
    does not apply, is None.

    Raises
    ------
    MissingError, CheckpointError, ResultError
        When it is not there, or does not say what it is.
    """
    model = read_checkpoint(checkpoint, "checkpoint")
    run = model.facts
    versions, kind = provenance.software(), run.params.get("label_kind")
    labels = None if kind is None else {"kind": kind}
    if run.labels is not None:
        labels = {"kind": kind, **run.labels.model_dump(include={"identity", "temperature"})}
    elif run.teacher is not None:
        labels = {"kind": kind, "teacher_sha256": run.teacher.sha256}
    return {
        "format": "ltd-export",
        "version": 1,
        "checkpoint_sha256": model.sha256,
        "weights_sha256": run.weights_sha256,
        "architecture": run.architecture,
        "class_names": list(run.class_names),
        "input": {
            "shape": ["batch", *run.shape],
            "dtype": "float32",
            "range": [0, 1],
            # Inside, so that nobody has to apply them.
            "mean": list(run.mean),
            "std": list(run.std),
        },
        "temperature": run.temperature,
        "threat_model": run.threat_model,
        "data": None if run.data is None else run.data.model_dump(),
        "labels": labels,
        "seed": run.seed,
        "software": {name: versions[name] for name in _SOFTWARE},
    }


class Deployed(nn.Module):
    """A classifier's arithmetic without its checks, which no graph can hold; shares its network."""

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


def _state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }


# ---------------------------------------------------------------- ONNX


# protobuf's limit of a message is 2 GiB; some of that is the graph's.
_MOST_ONNX_BYTES = 2**31 - 2**26


def _write_onnx(model: Classifier, facts: str, path: Path) -> Sequence[Network]:
    """One file for onnxruntime and others, with a batch of any size."""
    runtime, onnx = _require_package("onnxruntime"), _require_package("onnx")
    _require_package("onnxscript")
    size = sum(each.nbytes for each in model.state_dict().values())
    if size > _MOST_ONNX_BYTES:
        raise ModelError(
            model.architecture,
            "has more weights than one ONNX file can hold",
            expected=f"at most {_MOST_ONNX_BYTES / 2**20:,.0f} MiB",
            found=f"{size / 2**20:,.0f} MiB",
            remedy="Export it with --to torchscript.",
        )
    program: Any = torch.onnx.export(
        Deployed(model),
        (probes(model.shape)[:2],),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    # The exporter's notes hold the source lines and paths of this machine.
    graph, nodes = program.model.graph, list(program.model.graph.all_nodes())
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    values += [value for node in nodes for value in node.outputs]
    for part in (program.model, graph, *values, *nodes):
        part.metadata_props.clear()
        part.doc_string = None
    program.model.metadata_props[_FACTS_PROPERTY] = facts
    # Not by its own `save`, which puts large weights into a second file.
    onnx.save_model(program.model_proto, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return [run]


def _require_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MachineError(
            name, "is not installed, and '--to onnx' needs it", remedy=errors.install_extra("onnx")
        ) from error


# ---------------------------------------------------------------- TorchScript


def _write_torchscript(model: Classifier, facts: str, path: Path) -> Sequence[Network]:
    """One file that torch loads in Python and C++ without the network's code."""
    archive = io.BytesIO()
    # Two images: a trace of one can take the batch for a constant.
    traced = torch.jit.trace(Deployed(model), probes(model.shape)[:2])  # type: ignore[no-untyped-call]
    torch.jit.save(traced, archive, _extra_files={FACTS_FILE: facts})
    # Without dates, stored as torch itself stores tensors, and without torch's notes of source
    # lines, which hold the paths of this machine.
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return [torch.jit.load(str(path), map_location="cpu")]  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------- RobustBench
#
# `benchmark()` takes any nn.Module in evaluation mode that maps images in [0, 1] to logits
# (robustbench/eval.py), and a zoo entry is a class without arguments beside a file of
# `torch.save` (robustbench/utils.py, `load_model`). A submission is an issue with the claims
# and a link to checkpoint and code: this folder.


def _write_robustbench(model: Classifier, _: str, folder: Path) -> Sequence[Network]:
    """A folder with a state dict and a module that RobustBench's model zoo can take in."""
    text, content = module_text(model), io.BytesIO()
    write_text(folder / "model.py", text)
    # Given a path, torch writes the file's name into the archive.
    torch.save(_state_dict(model.network), content)
    (folder / "weights.pt").write_bytes(content.getvalue())
    # Not imported, which would leave byte code in the folder.
    module = types.ModuleType("model")
    module.__file__ = str(folder / "model.py")
    exec(compile(text, module.__file__, "exec"), vars(module))  # noqa: S102  our own text
    return [module.load_model()]


def module_text(model: Classifier) -> str:
    """The text of a module with `Model` and `load_model`; needs torch, and timm or torchvision.

    It holds numbers and code, nothing that a data set or a person has named. A network of ours
    is the text of its own file, so that there is no second version of it; one of timm or
    torchvision is a call.

    Raises
    ------
    ModelError
        When it is a network of RobustBench's zoo, or of a user's own file.
    """
    if names_file(model.architecture):
        raise ModelError(model.architecture, "is made by a file of your own", remedy=_OTHER_FORMATS)
    package, colon, name = model.architecture.partition(":")
    if package == "robustbench":
        raise ModelError(
            model.architecture,
            "is a network of RobustBench's own zoo",
            remedy="Give its load_model() the weights, or use --to onnx or torchscript.",
        )
    network = f"import {package}\nimport torch\nfrom torch import nn"
    if not colon:
        made, options = own_network(package, model.num_classes, model.shape)
        network, function, given = _source_of(made), made.__name__, []
    elif package == "timm":
        function, given = "timm.create_model", [repr(name), "pretrained=False"]
        options = timm_options(name, model.num_classes, model.shape)
    else:
        function, given = "torchvision.models.get_model", [repr(name), "weights=None"]
        options = torchvision_options(name, model.num_classes, model.shape)
    call = f"{function}({', '.join([*given, *(f'{key}={v!r}' for key, v in options.items())])})"
    template = jinja2.Template(
        Path(__file__).with_name("robustbench.py.j2").read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    needs = f" and {package}" if colon else ""
    text: str = template.render(needs=needs, network=network, call=call, model=model)
    return text


def _source_of(network: type[nn.Module]) -> str:
    """The text of a class, and of the imports, helpers and classes that it uses of its module."""
    source = inspect.getsource(sys.modules[network.__module__])
    module, needed, wanted = ast.parse(source), set[str](), {"torch", "nn", network.__name__}
    while wanted > needed:
        needed = set(wanted)
        for node in module.body:
            if _defined(node) & needed:
                wanted |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    used = [node for node in module.body if _defined(node) & needed]
    imports = [ast.unparse(node) for node in used if isinstance(node, ast.Import | ast.ImportFrom)]
    definitions = [ast.get_source_segment(source, node) for node in used[len(imports) :]]
    return "\n\n\n".join(["\n".join(imports), *map(str, definitions)])


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    return {getattr(statement, "name", "")}


# ---------------------------------------------------------------- timm
#
# timm's models take normalised images, and their transforms take mean and std from config.json,
# so the normalisation stands there. The temperature divides the weights of the last layer,
# whose rows stand in the order of the class names.

_OTHER_FORMATS = "Use --to onnx or torchscript, which take every architecture."


def _write_timm(model: Classifier, _: str, folder: Path) -> Sequence[Network]:
    """A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""
    import timm
    from timm.data.config import resolve_model_data_config

    name = timm_name(model.architecture)
    network, weights = _timm_network(model, name), folder / "model.safetensors"
    options = timm_options(name, model.num_classes, model.shape)
    safetensors.torch.save_file(_with_last_layer(network, model), weights, {"format": "pt"})
    write_json(folder / "config.json", _timm_config(model, name, network, options))

    def normalising(loaded: nn.Module, config: dict[str, Any]) -> Network:
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
        loaded.eval()
        return lambda images: loaded((images - mean) / std)

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    # The other way, which takes the weights alone.
    bare = timm.create_model(name, checkpoint_path=weights, **options)
    return [
        normalising(loaded, resolve_model_data_config(loaded)),  # type: ignore[no-untyped-call]
        normalising(bare, {"mean": model.mean.tolist(), "std": model.std.tolist()}),
    ]


def timm_name(architecture: str) -> str:
    """What timm calls `timm:NAME`, or a `torchvision:NAME` that it has under the same name.

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
        remedy=_OTHER_FORMATS,
    )


def _timm_network(model: Classifier, name: str) -> nn.Module:
    if model.architecture.startswith("timm:"):
        return model.network
    with torch.random.fork_rng(devices=[]):
        network = build(f"timm:{name}", model.num_classes, model.shape)
    try:
        fit(network, model.network.state_dict(), model.architecture)
    except CheckpointError as error:
        what = f"timm's {name} has other weights"
        raise ModelError(model.architecture, what, remedy=_OTHER_FORMATS) from error
    return network.eval()


def _with_last_layer(network: nn.Module, model: Classifier) -> dict[str, torch.Tensor]:
    """The weights, with temperature and order of the classes in the last layer."""
    state = _state_dict(network)
    if model.temperature == 1.0 and model.columns is None:
        return state
    head = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise ModelError(
            model.architecture,
            "its last layer cannot take the temperature and the order of the classes",
            expected="Linear",
            found=type(head).__name__,
            remedy=_OTHER_FORMATS,
        )
    (prefix,) = (name for name, module in network.named_modules() if module is head)
    for name in (f"{prefix}.weight", f"{prefix}.bias"):
        if name in state:
            ordered = state[name] if model.columns is None else state[name][model.columns]
            state[name] = ordered / model.temperature
    return state


def _timm_config(
    model: Classifier, name: str, network: nn.Module, options: dict[str, Any]
) -> dict[str, Any]:
    known: Any = network.pretrained_cfg
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
            "interpolation": "bicubic",  # as images are resized here
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


# ---------------------------------------------------------------- by name


@dataclass(frozen=True)
class Format:
    """A format: its writer, whether it writes a folder, and Python that loads {out}.

    The facts as one JSON text are for files; in a folder they lie beside.
    """

    write: Callable[[Classifier, str, Path], Sequence[Network]]
    folder: bool
    loading: str


FORMATS = {
    "robustbench": Format(
        _write_robustbench,
        folder=True,
        loading="sys.path.insert(0, {out!r}); from model import load_model; model = load_model()",
    ),
    "timm": Format(
        _write_timm, folder=True, loading="timm.create_model({name!r}, pretrained=True).eval()"
    ),
    "onnx": Format(_write_onnx, folder=False, loading="onnxruntime.InferenceSession({out!r})"),
    "torchscript": Format(_write_torchscript, folder=False, loading="torch.jit.load({out!r})"),
}
