"""Reliability diagrams: read, held against metrics.json, drawn."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree as ET

import pytest
from run_folders import edit_json, write_json

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import read_reliability
from ltd_pipe.evaluation.statistics import ConfidenceBin
from ltd_pipe.report.figures import draw_reliability
from ltd_pipe.report.page import bin_table, render_page
from ltd_pipe.report.runs import read_evaluation

BINS = {
    "student": [
        ConfidenceBin(number=3, count=1, confidence=0.25, accuracy=0.0),
        ConfidenceBin(number=14, count=12_000, confidence=0.98, accuracy=0.97),
    ],
    "baseline": [ConfidenceBin(number=14, count=12_001, confidence=0.99, accuracy=0.9)],
}


def test_the_error_is_that_of_metrics_json(whole_runs, page):
    """In the caption as in the table of results, recomputed from the bins it is the same."""
    metrics = json.loads((whole_runs / "metrics.json").read_text())
    bins = json.loads((whole_runs / "evaluation/reliability.json").read_text())["under_attack"]
    gaps = sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in bins)
    error = metrics["expected_calibration_error_under_attack"]
    assert gaps / metrics["n"] == pytest.approx(error)
    clean, attacked = re.findall(r">(.*Expected calibration error \(15 bins\): .*)</p>", page)
    assert f"student {100 * error:.1f}\u00a0%" in attacked
    assert f"student {100 * metrics['expected_calibration_error']:.1f}\u00a0%" in clean
    assert attacked.startswith("Under the first start of PGD-50 at ε = 0.15, on all images. ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected_calibration_error": 0.5}, "another evaluation.*clean: calibration error"),
        ({"expected_calibration_error_under_attack": 0.0}, "under_attack: calibration error"),
        ({"n": 598}, "clean: images: expected 598, found 599"),
    ],
)
def test_bins_of_another_evaluation_are_refused(runs, changes, message):
    """A diagram that contradicts the table beside it is worse than none."""
    edit_json(runs / "metrics.json", **changes)
    with pytest.raises(ResultError, match=message):
        read_evaluation(runs / "metrics.json", runs / "evaluation")


@pytest.mark.parametrize(
    "row",
    [
        {"number": 15, "count": 1, "confidence": 1.0, "accuracy": 1.0},
        {"number": 0, "count": 0, "confidence": 0.0, "accuracy": 0.0},
        {"number": 0, "count": 1, "confidence": 97.0, "accuracy": 0.0},
        {"number": 0, "count": 1, "confidence": 0.1},
    ],
    ids=["no such bin", "an empty bin", "a percentage", "no accuracy"],
)
def test_a_damaged_bin_is_refused(tmp_path, row):
    """The remedy is to evaluate again."""
    write_json(tmp_path / "reliability.json", {"clean": [row], "under_attack": []})
    with pytest.raises(ResultError, match="Run 'ltd-pipe evaluate' again"):
        read_reliability(tmp_path / "reliability.json", 1, {})


def test_a_diagram_is_the_pages_own():
    """Deterministic, well-formed, coloured by the page, with words for its counts."""
    svg = draw_reliability("some-bins", BINS)
    assert svg == draw_reliability("some-bins", BINS)
    ET.fromstring(svg)  # noqa: S314
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert all(name.startswith("some-bins-") for name in re.findall(r'\bid="([^"]+)"', svg))
    for text in ("student", "baseline", "images", "10,000", "accuracy, %"):
        assert f">{text}</text>" in svg


def test_counts_can_be_read_as_numbers(facts):
    """A bar on a logarithmic scale is no number."""
    columns, rows = bin_table(facts.evaluations)
    assert columns[:2] == ["student, clean", "baseline, clean"]
    counts = [row.values[0].split(" images")[0] for row in rows if row.values[0]]
    assert sum(map(int, counts)) == facts.evaluation.metrics.n
    assert rows[-1].name == "93 to 100\u00a0%"


def test_an_evaluation_without_bins_is_a_page_that_says_so(runs, gather):
    """Evaluations of before did not write them."""
    for name in ("evaluation", "baseline-evaluation"):
        (runs / name / "reliability.json").unlink()
    page = render_page(gather(runs))
    assert 'id="calibration"' not in page
    assert "Reliability diagrams (no " in page
