"""Merging: parts put together are the whole again, and what is no part is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import merge
from ltd_pipe.labels.format import CalibrationFacts, DerivationFacts, LabellingFacts, TeacherFacts
from ltd_pipe.labels.verify import verify_store

PIECES = (slice(0, 4), slice(4, 5), slice(5, 11))


def merged(sources, target, **options):
    """A merged store, verified and opened."""
    identity = merge(sources, **options).write(target)
    verify_store(target)
    opened = SoftLabels.open(target)
    assert opened.identity == identity
    return opened


def chunk_rows_of(path):
    """How many samples a chunk has."""
    return SoftLabels.open(path).arrays["labels"].layout.rows


def arrays(store):
    """All arrays by name."""
    return {name: array.read() for name, array in store.arrays.items()}


def require_equal(found, expected):
    """All arrays of two stores are equal to the byte."""
    ours, theirs = arrays(found), arrays(expected)
    assert ours.keys() == theirs.keys()
    for name, rows in ours.items():
        np.testing.assert_array_equal(rows, theirs[name])


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"keep_logits": False}], ids=str)
def test_parts_in_order_are_the_whole(answers, parts, tmp_path, options):
    """Arrays, fingerprint and all other attributes are those of the undivided store."""
    answers.write(tmp_path / "whole.zarr", **options)
    whole = SoftLabels.open(tmp_path / "whole.zarr")
    sources = parts(*PIECES, **options)
    found = merged(sources, tmp_path / "merged.zarr")
    require_equal(found, whole)
    identities = tuple(source.identity for source in sources)
    derived = DerivationFacts(operation="merge", sources=identities)
    assert found.attributes.model_copy(update={"derived_from": None}) == whole.attributes
    assert found.attributes.derived_from == derived


def test_parts_in_any_order_are_put_into_that_of_the_data(answers, store, parts, tmp_path):
    """Each row goes where its image is, found by hash."""
    sources = parts([9, 2, 7, 0], [1, 10], [3, 8, 4, 6, 5])
    found = merged(sources, tmp_path / "merged.zarr", images=answers, data="train.beton")
    require_equal(found, SoftLabels.open(store))
    found.require_data(answers.manifest, "train.beton")


def test_chunks_are_as_long_as_the_parts(answers, parts, tmp_path):
    """Of parts of one chunk each nothing follows; a longer one says how long chunks are."""
    merged(parts([0, 1], [2, 3, 4]), tmp_path / "a.zarr")
    assert chunk_rows_of(tmp_path / "a.zarr") == 5
    merged(parts(*PIECES), tmp_path / "b.zarr")
    assert chunk_rows_of(tmp_path / "b.zarr") == 4


def test_an_image_that_the_data_has_twice_may_be_in_two_parts(answers, parts, tmp_path):
    """With the data set given, each row is used once."""
    twice = answers.permuted([0, 1, 2, 0])
    sources = parts([0, 1], [2, 0])
    found = merged(sources, tmp_path / "merged.zarr", images=twice, data="train.beton")
    np.testing.assert_array_equal(found.sample_hash, twice.sample_hash)
    with refused(
        StoreError,
        where=tmp_path / "part-1.zarr",
        what="row 0",
        expected="different samples in each store",
    ):
        merged(sources, tmp_path / "other.zarr")


def test_missing_and_doubled_rows_are_refused(answers, parts, tmp_path):
    """The parts must be the data set's samples, each once."""
    target = tmp_path / "merged.zarr"
    for pieces, fields in (
        (
            [[0, 1, 2], [3, 4]],
            {"where": "t", "what": "stores", "found": re.compile("sample_hash")},
        ),
        (
            [slice(0, 11), [3, 4]],
            {"where": "part-1.zarr", "what": "row"},
        ),
    ):
        with refused(JoinError, **fields):
            merged(parts(*pieces), target, images=answers, data="t")
        assert not target.exists()


