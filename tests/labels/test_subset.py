"""Subsets: the same bytes in fewer rows, which join with the data that they are cut to."""

import json
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from made_answers import attributes
from refusals import refused

from ltd_pipe.errors import JoinError, ParamsError, StoreError, WriteError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import rows_of_classes, rows_of_images, rows_of_range, subset
from ltd_pipe.labels.format import CalibrationFacts, DerivationFacts, LabellingFacts
from ltd_pipe.labels.verify import verify_store


def cut(source, target, rows, *, replace=False, progress=None, **options):
    """A subset, verified and opened."""
    identity = subset(source, np.asarray(rows, np.int64), **options).write(
        target, replace=replace, progress=progress
    )
    verify_store(target)
    opened = SoftLabels.open(target)
    assert opened.identity == identity
    return opened


@pytest.mark.parametrize("rows", [[0], [3, 4, 5], [10, 0, 7], list(range(11)), [2, 2]])
def test_a_subset_has_the_rows_that_were_named(answers, source, tmp_path, rows):
    """Soft labels, logits, labels and hashes of those rows, in that order."""
    found = cut(source, tmp_path / "part.zarr", rows)
    for name in ("soft_labels", "logits"):
        np.testing.assert_array_equal(found.arrays[name].read(), source.arrays[name].read()[rows])
    np.testing.assert_array_equal(found.labels, answers.labels[rows])
    np.testing.assert_array_equal(found.sample_hash, answers.sample_hash[rows])


def test_a_subset_says_of_what_it_was_made(source, tmp_path):
    """All attributes but the rows' own are the source's, and the source is named."""
    found, known = cut(source, tmp_path / "part.zarr", [1, 2]).attributes, source.attributes
    assert found.derived_from == DerivationFacts(operation="subset", sources=(source.identity,))
    assert (found.temperature, found.teachers) == (known.temperature, known.teachers)
    assert (found.num_samples, found.dataset.name) == (2, "digits")


def test_a_subset_says_how_its_teacher_was_asked(answers, tmp_path):
    """But not of which pixels, which were those of all images."""
    asked = LabellingFacts(image_shape=(3, 32, 32), pixels_sha256="ab" * 32)
    known = answers.attributes.model_copy(update={"labelling": asked})
    source = SoftLabels.open(replace(answers, attributes=known).write(tmp_path / "whole.zarr"))
    for rows, pixels in ((np.arange(3), None), (np.arange(11), "ab" * 32)):
        found = subset(source, rows).attributes.labelling
        assert found == asked.model_copy(update={"pixels_sha256": pixels})


def test_all_rows_are_the_same_chunk_files(source, store, tmp_path):
    """Nothing is computed again and chunks are as they were."""
    cut(source, tmp_path / "all.zarr", range(11))
    for path in store.rglob("c/**/*"):
        if path.is_file():
            assert (tmp_path / "all.zarr" / path.relative_to(store)).read_bytes() == (
                path.read_bytes()
            )


def test_a_subset_of_a_data_set_joins_with_it(answers, source, tmp_path):
    """The rows of other images in another order, with their fingerprint."""
    wanted = answers.permuted([7, 3, 9])
    rows = rows_of_images(source, wanted, "part.beton")
    found = cut(source, tmp_path / "part.zarr", rows, images=wanted)
    found.require_data(wanted.manifest, "part.beton")
    found.join(np.arange(3), wanted.sample_hash, "part.beton")
    np.testing.assert_array_equal(found.labels, wanted.labels)


def test_images_without_labels_are_refused(source, making):
    """A subset never has rows of other images."""
    with refused(JoinError, where="labels.zarr", what="sample 0"):
        rows_of_images(source, making(seed=1), "other.beton")
    with refused(
        JoinError, where="labels.zarr", what="classes", expected=3, found="4 in other.beton"
    ):
        rows_of_images(source, making(num_classes=4), "other.beton")


def test_rows_are_chosen_by_class(answers, source):
    """Those whose ground truth is named; unknown ones never."""
    rows = rows_of_classes(source, ["class 0", "class 2"])
    np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(answers.labels, [0, 2])))
    with refused(
        StoreError, where="labels.zarr", what="class", expected="class 0, class 1, class 2"
    ):
        rows_of_classes(source, ["cat"])


