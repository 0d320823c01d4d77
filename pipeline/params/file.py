"""params.yaml as a whole: read, overridden by options, and validated at the edge."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ltd_pipe.errors import MissingError, ParamsError
from ltd_pipe.params.fit import TeacherParams, TrainParams
from ltd_pipe.params.sections import (
    EvaluateParams,
    LabelParams,
    PrepareParams,
    ReportParams,
    Section,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Common(Section):
    """What all stages share."""

    launch: str = "python"
    """what starts each stage: the interpreter, or a wrapper such as srun python"""
    seed: int = Field(0, ge=0, lt=2**31)
    """of every random number"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is"""


class Params(Common):
    """All of params.yaml."""

    prepare: PrepareParams
    teacher: TeacherParams
    label: LabelParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams = ReportParams()


def load_params(path: Path, overrides: Mapping[str, str] | None = None) -> Params:
    """Read and validate a parameter file.

    Parameters
    ----------
    path : Path
        A YAML file with one section per stage.
    overrides : mapping of str to str, optional
        `section.key` to a YAML value, as given on the command line.

    Raises
    ------
    MissingError, ParamsError
        Naming the file and the key.
    """
    return parse_params(read_yaml(path), overrides, where=str(path))


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which no key is given twice."""
    try:
        return _load(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError as error:
        raise MissingError(
            path,
            "no such parameter file",
            remedy="Run where params.yaml is, pass --params, or 'ltd-pipe recipe use NAME'.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).replace("\n", " ")
        raise ParamsError(path, f"is not readable as YAML ({first})") from error


# 010, 0_10 and 1:30, but not 0, 0x10 or 0b1.
_AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]|\d[\d_]*:)")


class _Loader(yaml.SafeLoader):
    """Refuses what YAML takes in silence: a key that is there twice, and 010, which may be 8."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # By YAML 1.1, which this reader follows, 010 is 8 and 1:30 is 90; by 1.2, and so for DVC,
        # they are 10 and a text.
        if _AMBIGUOUS.match(node.value):
            what = f"'{node.value}' is another number in YAML 1.1 than in 1.2; write it in decimal"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        number: int = super().construct_yaml_int(node)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    raise ParamsError(
                        f"{key.start_mark.name}: line {key.start_mark.line + 1}",
                        f"'{key.value}' is there twice",
                        found=f"the first in line {first.start_mark.line + 1}",
                        remedy="Only the last would count: make them one.",
                    )
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
# 1e-3 is a number to everybody, to DVC, too; YAML 1.1 asks for a point and a sign.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _load(text: str, where: object) -> Any:
    loader = _Loader(text)
    loader.name = str(where)
    return loader.get_single_data()


