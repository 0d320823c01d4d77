"""A store at another temperature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.options import PATH
from ltd_pipe.stages.store.output import Parsed, make_store, output_options

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import DerivedStore


def _temperature(text: str) -> tuple[float, bool]:
    """A number, and whether it is the P of auto:P."""
    number = text.removeprefix("auto:")
    try:
        return float(number), number != text
    except ValueError:
        message = f"'{text}' is neither a number nor auto:P such as auto:0.9"
        raise ValueError(message) from None


@click.command()
@click.argument("path", metavar="STORE", type=PATH)
@click.option(
    "--temperature",
    type=Parsed("number|auto:P", _temperature),
    help="Divide the stored logits by it; auto:0.9 solves for that mean top probability. By "
    "default as the store has it.",
)
@click.option(
    "--top-k", type=click.IntRange(1), help="Keep so many probabilities per row, and no logits."
)
@click.option(
    "--allow-poor-labels", is_flag=True, help="Make labels that are as good as uniform, too."
)
@output_options
def retemper(
    path: Path,
    temperature: tuple[float, bool] | None,
    top_k: int | None,
    allow_poor_labels: bool,
    **output: Any,
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
    if temperature is None and top_k is None:
        raise click.UsageError("--temperature, --top-k or both are needed")

    def derive() -> DerivedStore:
        from ltd_pipe.labels import SoftLabels, derive
        from ltd_pipe.labels.softmax import require_temperature

        number, solve = temperature or (None, False)
        if number is not None and not solve:
            require_temperature(number)
        store = SoftLabels.open(path)
        if number is not None and solve:
            number = derive.temperature_for(store, number)
        derived = derive.retemper(store, number, top_k=top_k)
        if number not in (None, store.attributes.temperature) and not allow_poor_labels:
            derive.require_informative(store, number)
        return derived

    make_store(derive, path, **output)