def test_a_class_without_samples_is_refused(making, tmp_path):
    """An empty store is none."""
    one = making(num_samples=1)
    absent = f"class {(one.labels[0] + 1) % 3}"
    with refused(StoreError, where=tmp_path / "one.zarr", what="class 0"):
        rows_of_classes(SoftLabels.open(one.write(tmp_path / "one.zarr")), [absent])


RANGES = {"all": (None, None, 11), "to the end": (5, None, 6), "from the start": (None, 4, 4)}


@pytest.mark.parametrize(("first", "last", "count"), RANGES.values(), ids=RANGES.keys())
def test_ranges_count_as_slices_do(source, first, last, count):
    """The last row is not one of them."""
    rows = rows_of_range(source, first, last)
    np.testing.assert_array_equal(rows, np.arange(11)[first:last])
    assert len(rows) == count


@pytest.mark.parametrize(("first", "last"), [(4, 4), (5, 4), (0, 12), (11, None), (-1, 4)])
def test_empty_ranges_and_rows_that_are_not_there_are_refused(source, first, last):
    """Asking for more than there is, is a mistake."""
    with refused(ParamsError, where="rows", what="range", expected="A:B with 0 <= A < B <= 11"):
        rows_of_range(source, first, last)


def test_arrays_can_be_left_out(source, tmp_path):
    """Without logits the store is smaller; without soft labels it would be none."""
    found = cut(source, tmp_path / "small.zarr", range(11), arrays=["soft_labels"])
    assert not found.has_logits
    with refused(
        ParamsError,
        where="arrays",
        what="nothing",
        expected="soft_labels among them",
        found="logits",
    ):
        cut(source, tmp_path / "none.zarr", range(11), arrays=["logits"])
    with refused(StoreError, where=tmp_path / "labels.zarr", what="topk_probs"):
        cut(source, tmp_path / "none.zarr", range(11), arrays=["topk_probs"])


def test_sparse_stores_are_cut_too(answers, tmp_path):
    """Indices and probabilities as stored; how far they are from dense ones is not known."""
    source = SoftLabels.open(answers.write(tmp_path / "sparse.zarr", top_k=2))
    found = cut(source, tmp_path / "part.zarr", [4, 1])
    for name in ("topk_indices", "topk_probs"):
        np.testing.assert_array_equal(found.arrays[name].read(), source.arrays[name].read()[[4, 1]])
    assert (found.top_k, found.attributes.top_k.total_variation) == (2, None)
    whole = cut(source, tmp_path / "whole.zarr", range(11)[::-1])
    assert whole.attributes.top_k == source.attributes.top_k


@pytest.mark.parametrize(
    ("rows", "view", "known"),
    [
        pytest.param([0, 1, 2, 3], None, True, id="all"),
        pytest.param([0, 1, 2, 3], 0, False, id="one view"),
        pytest.param([0, 1, 1, 3], None, False, id="one twice, one not"),
        pytest.param([0, 1, 2, 3, 3], None, False, id="all, one twice"),
    ],
)
def test_what_was_left_out_of_all_is_not_said_of_some(making, tmp_path, rows, view, known):
    """It was measured over each row of each view, once; other rows lack more or less."""
    views = 1 if view is None else 2
    path = making(num_samples=4, views=views).write(tmp_path / "sparse.zarr", top_k=2)
    found = subset(SoftLabels.open(path), np.array(rows), view=view).attributes.top_k
    assert (found.total_variation is not None) == known


def test_names_of_classes_are_as_the_images_have_them(answers, tmp_path):
    """One é or two signs: the fingerprint is of the signs, and is then the images'."""
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    known, theirs = (
        replace(
            answers,
            attributes=attributes(answers.labels, answers.sample_hash, (name, "b", "c")),
        )
        for name in (composed, apart)
    )
    source = SoftLabels.open(known.write(tmp_path / "s.zarr"))
    with refused(JoinError, where=tmp_path / "s.zarr", found=re.compile("Unicode")):
        source.require_data(theirs.manifest, "data", theirs)
    chosen = rows_of_images(source, theirs, "data")
    found = cut(source, tmp_path / "t.zarr", chosen, images=theirs)
    found.require_data(theirs.manifest, "data", theirs)