def test_another_class_for_the_same_image_is_refused(answers, parts, tmp_path):
    """The ground truth of store and data must agree."""
    labels = answers.labels.copy()
    labels[6] = (labels[6] + 2) % 3 - (labels[6] == -1)
    other = replace(answers, labels=labels)
    with refused(
        JoinError,
        where=tmp_path / "part-2.zarr",
        what="row 1",
        expected="class 0 as sample 6 of t",
        found=-1,
    ):
        merged(parts(*PIECES), tmp_path / "merged.zarr", images=other, data="t")


def changed(answers, name="digits", **values):
    """The last samples with other facts."""
    part = answers.permuted(np.arange(4, 11))
    facts = part.attributes.model_copy(update=values)
    found = fingerprint(facts.class_names, part.labels, part.sample_hash)
    dataset = facts.dataset.model_copy(update={"name": name, "fingerprint": found})
    return replace(part, attributes=facts.model_copy(update={"dataset": dataset}))


OTHER_TEACHER = TeacherFacts(sha256="cd" * 32, architecture="resnet-18")
DIFFERENCES = {
    "temperature": (
        {"temperature": 3.0},
        {
            "what": "temperature",
            "expected": re.compile(r"2\.0 as \S+part\-0\.zarr has"),
            "found": "3.0",
            "remedy": "Merge",
        },
    ),
    "classes": (
        {"class_names": ("a", "b", "c")},
        {"what": "class", "expected": "'class 0'", "found": re.compile("'a'")},
    ),
    "images": (
        {"name": "cifar10"},
        {
            "what": "images",
            "expected": re.compile(r"digits, train as \S+part\-0\.zarr has"),
            "found": "cifar10, train",
        },
    ),
    "teachers": (
        {"teachers": (OTHER_TEACHER,)},
        {
            "what": "teachers",
            "expected": re.compile(r"small-cnn \w+… as \S+part\-0\.zarr has"),
            "found": re.compile(r"resnet-18 \w+"),
        },
    ),
}
ASKED = LabellingFacts(image_shape=(3, 32, 32), resize="a", channels="RGB", precision="float32")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_shape", (3, 64, 64)),
        ("resize", "b"),
        ("channels", "red"),
        ("precision", "bfloat16"),
        ("mean", (0.4,)),
        ("std", (0.4,)),
        ("columns", (0, 2, 1)),
    ],
)
def test_answers_to_other_questions_are_not_put_together(answers, tmp_path, name, value):
    """The same teacher, asked otherwise. What a store does not say agrees, and is said no more."""
    of_teacher = name in TeacherFacts.model_fields
    teacher = answers.attributes.teachers[0].model_copy(update={"mean": (0.5,), "std": (0.5,)})

    def part(rows, *, known=True, **other):
        given, asked = other if of_teacher else {}, {} if of_teacher else other
        facts = {"teachers": (teacher.model_copy(update=given),)}
        facts["labelling"] = ASKED.model_copy(update=asked)
        piece = answers.permuted(rows)
        update = {"dataset": piece.attributes.dataset} | (facts if known else {})
        piece = replace(piece, attributes=piece.attributes.model_copy(update=update))
        return SoftLabels.open(piece.write(tmp_path / f"{rows[0]}.zarr", replace=True))

    first, rest = part(np.arange(4)), np.arange(4, 11)
    with pytest.raises(StoreError) as caught:
        merged([first, part(rest, **{name: value})], tmp_path / "merged.zarr")
    assert caught.value.what == ("normalisation" if name in ("mean", "std") else name)
    found = merged([first, part(rest)], tmp_path / "alike.zarr").attributes
    assert (found.labelling, found.teachers) == (ASKED, (teacher,))
    found = merged([first, part(rest, known=False)], tmp_path / "unknown.zarr").attributes
    assert (found.labelling, found.teachers) == (None, answers.attributes.teachers)