def read_stages(pipeline: Path) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.yaml, `cmd` being a list; what DVC itself will refuse is left out."""
    content = read_yaml(pipeline)
    stages = content.get("stages") if isinstance(content, dict) else None
    found = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict):
            commands = stage.get("cmd", [])
            commands = commands if isinstance(commands, list) else [commands]
            found[name] = stage | {"cmd": [str(command) for command in commands]}
    return found


def require_named(params: Path, pipeline: Path) -> None:
    """Refuse a parameter file that lacks what a stage of dvc.yaml names.

    DVC would do so itself when it comes to that stage: after all training.
    """
    content = read_yaml(params)
    for stage, does in read_stages(pipeline).items():
        for name in does.get("params") or []:
            # Others name another file, or are filled in by DVC.
            if isinstance(name, str) and "${" not in name and not _holds(content, name):
                raise ParamsError(
                    f"{params}: {name}",
                    f"is missing, and stage '{stage}' of {pipeline} names it",
                    remedy="Add it; 'ltd-pipe recipe show digits' has all sections.",
                )


def _holds(content: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    there = isinstance(content, dict) and first in content
    return there and (not rest or _holds(content[first], rest))


def parse_params(
    content: Any, overrides: Mapping[str, str] | None = None, where: str = "params"
) -> Params:
    """Validate parameters already read; see `load_params`."""
    if not isinstance(content, dict):
        raise ParamsError(where, "expected sections such as 'train:'", found=type(content).__name__)
    for key, value in (overrides or {}).items():
        _override(content, key, value)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise _explain(error, where, overrides) from error


def parse_standalone(section: str, overrides: Mapping[str, str]) -> Params:
    """Parameters of one stage alone, where there is no file: its defaults and the overrides.

    Only `seed`, `device` and the section itself may be read from the result.
    """
    content: dict[str, Any] = {section: {}}
    for key, value in overrides.items():
        first = key.partition(".")[0]
        if first in Params.model_fields and first not in (section, *Common.model_fields):
            # Where there is a file it may set what other stages read, too.
            raise ParamsError(f"option: {key}", "is of another stage", expected=f"{section}.…")
        _override(content, key, value)
    model = Params.model_fields[section].annotation
    try:
        checked = model.model_validate(content.pop(section))  # type: ignore[union-attr]
        common = Common.model_validate(content)
    except ValidationError as error:
        raise _explain(error, "", overrides, section) from error
    return Params.model_construct(**common.model_dump(), **{section: checked})


def _override(content: dict[str, Any], key: str, value: str) -> None:
    *sections, name = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ParamsError(key, f"'{section}' is a value, not a section")
    try:
        place[name] = _load(value, key)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or error
        raise ParamsError(key, f"is not readable as YAML ({why})", found=repr(value)) from error


def _explain(
    error: ValidationError,
    where: str,
    overrides: Mapping[str, str] | None,
    within: str | None = None,
) -> ParamsError:
    """What the user is told; `within` is the section that was checked alone."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    if any(
        f"{given}.".startswith(f"{key}.") or key.startswith(f"{given}.")
        for given in overrides or ()
    ):
        where = "option"  # the file is not to blame
    place = f"{where or 'options'}: {key}" if key else where or "options"
    what, found, remedy = first["msg"].removeprefix("Value error, "), None, ""
    if first["type"] == "missing" and not where:
        place = f"--{key.replace('_', '-')}"
        what, remedy = "is missing", "Pass it, or run where params.yaml is."
    elif first["type"] == "missing":
        what, remedy = "is missing", "Add it."
    elif first["type"] == "extra_forbidden":
        what, remedy = "unknown key", _suggestion(first, within)
    elif first["type"] != "value_error":
        found = repr(first["input"])
    if others:
        remedy = f"{remedy} {len(others)} more problem(s) after this one.".lstrip()
    return ParamsError(place, what[:1].lower() + what[1:], found=found, remedy=remedy)


def _suggestion(problem: ErrorDetails, within: str | None) -> str:
    *sections, name = [str(part) for part in problem["loc"]]
    model: Any = Params
    for section in [within, *sections] if within else sections:
        model = model.model_fields[section].annotation
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    return f"Did you mean '{close[0]}'?" if close else "Remove it."


# --- The recipes: complete parameter files that come with the package.


def recipe_names() -> list[str]:
    """All recipes, by name."""
    files = resources.files("ltd_pipe.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe's file as it is, comments included."""
    names = recipe_names()
    # Only a listed name becomes part of a path.
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(names)}."
        raise MissingError(name, "no such recipe", remedy=remedy)
    return (resources.files("ltd_pipe.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """What a recipe is for: its first line, `# NAME: …`, without the name."""
    first = recipe_text(name).partition("\n")[0]
    return first.removeprefix(f"# {name}: ")


def pipeline_text() -> str:
    """dvc.yaml for a project of its own, where the code is an installed package.

    That of the source tree, which is stages.yaml here: commands are `ltd-pipe`, and each stage
    depends on the package's version in place of its files.
    """
    shipped = (resources.files("ltd_pipe") / "stages.yaml").read_text(encoding="utf-8")
    text = shipped.replace("${launch} -m ltd_pipe", "ltd-pipe")
    text = re.sub(r"(?:^ +- (?:pipeline|stages)/.*\n)+", f"      - {_VERSION}\n", text, flags=re.M)
    outs = "    outs:\n      - data/inputs/images.json"
    return text.replace(outs, outs.replace("\n", f"\n      - {_VERSION}: {{persist: true}}\n", 1))


_VERSION = "data/inputs/version.json"
