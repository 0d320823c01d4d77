"""What a store may say about itself."""

import pytest
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.format import parse_attributes
from ltd_pipe.labels.softmax import row_sum_tolerance


def test_attributes_survive_a_round_trip(answers):
    """What is written is read back equal."""
    assert parse_attributes(answers.attributes.to_json(), "x") == answers.attributes


def test_software_is_sorted(answers):
    """The order in which packages were named leaves no trace in the bytes."""
    assert list(answers.attributes.to_json()["software"]) == ["numpy", "torch"]


def test_a_newer_minor_version_may_have_more_keys(answers):
    """A 1.x reader ignores what 1.y added, at every level; of the versions it knows, nothing."""
    with refused(StoreError, where="x", what="colour", found="'red'"):
        parse_attributes(answers.attributes.to_json() | {"version": "1.2", "colour": "red"}, "x")
    raw = answers.attributes.to_json() | {"version": "1.7", "colour": "red"}
    raw["dataset"]["url"] = "x"
    assert parse_attributes(raw, "x") == answers.attributes


REFUSED = {
    "no dict": (["ltd_pipe"], {"what": "soft-label"}),
    "other format": ({"format": "ltd-images"}, {"what": "soft-label"}),
    "no version": (
        {"version": None},
        {"what": "version", "expected": "1.x", "found": "None", "remedy": "Update"},
    ),
    "newer major": (
        {"version": "2.0"},
        {"what": "ltd-pipe", "expected": "1.x", "found": "'2.0'", "remedy": "ltd-pipe"},
    ),
    "older major": ({"version": "0.9"}, {"what": "version", "expected": "1.x"}),
    "number for version": (
        {"version": 1.0},
        {"what": "version", "expected": "1.x", "found": "1.0"},
    ),
    "version with more": ({"version": "1.0\n"}, {"what": "version", "expected": "1.x"}),
    "unknown key in 1.0": (
        {"temperatures": 2.0},
        {"what": "ltd_pipe.temperatures", "found": "2.0"},
    ),
    "no temperature": ({"temperature": None}, {"what": "ltd_pipe.temperature"}),
    "temperature zero": ({"temperature": 0.0}, {"what": "ltd_pipe.temperature", "found": "0.0"}),
    "temperature as text": ({"temperature": "2"}, {"what": "ltd_pipe.temperature"}),
    "temperature true": ({"temperature": True}, {"what": "ltd_pipe.temperature"}),
    "infinite temperature": ({"temperature": float("inf")}, {"what": "ltd_pipe.temperature"}),
    "no samples": ({"num_samples": 0}, {"what": "ltd_pipe.num_samples"}),
    "negative samples": ({"num_samples": -1}, {"what": "ltd_pipe.num_samples"}),
    "astronomic samples": ({"num_samples": 10**30}, {"what": "ltd_pipe.num_samples"}),
    "classes without names": ({"num_classes": 4}, {"what": "class_names"}),
    "names that repeat": (
        {"class_names": ["a", "a", "b"]},
        {"what": "name", "found": "['a', 'a', 'b']"},
    ),
    "a name that is a number": (
        {"class_names": ["a", "b", 3]},
        {"what": "ltd_pipe.class_names.2", "found": "3"},
    ),
    "bad fingerprint": (
        {"dataset": {"name": "a", "split": "train", "fingerprint": "xyz"}},
        {"what": "ltd_pipe.dataset.fingerprint", "found": "'xyz'"},
    ),
    "no view": (
        {"views": {"count": 0, "seed": 0, "augmentation": "flip"}},
        {"what": "ltd_pipe.views.count", "found": "0"},
    ),
    "equal views": ({"views": {"count": 4}}, {"what": "several", "found": "{'count': 4}"}),
    "augmentation without a seed": (
        {"views": {"augmentation": "flip"}},
        {"what": "ltd_pipe.views"},
    ),
    "seed without an augmentation": ({"views": {"seed": 1}}, {"what": "ltd_pipe.views"}),
    "more ranks than classes": ({"top_k": {"k": 4}}, {"what": "top_k.k"}),
    "no rank": ({"top_k": {"k": 0}}, {"what": "ltd_pipe.top_k.k", "found": "0"}),
    "impossible distance": (
        {"top_k": {"k": 2, "total_variation": {"mean": 1.5, "worst": 2, "samples": 3}}},
        {"what": "ltd_pipe.top_k.total_variation.mean", "found": "1.5"},
    ),
    "licence that is no text": ({"licence": 5}, {"what": "ltd_pipe.licence", "found": "5"}),
    "derivation without sources": (
        {"derived_from": {"operation": "subset"}},
        {"what": "required", "found": "{'operation': 'subset'}"},
    ),
    "a side of nothing": (
        {"labelling": {"image_shape": [3, 0, 32]}},
        {"what": "labelling.image_shape.1", "found": "0"},
    ),
    "a shape of two sides": (
        {"labelling": {"image_shape": [32, 32]}},
        {"what": "labelling.image_shape", "found": "[32, 32]"},
    ),
    "a commit that is no hash": (
        {"labelling": {"commit": "main"}},
        {"what": "labelling.commit", "found": "'main'"},
    ),
    "an escape in a rule": (
        {"labelling": {"resize": "\x1b[2J"}},
        {"what": "labelling.resize", "found": "'\\x1b[2J'"},
    ),
    "unknown key of the labelling": (
        {"labelling": {"size": 32}},
        {"what": "labelling.size", "found": "32"},
    ),
    "a mean that is a text": (
        {"teachers": [{"sha256": "0" * 64, "architecture": "a", "mean": ["0.5"]}]},
        {"what": "ltd_pipe.teachers.0.mean", "found": "'0.5'"},
    ),
    "accuracy in percent": (
        {"teachers": [{"sha256": "0" * 64, "architecture": "a", "clean_accuracy": 95.0}]},
        {"what": "ltd_pipe.teachers.0.clean_accuracy", "found": "95.0"},
    ),
}


