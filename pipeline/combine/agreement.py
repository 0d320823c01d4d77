"""What several stores must say alike, and what they say together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError
from pipeline.labels.format import LabellingFacts

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
        Of `classes`, `temperature`, `views`, `teachers`, `images`, `top-k`, `arrays`,
        `normalisation`, `columns`, and LabellingFacts'. What a store does not say agrees with
        anything.
    remedy : str
        What to do about a difference.

    Raises
    ------
    StoreError
        Naming the first store that differs from the first one, and in what.
    """
    for other in sources[1:]:
        _require_classes(sources[0].store, other.store)
    for key in keys:
        said = ((source, _value(source, key)) for source in sources)
        known = [(source, value) for source, value in said if value is not None]
        for other, found in known[1:]:
            first, expected = known[0]
            if expected != found:
                raise StoreError(
                    other.store.path,
                    key,
                    expected=f"{expected:.200} as {first.store.path} has",
                    found=f"{found:.200}",
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


def _value(source: ProvenStore, key: str) -> str | None:
    known = source.store.attributes
    if key in LabellingFacts.model_fields:
        said = getattr(known.labelling, key, None)
        return None if said is None else str(said)
    views, top_k, teachers = known.views, source.store.top_k, known.teachers
    constants = [each.normalisation for each in teachers]
    unknown = "unknown" in constants
    values = {
        "temperature": repr(known.temperature),
        "views": f"{views.count} × {views.augmentation or 'the image as it is'}, seed {views.seed}",
        "teachers": ", ".join(f"{each.architecture} {each.sha256[:12]}…" for each in teachers),
        "normalisation": None if unknown else "; ".join(constants),
        "columns": None if unknown else "; ".join(str(each.columns) for each in teachers),
        "images": f"{known.dataset.name}, {known.dataset.split}",
        "top-k": f"{top_k} probabilities per row" if top_k else "all",
        "arrays": ", ".join(sorted(source.names)),
    }
    return values[key]


def joint_terms(sources: Sequence[ProvenStore]) -> dict[str, Any]:
    """Licence, citation, software and labelling of rows that come from several stores.

    Returns
    -------
    dict
        Of each text all different ones, so that nobody's terms are lost; where only some
        stores name a licence, that the others' is unknown. Of the labelling what all say alike.
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
        "labelling": _joint_labelling([each.labelling for each in known]),
    }


def _joint_labelling(facts: Sequence[LabellingFacts | None]) -> LabellingFacts | None:
    first = facts[0]
    if first is None or None in facts:
        return None
    return LabellingFacts(
        **{
            name: value
            for name, value in first
            if all(value == getattr(other, name) for other in facts)
        }
    )


def _joined(texts: Sequence[str | None], between: str, otherwise: str | None) -> str | None:
    if not any(texts):
        return None
    different = dict.fromkeys(text or otherwise for text in texts)
    return between.join(text for text in different if text)
