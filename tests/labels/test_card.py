"""The README.md of a store: true, the same each time, and of no use to an attacker."""

import re
import subprocess
from dataclasses import replace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from made_answers import attributes
from markdown_it import MarkdownIt
from test_text import HOSTILE, kinds

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.card import format_card
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    DistanceFacts,
    StoreAttributes,
    TeacherFacts,
    TopKFacts,
    ViewFacts,
)
from ltd_pipe.labels.softness import Softness, measure


def card(store) -> str:
    """The text of a store's card."""
    return (store / "README.md").read_text(encoding="utf-8")


def changed(answers, **facts):
    """The same answers with other attributes."""
    return replace(answers, attributes=answers.attributes.model_copy(update=facts))


def cells(text, first):
    """The cells of the one table row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


# ---------------------------------------------------------------- what it says


def test_it_says_what_the_labels_are_of(answers, store):
    """Data, size, temperature, teacher, with the hashes that prove them."""
    text = card(store)
    assert "# Soft labels of `digits`, `train`\n" in text
    assert cells(text, "samples × classes") == ["11 × 3"]
    assert cells(text, "temperature") == ["2"]
    assert cells(text, "logits") == ["stored"]
    assert cells(text, "`small-cnn`") == ["50.00%", f"`{'ab' * 32}`"]
    assert cells(text, "data set's fingerprint") == [f"`{answers.attributes.dataset.fingerprint}`"]
    assert cells(text, "made with") == ["`numpy 2, torch 2`"]


def test_its_figures_are_those_of_the_labels(store):
    """Mean top probability, entropy and disagreement, as `store info` has them."""
    summary, text = SoftLabels.open(store).summary(), card(store)
    assert cells(text, "mean top probability") == [f"{summary.mean_top_probability:.4f}"]
    assert cells(text, "mean entropy") == [f"{summary.mean_entropy:.4f} nats"]
    found = cells(text, "another class than the ground truth on top")
    assert found == [f"{summary.disagreement:.2%}"]
    assert "Measured on all 11 samples." in text


def test_the_classes_are_measured_apart(answers, store):
    """By hand, for each class: rows, top, own, agreement."""
    opened = SoftLabels.open(store)
    soft = opened.gather(np.arange(11)).astype(np.float64)
    soft /= soft.sum(axis=1, keepdims=True)
    for number, name in enumerate(answers.attributes.class_names):
        rows = soft[answers.labels == number]
        assert cells(card(store), f"`{name}`") == [
            str(len(rows)),
            f"{rows.max(axis=1).mean():.4f}",
            f"{rows[:, number].mean():.4f}",
            f"{(rows.argmax(axis=1) == number).mean():.2%}",
        ]


def test_the_histogram_counts_every_row(store):
    """Shares that sum to one, the longest bar forty signs, bins as they are."""
    lines = re.findall(r"^(0\.\d\d) to (\d\.\d\d)  (#*) +([\d.]+)%$", card(store), re.MULTILINE)
    assert sum(float(share) for *_, share in lines) == pytest.approx(100, abs=0.1)
    assert max(len(bar) for _, _, bar, _ in lines) == 40
    soft = SoftLabels.open(store).gather(np.arange(11)).astype(np.float64)
    tops = (soft / soft.sum(axis=1, keepdims=True)).max(axis=1)
    for low, high, _, share in lines:
        expected = ((tops >= float(low)) & (tops < float(high))).mean()
        assert float(share) == pytest.approx(100 * expected, abs=0.01)


def test_labels_of_no_use_are_called_so(answers, tmp_path):
    """As good as one-hot: the warning of `store info` stands in the card."""
    made = replace(answers, logits=answers.logits * 100)
    assert "**Note.** The soft labels are as good as one-hot" in card(made.write(tmp_path / "a"))


def test_unknown_classes_give_no_table(answers, tmp_path):
    """Nor a share that contradicts them; the classes are named all the same."""
    unknown = np.full(11, -1, np.int32)
    facts = attributes(unknown, answers.sample_hash, answers.attributes.class_names)
    text = card(replace(answers, labels=unknown, attributes=facts).write(tmp_path / "a.zarr"))
    assert "ground truth" not in text
    assert "Classes: `class 0`, `class 1`, `class 2`." in text


def test_many_classes_are_not_listed(making, tmp_path):
    """21 of them: the card stays a page."""
    text = card(making(num_samples=40, num_classes=21).write(tmp_path / "a.zarr"))
    assert "`class 7`" not in text
    assert "The names of the classes are in `ltd_pipe.class_names`." in text


def test_a_class_without_samples_has_an_empty_row(making, tmp_path):
    """Three samples, five classes."""
    made = making(num_samples=3, num_classes=5)
    text = card(made.write(tmp_path / "a.zarr"))
    absent = sorted(set(range(5)) - set(made.labels.tolist()))[0]
    assert cells(text, f"`class {absent}`") == ["0", "", "", ""]


def test_several_teachers_and_unknown_accuracy(making, tmp_path):
    """Each has a row; one that says nothing of itself is unknown."""
    made = making(teachers=2)
    other = TeacherFacts(sha256="cd" * 32, architecture="timm:resnet18")
    made = changed(made, teachers=(made.attributes.teachers[0], other))
    text = card(made.write(tmp_path / "a.zarr", keep_logits=False))
    assert cells(text, "`timm:resnet18`") == ["unknown", f"`{'cd' * 32}`"]
    assert "2 teachers', averaged, probabilities" in text
    assert cells(text, "logits") == ["not stored"]


def test_views_top_k_and_origin_are_said(making):
    """All that a store may be."""
    facts = making(num_classes=9).attributes.model_copy(
        update={
            "views": ViewFacts(count=2, seed=7, augmentation="crop:4,flip"),
            "top_k": TopKFacts(k=3, total_variation=DistanceFacts(mean=0.01, worst=0.2, samples=9)),
            "derived_from": DerivationFacts(operation="merge", sources=("ab" * 32, "old.pt")),
        }
    )
    text = format_card(facts, ["topk_probs"], statistics_of([[0.5, 0.5]], [0]))
    assert cells(text, "views of each image") == ["2, each augmented by `crop:4,flip`, seed 7"]
    assert cells(text, "probabilities per row") == [
        "the 3 largest; the rest is spread over 6 others"
    ]
    found = cells(text, "total variation from all of them")
    assert found == ["mean 0.01, worst 0.2 of 9 samples"]
    assert cells(text, "made from other stores") == [f"`merge` of `{'ab' * 32}`, `old.pt`"]


def statistics_of(soft, labels):
    """Statistics of a few rows that are in memory."""
    from ltd_pipe.labels.softness import LabelStatistics

    rows = np.array(soft, np.float32)
    summary = Softness(rows.shape[1]).add(np.array(labels), rows).summary()
    return LabelStatistics(len(soft), len(soft), summary, (0,) * 19 + (len(soft),), ())


# ---------------------------------------------------------------- licence, citation, front matter


def front_matter(text) -> dict[str, Any]:
    """As Hugging Face's own package reads it."""
    return huggingface_hub.DatasetCard(text).data.to_dict()


