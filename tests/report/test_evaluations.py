"""metrics.json and its folder."""

from __future__ import annotations

import json
import re

import pytest
from refusals import refused
from run_folders import EPS, N, edit_json, scores_of

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation import robustness
from ltd_pipe.evaluation.statistics import wilson_interval
from ltd_pipe.report.figures import CURVE_ATTACK
from ltd_pipe.report.runs import read_evaluation


def read(metrics, folder=None):
    """As the report does."""
    return read_evaluation(metrics, folder, settings_required=False)


def test_an_evaluation_is_read_as_it_was_written(runs):
    """Numbers, intervals, curve and settings."""
    evaluation = read(runs / "metrics.json", runs / "evaluation")
    auto = evaluation.metrics.score("autoattack_accuracy")
    assert (auto.value, auto.n) == (449 / N, N)
    assert (auto.low, auto.high) == pytest.approx(wilson_interval(449, N))
    assert [point.eps for point in evaluation.by_eps][:2] == [0, pytest.approx(0.05)]
    assert evaluation.metrics.eps == EPS
    assert evaluation.pgd_name == "PGD-50, 5 restarts"


def test_an_interval_that_is_not_written_is_computed(runs):
    """Wilson's, as everywhere."""
    edit_json(runs / "metrics.json", intervals=None)
    score = read(runs / "metrics.json").metrics.score("clean_accuracy")
    assert (score.low, score.high) == wilson_interval(585, N)


def test_autoattack_may_be_left_out(runs):
    """Then it has no score, rather than a score of zero."""
    edit_json(runs / "metrics.json", autoattack_accuracy=None, intervals=None)
    assert read(runs / "metrics.json").metrics.score("autoattack_accuracy") is None


def test_the_folder_of_an_evaluation_may_be_missing(runs, tmp_path):
    """metrics.json alone is enough for a verdict."""
    evaluation = read(runs / "metrics.json", tmp_path / "none")
    assert (evaluation.by_eps, evaluation.pgd_name) == ((), "PGD")


def test_an_evaluation_to_be_compared_needs_its_settings(runs):
    """Without these nobody knows what was measured; the remedy names the folder."""
    (runs / "evaluation/settings.json").unlink()
    with refused(
        MissingError, where=runs / "evaluation/settings.json", what="file", remedy="--metrics"
    ):
        read_evaluation(runs / "metrics.json")


def test_missing_metrics_say_what_writes_them(tmp_path):
    """The remedy is a command."""
    with refused(
        MissingError, where=tmp_path / "metrics.json", what="file", remedy="ltd-pipe evaluate"
    ):
        read(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"clean_accuracy": 97.7}, {"what": "clean_accuracy", "found": "97.7"}),
        ({"clean_accuracy": None}, {"what": "clean_accuracy"}),
        ({"n": 0}, {"what": "n: ", "found": "0"}),
        ({"eps": 8}, {"what": "eps", "found": "8"}),
        ({"pgd_accuracy": float("nan")}, {"what": "pgd_accuracy", "found": "nan"}),
        (
            {"intervals": {"clean_accuracy": [0.1, 0.2]}},
            {
                "what": "intervals.clean_accuracy",
                "expected": re.compile("bounds"),
                "found": [0.1, 0.2],
            },
        ),
        ({"autoattack": {"square": -1}}, {"what": "autoattack.square", "found": "-1"}),
    ],
    ids=["percent", "missing", "no images", "grey levels", "nan", "interval", "negative"],
)
def test_impossible_metrics_are_refused(runs, change, fields):
    """The file and the key are named."""
    edit_json(runs / "metrics.json", **change)
    with refused(ResultError, where=runs / "metrics.json", **fields):
        read(runs / "metrics.json")


@pytest.mark.parametrize(
    "name", ["metrics.json", "evaluation/by_eps.json", "evaluation/settings.json"]
)
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\xff"])
def test_a_damaged_file_is_named(runs, name, content):
    """Never a traceback of the parser."""
    (runs / name).write_text(content, encoding="utf-8")
    with refused(ResultError, where=runs / name):
        read(runs / "metrics.json", runs / "evaluation")


def test_the_curve_is_sorted_by_eps(runs):
    """A line that goes back and forth would show nothing."""
    path = runs / "evaluation" / "by_eps.json"
    points = json.loads(path.read_text())
    path.write_text(json.dumps(points[::-1]))
    found = [point.eps for point in read(runs / "metrics.json", path.parent).by_eps]
    assert found == sorted(found)


def test_the_curve_is_called_by_the_attack_that_made_it():
    """The evaluation's constant and the page's word for it are in two modules."""
    assert f"PGD-{robustness.CURVE_STEPS}" == CURVE_ATTACK


def test_pgd_without_settings_is_plain_pgd():
    """Steps are not invented."""
    assert scores_of(900, 500).pgd_name == "PGD"


OF_ANOTHER = {
    "checkpoint": (
        {"checkpoint_sha256": "a" * 64},
        {"what": "checkpoint", "expected": "a" * 12},
    ),
    "norm": ({"norm": "l2"}, {"what": "norm", "expected": "l2", "found": "linf"}),
    "eps": ({"eps": 0.25}, {"what": "eps", "expected": "0.25", "found": "0.15"}),
    "images": ({"n": N + 1}, {"what": "images", "expected": "600", "found": "599"}),
}


@pytest.mark.parametrize(("change", "fields"), OF_ANOTHER.values(), ids=OF_ANOTHER.keys())
def test_settings_of_another_evaluation_are_refused(runs, change, fields):
    """Numbers would be shown with what was never said of them."""
    (runs / "evaluation/reliability.json").unlink()
    edit_json(runs / "evaluation/settings.json", norm="linf", eps=EPS, images=N)
    read(runs / "metrics.json", runs / "evaluation")
    edit_json(runs / "metrics.json", **change)
    with refused(ResultError, where=runs / "evaluation/settings.json", **fields):
        read(runs / "metrics.json", runs / "evaluation")


def test_metrics_say_which_checkpoint_they_are_of(runs):
    """Also where their folder is lost, and the other way round in older evaluations."""
    edit_json(runs / "metrics.json", checkpoint_sha256="a" * 64)
    assert read(runs / "metrics.json", runs / "none").checkpoint_sha256 == "a" * 64
    older = read(runs / "baseline-metrics.json")
    assert older.checkpoint_sha256 == older.settings.checkpoint_sha256 is not None
