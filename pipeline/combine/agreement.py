"""What several stores must say alike, and what they say together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.combine.source import ProvenStore
    from pipeline.labels.read import SoftLabels

__all__ = ["joint_terms", "require_alike"]


def require_alike(sources: Sequence[ProvenStore], keys: Sequence[str], remedy: str) -> None:
    """Refuse stores that differ in something that one store has once.

    Parameters
    ----------
    sources : sequence of ProvenStore
    keys : sequence of str
        Of `classes`, `temperature`, `views`, `teachers`, `images`, `top-k`, `arrays`.
    remedy : str
        What to do about a difference.

    Raises
    ------
    StoreError
        Naming the first store that differs from the first one, and in what.
    """
    first = sources[0]
    for other in sources[1:]:
        _require_classes(first.store, other.store)
        for key in keys:
            expected, found = _value(first, key), _value(other, key)
            if expected != found:
                raise StoreError(
                    other.store.path,
                    key,
                    expected=f"{expected} as {first.store.path} has",
                    found=found,
                    remedy=remedy,
                )


def _require_classes(first: SoftLabels, other: SoftLabels) -> None:
    pairs = [first.attributes.class_names, other.attributes.class_names]
    if len(pairs[0]) != len(pairs[1]):
        raise StoreError(
            other.path,
            "number of classes",
            expected=f"{len(pairs[0])} as {first.path} has",
            found=len(pairs[1]),
        )
    for number, (expected, found) in enumerate(zip(*pairs, strict=True)):
        if expected != found:
            raise StoreError(
                other.path,
                f"class {number}",
                expected=f"'{expected}' as {first.path} has",
                found=f"'{found}'",
            )


def _value(source: ProvenStore, key: str) -> str:
    known = source.store.attributes
    if key == "temperature":
        return repr(known.temperature)
    if key == "views":
        views = known.views
        shown = views.augmentation or "the image as it is"
        return f"{views.count} × {shown}, seed {views.seed}"
    if key == "teachers":
        return ", ".join(f"{each.architecture} {each.sha256[:12]}…" for each in known.teachers)
    if key == "images":
        return f"{known.dataset.name}, {known.dataset.split}"
    if key == "top-k":
        return f"{source.store.top_k} probabilities per row" if source.store.top_k else "all"
    return ", ".join(sorted(source.names))


def joint_terms(sources: Sequence[ProvenStore]) -> dict[str, Any]:
    """Licence, citation and software of rows that come from several stores.

    Returns
    -------
    dict
        Of each text all different ones, so that nobody's terms are lost; where only some
        stores name a licence, that the others' is unknown.
    """
    known = [source.store.attributes for source in sources]
    software: dict[str, str] = {}
    for name in sorted({name for each in known for name in each.software}):
        versions = [each.software[name] for each in known if name in each.software]
        software[name] = ", ".join(dict.fromkeys(versions))
    return {
        "licence": _joined([each.licence for each in known], " AND ", "unknown"),
        "citation": _joined([each.citation for each in known], "\n\n", None),
        "software": software,
    }


def _joined(texts: Sequence[str | None], between: str, otherwise: str | None) -> str | None:
    if not any(texts):
        return None
    different = dict.fromkeys(text or otherwise for text in texts)
    return between.join(text for text in different if text)
