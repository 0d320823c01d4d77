"""What made a result: hashes of inputs, versions of software, the hardware it ran on.

What decides a result names the state of an interrupted run (`StateRecord`); what only changes how
it is rounded is kept there, to be told when the run goes on elsewhere.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltd_pipe.errors import MissingError
from ltd_pipe.publish import read_json, write_json
from ltd_pipe.text import differences

if TYPE_CHECKING:
    import torch

# What can change a result; the rest of the lock file cannot.
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "zarr", "ffcv", "timm", "pyautoattack")
# Where the work of each kind of run begins: with what it is given, it imports all that decides.
_TRAINING = ("training.run", "params.fit", "images.stream")
WORK = {
    "teacher": _TRAINING,
    "student": (*_TRAINING, "labels.reader"),
    "evaluate": ("evaluation.robustness", "images.stream"),
    "audit": ("evaluation.audit", "images.stream"),
    "label": ("labels.labelling", "labels.writer", "models.foreign", "images.stream"),
}
# What work imports, and what no number goes through: files, messages, a store's README.md.
_PLUMBING = ("", ".errors", ".labels.card", ".provenance", ".publish", ".text")
_RECORD = "run.json"
# In a clone src/ltd_pipe is a link to it.
_PACKAGE = Path(__file__).resolve().parent


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal; a MissingError where there is none."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file") from error


def digest(content: Mapping[str, Any] | Sequence[Any]) -> str:
    """SHA-256 over plain values, whatever the order of keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_digest(kind: str, root: Path = _PACKAGE) -> str:
    """SHA-256 over the code that a kind of run comes to run: what else changes restarts nothing."""
    starts = [f"ltd_pipe.{name}" for name in WORK[kind]]
    found = import_closure(*starts, root=root)
    if missing := {*starts} - found.keys():
        raise ModuleNotFoundError(f"no module {', '.join(missing)}")
    plumbing = {f"ltd_pipe{name}" for name in _PLUMBING}
    return digest({name: code for name, code in found.items() if name not in plumbing})


def import_closure(*modules: str, root: Path = _PACKAGE) -> dict[str, str]:
    """Our modules that some come to import anywhere, themselves included, and their code."""
    found: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is not None and name not in found:
            found[name], imported = _what_runs(path.read_bytes())
            waiting += imported
    return found


def module_file(name: str, root: Path = _PACKAGE) -> Path | None:
    """The file of a module of ours; None of any other name."""
    package, *inner = name.split(".")
    place = root.joinpath(*inner)
    files = (place.with_suffix(".py"), place / "__init__.py") if package == "ltd_pipe" else ()
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _what_runs(source: bytes) -> tuple[str, list[str]]:
    """Code without comments, docstrings and imports for type checking, and what it may import."""
    code = _WithoutWords().visit(ast.parse(source))
    imported = []
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return ast.unparse(code), imported


class _WithoutWords(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        checking = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if checking else self.generic_visit(node)


def commit() -> str | None:
    """The git commit of the working folder, with `+` where files differ from it; or None."""
    # What DVC's users commit, data aside; untracked files are their notes.
    head = _git("rev-parse --short=12 HEAD")
    return head and head + "+" * bool(_git("status --porcelain --untracked-files=no"))


def code_commit() -> tuple[str, bool] | None:
    """The git commit of our own code, and whether files differ; None where it is no checkout."""
    root = _PACKAGE.parent
    # An installed package may lie in the folder of somebody else's repository.
    head = _git("ls-files --error-unmatch pipeline/provenance.py", root) and _git(
        "rev-parse HEAD", root
    )
    return (head, bool(_git("status --porcelain -- pipeline stages", root))) if head else None


def _git(words: str, folder: Path | None = None) -> str | None:
    command = ["git", *words.split()]
    try:
        found = subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.strip()


class StateRecord:
    """Whose state a folder holds: an equal run, and only that, goes on from it.

    Its `folder` is STATES/<kind>-<key>.

    Parameters
    ----------
    states : Path
        Folder of the states of runs.
    kind : str
        Such as `student`.
    out : str
        Name of the output: of two runs at the same time, each has its own state.
    decides, rounds : dict
        Plain values that decide the result, and those that change its rounding alone: an
        interrupted run goes on when they differ.
    """

    def __init__(
        self,
        states: Path,
        kind: str,
        out: str,
        decides: Mapping[str, Any],
        rounds: Mapping[str, Any],
    ) -> None:
        content = {"out": out, "decides": decides, "rounds": rounds}
        self._content: dict[str, Any] = json.loads(json.dumps(content, default=str))
        self._states, self._kind = states, kind
        self.folder = states / f"{kind}-{digest({'out': out, 'decides': decides})[:16]}"

    def write(self) -> None:
        """Keep it beside the state, unless that is there already."""
        if not (self.folder / _RECORD).exists():
            write_json(self.folder / _RECORD, self._content)

    def changed(self) -> list[tuple[str, Any, Any]]:
        """What changes the rounding, as (name, then, now); nothing where there is no state."""
        then = read_json(self.folder / _RECORD)
        return [*differences(then["rounds"], self._content["rounds"])] if then else []

    def note(self) -> str | None:
        """What to tell the user before the run begins, or goes on."""
        if self.folder.exists():
            if not (changed := self.changed()):
                return None
            return (
                f"warning: {self.folder}: this run began with {_told(changed)} now; it goes on, "
                "and its result differs in rounding from that of a run that was not interrupted."
            )
        folders = self._states.glob(f"{self._kind}-*")
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
            other = read_json(folder / _RECORD)
            if other and other["out"] == self._content["out"]:
                changed = [*differences(other["decides"], self._content["decides"])]
                return (
                    f"note: this run begins anew: {folder} is of an interrupted one with "
                    f"{_told(changed)} here. It is kept, and goes on when run as it was: remove "
                    "it where that is not wanted."
                )
        return None


def _told(changed: list[tuple[str, Any, Any]]) -> str:
    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else text[:12] + "…"

    shown = [f"{name} {short(then)}, which is {short(now)}" for name, then, now in changed[:3]]
    more = f" (and {len(changed) - 3} more differences)" if len(changed) > 3 else ""
    return "; ".join(shown) + more


def software() -> dict[str, str]:
    """Versions of Python, of this package, and of the packages that can change a result."""
    versions = {"python": platform.python_version(), "ltd-pipe": version_of("ltd-pipe")}
    return versions | {name: version_of(name) for name in _PACKAGES}


def version_of(package: str) -> str:
    """A package's version, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def hardware() -> dict[str, str | int]:
    """Processor, threads and accelerator: results are equal to the bit on equal hardware."""
    import torch

    found: dict[str, str | int] = {"cpu": _cpu_name(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def processor(device: torch.device) -> str:
    """What computes there: results are equal to the bit on equal ones, whatever their number."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