def test_hugging_face_reads_the_front_matter(answers, tmp_path):
    """Its package finds what its search goes by."""
    made = changed(answers, licence="CC-BY-4.0").write(tmp_path / "a.zarr")
    assert front_matter(card(made)) == {
        "pretty_name": "Soft labels of digits (train)",
        "license": "cc-by-4.0",
        "task_categories": ["image-classification"],
        "size_categories": ["n<1K"],
        "tags": ["soft-labels", "knowledge-distillation", "adversarial-robustness", "zarr"],
        "viewer": False,
    }


LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "GPL-3.0-only": "gpl-3.0",
    "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0",
    "cc0-1.0": "cc0-1.0",
    "Ask us first": "other",
    "mit\ntags: [x]": "other",
    "agpl-3x0": "other",
}


@pytest.mark.parametrize(("licence", "name"), LICENCES.items(), ids=LICENCES.values())
def test_licences_have_the_names_of_hugging_face(answers, tmp_path, licence, name):
    """SPDX where it is one, "other" where it is not; the text itself is in the card."""
    text = card(changed(answers, licence=licence).write(tmp_path / "a.zarr"))
    assert front_matter(text)["license"] == name
    assert licence.splitlines()[0] in text.split("## Licence")[1]


OWN_NAMES = {
    "MIT": None,
    "Ask us first": "ask-us-first",
    "mit\ntags: [x]": "mit-tags-x",
    "2.0": "2.0",
    "専用": None,
}