@pytest.mark.parametrize("samples", [48, 49])
def test_how_the_temperature_was_found_is_said_where_all_say_it(answers, tmp_path, samples):
    """Of one temperature, by one measurement; by two, neither is the whole's."""
    known = CalibrationFacts(interval=(1.5, 2.5), nll=0.125, samples=48)

    def part(rows, samples):
        piece = answers.permuted(rows)
        update = {"calibration": known.model_copy(update={"samples": samples})}
        piece = replace(piece, attributes=piece.attributes.model_copy(update=update))
        return SoftLabels.open(piece.write(tmp_path / f"{rows[0]}.zarr"))

    pieces = part(np.arange(4), 48), part(np.arange(4, 11), samples)
    found = merged(pieces, tmp_path / "merged.zarr").attributes
    assert found.calibration == (known if samples == 48 else None)


def test_terms_that_are_too_long_together_are_refused(answers, tmp_path):
    """Each of them is a text that a store may have; both are not."""

    def part(rows, word):
        piece = answers.permuted(rows)
        facts = piece.attributes.model_copy(update={"citation": word * 6000})
        return SoftLabels.open(replace(piece, attributes=facts).write(tmp_path / f"{rows[0]}.zarr"))

    pieces = part(np.arange(4), "a"), part(np.arange(4, 11), "b")
    with refused(StoreError, what="citation", expected="at most 10,000 characters", found="12,002"):
        merged(pieces, tmp_path / "merged.zarr")


@pytest.mark.parametrize(("values", "fields"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_stores_that_differ_in_more_than_samples_are_refused(
    answers, parts, tmp_path, values, fields
):
    """One line says in what, of which store."""
    other = SoftLabels.open(changed(answers, **values).write(tmp_path / "other.zarr"))
    with refused(StoreError, **fields):
        merged([*parts(slice(0, 4)), other], tmp_path / "merged.zarr")


def test_stores_of_other_layouts_are_refused(answers, parts, tmp_path):
    """Sparse with dense, with logits and without, one view with several."""
    first = parts(slice(0, 4))
    rest = answers.permuted(np.arange(4, 11))
    for options, fields in (
        (
            {"top_k": 2},
            {
                "what": "top-k",
                "expected": re.compile(r"all as \S+part\-0\.zarr has"),
                "found": "2 probabilities per row",
            },
        ),
        (
            {"keep_logits": False},
            {
                "what": "arrays",
                "expected": re.compile(r"logits, soft_labels as \S+part\-0\.zarr has"),
                "found": "soft_labels",
            },
        ),
    ):
        other = SoftLabels.open(rest.write(tmp_path / "other.zarr", **options, replace=True))
        with refused(StoreError, where=tmp_path / "other.zarr", **fields):
            merged([*first, other], tmp_path / "merged.zarr")


def test_rows_of_augmented_views_are_not_moved(making, tmp_path):
    """The second part's rows would get other numbers, from which their views follow."""
    sources = [
        SoftLabels.open(making(views=2, seed=seed).write(tmp_path / f"{seed}.zarr"))
        for seed in (0, 1)
    ]
    with refused(StoreError, where=tmp_path / "1.zarr", what="row 11"):
        merged(sources, tmp_path / "merged.zarr")


def test_terms_of_all_parts_are_kept(answers, tmp_path):
    """Licences are joined, an unknown one is called so, and versions are listed."""
    sources = []
    for number, (piece, terms) in enumerate(
        (
            (np.arange(6), {"licence": "MIT", "software": {"torch": "2"}}),
            (np.arange(6, 11), {"citation": "Us, 2026", "software": {"torch": "3", "jax": "1"}}),
        )
    ):
        part = answers.permuted(piece)
        part = replace(part, attributes=part.attributes.model_copy(update=terms))
        sources.append(SoftLabels.open(part.write(tmp_path / f"{number}.zarr")))
    found = merged(sources, tmp_path / "merged.zarr").attributes
    assert found.licence == "MIT AND unknown"
    assert found.citation == "Us, 2026"
    assert found.software == {"torch": "2, 3", "jax": "1"}