def test_an_image_that_is_there_twice_keeps_its_place(making, tmp_path):
    """Of a store with views no row may move; the data's own order moves none."""
    answers = making(views=2)
    hashes, labels = answers.sample_hash.copy(), answers.labels.copy()
    hashes[5], labels[5] = hashes[2], labels[2]
    facts = attributes(labels, hashes, answers.attributes.class_names, views=2)
    twice = replace(answers, attributes=facts, labels=labels, sample_hash=hashes)
    source = SoftLabels.open(twice.write(tmp_path / "views.zarr"))
    chosen = rows_of_images(source, twice, "data")
    assert chosen.tolist() == list(range(11))
    cut(source, tmp_path / "same.zarr", chosen, images=twice)


def test_a_temperature_that_was_found_for_all_views_is_not_said_of_one(making, tmp_path):
    """It made the truth likeliest under their mean."""
    answers = making(views=2)
    known = CalibrationFacts(interval=(1.5, 2.5), nll=0.125, samples=48)
    facts = answers.attributes.model_copy(update={"calibration": known})
    source = SoftLabels.open(replace(answers, attributes=facts).write(tmp_path / "views.zarr"))
    assert cut(source, tmp_path / "rows.zarr", range(5)).attributes.calibration == known
    one = cut(source, tmp_path / "one.zarr", range(5), view=0)
    assert one.attributes.calibration is None


def test_views_keep_their_places(making, tmp_path):
    """What a view shows follows from its row's number, so rows of views do not move."""
    source = SoftLabels.open(making(views=3).write(tmp_path / "views.zarr"))
    found = cut(source, tmp_path / "first.zarr", range(5))
    assert found.attributes.views == source.attributes.views
    with refused(StoreError, where=tmp_path / "views.zarr", what="row 0"):
        cut(source, tmp_path / "moved.zarr", [2, 3])


def test_one_view_is_kept(making, tmp_path):
    """Only the first: another would be drawn again as the first."""
    source = SoftLabels.open(making(views=3).write(tmp_path / "views.zarr"))
    found = cut(source, tmp_path / "view.zarr", range(11), view=0)
    assert found.num_views == 1
    np.testing.assert_array_equal(
        found.arrays["logits"].read(), source.arrays["logits"].read()[:, 0]
    )
    for view, fields in (
        (1, {"what": "alone", "expected": "view 0"}),
        (3, {"what": "view", "expected": "0 to 2", "found": 3}),
    ):
        with refused(StoreError, where=tmp_path / "views.zarr", **fields):
            cut(source, tmp_path / "other.zarr", range(11), view=view)


def test_a_damaged_source_gives_no_store(store, tmp_path):
    """What was read has the hashes of the manifest that is named as the source."""
    chunk = store / "logits/c/1/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with refused(StoreError, where=store, what="logits/c/1/0"):
        cut(SoftLabels.open(store), tmp_path / "part.zarr", range(11))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr"]
    # The rows of other chunks are good.
    cut(SoftLabels.open(store), tmp_path / "part.zarr", range(4))


def test_nothing_is_replaced_unless_asked(source, store, tmp_path):
    """A store that is there stays until the new one is whole."""
    cut(source, tmp_path / "part.zarr", [0])
    with refused(WriteError, where=tmp_path / "part.zarr", what="exists", remedy="--force"):
        cut(source, tmp_path / "part.zarr", [1])
    assert cut(source, tmp_path / "part.zarr", [1], replace=True).num_samples == 1
    (tmp_path / "folder").mkdir()
    with refused(WriteError, where=tmp_path / "folder", what="soft-label"):
        cut(source, tmp_path / "folder", [1], replace=True)


def test_an_interrupted_subset_leaves_nothing(source, tmp_path):
    """Ctrl-C after the first chunk: no store, no part of one, no lock."""

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(source, tmp_path / "part.zarr", range(11), progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr"]


def test_other_readers_find_the_derivation(source, tmp_path):
    """It is plain JSON in the group's attributes."""
    cut(source, tmp_path / "part.zarr", [0])
    content = json.loads((tmp_path / "part.zarr" / "zarr.json").read_text())
    assert content["attributes"]["ltd_pipe"]["derived_from"] == {
        "operation": "subset",
        "sources": [source.identity],
    }
