"""The page as text: self-contained, escaped, deterministic, whole."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
from page_reader import read, tables
from pair_folders import gather as gather_two
from pair_folders import write_pair
from run_folders import edit_json, keep_attacks, write_json

from ltd_pipe.report.page import class_table, render_page, render_pair


def test_the_page_is_well_formed_and_names_are_unique(page):
    """Two elements of one id break links and labels."""
    ids = read(page).ids
    assert len(ids) == len(set(ids))


def test_equal_facts_give_equal_bytes(facts, page):
    """DVC compares outputs by hash."""
    assert render_page(facts) == page


def test_equal_files_give_equal_bytes(whole_runs, gather, tmp_path):
    """Wherever they are: no path is on the page of a whole run."""
    copy = shutil.copytree(whole_runs, tmp_path / "elsewhere")
    assert render_page(gather(copy)) == render_page(gather(whole_runs))


def test_nothing_is_loaded_from_anywhere(page):
    """All addresses are fragments or data; nothing runs."""
    for tag, attributes in read(page).tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:", attributes.get(name) or "#")
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_text_of_the_user_is_escaped(page):
    """A class named <script> and a title with tags are shown as they are written."""
    assert "<script" not in page
    assert "&lt;script&gt;alert(3)&lt;/script&gt;" in page
    assert "Digits &lt;b&gt;&amp;&lt;/b&gt; soft labels" in page
    assert "four &amp; more" in page


def test_every_picture_has_a_text(page):
    """For those who cannot see it."""
    pictures = [attributes for tag, attributes in read(page).tags if tag == "img"]
    # Ambiguous, contradicted and attacked images.
    assert len(pictures) == 6 + 10 + 3 * 8
    assert all(attributes["alt"] for attributes in pictures)
    drawings = [a for _, a in read(page).tags if a.get("role") == "img"]
    assert len(drawings) == 8
    assert all(len(attributes["aria-label"]) > 40 for attributes in drawings)


def test_right_and_wrong_are_told_by_words_too(page):
    """Not by colour alone."""
    text = " ".join(read(page).text)
    # Eight clean and eight attacked answers, of which 1 and 2 or 3 are wrong.
    assert text.count("✓ right:") + text.count("✗ wrong:") == 16
    assert text.count("✗ wrong:") >= 3


def test_contradictions_are_candidates_and_no_more(page, facts):
    """How many there are, and that either side may be wrong."""
    text = " ".join("".join(read(page).text).split())
    assert facts.labels.disagreements > 10
    assert f"For {facts.labels.disagreements} of 400 training images" in text
    assert "These 10, on which it is furthest from it, are candidates for a wrong label" in text
    assert "The teacher may be the one that is wrong" in text


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "Nowhere: the teacher's largest probability is on the ground truth for all 400"),
        (1, "It is a candidate for a wrong label in the data."),
        (2, "They are all here: candidates for a wrong label in the data."),
    ],
)
def test_few_contradictions_make_plain_sentences(facts, count, words):
    """Where there is none, the page says so."""
    labels = replace(
        facts.labels, disagreements=count, contradicted=facts.labels.contradicted[:count]
    )
    text = " ".join("".join(read(render_page(replace(facts, labels=labels))).text).split())
    assert words in text


def test_the_verdict_comes_first(page):
    """Before any table or figure."""
    assert page.index('id="verdict"') < page.index('id="results"') < page.index('id="provenance"')


def test_the_page_is_small_enough_to_send(page):
    """3 MB at most; digits take far less."""
    assert len(page.encode()) < 500_000


@pytest.mark.parametrize(
    "name", ["baseline", "teacher", "labels.zarr", "evaluation", "student/live", "audit"]
)
def test_a_page_without_a_piece_says_so(runs, gather, name):
    """And is a page all the same."""
    shutil.rmtree(runs / name)
    page = render_page(gather(runs))
    read(page)
    assert "Not in this report" in page


def test_a_student_alone_is_a_page(runs, gather):
    """The least there can be: a checkpoint and its metrics."""
    for name in ("baseline", "teacher", "labels.zarr", "evaluation", "student/live", "audit"):
        shutil.rmtree(runs / name)
    (runs / "student" / "timing.json").unlink()
    (runs / "train.beton.json").unlink()
    page = render_page(gather(runs))
    read(page)
    assert "nothing to compare it to" in page
    assert "<img" not in page


def test_a_whole_page_lacks_nothing(page):
    """No box that speaks of missing pieces."""
    assert "Not in this report" not in page
    assert "None" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_what_an_evaluation_left_out_is_on_the_page(facts):
    """By model, in the words of metrics.json."""
    lacks = ("corrupted images", "L2")
    metrics = facts.evaluation.metrics.model_copy(update={"not_measured": lacks})
    text = render_page(replace(facts, evaluation=replace(facts.evaluation, metrics=metrics)))
    assert "Not measured of the student: corrupted images, L2." in text
    assert "Not measured of the baseline" not in text


def test_a_phone_knows_how_many_columns_stand_beside_each_other(page, tmp_path):
    """There a row is its name above its cells, in as many columns as its table's style says."""
    write_pair(tmp_path)
    for text in (page, render_pair(gather_two(tmp_path))):
        shown = [one for one in tables(text) if one[0]["class"] != "bars"]
        assert shown
        for attributes, rows in shown:
            assert {f"--columns: {filled - 1}" for filled in rows} == {attributes["style"]}


def test_how_the_student_was_trained_stands_under_the_title(runs, gather):
    """Objective, epochs and commit, as far as its run says so."""
    assert "Trained with 30 epochs</p>" in render_page(gather(runs))
    edit_json(runs / "student/timing.json", commit="0123456789ab+")
    page = render_page(gather(runs))
    assert "Trained with 30 epochs, commit 0123456789ab+</p>" in page
    assert page.index("commit 0123456789ab+") < page.index('id="verdict"')


def test_classes_that_fall_most_often_stand_first(runs, gather):
    """Under the strongest attack that both were under; no more than 20 of many."""
    shares = {"clean": {"zero": 0.9, "one": 0.8}, "all-attacks": {"zero": 0.3, "one": 0.1}}
    for prefix in ("", "baseline-"):
        rows = [
            {
                "class": name,
                **{
                    key: {"n": 10, "accuracy": share[name], "low": 0.0, "high": 1.0}
                    for key, share in shares.items()
                },
            }
            for name in ("zero", "one")
        ]
        write_json(runs / f"{prefix}evaluation/per_class.json", rows)
    titles, found = class_table(gather(runs))
    assert titles == [f"{model}, {key}" for model in ("student", "baseline") for key in shares]
    assert [row.title for row in found] == ["one", "zero"]
    assert [cell.value for cell in found[0].cells] == [0.8, 0.1] * 2
    text = " ".join("".join(read(render_page(gather(runs))).text).split())
    assert "The 2 of 10 classes that are right least often under attack." in text


def test_clean_accuracy_alone_is_a_page(runs, gather):
    """An evaluation without any attack: nothing robust is told."""
    edit_json(runs / "metrics.json", autoattack=None)
    keep_attacks(runs / "metrics.json", "clean")
    (runs / "evaluation/per_sample.npz").unlink()
    page = render_page(gather(runs))
    read(page)
    assert page.count('class="contest"') == 1
    assert "cannot be compared image by image" in page
