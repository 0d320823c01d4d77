"""What the commands' options share: parameters as options, usage errors, and what is replaced."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ltd_pipe.errors import ParamsError, WriteError, require_file
from ltd_pipe.models import NETWORKS
from ltd_pipe.params import Params, load_params, parse_standalone
from ltd_pipe.params.sections import Section
from ltd_pipe.stages.console import is_main, tell

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    Command = Callable[..., Any]

PARAMS_FILE, PIPELINE_FILE = Path("params.yaml"), Path("dvc.yaml")


class _Path(click.Path):
    """A path that has a name, so that others can stand beside it: `.` has one when resolved."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """As click does, but for an empty text, which is no folder, and for `/`."""
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]
        path = path.resolve() if path.name in ("", "..") else path
        if not str(value) or not path.name:
            self.fail(f"{value!r} names no file or folder", param, ctx)
        return path


# Types of options and arguments.
PATH = _Path(path_type=Path)
FILE = _Path(path_type=Path, dir_okay=False)
FOLDER = _Path(path_type=Path, file_okay=False)
THERE = _Path(path_type=Path, exists=True)
# Options of these types.
path = functools.partial(click.option, type=PATH)
file = functools.partial(click.option, type=FILE)
folder = functools.partial(click.option, type=FOLDER)
flag = functools.partial(click.option, is_flag=True)


# Before the name of an option that sets a parameter: commands have arguments of the same names.
_FIELD = "field_"


def params_options(section: str, *, standalone: bool = False) -> Callable[[Command], Command]:
    """Add `--params`, `--set` and one option for each field of a section to a command.

    The command receives one argument `params`, validated, in their place.

    Parameters
    ----------
    section : str
        A section of params.yaml, such as `train`.
    standalone : bool
        The command also works where there is no params.yaml, with the section's defaults.
    """
    fields = _fields(section)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **given: Any) -> Any:
            architecture = f"{_FIELD}architecture"
            if given.get(architecture):
                # A file that was typed may be run; one that a params.yaml names may not.
                from ltd_pipe.models.registry import allow_file

                given[architecture] = allow_file(given[architecture])
            found = overrides_of(section, given)
            overrides = {key: value for key, (value, _) in found.items()}
            typed = {key: flag for key, (_, flag) in found.items()}
            click.get_current_context().meta[_SET] = section, typed
            params_file = given.pop("params_file")
            for name in ("settings", *(f"{_FIELD}{name}" for name in fields)):
                del given[name]
            if standalone and params_file == PARAMS_FILE and not params_file.exists():
                params = parse_standalone(section, overrides)
            else:
                params = load_params(params_file, overrides)
            _refuse_idle(params, typed)
            return command(*args, params=params, **given)

        with_options: Command = wrapper
        for name, info in reversed(fields.items()):
            with_options = _option(name, info)(with_options)
        return _PARAMS_OPTION(_SET_OPTION(with_options))

    return decorate


def overrides_of(section: str, given: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Of each parameter that a command line sets: its value as YAML, and how it was typed.

    Raises
    ------
    ParamsError
        For a -S without a value.
    """
    found = {}
    for setting in given["settings"]:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ParamsError("--set", "expected SECTION.KEY=VALUE", found=repr(setting))
        place, _, name = key.partition(".")
        info = _fields(place).get(name)
        # As YAML and DVC have it, a text may be quoted.
        if info is not None and value[:1] not in {"'", '"'}:
            value = _as_yaml(value, info)
        found[key] = value, f"-S {key}"
    for name, info in _fields(section).items():
        if (value := given[f"{_FIELD}{name}"]) is not None:
            found[f"{section}.{name}"] = _as_yaml(value, info), _flag(name)
    return found


def _fields(section: str) -> dict[str, FieldInfo]:
    """Of a section of params.yaml; none where it is no section."""
    known = Params.model_fields.get(section)
    return getattr(known.annotation, "model_fields", {}) if known else {}


def _refuse_idle(params: Params, typed: Mapping[str, str]) -> None:
    """Refuse parameters that were typed and do nothing; of those in the file it is said.

    The file's may be there for another run: dvc.yaml trains the baseline with the student's.
    """
    for key, why in idle(params).items():
        if key in typed:
            raise click.UsageError(f"{typed[key]} {why}")
        # Commands of another name, such as audit, read a part of their section.
        if key.startswith(f"{click.get_current_context().info_name}."):
            tell(f"note: {key} {why}")


def idle(params: Params) -> dict[str, str]:
    """Parameters that are not at their defaults and do nothing, as `train.beta`, and why."""
    return {
        f"{name}.{key}": f"does nothing here: it needs {needs}"
        for name, section in params
        if isinstance(section, Section)
        for key, needs in section.idle().items()
        if getattr(section, key) != type(section).model_fields[key].default
    }


