"""Another temperature from stored logits is what the writer would have written."""

import numpy as np
import pytest
from made_answers import make_answers
from refusals import refused

from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import require_informative, retemper, temperature_for
from ltd_pipe.labels.format import DerivationFacts
from ltd_pipe.labels.softmax import largest, total_variation
from ltd_pipe.labels.verify import verify_store


def softened(source, target, temperature=None, **options):
    """The new store, verified and opened."""
    identity = retemper(source, temperature, **options).write(target)
    verify_store(target)
    opened = SoftLabels.open(target)
    assert opened.identity == identity
    return opened


def data_files(store):
    """All files but those that name the source, by name."""
    names = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    about = {"README.md", "MANIFEST.sha256", "zarr.json"}
    return {str(name): (store / name).read_bytes() for name in names if str(name) not in about}


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0, 1000.0])
def test_the_bytes_are_those_of_labelling_again(making, tmp_path, temperature, views):
    """Every file is equal, and every attribute but where it comes from."""
    source = SoftLabels.open(making(views=views).write(tmp_path / "labels.zarr"))
    found = softened(source, tmp_path / "new.zarr", temperature)
    making(views=views, temperature=temperature).write(tmp_path / "again.zarr")
    assert data_files(tmp_path / "new.zarr") == data_files(tmp_path / "again.zarr")
    again = SoftLabels.open(tmp_path / "again.zarr")
    derived = DerivationFacts(operation="retemper", sources=(source.identity,))
    assert found.attributes == again.attributes.model_copy(update={"derived_from": derived})


def test_there_and_back_is_the_same_store(source, store, tmp_path):
    """The logits stay, so no temperature is final."""
    softened(source, tmp_path / "hot.zarr", 7.0)
    softened(SoftLabels.open(tmp_path / "hot.zarr"), tmp_path / "back.zarr", 2.0)
    assert data_files(tmp_path / "back.zarr") == data_files(store)


@pytest.mark.parametrize("views", [1, 2])
def test_a_temperature_that_leaves_nothing_is_refused(making, tmp_path, views):
    """Before the rows are written: labels as good as uniform teach nothing."""
    source = SoftLabels.open(making(views=views).write(tmp_path / "source.zarr"))
    require_informative(source, 3.0)
    with pytest.raises(StoreError) as caught:
        require_informative(source, 1000.0)
    assert caught.value.where == str(tmp_path / "source.zarr")
    assert caught.value.expected == "0.4 or more"
    assert float(caught.value.found) == pytest.approx(1 / 3, abs=0.01)
    assert "--allow-poor-labels" in caught.value.remedy


def test_the_temperature_is_solved_for(source, tmp_path):
    """auto:P is what the writer would have found."""
    temperature = temperature_for(source, 0.7)
    found = softened(source, tmp_path / "new.zarr", temperature)
    assert found.summary().mean_top_probability == pytest.approx(0.7, abs=1e-3)
    with refused(ParamsError, where="temperature", what="mean", found="auto:0.2"):
        temperature_for(source, 0.2)


def test_a_store_without_logits_is_refused(answers, tmp_path):
    """One temperature cannot be made from another's probabilities in float16."""
    source = SoftLabels.open(answers.write(tmp_path / "a.zarr", keep_logits=False))
    for attempt in (
        lambda: softened(source, tmp_path / "b.zarr", 1.0),
        lambda: temperature_for(source, 0.7),
    ):
        with refused(StoreError, where=tmp_path / "a.zarr", what="logits", remedy="Label"):
            attempt()
    assert not (tmp_path / "b.zarr").exists()


REFUSED = {
    "the same temperature": ({"temperature": 2.0}, {"what": "change", "remedy": "Name"}),
    "zero": (
        {"temperature": 0.0},
        {"where": "temperature", "what": "range", "expected": "1e-06 to 1e+06"},
    ),
    "NaN": (
        {"temperature": float("nan")},
        {"where": "temperature", "what": "range", "expected": "1e-06 to 1e+06"},
    ),
    "more than there are": (
        {"top_k": 4},
        {
            "where": "top_k",
            "what": "range",
            "expected": "1 to 3, the number of classes",
            "found": 4,
        },
    ),
    "none": (
        {"top_k": 0},
        {
            "where": "top_k",
            "what": "range",
            "expected": "1 to 3, the number of classes",
            "found": 0,
        },
    ),
}


@pytest.mark.parametrize(("options", "fields"), REFUSED.values(), ids=REFUSED.keys())
def test_what_gives_no_store_is_refused(source, tmp_path, options, fields):
    """Before anything is written."""
    with refused(ParamsError, **fields):
        softened(source, tmp_path / "new.zarr", **options)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("logits", [True, False])
def test_a_dense_store_is_made_sparse(tmp_path, logits):
    """The largest of each row, from the logits where there are some, and what is left out."""
    answers = make_answers(num_classes=8)
    source = SoftLabels.open(answers.write(tmp_path / "a.zarr", keep_logits=logits))
    found = softened(source, tmp_path / "b.zarr", top_k=3)
    dense = source.gather(np.arange(11)).astype(np.float32)
    dense /= dense.sum(axis=1, keepdims=True)
    indices, probs = found.gather_topk(np.arange(11))
    np.testing.assert_allclose(probs, largest(dense, 3)[1], atol=2**-10)
    lost = total_variation(dense, indices, probs)
    known = found.attributes.top_k.total_variation
    assert (known.mean, known.worst) == pytest.approx((lost.mean(), lost.max()), abs=1e-3)
    assert known.samples == 11
    assert found.attributes.derived_from.operation == "top-k"
    assert not found.has_logits


def test_temperature_and_ranks_in_one(tmp_path):
    """As the writer would at that temperature, to the bit; chunks may have other rows."""
    source = SoftLabels.open(make_answers(num_classes=8).write(tmp_path / "a.zarr"))
    found = softened(source, tmp_path / "b.zarr", 0.5, top_k=2)
    make_answers(num_classes=8, temperature=0.5).write(tmp_path / "c.zarr", top_k=2)
    assert found.attributes.derived_from.operation == "retemper, top-k"
    written, rows = SoftLabels.open(tmp_path / "c.zarr"), np.arange(11)
    np.testing.assert_array_equal(found.gather_topk(rows), written.gather_topk(rows))
    assert found.attributes.top_k == written.attributes.top_k


def test_a_sparse_store_is_refused(answers, tmp_path):
    """What was left out does not come back."""
    source = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=2))
    with refused(
        StoreError, where=tmp_path / "a.zarr", what="largest", expected="all of them, or logits"
    ):
        softened(source, tmp_path / "b.zarr", top_k=1)
    with refused(StoreError, where=tmp_path / "a.zarr", what="logits"):
        softened(source, tmp_path / "b.zarr", 1.0)
