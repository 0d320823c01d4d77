"""What a store holds, who made it, and what its labels are like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import tell, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ltd_pipe.labels.format import StoreAttributes
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.softness import LabelSummary

__all__ = ["info"]


@click.command()
@click.argument("store", metavar="STORE")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(store: str, as_json: bool) -> None:
    """Say what a store holds, who made it, and what its labels are like.

    Of the signature it says who claims to have made it; 'store verify --public-key' proves it.

    \b
    Example:
      ltd-pipe store info labels.zarr --json

    STORE is a folder, or a URL that 'store pull' takes.
    """
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.remote import resolve_store

    opened = SoftLabels.open(resolve_store(store, transfer, tell))
    summary = opened.summary()
    if as_json:
        click.echo(json.dumps(_facts(opened, summary), indent=2))
        return
    _print_table(opened, summary)


def _facts(opened: SoftLabels, summary: LabelSummary) -> dict[str, Any]:
    return {
        "path": str(opened.path),
        "identity": opened.identity,
        "attributes": opened.attributes.to_json(),
        "has_logits": opened.has_logits,
        "arrays": {
            name: {"shape": array.layout.shape, "dtype": array.layout.dtype.name}
            for name, array in opened.arrays.items()
        },
        "size": _size(opened),
        "labels": vars(summary) | {"known": int((opened.labels >= 0).sum())},
        "signature": _signature(opened.path),
    }


def _size(opened: SoftLabels) -> dict[str, int]:
    from ltd_pipe.labels.manifest import MANIFEST, StoreFolder

    layouts = [array.layout for array in opened.arrays.values()]
    chunks = sum(layout.num_chunks for layout in layouts)
    # That each chunk has its size was checked when the store was opened.
    total = sum(layout.num_chunks * layout.file_bytes for layout in layouts)
    names = {layout.chunk_name(chunk) for layout in layouts for chunk in range(layout.num_chunks)}
    folder = StoreFolder(opened.path)
    total += sum(folder.size(name) for name in {*opened.hashes, MANIFEST} - names)
    return {
        "bytes": total,
        "files": len(opened.hashes) + 1,
        "chunks": chunks,
        "samples_per_chunk": layouts[0].rows,
    }


def _signature(path: Path) -> dict[str, Any] | None:
    from ltd_pipe.errors import MachineError, SignatureError
    from ltd_pipe.labels.manifest import SIGNATURE
    from ltd_pipe.labels.signature import NAMESPACE, claimed_signer

    try:
        found = claimed_signer(path)
    except SignatureError as error:
        # Looking at a store is how one finds out what is wrong with it.
        return {"verified": False, "damaged": f"{error.what} ({error.found})"}
    except MachineError:
        return {"verified": False, "damaged": f"{SIGNATURE} is there; no ssh-keygen to read it"}
    if found is None:
        return None
    return {
        "verified": False,
        "namespace": NAMESPACE,
        "signer": found.fingerprint,
        "key": found.kind,
    }


def _print_table(opened: SoftLabels, summary: LabelSummary) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ltd_pipe.text import printable

    # Names of at most twelve letters: a hash fits beside them in a terminal of 80.
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(opened, summary):
        # Neither markup nor control characters of a name from the store reach the terminal.
        table.add_row(Text(name, "bold"), Text("\n".join(map(printable, text.split("\n")))))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    click.echo(str(opened.path))
    # Without the blanks that fill up the last column.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    for warning in summary.warnings:
        click.echo(f"warning: {warning}", err=True)


def _rows(opened: SoftLabels, summary: LabelSummary) -> Iterator[tuple[str, str]]:
    attributes = opened.attributes
    data, size = attributes.dataset, _size(opened)
    yield "identity", opened.identity
    yield "images", f"{data.name}, {data.split}"
    yield "fingerprint", data.fingerprint
    yield "samples", _samples(opened)
    yield "classes", _classes(attributes.class_names)
    yield from _views(attributes)
    for teacher in attributes.teachers:
        accuracy = teacher.clean_accuracy
        known = "clean accuracy unknown" if accuracy is None else f"{accuracy:.2%} clean accuracy"
        shown = f"\n{teacher.normalisation}" if teacher.mean else ""
        yield "teacher", f"{teacher.architecture}, {known}\n{teacher.sha256}{shown}"
    yield from attributes.labelling.lines() if attributes.labelling else ()
    yield "temperature", f"{attributes.temperature:g}"
    yield "stored", _stored(opened)
    chunks = f"{size['chunks']:,} chunks of {size['samples_per_chunk']:,} samples"
    yield "on disk", f"{_bytes(size['bytes'])} in {size['files']:,} files; {chunks}"
    yield "softness", _softness(summary)
    yield from _origin(attributes)
    yield "signature", _claim(_signature(opened.path))
    versions = (f"{name} {version}" for name, version in attributes.software.items())
    yield "made with", ", ".join(versions) or "unknown"


def _samples(opened: SoftLabels) -> str:
    unknown = int((opened.labels < 0).sum())
    return f"{opened.num_samples:,}" + (f", {unknown:,} of unknown class" if unknown else "")


def _classes(names: tuple[str, ...]) -> str:
    from ltd_pipe.text import one_line

    first = ", ".join(one_line(name, 20) for name in names[:8])
    return f"{len(names):,}: {first}{', …' if len(names) > 8 else ''}"


def _views(attributes: StoreAttributes) -> Iterator[tuple[str, str]]:
    views = attributes.views
    if views.augmentation is not None:
        yield "views", f"{views.count:,} of each image, by {views.augmentation}, seed {views.seed}"


def _stored(opened: SoftLabels) -> str:
    top_k = opened.attributes.top_k
    if top_k is None:
        return "all probabilities" + (" and the logits" if opened.has_logits else ", no logits")
    line = f"the {top_k.k:,} largest of {opened.num_classes:,} probabilities, no logits"
    distance = top_k.total_variation
    if distance is None:
        return line
    return (
        f"{line}\ntotal variation from all of them: mean {distance.mean:.2g}, worst "
        f"{distance.worst:.2g} of {distance.samples:,} samples"
    )


def _bytes(count: int) -> str:
    number, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{count:,} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def _softness(summary: LabelSummary) -> str:
    lines = [
        f"mean top probability {summary.mean_top_probability:.4f}",
        f"mean entropy {summary.mean_entropy:.4f} nats",
    ]
    if summary.disagreement is not None:
        lines.append(f"contradicts the ground truth for {summary.disagreement:.2%} of samples")
    return "\n".join(lines)


def _origin(attributes: StoreAttributes) -> Iterator[tuple[str, str]]:
    origin = attributes.derived_from
    if origin is not None:
        more = [f"and {len(origin.sources) - 8:,} more"] if len(origin.sources) > 8 else []
        yield "made by", "\n".join([f"{origin.operation} of", *origin.sources[:8], *more])
    yield "licence", attributes.licence or "not said"
    if attributes.citation is not None:
        yield "citation", attributes.citation.strip()


def _claim(signature: dict[str, Any] | None) -> str:
    if signature is None:
        return "none"
    if "damaged" in signature:
        return str(signature["damaged"])
    return f"by {signature['signer']}\n(its own claim, not verified)"
