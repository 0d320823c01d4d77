"""metrics.json and its folder."""

from __future__ import annotations

import json

import pytest
from refusals import refused
from run_folders import EPS, N, edit_json

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation import robustness
from ltd_pipe.evaluation.statistics import wilson_interval
from ltd_pipe.report.figures import CURVE_ATTACK
from ltd_pipe.report.runs import read_evaluation

CLEAN = {"key": "clean", "name": "clean", "n": N, "accuracy": 0.9, "low": 0.8, "high": 0.95}


def read(metrics, folder=None):
    """As the report does."""
    return read_evaluation(metrics, folder, settings_required=False)


def test_an_evaluation_is_read_as_it_was_written(runs):
    """Numbers, intervals, curve and settings."""
    evaluation = read(runs / "metrics.json", runs / "evaluation")
    auto = evaluation.score("autoattack")
    assert (auto.value, auto.n) == (449 / N, N)
    assert (auto.low, auto.high) == pytest.approx(wilson_interval(449, N))
    assert [point.eps for point in evaluation.by_eps][:2] == [0, pytest.approx(0.05)]
    assert evaluation.metrics.eps == EPS
    assert evaluation.attack_name("pgd") == "PGD-50 x 5"


def test_numbers_by_name_are_those_of_the_rows(runs):
    """What dvc and people read is written of what the report reads."""
    content = json.loads((runs / "metrics.json").read_text())
    for row in content["attacks"]:
        name = f"{row['key']}_accuracy"
        assert content[name] == row["accuracy"]
        assert content["intervals"][name] == [row["low"], row["high"]]


def test_the_folder_of_an_evaluation_may_be_missing(runs, tmp_path):
    """metrics.json alone is enough for a verdict."""
    evaluation = read(runs / "metrics.json", tmp_path / "none")
    assert (evaluation.by_eps, evaluation.samples) == ((), None)


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
        (
            {"attacks": [CLEAN | {"accuracy": 97.7}]},
            {"what": "attacks.0.accuracy", "found": "97.7"},
        ),
        ({"clean_accuracy": 97.7}, {"what": "clean_accuracy"}),
        ({"pgd_accuracy": float("nan")}, {"what": "pgd_accuracy"}),
        ({"cw_20_accuracy": 0.5}, {"what": "cw_20_accuracy"}),
        ({"intervals": {"clean_accuracy": [0.1, 0.2]}}, {"what": "intervals"}),
        ({"attacks": None}, {"what": "attacks"}),
        ({"checkpoint_sha256": None}, {"what": "checkpoint_sha256"}),
        ({"n": 0}, {"what": "n: ", "found": "0"}),
        ({"eps": 8}, {"what": "eps", "found": "8"}),
        ({"attacks": [CLEAN | {"low": float("nan")}]}, {"what": "attacks.0.low", "found": "nan"}),
        (
            {"attacks": [CLEAN | {"high": 0.2}]},
            {"what": "attacks.0: the accuracy is outside its interval"},
        ),
        ({"autoattack": {"square": -1}}, {"what": "autoattack.square", "found": "-1"}),
    ],
    ids=[
        *("percent", "named percent", "named nan", "named alone", "named interval", "no attacks"),
        *("no checkpoint", "no images", "grey levels", "nan"),
        *("interval", "negative"),
    ],
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
