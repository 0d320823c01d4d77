"""Training runs: checkpoint, curves, times; and numbers in words."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused
from run_folders import PARAMS, save_model, write_curve, write_json

from ltd_pipe.errors import CheckpointError, MissingError, ResultError
from ltd_pipe.evaluation.results import eps_text
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.facts import unequal_params
from ltd_pipe.report.runs import (
    duration_text,
    interval_text,
    number_text,
    percent_text,
    phrase,
    read_run,
)


def read(folder):
    """As the page reads a student."""
    return read_run(folder, "student", "ltd-pipe train")


def test_curves_of_a_run_that_did_not_end_are_left_out(runs):
    """It was begun with --force, and interrupted: the checkpoint is the older one's."""
    facts = {"epoch": 1, "validation": {"clean_accuracy": 0.9, "robust_accuracy": 0.5}}
    save_model(runs / "student", **facts)
    for clean, robust, found in (
        ([0.8, 0.9, 0.9], [0.3, 0.5, 0.4], 3),
        ([0.8, 0.9, 0.9], [0.3, 0.6, 0.5], 0),
        ([0.9], [0.5], 0),
    ):
        write_curve(runs / "student", "validation/clean_accuracy", clean)
        write_curve(runs / "student", "validation/robust_accuracy", robust)
        assert len(read(runs / "student").curves) == found


def test_a_run_is_read_as_it_was_written(whole_runs):
    """Facts, hash, curves and times."""
    run = read(whole_runs / "student")
    assert run.facts.params == PARAMS
    assert run.sha256 == sha256_file(whole_runs / "student" / "model.safetensors")
    assert run.timing.seconds == 71.4
    assert sorted(run.curves) == [
        "train/loss",
        "validation/clean_accuracy",
        "validation/robust_accuracy",
    ]
    assert run.curves["train/loss"].epochs.tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ltd", "soft labels"),
        ("onehot", "one-hot labels"),
        ("smooth", "smoothed labels"),
        (None, "labels"),
    ],
)
def test_a_student_is_called_by_its_labels(tmp_path, kind, words):
    """A page about a one-hot student must not speak of soft labels."""
    save_model(tmp_path, params={} if kind is None else {"label_kind": kind})
    assert read(tmp_path).facts.label_name == words


def test_two_runs_that_measured_otherwise_were_trained_otherwise(tmp_path):
    """Both asked for `auto`, but a busy machine answered differently."""
    auto = {"precision": "auto", "channels_last": True, "compile": "auto", "epochs": 2}
    for name, precision in (("student", "bfloat16"), ("baseline", "float32")):
        passes = {"precision": precision, "channels_last": False, "compiled": "none"}
        save_model(tmp_path / name, params=auto, passes=passes)
    save_model(tmp_path / "older", params=auto)
    student, baseline, older = (read(tmp_path / name) for name in ("student", "baseline", "older"))
    assert student.facts.params == auto | {"precision": "bfloat16", "compile": "none"}
    assert older.facts.params == auto
    assert unequal_params(student, baseline) == ["precision"]


def test_a_checkpoint_without_facts_is_enough(tmp_path):
    """Whoever made weights elsewhere gets a page too."""
    save_model(tmp_path)
    (tmp_path / "timing.json").unlink()
    run = read(tmp_path)
    assert (run.curves, run.timing, run.facts.labels, run.facts.epoch) == ({}, None, None, None)


def test_a_missing_checkpoint_says_what_writes_it(tmp_path):
    """The remedy is a command."""
    with refused(
        MissingError, where=tmp_path / "model.safetensors", what="file", remedy="ltd-pipe train"
    ):
        read(tmp_path)


def test_a_damaged_checkpoint_is_refused(runs):
    """The checkpoint's own reader says so."""
    path = runs / "student" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with refused(CheckpointError, where=path, what="safetensors"):
        read(path.parent)


def test_facts_of_another_form_are_refused(tmp_path):
    """The key is named."""
    save_model(tmp_path, epoch="last")
    with refused(CheckpointError, where=tmp_path / "model.safetensors", what="epoch"):
        read(tmp_path)


