"""The README.md of a store: what it is, how its labels are, how to read and to prove it.

Written for people, by `ltd_pipe.labels.writer`; no program reads it. The same store gives the same
bytes: no dates, paths or hosts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ltd_pipe.labels.softness import MAX_TABLE_CLASSES, NUM_BINS, measure
from ltd_pipe.publish import write_text
from ltd_pipe.text import code, fenced, licence_lines, table, yaml_scalar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ltd_pipe.labels.format import ArrayLayout, StoreAttributes
    from ltd_pipe.labels.softness import ClassStatistics, LabelStatistics

__all__ = ["CARD", "format_card", "write_card"]

CARD = "README.md"
_TAGS = ("soft-labels", "knowledge-distillation", "adversarial-robustness", "zarr")
_BAR = 40


def write_card(folder: Path, attributes: StoreAttributes, layouts: Sequence[ArrayLayout]) -> None:
    """Measure a store whose chunks are all there, and write its README.md.

    Parameters
    ----------
    folder : Path
        The store, unpublished; the manifest comes after.
    attributes : StoreAttributes
    layouts : sequence of ArrayLayout
        Of its arrays.
    """
    names = [layout.name for layout in layouts]
    write_text(folder / CARD, format_card(attributes, names, measure(folder, layouts)))


def format_card(
    attributes: StoreAttributes, arrays: Sequence[str], statistics: LabelStatistics
) -> str:
    """The text of a card.

    Parameters
    ----------
    attributes : StoreAttributes
        Names in it come from data and people: none of them acts as Markdown, HTML or YAML.
    arrays : sequence of str
        Which arrays are stored.
    statistics : LabelStatistics
    """
    sections = [
        _front_matter(attributes),
        _introduction(attributes),
        table(["", ""], _facts(attributes, arrays)),
        "## Teachers",
        _teachers(attributes),
        "## What the labels are like",
        *_likeness(attributes, statistics),
        "## Reading them",
        *_reading(attributes),
        "## Proving them",
        _PROVING,
        *_terms(attributes),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(attributes: StoreAttributes) -> str:
    data = attributes.dataset
    lines = [f"pretty_name: {yaml_scalar(f'Soft labels of {data.name} ({data.split})')}"]
    if attributes.licence is not None:
        lines += licence_lines(attributes.licence)
    lines += ["task_categories:", "- image-classification"]
    lines += ["size_categories:", f"- {_size_category(attributes.num_samples)}"]
    lines += ["tags:", *(f"- {tag}" for tag in _TAGS), "viewer: false"]
    return "\n".join(["---", *lines, "---"])


def _size_category(num_samples: int) -> str:
    # As Hugging Face names them.
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    if num_samples < 1000:
        return f"n<{steps[0]}"
    for power, (low, high) in enumerate(pairwise(steps)):
        if num_samples < 10 ** (4 + power):
            return f"{low}<n<{high}"
    return f"n>{steps[-1]}"


def _introduction(attributes: StoreAttributes) -> str:
    data = attributes.dataset
    several = len(attributes.teachers) > 1
    teacher = f"{len(attributes.teachers)} teachers', averaged," if several else "a teacher's"
    return (
        f"# Soft labels of {code(data.name)}, {code(data.split)}\n\n"
        f"For each image, {teacher} probabilities over the classes: softmax(logits / temperature)."
        " Row i belongs to the image whose hash is `sample_hash[i]`. Format: ltd-soft-labels"
        f" {attributes.version}, a Zarr v3 group."
    )


def _facts(attributes: StoreAttributes, arrays: Sequence[str]) -> Iterator[tuple[str, str]]:
    data, views = attributes.dataset, attributes.views
    yield "images", f"{code(data.name)}, {code(data.split)}"
    yield "samples × classes", f"{attributes.num_samples:,} × {attributes.num_classes:,}"
    if views.count > 1 or views.augmentation is not None:
        made = f"{code(views.augmentation or '')}, seed {views.seed}"
        yield "views of each image", f"{views.count:,}, each augmented by {made}"
    for name, text in attributes.labelling.lines() if attributes.labelling else ():
        yield name, code(text, limit=1000)
    yield "temperature", f"{attributes.temperature:g}"
    if attributes.top_k is not None:
        yield from _sparse_facts(attributes)
    yield "logits", "stored" if "logits" in arrays else "not stored"
    yield "data set's fingerprint", code(data.fingerprint)
    if attributes.derived_from is not None:
        origin = attributes.derived_from
        sources = ", ".join(code(source) for source in origin.sources[:16])
        more = f" and {len(origin.sources) - 16} more" if len(origin.sources) > 16 else ""
        yield "made from other stores", f"{code(origin.operation)} of {sources}{more}"
    versions = ", ".join(f"{name} {text}" for name, text in sorted(attributes.software.items()))
    yield "made with", code(versions, limit=1000)


def _sparse_facts(attributes: StoreAttributes) -> Iterator[tuple[str, str]]:
    assert attributes.top_k is not None  # noqa: S101
    distance = attributes.top_k.total_variation
    k, others = attributes.top_k.k, attributes.num_classes - attributes.top_k.k
    yield "probabilities per row", f"the {k:,} largest; the rest is spread over {others:,} others"
    if distance is not None:
        yield (
            "total variation from all of them",
            f"mean {distance.mean:.2g}, worst {distance.worst:.2g} of {distance.samples:,} samples",
        )


def _teachers(attributes: StoreAttributes) -> str:
    head = ["architecture", "clean accuracy", "SHA-256 of the checkpoint"]
    known = any(teacher.mean for teacher in attributes.teachers)
    rows = (
        (
            code(teacher.architecture),
            "unknown" if teacher.clean_accuracy is None else f"{teacher.clean_accuracy:.2%}",
            code(teacher.sha256),
            *([teacher.normalisation] if known else []),
        )
        for teacher in attributes.teachers
    )
    return table([*head, "input normalisation"] if known else head, rows)


def _likeness(attributes: StoreAttributes, statistics: LabelStatistics) -> Iterator[str]:
    summary, measured = statistics.summary, f"{statistics.samples:,}"
    whole = statistics.samples == attributes.num_samples
    yield (
        f"Measured on all {measured} samples."
        if whole
        else f"Measured on {measured} of {attributes.num_samples:,} samples, evenly spaced."
    )
    rows = [
        ("mean top probability", f"{summary.mean_top_probability:.4f}"),
        ("mean entropy", f"{summary.mean_entropy:.4f} nats"),
    ]
    if summary.disagreement is not None:
        rows.append(("another class than the ground truth on top", f"{summary.disagreement:.2%}"))
    yield table(["", ""], rows)
    for warning in summary.warnings:
        yield f"**Note.** {warning}"
    yield "Rows by their top probability:"
    yield fenced("\n".join(_bars(statistics.histogram)))
    if statistics.classes:
        yield _class_table(attributes.class_names, statistics.classes)
    elif attributes.num_classes > MAX_TABLE_CLASSES:
        yield "The names of the classes are in `ltd_pipe.class_names`."
    else:
        yield f"Classes: {', '.join(code(name) for name in attributes.class_names)}."


def _bars(histogram: Sequence[int]) -> Iterator[str]:
    # Text, not a picture: it shows in a terminal and on every host, and no font or renderer
    # has a say in the bytes. Empty bins at either end are left out.
    rows, most = sum(histogram), max(histogram)
    filled = [number for number, count in enumerate(histogram) if count]
    for number in range(filled[0], filled[-1] + 1):
        # Any row at all is seen.
        length = -(-histogram[number] * _BAR // most)
        low, high = number / NUM_BINS, (number + 1) / NUM_BINS
        share = histogram[number] / rows
        yield f"{low:.2f} to {high:.2f}  {'#' * length:<{_BAR}}  {share:7.2%}"


def _class_table(names: Sequence[str], classes: Sequence[ClassStatistics | None]) -> str:
    head = ["class", "rows", "mean top probability", "mean of its own", "on top"]
    rows = (
        (code(name), "0", "", "", "")
        if found is None
        else (
            code(name),
            f"{found.rows:,}",
            f"{found.mean_top_probability:.4f}",
            f"{found.mean_own_probability:.4f}",
            f"{found.agreement:.2%}",
        )
        for name, found in zip(names, classes, strict=True)
    )
    return table(head, rows)


_DENSE = """import numpy as np, zarr

