"""`ltd-pipe store`: looking into soft-label stores, proving, combining and sharing them."""

from __future__ import annotations

import click

from ltd_pipe.stages.cli import LazyGroup


@click.group(
    cls=LazyGroup,
    package="ltd_pipe.stages.store",
    summaries={
        "info:info": "Say what a store holds, who made it, and what its labels are like.",
        "verify:verify": "Check a store, that it belongs to the images, and who signed it.",
        "share:pull": "Fetch a store from the web or object storage.",
        "share:sign": "Sign a store with an SSH key.",
        "derive:subset": "Cut some rows or arrays out of a store.",
        "derive:merge": "Put parts of one data set together, or average several teachers' stores.",
        "derive:retemper": "Soften a store's logits at another temperature, or keep the largest.",
        "convert:convert": "Make a store of labels in another format, or a table of a store.",
        "info:diff": "Say which samples of two stores differ, and by how much.",
    },
)
def store() -> None:
    """Look into soft-label stores, prove, combine and share them.

    \b
    Examples:
      ltd-pipe store info labels.zarr
      ltd-pipe store verify labels.zarr --data train.beton
    """
