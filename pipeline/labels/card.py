"""The README.md of a store: what it is, how its labels are, how to read and to prove it.

Written for people; no program reads it. The same store gives the same bytes: no dates, paths or
hosts. The text is in card.md.j2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ltd_pipe.labels.softness import MAX_TABLE_CLASSES, NUM_BINS
from ltd_pipe.text import licence_metadata, one_line, render_markdown

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

    from ltd_pipe.labels.format import StoreAttributes
    from ltd_pipe.labels.softness import LabelStatistics

CARD = "README.md"
_TAGS = ["soft-labels", "knowledge-distillation", "adversarial-robustness", "zarr"]
_BAR = 40


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
    software = sorted(attributes.software.items())
    return render_markdown(
        Path(__file__).with_name("card.md.j2"),
        front_matter=_front_matter(attributes).to_yaml(),
        store=attributes,
        arrays=arrays,
        versions=", ".join(f"{name} {version}" for name, version in software),
        statistics=statistics,
        histogram=_bars(statistics.histogram),
        max_classes=MAX_TABLE_CLASSES,
    )


def _front_matter(attributes: StoreAttributes) -> DatasetCardData:
    from huggingface_hub import DatasetCardData

    data = attributes.dataset
    return DatasetCardData(
        pretty_name=one_line(f"Soft labels of {data.name} ({data.split})"),
        **licence_metadata(attributes.licence),
        task_categories=["image-classification"],
        size_categories=[_size_category(attributes.num_samples)],
        tags=_TAGS,
        viewer=False,
    )


def _size_category(num_samples: int) -> str:
    # As Hugging Face names them.
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    if num_samples < 1000:
        return f"n<{steps[0]}"
    for power, (low, high) in enumerate(pairwise(steps)):
        if num_samples < 10 ** (4 + power):
            return f"{low}<n<{high}"
    return f"n>{steps[-1]}"


def _bars(histogram: Sequence[int]) -> Iterator[str]:
    # Text, not a picture: it shows in a terminal and on every host, and no font or renderer
    # has a say in the bytes. Empty bins at either end are left out.
    rows, most = sum(histogram), max(histogram)
    filled = [number for number, count in enumerate(histogram) if count]
    for number in range(filled[0], filled[-1] + 1):
        # Rounded up: any row at all is seen.
        length = -(-histogram[number] * _BAR // most)
        low, high = number / NUM_BINS, (number + 1) / NUM_BINS
        share = histogram[number] / rows
        yield f"{low:.2f} to {high:.2f}  {'#' * length:<{_BAR}}  {share:7.2%}"