group = zarr.open_group(".", mode="r")
facts = group.attrs["ltd_pipe"]
rows = group["soft_labels"][:].astype(np.float32)  # {shape}
rows /= rows.sum(axis=-1, keepdims=True)
labels, sample_hash = group["labels"][:], group["sample_hash"][:]"""
_SPARSE = """import numpy as np, zarr

group = zarr.open_group(".", mode="r")
classes, probs = group["topk_indices"][:], group["topk_probs"][:].astype(np.float32)
rest = np.maximum(1 - probs.sum(axis=-1, keepdims=True), 0) / {others}
rows = np.repeat(rest, {num_classes}, axis=-1)  # {shape}
np.put_along_axis(rows, classes.astype(np.int64), probs, axis=-1)
rows /= rows.sum(axis=-1, keepdims=True)
labels, sample_hash = group["labels"][:], group["sample_hash"][:]"""


def _reading(attributes: StoreAttributes) -> Iterator[str]:
    views, num_classes = attributes.views.count, attributes.num_classes
    middle = f" {views}," if views > 1 else ""
    shape = f"({attributes.num_samples},{middle} {num_classes}): sample,"
    shape += " view, class" if views > 1 else " class"
    yield "With plain zarr, in this folder:"
    if attributes.top_k is None:
        yield fenced(_DENSE.format(shape=shape), "python")
    else:
        others = max(num_classes - attributes.top_k.k, 1)
        yield fenced(_SPARSE.format(shape=shape, others=others, num_classes=num_classes), "python")
    yield (
        "ltd-pipe reads them faster, checks each chunk, and refuses images to which they do not"
        " belong: `ltd-pipe train --labels STORE`."
    )


_PROVING = """No byte has changed; the hash of the manifest itself is the store's identity:

```
sha256sum -c --strict MANIFEST.sha256 && sha256sum MANIFEST.sha256
```

Everything that can be checked, also that the labels belong to the images:

```
ltd-pipe store verify . --data IMAGES.beton --public-key SIGNER.pub
```

Who signed it, if there is a `MANIFEST.sha256.sig`, without any software of ours:

```
ssh-keygen -Y verify -n ltd-soft-labels -f ALLOWED_SIGNERS -I NAME \\
    -s MANIFEST.sha256.sig < MANIFEST.sha256
```"""


def _terms(attributes: StoreAttributes) -> Iterator[str]:
    if attributes.licence is not None:
        yield "## Licence"
        one_line = "\n" not in attributes.licence and len(attributes.licence) <= 100
        yield code(attributes.licence) if one_line else fenced(attributes.licence)
    if attributes.citation is not None:
        yield "## Citation"
        yield fenced(attributes.citation)