@pytest.mark.parametrize(("change", "fields"), REFUSED.values(), ids=REFUSED.keys())
def test_impossible_attributes_are_refused(answers, change, fields):
    """Each is one StoreError that names the key."""
    raw = answers.attributes.to_json() | change if isinstance(change, dict) else change
    with refused(StoreError, where="labels.zarr", **fields):
        parse_attributes(raw, "labels.zarr")


@pytest.mark.parametrize(
    ("classes", "rows"), [(1, 8192), (10, 8192), (1000, 4194), (2**22, 1), (2**29, 1)]
)
def test_chunks_are_whole_rows_of_about_8_mib(answers, classes, rows):
    """Never more than 8192 rows, never none."""
    facts = answers.attributes.model_copy(update={"num_classes": classes})
    assert facts.rows_per_chunk() == rows


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
    "calibration": {"interval": [1.5, 2.5], "nll": 0.125, "samples": 48},
    "teachers": [
        {"sha256": "ab" * 32, "architecture": "a", "clean_accuracy": None}
        | {"mean": [0.5, 0.25, 0], "std": [1, 0.5, 0.1], "columns": [2, 0, 1]}
    ],
}
# That 1.0 does not know.
NEWER = {"labelling": "1.1", "teachers": "1.1", "calibration": "1.2"}


@pytest.mark.parametrize("key", OPTIONAL)
def test_optional_attributes_travel(answers, key):
    """What is said is written and read back; what is not said is not written."""
    plain = answers.attributes.to_json()
    raw = plain | {key: OPTIONAL[key], "version": NEWER.get(key, "1.0")}
    assert parse_attributes(raw, "x").to_json() == raw
    assert key not in plain.keys() - {"views", "teachers"}


def test_what_is_unknown_of_the_labelling_is_not_written(answers):
    """Each key alone; nothing is null."""
    for key, value in OPTIONAL["labelling"].items():
        raw = answers.attributes.to_json() | {"labelling": {key: value}, "version": "1.1"}
        assert parse_attributes(raw, "x").to_json() == raw