@pytest.mark.parametrize(("licence", "name"), OWN_NAMES.items(), ids=map(str, OWN_NAMES.values()))
def test_a_licence_without_a_name_there_keeps_its_own(answers, tmp_path, licence, name):
    """As Hugging Face spells such names; text, whatever it looks like in YAML."""
    text = card(changed(answers, licence=licence).write(tmp_path / "a.zarr"))
    assert front_matter(text).get("license_name") == name


def test_without_licence_and_citation_there_are_no_such_sections(store):
    """Nothing is claimed that nobody said."""
    assert "licen" not in card(store).lower()
    assert "Citation" not in card(store)


def test_a_citation_stands_as_it_was_written(answers, tmp_path):
    """Several lines, braces and all."""
    bibtex = "@misc{labels,\n  title = {Labels},\n}"
    text = card(changed(answers, citation=bibtex).write(tmp_path / "a.zarr"))
    assert f"## Citation\n\n```\n{bibtex}\n```\n" in text


SIZES = [
    (1, "n<1K"),
    (999, "n<1K"),
    (1000, "1K<n<10K"),
    (50_000, "10K<n<100K"),
    (1_281_167, "1M<n<10M"),
    (10**9, "1B<n<10B"),
    (2**40, "n>1T"),
]


@pytest.mark.parametrize(("num_samples", "category"), SIZES)
def test_sizes_have_the_names_of_hugging_face(answers, num_samples, category):
    """At the edges of their classes too."""
    facts = answers.attributes.model_copy(update={"num_samples": num_samples})
    text = format_card(facts, ["soft_labels"], statistics_of([[1.0, 0.0]], [0]))
    assert front_matter(text)["size_categories"] == [category]


# ---------------------------------------------------------------- the same bytes, safe bytes


def test_the_card_is_the_same_each_time(answers, tmp_path):
    """Wherever the store lies, and however often it is written."""
    first = answers.write(tmp_path / "a.zarr")
    second = answers.write(tmp_path / "elsewhere" / "b.zarr")
    assert (first / "README.md").read_bytes() == (second / "README.md").read_bytes()
    assert str(tmp_path) not in card(first)


def test_the_card_is_listed_in_the_manifest(store):
    """What it says cannot be changed behind the signature."""
    assert "README.md" in SoftLabels.open(store).hashes


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_names_cannot_act(answers, hostile):
    """In every field that is text: no link, no HTML, no line of YAML, no section."""
    # What the format refuses in a store of anybody's never gets here.
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", hostile)
    lines = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "", hostile)
    facts = StoreAttributes(
        temperature=1.0,
        num_samples=11,
        num_classes=2,
        class_names=(line, f"{line}2"),
        dataset=DatasetFacts(name=line, split=line, fingerprint="0" * 64),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture=line),),
        views=ViewFacts(count=2, seed=1, augmentation=line),
        software={line: line},
        licence=lines,
        citation=lines,
        derived_from=DerivationFacts(operation="merge", sources=(line,)),
    )
    text = format_card(facts, ["soft_labels"], statistics_of([[1.0, 0.0]], [0]))
    body = text.split("\n---\n", 1)[1]
    assert kinds(body) <= {"text", "code_inline", "text_special", "softbreak", "fence"} | {
        "strong_open",
        "strong_close",
    }
    sections = re.findall(r"<h2>(.*?)</h2>", MarkdownIt("commonmark").render(body))
    assert sections == [
        "Teachers",
        "What the labels are like",
        "Reading them",
        "Proving them",
        "Licence",
        "Citation",
    ]
    found = front_matter(text)
    assert re.fullmatch(r"[a-z0-9.-]*", found.pop("license_name", ""))
    assert found.keys() == {
        "pretty_name",
        "license",
        "task_categories",
        "size_categories",
        "tags",
        "viewer",
    }
    assert all(line.isprintable() for line in text.split("\n"))


# ---------------------------------------------------------------- its lines work

