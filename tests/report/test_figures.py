"""Figures: deterministic, self-contained, coloured by the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from made_evaluations import make_metrics
from refusals import refused
from run_folders import edit_json, write_json

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import EpsPoint, LossSurface, read_reliability
from ltd_pipe.evaluation.statistics import ConfidenceBin
from ltd_pipe.report.figures import (
    draw_curves,
    draw_eps,
    draw_histogram,
    draw_loss_surface,
    draw_reliability,
)
from ltd_pipe.report.page import bin_table, render_page
from ltd_pipe.report.runs import Curve, Evaluation, read_evaluation

MEASURE = "validation/robust_accuracy"
CURVE = Curve(np.arange(1, 6), np.linspace(0.1, 0.8, 5))
POINTS = [
    EpsPoint(eps=k / 255, robust_accuracy=1 - k / 16, low=0.9 - k / 20, high=1 - k / 20)
    for k in range(0, 17, 2)
]


def measured(points, **hits):
    """An evaluation of 400 images with a curve."""
    return Evaluation(make_metrics(400, {"clean": 400} | hits), by_eps=tuple(points))


def trained(name, curve, epoch=None):
    """A run with a curve, and the epoch of its checkpoint."""
    return SimpleNamespace(name=name, curves={MEASURE: curve}, facts=SimpleNamespace(epoch=epoch))


def curves():
    """Two lines, one with a ring."""
    runs = [trained("student", CURVE, 3), trained("baseline", CURVE)]
    return draw_curves("some-curve", runs, MEASURE, "robust accuracy, %")


def by_eps():
    """One line, its band, and AutoAttack's diamond."""
    return draw_eps("some-eps", {"student": measured(POINTS, autoattack=200)})


def histogram():
    """Twenty bars."""
    return draw_histogram("some-bars", np.arange(20), 0.7)


def surface():
    """A slope."""
    offsets = [-0.2, -0.1, 0.0, 0.1, 0.2]
    facts = LossSurface(
        n=16,
        offsets=offsets,
        loss=[[x + y * y for y in offsets] for x in offsets],
        share_whose_loss_rises_along_the_gradient=1,
        share_where_the_gradient_beats_the_random_direction=1,
    )
    return draw_loss_surface("some-slope", facts, 0.1)


every = pytest.mark.parametrize("draw", [curves, by_eps, histogram, surface])


@every
def test_equal_numbers_give_equal_bytes(draw):
    """No dates, no random identifiers."""
    assert draw() == draw()
    assert not re.search(r"20\d\d-\d\d-\d\d", draw())


@every
def test_a_figure_is_well_formed_and_refers_to_nothing_outside(draw):
    """An address would be a request; the namespace's names are none."""
    svg = draw()
    ET.fromstring(svg)  # noqa: S314
    assert not re.findall(r'(?:href|src)="(?!#)', svg)
    assert "<metadata" not in svg


@pytest.mark.parametrize("draw", [curves, by_eps, histogram])
def test_a_figure_takes_all_colours_from_the_page(draw):
    """A fixed colour would vanish on one of the two backgrounds."""
    svg = draw()
    assert "var(--muted)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()


def test_the_words_beside_the_surface_take_theirs():
    """Its loss has a scale of its own, which is beside it; what is read is the page's."""
    words = re.findall(r"<text[^>]*>", surface())
    assert len(words) > 8
    assert all("var(--" in word for word in words)


@every
def test_identifiers_are_the_figures_own(draw):
    """Two figures on a page must not take each other's clip paths."""
    svg = draw()
    name = re.search(r'id="(some-\w+)', svg)[1]
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(one.startswith(name) for one in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)


@every
def test_text_stays_text(draw):
    """So that it can be read aloud, searched, and takes the page's font."""
    assert "<text" in draw()


def test_the_axis_of_eps_is_in_grey_levels():
    """Zero, then fractions of 255; at most seven, or they would overlap."""
    texts = re.findall(r">(\d+/255)<", by_eps())
    assert texts
    assert len(texts) <= 7


def test_models_differ_in_more_than_colour():
    """The baseline's line is dashed."""
    assert "stroke-dasharray" in curves()


def test_a_curve_of_one_epoch_is_drawn():
    """The shortest run there is."""
    one = Curve(np.array([1]), np.array([0.5]))
    assert "<svg" in draw_curves("one", [trained("student", one, 0)], MEASURE, "x")


def test_a_grid_of_one_eps_is_drawn():
    """No division by a range of zero."""
    assert "<svg" in draw_eps("one", {"student": measured(POINTS[4:5])})


def test_settings_of_the_user_do_not_reach_the_figures():
    """A matplotlibrc would change bytes from one home to the next."""
    import matplotlib as mpl

    before = curves()
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9}):
        assert curves() == before
        assert mpl.rcParams["font.size"] == 30


def test_importing_the_report_does_not_import_matplotlib():
    """Its import writes a cache into the user's home."""
    code = "import sys, ltd_pipe.report.page; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(("own", "n"), [(100, "100"), (None, "5,000")], ids=["own", "older"])
def test_the_curves_end_has_its_own_n_and_interval(facts, own, n):
    """Fewer images are behind the curve than behind the rest."""
    point = EpsPoint(eps=0.4, robust_accuracy=0.25, low=0.17, high=0.34, n=own)
    metrics = facts.evaluation.metrics.model_copy(update={"n": 5_000})
    evaluation = replace(facts.evaluation, metrics=metrics, by_eps=(point, point))
    end = f"17.0 to 34.0\u00a0%) of {n} images" if own else f"17.00 to 34.00\u00a0%) of {n} images"
    assert end in render_page(replace(facts, evaluation=evaluation))


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
    ("changes", "fields"),
    [
        ({"expected_calibration_error": 0.5}, {"what": "clean: calibration", "expected": "0.5"}),
        (
            {"expected_calibration_error_under_attack": 0.0},
            {"what": "under_attack: calibration", "expected": "0"},
        ),
        ({"n": 598}, {"what": "images", "expected": "598", "found": "599"}),
    ],
)
def test_bins_of_another_evaluation_are_refused(runs, changes, fields):
    """A diagram that contradicts the table beside it is worse than none."""
    edit_json(runs / "metrics.json", **changes)
    with refused(ResultError, where=runs / "evaluation/reliability.json", **fields):
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
    with refused(ResultError, where=tmp_path / "reliability.json", remedy="ltd-pipe evaluate"):
        read_reliability(tmp_path / "reliability.json", make_metrics(1, {"clean": 1}))


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
    """A folder may have lost them."""
    for name in ("evaluation", "baseline-evaluation"):
        (runs / name / "reliability.json").unlink()
    page = render_page(gather(runs))
    assert 'id="calibration"' not in page
    assert "Reliability diagrams (no " in page
