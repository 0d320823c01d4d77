"""What a store may say about itself."""

import pytest

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.distributions import row_sum_tolerance
from ltd_pipe.labels.format import parse_attributes, rows_per_chunk


def test_attributes_survive_a_round_trip(answers):
    """What is written is read back equal."""
    assert parse_attributes(answers.attributes.to_json(), "x") == answers.attributes


def test_software_is_sorted(answers):
    """The order in which packages were named leaves no trace in the bytes."""
    assert list(answers.attributes.to_json()["software"]) == ["numpy", "torch"]


def test_a_newer_minor_version_may_have_more_keys(answers):
    """A 1.x reader ignores what 1.y added, at every level; of the versions it knows, nothing."""
    with pytest.raises(StoreError, match="colour: Extra inputs"):
        parse_attributes(answers.attributes.to_json() | {"version": "1.1", "colour": "red"}, "x")
    raw = answers.attributes.to_json() | {"version": "1.7", "colour": "red"}
    raw["dataset"]["url"] = "x"
    assert parse_attributes(raw, "x") == answers.attributes


REFUSED = {
    "no dict": (["ltd_pipe"], "is no soft-label store"),
    "other format": ({"format": "ltd-images"}, "is no soft-label store"),
    "no version": ({"version": None}, "version that this ltd-pipe does not read.*Update"),
    "newer major": ({"version": "2.0"}, "expected 1.x, found '2.0'. Update ltd-pipe"),
    "older major": ({"version": "0.9"}, "expected 1.x"),
    "number for version": ({"version": 1.0}, "expected 1.x, found 1.0"),
    "version with more": ({"version": "1.0\n"}, "expected 1.x"),
    "unknown key in 1.0": ({"temperatures": 2.0}, "ltd_pipe.temperatures: Extra inputs"),
    "no temperature": ({"temperature": None}, "ltd_pipe.temperature"),
    "temperature zero": ({"temperature": 0.0}, "ltd_pipe.temperature: .*greater"),
    "temperature as text": ({"temperature": "2"}, "ltd_pipe.temperature"),
    "temperature true": ({"temperature": True}, "ltd_pipe.temperature"),
    "infinite temperature": ({"temperature": float("inf")}, "ltd_pipe.temperature"),
    "no samples": ({"num_samples": 0}, "ltd_pipe.num_samples"),
    "negative samples": ({"num_samples": -1}, "ltd_pipe.num_samples"),
    "astronomic samples": ({"num_samples": 10**30}, "ltd_pipe.num_samples"),
    "classes without names": ({"num_classes": 4}, "4 classes have 3 class_names"),
    "names that repeat": ({"class_names": ["a", "a", "b"]}, "same name"),
    "a name that is a number": ({"class_names": ["a", "b", 3]}, "ltd_pipe.class_names.2"),
    "bad fingerprint": (
        {"dataset": {"name": "a", "split": "train", "fingerprint": "xyz"}},
        "ltd_pipe.dataset.fingerprint",
    ),
    "no view": (
        {"views": {"count": 0, "seed": 0, "augmentation": "flip"}},
        "ltd_pipe.views.count: Input should be greater than or equal to 1",
    ),
    "equal views": ({"views": {"count": 4}}, "several views without an augmentation"),
    "augmentation without a seed": ({"views": {"augmentation": "flip"}}, "ltd_pipe.views.*a seed"),
    "seed without an augmentation": ({"views": {"seed": 1}}, "ltd_pipe.views.*a seed"),
    "more ranks than classes": ({"top_k": {"k": 4}}, "top_k.k is 4, and there are 3 classes"),
    "no rank": ({"top_k": {"k": 0}}, "ltd_pipe.top_k.k"),
    "impossible distance": (
        {"top_k": {"k": 2, "total_variation": {"mean": 1.5, "worst": 2, "samples": 3}}},
        "ltd_pipe.top_k.total_variation.mean",
    ),
    "licence that is no text": ({"licence": 5}, "ltd_pipe.licence"),
    "derivation without sources": ({"derived_from": {"operation": "subset"}}, "sources"),
    "a side of nothing": ({"labelling": {"image_shape": [3, 0, 32]}}, "labelling.image_shape.1"),
    "a shape of two sides": ({"labelling": {"image_shape": [32, 32]}}, "labelling.image_shape"),
    "a commit that is no hash": ({"labelling": {"commit": "main"}}, "labelling.commit"),
    "an escape in a rule": ({"labelling": {"resize": "\x1b[2J"}}, "labelling.resize"),
    "unknown key of the labelling": ({"labelling": {"size": 32}}, "labelling.size: Extra inputs"),
    "a mean that is a text": (
        {"teachers": [{"sha256": "0" * 64, "architecture": "a", "mean": ["0.5"]}]},
        "ltd_pipe.teachers.0.mean",
    ),
    "accuracy in percent": (
        {"teachers": [{"sha256": "0" * 64, "architecture": "a", "clean_accuracy": 95.0}]},
        "ltd_pipe.teachers.0.clean_accuracy",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_impossible_attributes_are_refused(answers, change, message):
    """Each is one StoreError that names the key."""
    raw = answers.attributes.to_json() | change if isinstance(change, dict) else change
    with pytest.raises(StoreError, match=f"labels.zarr: .*{message}"):
        parse_attributes(raw, "labels.zarr")


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(2, 8192), (20, 8192), (2000, 4194), (2**23, 1), (2**30, 1)]
)
def test_chunks_are_whole_rows_of_about_8_mib(row_bytes, rows):
    """Never more than 8192 rows, never none."""
    assert rows_per_chunk(row_bytes) == rows


