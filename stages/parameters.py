"""Command-line options made of the parameter classes: one per field, in one place."""

from __future__ import annotations

import functools
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import ParamsError
from pipeline.params import Params, load_params, parse_standalone
from stages.usage import FIELD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic.fields import FieldInfo

    Command = Callable[..., Any]

__all__ = ["PARAMS_FILE", "PIPELINE_FILE", "params_options"]

PARAMS_FILE, PIPELINE_FILE = Path("params.yaml"), Path("dvc.yaml")


def params_options(
    section: str, *, standalone: bool = False, typed: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Add `--params`, `--set` and one option for each field of a section to a command.

    The command receives one argument `params`, validated, in their place.

    Parameters
    ----------
    section : str
        A section of params.yaml, such as `train`.
    standalone : bool
        The command also works where there is no params.yaml, with the section's defaults.
    typed : dict of str to str, optional
        By field, the function of the library that is asked about a value which was typed as the
        field's own option, as `package.module:function`; it gives the value that is taken.
    """
    fields = Params.model_fields[section].annotation.model_fields  # type: ignore[union-attr]

    def decorate(command: Command) -> Command:
        for name, info in reversed(fields.items()):
            command = _option(name, info)(command)
        command = click.option(
            "-S",
            "--set",
            "settings",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Set any parameter; may be given several times.",
        )(command)
        return click.option(
            "--params",
            "params_file",
            type=click.Path(path_type=Path),
            default=PARAMS_FILE,
            show_default=True,
            help="Parameter file.",
        )(_receiving(command, section, fields, standalone, typed or {}))

    return decorate


def _option(name: str, info: FieldInfo) -> Callable[[Command], Command]:
    flag, text = name.replace("_", "-"), info.description or ""
    text = f"{text[:1].upper()}{text[1:]}."
    if info.annotation is bool:
        return click.option(f"--{flag}/--no-{flag}", _private(name), default=None, help=text)
    flags = [f"--{flag}", *(["--arch"] if name == "architecture" else [])]
    return click.option(*flags, _private(name), metavar="VALUE", help=text)


def _private(name: str) -> str:
    # Field options never collide with a command's own arguments of the same name.
    return f"{FIELD}{name}"


def _receiving(
    command: Command,
    section: str,
    fields: dict[str, FieldInfo],
    standalone: bool,
    typed: Mapping[str, str],
) -> Command:
    @functools.wraps(command)
    def wrapper(*args: Any, params_file: Path, settings: tuple[str, ...], **given: Any) -> Any:
        overrides = dict(_split(setting) for setting in settings)
        for name, info in fields.items():
            value = given.pop(_private(name))
            if value is not None and name in typed:
                value = pkgutil.resolve_name(typed[name])(value)
            if value is not None:
                overrides[f"{section}.{name}"] = _as_yaml(value, info)
        if standalone and params_file == PARAMS_FILE and not params_file.exists():
            params = parse_standalone(section, overrides)
        else:
            params = load_params(params_file, overrides)
        return command(*args, params=params, **given)

    return wrapper


def _as_yaml(value: Any, info: FieldInfo) -> str:
    # A text is what was typed: BibTeX begins with a letter that YAML reserves.
    if info.annotation in (str, str | None) and value not in ("null", "~"):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise ParamsError("--set", "expected SECTION.KEY=VALUE", found=repr(setting))
    return key, value
