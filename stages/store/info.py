"""What a store holds, who made it, what its labels are like; and what differs between two."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, json_option, say, tell, transfer

if TYPE_CHECKING:
    from ltd_pipe.labels.diff import Comparison
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.softness import LabelSummary


@click.command()
@click.argument("store", metavar="STORE")
@json_option("Print as JSON.")
def info(store: str) -> None:
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
    warnings = (f"warning: {warning}" for warning in summary.warnings)
    facts = _facts(opened, summary)
    say(facts, _table(opened, summary, facts), warnings)


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
    # That each chunk has its size was checked when the store was opened.
    total = sum(layout.num_chunks * layout.file_bytes for layout in layouts)
    names = {layout.chunk_name(chunk) for layout in layouts for chunk in range(layout.num_chunks)}
    folder = StoreFolder(opened.path)
    total += sum(folder.size(name) for name in {*opened.hashes, MANIFEST} - names)
    return {
        "bytes": total,
        "files": len(opened.hashes) + 1,
        "chunks": len(names),
        "samples_per_chunk": layouts[0].rows,
    }


def _signature(path: Path) -> dict[str, Any] | None:
    from ltd_pipe.errors import MachineError, SignatureError
    from ltd_pipe.labels.manifest import SIGNATURE
    from ltd_pipe.labels.signature import NAMESPACE, claimed_signer

    found: dict[str, Any] = {"verified": False}
    try:
        signer = claimed_signer(path)
    except SignatureError as error:
        # Looking at a store is how one finds out what is wrong with it.
        return found | {"damaged": f"{error.what} ({error.found})"}
    except MachineError:
        return found | {"damaged": f"{SIGNATURE} is there; no ssh-keygen to read it"}
    if signer is None:
        return None
    return found | {"namespace": NAMESPACE, "signer": signer.fingerprint, "key": signer.kind}


def _table(opened: SoftLabels, summary: LabelSummary, facts: dict[str, Any]) -> Iterator[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ltd_pipe.text import printable

    # Names of at most twelve letters: a hash fits beside them in a terminal of 80.
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(opened, summary, facts):
        # Neither markup nor control characters of a name from the store reach the terminal.
        table.add_row(Text(name, "bold"), Text("\n".join(map(printable, text.split("\n")))))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    # Without the blanks that fill up the last column.
    yield str(opened.path)
    yield from (line.rstrip() for line in captured.get().splitlines())


def _rows(
    opened: SoftLabels, summary: LabelSummary, facts: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    from ltd_pipe.text import one_line

    known, size, signature = opened.attributes, facts["size"], facts["signature"]
    unknown, names, views = int((opened.labels < 0).sum()), known.class_names, known.views
    yield "identity", opened.identity
    yield "images", f"{known.dataset.name}, {known.dataset.split}"
    yield "fingerprint", known.dataset.fingerprint
    samples = f"{opened.num_samples:,}"
    yield "samples", f"{samples}, {unknown:,} of unknown class" if unknown else samples
    first = ", ".join(one_line(name, 20) for name in names[:8])
    yield "classes", f"{len(names):,}: {first}{', …' if len(names) > 8 else ''}"
    if views.augmentation is not None:
        yield "views", f"{views.count:,} of each image, by {views.augmentation}, seed {views.seed}"
    for teacher in known.teachers:
        accuracy = teacher.clean_accuracy
        said = "clean accuracy unknown" if accuracy is None else f"{accuracy:.2%} clean accuracy"
        scale = f"\n{teacher.normalisation}" if teacher.mean else ""
        yield "teacher", f"{teacher.architecture}, {said}\n{teacher.sha256}{scale}"
    yield from known.labelling.lines() if known.labelling else ()
    yield "temperature", f"{known.temperature:g}"
    if known.calibration:
        yield "calibrated", str(known.calibration)
    yield "stored", "\n".join(_stored(opened))
    chunks = f"{size['chunks']:,} chunks of {size['samples_per_chunk']:,} samples"
    yield "on disk", f"{_bytes(size['bytes'])} in {size['files']:,} files; {chunks}"
    softness = f"mean top probability {summary.mean_top_probability:.4f}"
    softness += f"\nmean entropy {summary.mean_entropy:.4f} nats"
    if summary.disagreement is not None:
        softness += f"\ncontradicts the ground truth for {summary.disagreement:.2%} of samples"
    yield "softness", softness
    if origin := known.derived_from:
        more = [f"and {len(origin.sources) - 8:,} more"] if len(origin.sources) > 8 else []
        yield "made by", "\n".join([f"{origin.operation} of", *origin.sources[:8], *more])
    yield "licence", known.licence or "not said"
    if known.citation is not None:
        yield "citation", known.citation.strip()
    claim = "none"
    if signature is not None:
        claimed = f"by {signature.get('signer')}\n(its own claim, not verified)"
        claim = signature.get("damaged", claimed)
    yield "signature", claim
    versions = (f"{name} {version}" for name, version in known.software.items())
    yield "made with", ", ".join(versions) or "unknown"


def _stored(opened: SoftLabels) -> Iterator[str]:
    top_k = opened.attributes.top_k
    if top_k is None:
        yield "all probabilities" + (" and the logits" if opened.has_logits else ", no logits")
        return
    yield f"the {top_k.k:,} largest of {opened.num_classes:,} probabilities, no logits"
    if lost := top_k.total_variation:
        yield (
            f"total variation from all of them: mean {lost.mean:.2g}, worst {lost.worst:.2g} of "
            f"{lost.samples:,} samples"
        )


def _bytes(count: int) -> str:
    number, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{count:,} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


# --- Two of them.


@click.command()
@click.argument("first", metavar="STORE", type=options.PATH)
@click.argument("second", metavar="OTHER", type=options.PATH)
@click.option(
    "--rows",
    type=click.IntRange(0),
    default=20,
    help="How many of the samples that differ to list, the worst first.",
)
@options.flag(
    "--labels-only",
    help="Exit with 0 when samples and labels are equal, whatever their order and the attributes.",
)
@json_option("Print as JSON.")
def diff(first: Path, second: Path, rows: int, labels_only: bool) -> None:
    """Say which samples of two stores differ, and by how much; matched by hash, not by position.

    Exits with 0 when nothing differs and with 1 when something does. A store that cannot be read
    exits with 1 too, and says so on stderr.

    \b
    Example:
      ltd-pipe store diff labels.zarr other.zarr --rows 5
    """
    from ltd_pipe.labels import SoftLabels
    from ltd_pipe.labels.diff import compare_stores

    stores = SoftLabels.open(first), SoftLabels.open(second)
    with counter("compare", stores[0].num_samples) as progress:
        found = compare_stores(*stores, rows=rows, progress=progress)
    same = found.same_rows if labels_only else found.same
    say(_plain(found, rows) | {"same": same}, _differences(found, rows))
    sys.exit(0 if same else 1)


def _plain(found: Comparison, rows: int) -> dict[str, Any]:
    content = dict(vars(found))
    content["worst"] = [vars(row) for row in found.worst]
    for name in ("only_first", "only_second"):
        content[name] = {"samples": len(content[name]), "rows": content[name][:rows].tolist()}
    return content


def _differences(found: Comparison, rows: int) -> Iterator[str]:
    if found.same:
        yield f"equal: {found.compared:,} samples, all attributes"
        return
    for name, (ours, theirs) in found.attributes.items():
        yield f"{name}: {_short(ours)} | {_short(theirs)}"
    for name, where in found.arrays.items():
        yield f"array {name}: {where}"
    for where, alone in (("first", found.only_first), ("second", found.only_second)):
        if len(alone):
            yield f"only in the {where}: {len(alone):,} samples, such as row {alone[0]}"
    if found.moved:
        yield f"in other rows: {found.moved:,} of {found.compared:,} common samples"
    if found.labels_different:
        yield f"ground truth differs: {found.labels_different:,} samples"
    if found.logits_different:
        yield f"logits differ: {found.logits_different:,} samples"
    yield f"soft labels differ: {found.different:,} of {found.compared:,} common samples"
    if found.different:
        yield f"  largest difference  {found.largest:.3g}"
        yield (
            f"  total variation     {found.mean_total_variation:.3g} on average, "
            f"{found.worst_total_variation:.3g} at most"
        )
        yield f"  most probable class differs in {found.argmax_changes:,} rows"
        yield from _worst(found) if rows else ()


def _worst(found: Comparison) -> Iterator[str]:
    yield "     row   other  sample_hash       label  largest   total variation  class"
    for row in found.worst:
        label = "|".join(str(each) for each in dict.fromkeys(row.labels))
        turned = "differs" if row.views_changed else "same"
        yield (
            f"{row.row:8d}{row.other_row:8d}  {row.sample_hash}  {label:>5}  {row.largest:<8.3g}"
            f"  {row.total_variation:<15.3g}  {turned}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