# In the context: the section of the command, and what of the parameters was typed, and how.
_SET = "ltd_pipe.set"
_PARAMS_OPTION = click.option(
    "--params",
    "params_file",
    type=PATH,
    default=PARAMS_FILE,
    help="Parameter file; its values come before the defaults below.",
)
_SET_OPTION = click.option(
    "-S",
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set any parameter; may be given several times.",
)
# Of long helps: the field with which each group begins, in the order of the classes.
_GROUPS = {
    "architecture": "Network and length",
    "learning_rate": "Optimiser",
    "schedule": "Schedule and averages",
    "crop_padding": "Augmentation",
    "mean": "Input normalisation",
    "precision": "Speed and snapshots",
    "objective": "Objective",
    "label_kind": "Labels",
    "label_smoothing": "Labels",
    "checkpoint": "A checkpoint instead of training",
    "norm": "Attack",
    "temperature": "Temperature and validation",
}
_LONG = 20
# What completion offers where more than these can be named.
_OFFERED = {
    "architecture": (*NETWORKS, "timm:", "torchvision:"),
    "temperature": ("auto:0.9", "auto:0.95", "auto:calibrated"),
    "policy": (
        "trivialaugment",
        "randaugment:2-9",
        "autoaugment:cifar10",
        "autoaugment:imagenet",
        "autoaugment:svhn",
    ),
    "attacks": ("fgsm", "pgd-20", "cw-20", "none"),
    "eps": ("8/255", "4/255"),
}
_KINDS = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT", tuple: "LIST"}


