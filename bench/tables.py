"""Results as Markdown tables, the ratios last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timing import Comparison, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["duration", "ratio_table", "size_rows", "table", "time_table"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def duration(seconds: float) -> str:
    """Seconds with three digits and a unit that suits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def time_table(comparisons: Iterable[Comparison]) -> str:
    """Every way's median and quartiles, and the rate where the work is bytes or images."""
    header = ["what", "way", "median", "quartiles", "fastest", "processors", "n", "rate"]
    rows = [
        _times(comparison, way, seconds)
        for comparison in comparisons
        for way, seconds in comparison.seconds.items()
    ]
    return table(header, rows)


def _times(comparison: Comparison, way: str, seconds: list[float]) -> list[str]:
    found = Spread.of(seconds)
    rates = {"bytes": (1e6, "MB/s"), "images": (1.0, "images/s"), "rows": (1e6, "M rows/s")}
    unit, name = rates[comparison.unit]
    return [
        comparison.what,
        way,
        duration(found.median),
        f"{duration(found.low)} – {duration(found.high)}",
        duration(found.least),
        duration(Spread.of(comparison.cpu[way]).median),
        str(found.n),
        f"{comparison.amount / found.median / unit:.3g} {name}",
    ]


def ratio_table(named: Iterable[tuple[str, Comparison]]) -> str:
    """Each way's time over its baseline's in the same round: below one is faster."""
    header = ["size", "what", "way", "against", "ratio", "quartiles", "n"]
    rows = []
    for size, comparison in named:
        for way in comparison.seconds:
            if way != comparison.baseline:
                ratio = comparison.ratio(way)
                spread = f"{ratio.low:.3g} – {ratio.high:.3g}"
                cells = [size, comparison.what, way, comparison.baseline]
                rows.append([*cells, f"{ratio.median:.3g}", spread, str(ratio.n)])
    return table(header, rows)


def size_rows(sizes: list[dict[str, Any]]) -> str:
    """The table of bytes per sample."""
    header = ["data", "samples", "classes", "kept", "bytes per sample", "store", "with logits"]
    rows = []
    for size in sizes:
        logits = size["bytes_per_sample_with_logits"]
        rows.append(
            [
                size["data"],
                f"{size['samples']:,}",
                f"{size['classes']:,}",
                f"top {size['top_k']}" if size["top_k"] else "all",
                f"{size['bytes_per_sample']:,}",
                _gigabytes(size["bytes"]),
                _gigabytes(size["samples"] * logits) if logits else "–",
            ]
        )
    return table(header, rows)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"