@pytest.mark.parametrize("num_classes", [1, 10, 1000, 21841])
def test_float16_rounding_of_any_distribution_is_within_the_tolerance(num_classes):
    """The bound holds for distributions that are even, peaked, and random."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(num_classes, 0.3), 200)
    rows = np.concatenate([rows, np.full((1, num_classes), 1 / num_classes)])
    sums = rows.astype(np.float16).sum(axis=1, dtype=np.float64)
    assert abs(sums - 1).max() <= row_sum_tolerance(num_classes)
    assert row_sum_tolerance(num_classes) < 0.0012


OPTIONAL = {
    "licence": "CC-BY-4.0",
    "citation": "Somebody, 2026",
    "derived_from": {"operation": "subset", "sources": ["ab" * 32]},
    "top_k": {"k": 2, "total_variation": {"mean": 0.1, "worst": 0.5, "samples": 11}},
    "views": {"count": 2, "seed": 3, "augmentation": "crop:4,flip"},
    "labelling": {
        "image_shape": [3, 32, 24],
        "resize": "none",
        "channels": "RGB",
        "pixels_sha256": "ab" * 32,
        "precision": "float32",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "modified": False,
    },
    "teachers": [
        {"sha256": "ab" * 32, "architecture": "a", "clean_accuracy": None}
        | {"mean": [0.5, 0.25, 0], "std": [1, 0.5, 0.1], "columns": [2, 0, 1]}
    ],
}
# That 1.0 does not know.
NEWER = ("labelling", "teachers")


@pytest.mark.parametrize("key", OPTIONAL)
def test_optional_attributes_travel(answers, key):
    """What is said is written and read back; what is not said is not written."""
    plain = answers.attributes.to_json()
    raw = plain | {key: OPTIONAL[key], "version": "1.1" if key in NEWER else "1.0"}
    assert parse_attributes(raw, "x").to_json() == raw
    assert key not in plain.keys() - {"views", "teachers"}


def test_what_is_unknown_of_the_labelling_is_not_written(answers):
    """Each key alone; nothing is null."""
    for key, value in OPTIONAL["labelling"].items():
        raw = answers.attributes.to_json() | {"labelling": {key: value}, "version": "1.1"}
        assert parse_attributes(raw, "x").to_json() == raw