class ParamsCommand(click.Command):
    """A command with many parameters, whose help has a heading for each group of them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first."""
        groups: dict[str, list[tuple[str, str]]] = {}
        params, title = self.get_params(ctx), "Options"
        fields = [str(param.name) for param in params if isinstance(param, _FieldOption)]
        for param in params:
            if len(fields) > _LONG and isinstance(param, _FieldOption):
                title = _GROUPS.get(str(param.name).removeprefix(_FIELD), title)
            if (record := param.get_help_record(ctx)) is not None:
                own = title if isinstance(param, _FieldOption) else "Options"
                groups.setdefault(own, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                # A wide first column leaves too little for the text.
                formatter.write_dl(records, col_max=26)


class _FieldOption(click.Option):
    """An option whose default is the file's, or else the parameter's."""

    def __init__(self, *args: Any, default_text: str | None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._default_text = default_text

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Say the parameter's default, which params.yaml overrides."""
        told = {"default": self._default_text}
        if self._default_text is None:
            told = {"required": "needed here or in the file"}
        return super().get_help_extra(ctx) | told


def _alternatives(annotation: Any) -> list[Any]:
    """What a field takes, null aside: types, and words as text."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _alternatives(parts[0])
    if origin in (typing.Union, types.UnionType):
        return [one for part in parts for one in _alternatives(part)]
    if origin is typing.Literal:
        return [str(word) for word in parts]
    return [] if annotation is type(None) else [origin or annotation]


def _default(info: FieldInfo) -> str | None:
    if info.is_required():
        return None
    value = info.default
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_TYPED = re.compile(r"[\w.-]+(, [\w.-]+)*:")


def _option(name: str, info: FieldInfo) -> Callable[[Command], Command]:
    flag, text = _flag(name), " ".join((info.description or "").split())
    taken = _alternatives(info.annotation)
    choices = [one for one in taken if isinstance(one, str)]
    word = text.partition(" ")[0]
    # What is to be typed, as in `rslad, ard: weight of …`, stays as it is typed.
    if not (_TYPED.match(text) or "." in word or word in choices):
        text = f"{text[:1].upper()}{text[1:]}"
    text = f"{text}."
    more: dict[str, Any] = {"cls": _FieldOption, "help": text}
    if info.annotation is bool:
        default = f"{'' if info.default else 'no-'}{flag[2:]}"
        flags = f"{flag}/--no-{flag[2:]}"
        return click.option(flags, f"{_FIELD}{name}", default=None, default_text=default, **more)
    kind = "|".join(dict.fromkeys(one if one in choices else _KINDS[one] for one in taken))
    offered = choices or _OFFERED.get(name, ())
    return click.option(
        flag,
        *(["--arch"] if name == "architecture" else []),
        f"{_FIELD}{name}",
        metavar=f"[{kind}]" if choices else kind,
        shell_complete=lambda _ctx, _param, begun: [
            one for one in offered if one.startswith(begun)
        ],
        default_text=_default(info),
        **more,
    )


def _as_yaml(value: Any, info: FieldInfo) -> str:
    # A text is what was typed: YAML would make a number of a folder 2024, and of "run #2" "run".
    if str in _alternatives(info.annotation) and value not in ("null", "~"):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


# --- Options that are wrong or have no meaning, as usage errors.


# What to do where a model is not there.
NO_MODEL = "'ltd-pipe train' makes data/student/model.safetensors; or name another checkpoint."
# What makes the files that an option names.
_MADE_BY = {"data": "prepare", "labels": "label", "teachers": "teacher"}


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Make the block's ParamsError a usage error of the option that it names, in the same words."""
    try:
        yield
    except ParamsError as error:
        for option in click.get_current_context().command.params:
            if error.where in (option.name, *option.opts):
                # It begins with the option's name, and so does what click says.
                words = str(error).removeprefix(f"{error.where}: ")
                raise click.BadParameter(words, param_hint=f"'{option.opts[0]}'") from error
        raise


def numbers(such_as: str) -> Callable[[str], tuple[float, ...]]:
    """The type of an option that takes a list of numbers, such as this one."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"'{text}' is not a list such as {such_as}") from None

    return parse


def require_files(*names: str) -> None:
    """Look first for the files that were typed: what is missing of the defaults comes later.

    The names are of arguments or options of the running command whose values are paths, or several.
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            for path in value if isinstance(value, tuple) else (value,):
                if "://" not in str(path):
                    made = _MADE_BY.get(name)
                    require_file(Path(path), remedy=f"'ltd-pipe {made}' makes one." if made else "")


def refuse_options(names: Collection[str], why: str) -> None:
    """Refuse options of the running command that were typed, and would be ignored.

    What stands in params.yaml is not asked; `why` goes on after the option's name.
    """
    context = click.get_current_context()
    section, given = context.meta.get(_SET, ("", {}))
    for key, typed in given.items():
        if key.startswith(f"{section}.") and key.removeprefix(f"{section}.") in names:
            raise click.UsageError(f"{typed} {why}")
    for option in context.command.params:
        name = str(option.name)
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and name in names:
            raise click.UsageError(f"{option.opts[0]} {why}")


# --- What a stage may write over: nothing, without --force, and with it only results of its kind.


@dataclass(frozen=True)
class Kind:
    """A kind of results, by the bytes that all files of it begin with, and hold."""

    name: str
    begins: tuple[bytes, ...]
    holds: bytes = b""

    def is_of(self, path: Path) -> bool:
        """Whether a file is of this kind, or empty."""
        with path.open("rb") as file:
            content = file.read(_ENOUGH)
        return not content or (content.startswith(self.begins) and self.holds in content)


_ENOUGH = 2**24
PAGE = Kind("report of ours", (b"<!doctype html>",), b"ltd-pipe")
CARD = Kind("model card of ours", (b"---\n",), b"library_name: ltd-pipe\n")
METRICS = Kind("metrics of an evaluation", (b"{",), b'"clean_accuracy"')
SETTINGS = Kind("settings of an evaluation", (b"{",), b'"attacks"')
AUDIT = Kind("audit", (b"{",), b'"passed"')
# FFCV's version, and our number of fields.
BETON = Kind("beton of ours", (b"\2\0\4\0",))
CHECKPOINT = Kind("checkpoint of ours", (b"",), b'{"__metadata__":{"ltd_pipe"')
NPZ = Kind("npz file", (b"PK\3\4",), b".npy")
PARQUET = Kind("parquet file", (b"PAR1",))


def refuse_existing(
    *targets: Path, force: bool, kind: Kind | None = None, option: str = "--out"
) -> None:
    """Refuse, before any work, to replace a result, or with --force what is none of the kind."""
    for target in targets:
        if not target.exists():
            continue
        if target.is_dir():
            raise WriteError(target, "is a folder", remedy="Choose another place for the result.")
        if not force:
            remedy = f"Pass --force to replace it, or another {option}."
            raise WriteError(target, "exists already", remedy=remedy)
        if kind is not None and not kind.is_of(target):
            raise WriteError(
                target,
                f"is no {kind.name}, and --force replaces these only",
                remedy="Choose another place for the result, or remove it yourself.",
            )


def refuse_store(out: Path) -> None:
    """Refuse a soft-label store for a folder of results: its manifest does not list them."""
    if (out / "zarr.json").exists():
        raise WriteError(out, "is a soft-label store", remedy="Choose another --out.")


def note_pipeline(*targets: Path) -> None:
    """Say, where a person runs what dvc.yaml makes, that `dvc repro` would discard it."""
    if "DVC_STAGE" in os.environ or not is_main() or not PIPELINE_FILE.exists():
        return
    wanted = {target.resolve() for target in targets}
    for stage, out in pipeline_outputs():
        path = Path(out).resolve()
        if any(path == target or path in target.parents for target in wanted):
            tell(
                f"note: {out} is an output of stage {stage} in {PIPELINE_FILE}: the next "
                "'dvc repro' discards what this command makes there and makes it again, unless "
                f"'dvc commit -f {stage}' tells it not to. Another --out keeps the two apart."
            )
            return


def pipeline_outputs() -> Iterator[tuple[str, str]]:
    """Stage and path of each output in dvc.yaml."""
    import yaml

    try:
        stages: dict[str, Any] = yaml.safe_load(PIPELINE_FILE.read_text(encoding="utf-8"))["stages"]
        for stage, content in stages.items():
            for entry in [*content.get("outs", ()), *content.get("metrics", ())]:
                yield stage, entry if isinstance(entry, str) else next(iter(entry))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return  # DVC will say what is wrong with it


def pipeline_launches() -> bool:
    """Whether dvc.yaml's commands begin with the `launch` of params.yaml."""
    return "${launch}" in PIPELINE_FILE.read_text(encoding="utf-8")


def refuse_overlap(out: Path, *inputs: Path) -> None:
    """Refuse to write a result over, into or around what it is made from, also with --force."""
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise WriteError(
                out, f"lies in, or holds, the input {path}", remedy="Choose another --out."
            )
