"""A store at another temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ltd_pipe.stages.console import counter, of_option
from ltd_pipe.stages.options import refuse_overlap
from ltd_pipe.stages.store.made import made_options, show_made

__all__ = ["retemper"]


class _Temperature(click.ParamType[tuple[float, bool]]):
    # A number, or auto:P; and which of them it is.
    name = "number|auto:P"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = value.removeprefix("auto:")
        try:
            number = float(text)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor auto:P such as auto:0.9", param, ctx)
        return number, text != value


@click.command()
@click.argument("path", metavar="STORE", type=click.Path(path_type=Path))
@click.option(
    "--temperature",
    type=_Temperature(),
    help="Divide the stored logits by it; auto:0.9 solves for that mean top probability. By "
    "default as the store has it.",
)
@click.option(
    "--top-k", type=click.IntRange(1), help="Keep so many probabilities per row, and no logits."
)
@click.option(
    "--allow-poor-labels", is_flag=True, help="Make labels that are as good as uniform, too."
)
@made_options
def retemper(
    path: Path,
    temperature: tuple[float, bool] | None,
    top_k: int | None,
    allow_poor_labels: bool,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Soften a store's logits at another temperature, or keep the largest probabilities only.

    The same bytes as labelling again at that temperature would give, without the teacher. The
    store must have logits (ltd-pipe label writes them unless label.logits is false or there are
    several teachers); --top-k alone needs none.

    \b
    Examples:
      ltd-pipe store retemper labels.zarr --temperature 0.5 --out cold.zarr
      ltd-pipe store retemper labels.zarr --temperature auto:0.9 --out soft.zarr
      ltd-pipe store retemper labels.zarr --top-k 50 --out small.zarr
    """
    from ltd_pipe.labels.derive import (
        require_informative,
        require_top_k,
        retemper_store,
        temperature_for,
    )
    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.softmax import require_temperature
    from ltd_pipe.labels.writer import require_replaceable

    if temperature is None and top_k is None:
        raise click.UsageError("--temperature, --top-k or both are needed")
    if temperature is not None and not temperature[1]:
        with of_option("--temperature"):
            require_temperature(temperature[0])
    require_replaceable(out, replace=force)
    refuse_overlap(out, path)
    source = ProvenStore(path)
    number = None
    if temperature is not None:
        number, solve = temperature
        with of_option("--temperature"):
            number = temperature_for(source, number) if solve else number
        if number != source.store.attributes.temperature and not allow_poor_labels:
            require_informative(source, number)
    if top_k is not None:
        with of_option("--top-k"):
            require_top_k(source, top_k)
    with counter("retemper", source.store.num_samples) as progress:
        identity = retemper_store(
            source, out, number, top_k=top_k, replace=force, progress=progress
        )
    show_made(out, identity, as_json=as_json)