LAYOUTS = {
    "dense": ({}, {}),
    "several views": ({"views": 3}, {}),
    "top-k": ({"num_classes": 9}, {"top_k": 4, "temperature": 2.0}),
    "top-k of several views": ({"num_classes": 9, "views": 3}, {"top_k": 4, "temperature": 2.0}),
    "top-k of all classes": ({}, {"top_k": 3, "temperature": 2.0}),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def laid_out(request, making, tmp_path):
    """A store of each layout."""
    made, options = request.param
    if "top_k" in options:
        options = {"top_k": options["top_k"]}
    return making(**made).write(tmp_path / "labels.zarr", **options)


def test_the_lines_that_read_it_do(laid_out, monkeypatch):
    """The card's own code, run as it stands: the rows, labels and hashes that we read."""
    (code,) = re.findall(r"```python\n(.*?)```", card(laid_out), re.DOTALL)
    monkeypatch.chdir(laid_out)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    ours = SoftLabels.open(laid_out)
    rows = ours.gather(np.arange(11)).astype(np.float32)
    np.testing.assert_allclose(found["rows"], rows, rtol=2**-9, atol=2**-20)
    np.testing.assert_allclose(found["rows"].sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], ours.labels)
    np.testing.assert_array_equal(found["sample_hash"], ours.sample_hash)
    assert f"# {found['rows'].shape}: sample" in code


def test_each_layout_has_its_true_figures(laid_out):
    """Views and sparse rows too."""
    summary = SoftLabels.open(laid_out).summary()
    found = cells(card(laid_out), "mean top probability")
    assert found == [f"{summary.mean_top_probability:.4f}"]
    assert cells(card(laid_out), "mean entropy") == [f"{summary.mean_entropy:.4f} nats"]


def test_the_lines_that_prove_it_do(store):
    """The first command of the card, run in the store's folder."""
    (line,) = re.findall(r"^sha256sum .*$", card(store), re.MULTILINE)
    said = subprocess.run(line, shell=True, cwd=store, capture_output=True, text=True, check=True)  # noqa: S602
    assert SoftLabels.open(store).identity in said.stdout


def test_the_card_verifies_a_signature_by_ssh_keygen(store, key_file, ssh_keygen, tmp_path):
    """Its last command, with the names filled in."""
    from ltd_pipe.labels.signature import sign_store

    sign_store(store, key_file)
    (line,) = re.findall(r"^ssh-keygen .*\\\n.*$", card(store), re.MULTILINE)
    public = (tmp_path / "id_ed25519.pub").read_text()
    (tmp_path / "allowed").write_text(f"alice {public}")
    line = line.replace("ALLOWED_SIGNERS", "../allowed").replace("NAME", "alice")
    done = subprocess.run(line, shell=True, cwd=store, capture_output=True, check=False)  # noqa: S602
    assert b"Good" in done.stdout


# ---------------------------------------------------------------- its cost is bounded


def test_large_stores_are_measured_on_a_part(tmp_path, monkeypatch, making):
    """Evenly spaced samples, and the card says on how many."""
    monkeypatch.setattr("ltd_pipe.labels.softness._MAX_ROWS", 5)
    text = card(making(num_samples=23).write(tmp_path / "a.zarr"))
    assert "Measured on 5 of 23 samples, evenly spaced." in text
    soft = SoftLabels.open(tmp_path / "a.zarr").gather(np.array([0, 4, 9, 13, 18]))
    soft = soft.astype(np.float64)
    tops = (soft / soft.sum(axis=1, keepdims=True)).max(axis=1)
    assert cells(text, "mean top probability") == [f"{tops.mean():.4f}"]


BOUNDS = [((50_000, 10, 1), 50_000), ((70_000, 10, 1), 65_536), ((70_000, 10, 10), 6_553)]
BOUNDS += [((70_000, 4096, 1), 16_384), ((5, 2**24, 1), 4), ((5, 2**24, 100), 1)]


@pytest.mark.parametrize(("size", "samples"), BOUNDS)
def test_rows_and_elements_are_bounded(size, samples):
    """65,536 rows, fewer when they are wide, one sample at least."""
    from ltd_pipe.labels.layout import ArrayLayout
    from ltd_pipe.labels.softness import measured_rows

    num_samples, num_classes, views = size
    index = measured_rows(ArrayLayout("soft_labels", num_samples, num_classes, 100, views))
    assert len(index) == len(set(index.tolist())) == samples
    assert index.max() < num_samples


def test_measuring_twice_gives_the_same(laid_out):
    """Of the files as they are: it depends on nothing else."""
    layouts = [array.layout for array in SoftLabels.open(laid_out).arrays.values()]
    assert measure(laid_out, layouts) == measure(laid_out, layouts)