def test_times_of_another_form_are_refused(runs):
    """The file and the key are named."""
    write_json(runs / "student" / "timing.json", {"seconds": -1, "images_per_second": 1})
    with refused(ResultError, where=runs / "student/timing.json", what="seconds", found="-1"):
        read(runs / "student")


def test_an_epoch_that_was_logged_twice_counts_once(tmp_path):
    """A resumed run may write an epoch anew: the last word holds."""
    save_model(tmp_path)
    write_curve(tmp_path, "train/loss", [3.0, 2.0])
    path = tmp_path / "live" / "plots" / "metrics" / "train" / "loss.tsv"
    with path.open("a") as handle:
        handle.write("1\t1.5\n")
    curve = read(tmp_path).curves["train/loss"]
    np.testing.assert_array_equal(curve.epochs, [1, 2])
    np.testing.assert_array_equal(curve.values, [3.0, 1.5])


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("", {"what": "curve", "expected": "columns step and a value"}),
        ("a\tb\n1\t2\n", {"what": "curve", "expected": "columns step and a value"}),
        ("step\tloss\n0\n", {"what": "line 2"}),
        ("step\tloss\n0\t1.0\nx\t2\n", {"what": "line 3", "found": ["x", "2"]}),
        ("step\tloss\n0\tnan\n", {"what": "line 2"}),
    ],
    ids=["empty", "no step", "short row", "no number", "nan"],
)
def test_a_damaged_curve_is_refused(runs, content, fields):
    """The file and the line are named."""
    path = runs / "student" / "live" / "plots" / "metrics" / "train" / "loss.tsv"
    path.write_text(content)
    with refused(ResultError, where=path, **fields):
        read(runs / "student")


def test_curves_are_read_as_dvclive_writes_them(tmp_path):
    """The real writer: names with a slash become folders."""
    live = pytest.importorskip("dvclive.live")
    save_model(tmp_path)
    with live.Live(
        str(tmp_path / "live"), dvcyaml=None, save_dvc_exp=False, monitor_system=False
    ) as logger:
        for step in range(3):
            logger.step = step
            logger.log_metric("validation/robust_accuracy", step / 4)
    curve = read(tmp_path).curves["validation/robust_accuracy"]
    np.testing.assert_array_equal(curve.epochs, [1, 2, 3])
    np.testing.assert_array_equal(curve.values, [0, 0.25, 0.5])


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (4.0 / 255, "4/255"),
        (0.5 / 255, "0.001961"),
        (0.15, "0.15"),
        (0.2, "0.2"),
        (1.0, "1"),
    ],
)
def test_a_radius_is_a_fraction_of_255_where_it_is_one(eps, text):
    """8/255 is what people compare by; 0.2 stays 0.2, though it is 51/255."""
    assert eps_text(eps) == text


@pytest.mark.parametrize(
    ("share", "n", "text"),
    [(0.75, 1, "75.0"), (0.72123, 599, "72.1"), (0.72123, 10_000, "72.12"), (1.0, 100, "100.0")],
)
def test_a_percentage_is_no_finer_than_its_n(share, n, text):
    """A second decimal of 599 images would be finer than one image."""
    assert percent_text(share, n) == f"{text}\u00a0%"


def test_an_interval_names_its_unit_once():
    """Both bounds have the same decimals."""
    assert interval_text(0.7, 0.7812, 599) == "70.0 to 78.1\u00a0%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.139, "8.1 s"),
        (48.4, "48 s"),
        (185, "3 min 5 s"),
        (8040, "2 h 14 min"),
        (3599.7, "1 h 0 min"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    """Nobody reads 8,040 seconds."""
    assert duration_text(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("items", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_a_phrase_reads_as_a_sentence_does(items, text):
    """Commas, then 'and'."""
    assert phrase(items) == text


@pytest.mark.parametrize(("value", "text"), [(2.0, "2"), (0.8, "0.8"), (1.23456, "1.235")])
def test_a_number_has_four_digits_at_most(value, text):
    """No trailing zeros."""
    assert number_text(value) == text
