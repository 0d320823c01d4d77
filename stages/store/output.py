"""The frame of the commands that make a store out of others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import ParamsError
from ltd_pipe.stages.console import counter
from ltd_pipe.stages.options import PATH, refuse_overlap

if TYPE_CHECKING:
    from click.decorators import FC

    from ltd_pipe.labels.derive import DerivedStore
    from ltd_pipe.labels.join import ImagesLike

# A teacher that is wrong more often than right is rarely what was meant.
_ODD = 0.5


class Parsed(click.ParamType[Any]):
    """What `parse` makes of an option's text; its ValueError says what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value."""
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def output_options(command: FC) -> FC:
    """Add --out, --force and --json; the command gets `out`, `force` and `as_json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        click.option("--force", is_flag=True, help="Replace an existing store."),
        click.option("--out", type=PATH, required=True, help="The new store."),
    ):
        command = option(command)
    return command


def data_option(text: str) -> Callable[[FC], FC]:
    """Add --data, a beton or a folder."""
    return click.option("--data", type=PATH, help=text)


def read_images(data: Path | None, class_names: tuple[str, ...] | None = None) -> ImagesLike | None:
    """Open what --data names, which may take the time of reading all images."""
    from ltd_pipe.labels.convert import open_images

    if data is None:
        return None
    with counter("look at the images", None) as progress:
        return open_images(data, class_names, progress)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn the ParamsError of a value into a usage error of the option that it was typed at."""
    try:
        yield
    except ParamsError as error:
        for option in click.get_current_context().command.params:
            if option.name == error.where:
                # It begins with the option's name, and so does what click says.
                words = str(error).removeprefix(f"{error.where}: ")
                raise click.BadParameter(words, param_hint=f"'{option.opts[0]}'") from error
        raise


def make_store(
    derive: Callable[[], DerivedStore],
    *inputs: Path | None,
    out: Path,
    force: bool,
    as_json: bool,
    judged: bool = False,
) -> None:
    """Write the store that `derive` gives, which opens the inputs, and say what it is.

    The inputs are not written over. Of labels that are `judged`, since they came from elsewhere,
    it is said what is odd about them.
    """
    from ltd_pipe.labels.writer import require_replaceable

    require_replaceable(out, replace=force)
    refuse_overlap(out, *(path for path in inputs if path is not None))
    with _usage_errors():
        derived = derive()
    verb = str(click.get_current_context().info_name)
    with counter(verb, derived.attributes.num_samples) as progress:
        identity = derived.write(out, replace=force, progress=progress)
    _print_store(out, identity, as_json=as_json, judged=judged)


def _print_store(out: Path, identity: str, *, as_json: bool, judged: bool) -> None:
    from ltd_pipe.labels.reader import SoftLabels

    store = SoftLabels.open(out)
    known = store.attributes
    if judged:
        found = store.summary()
        warnings = list(found.warnings)
        if found.disagreement is not None and found.disagreement > _ODD:
            warnings.append(f"they contradict the ground truth for {found.disagreement:.2%}")
        for line in warnings:
            click.echo(f"warning: {out}: {line}", err=True)
    if as_json:
        summary = {
            "store": str(out),
            "identity": identity,
            "num_samples": store.num_samples,
            "num_classes": store.num_classes,
            "num_views": store.num_views,
            "top_k": known.top_k.model_dump() if known.top_k else None,
            "temperature": known.temperature,
            "logits": store.has_logits,
            "fingerprint": known.dataset.fingerprint,
            "derived_from": known.derived_from.model_dump() if known.derived_from else None,
        }
        click.echo(json.dumps(summary, indent=2))
        return
    ranks = f", the {store.top_k} largest of each" if store.top_k else ""
    views = f" of {store.num_views} views" if store.num_views > 1 else ""
    click.echo(
        f"{out}: {store.num_samples:,} soft labels{views} over {store.num_classes:,} classes"
        f"{ranks}, identity {identity[:12]}"
    )
    click.echo(f"  temperature  {known.temperature:g}")
    if known.top_k and known.top_k.total_variation:
        distance = known.top_k.total_variation
        click.echo(f"  left out     {distance.mean:.4g} on average, {distance.worst:.4g} at most")
