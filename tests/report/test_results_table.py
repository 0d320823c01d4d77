"""The table of results."""

from __future__ import annotations

from dataclasses import replace

from made_evaluations import make_row
from run_folders import attacked, scores_of

from ltd_pipe.evaluation.results import CorruptedSets
from ltd_pipe.evaluation.statistics import wilson_interval
from ltd_pipe.report.page import results_table
from ltd_pipe.report.verdict import share_text


def cells(facts, title):
    """One row's numbers as text."""
    row = next(row for row in results_table(facts)[1] if row.title == title)
    return [shown(cell) for cell in row.cells]


def shown(cell):
    """A cell as text."""
    text = cell or "" if cell is None or isinstance(cell, str) else share_text(cell)
    return text.replace("\u00a0", " ")


def test_every_number_stands_under_its_model(facts):
    """Student, baseline, teacher."""
    assert results_table(facts)[0] == ["student", "baseline", "teacher"]
    assert cells(facts, "Clean") == ["97.7 %", "97.2 %", "98.5 %"]
    assert cells(facts, "PGD-50 x 5") == ["77.0 %", "74.6 %", ""]
    assert cells(facts, "AutoAttack") == ["75.0 %", "72.0 %", ""]
    assert cells(facts, "Calibration error") == ["12.7 %", "19.7 %", "0.7 %"]
    assert cells(facts, "under attack") == ["13.0 %", "14.5 %", ""]
    assert cells(facts, "Test images") == ["599", "599", "599"]


def test_attacks_stand_in_the_order_they_ran(facts):
    """Accuracy left after each, under AutoAttack."""
    parts = [row.title for row in results_table(facts)[1] if row.kind == "part"]
    assert parts[:4] == ["after APGD-CE", "after APGD-T", "after FAB-T", "after Square"]
    assert cells(facts, "after APGD-CE") == ["76.5 %", "73.5 %", ""]


def test_every_accuracy_has_an_interval(facts):
    """Also those after each attack, and the teacher's."""
    for row in results_table(facts)[1]:
        if row.title not in ("Calibration error", "under attack", "Test images"):
            assert all(cell is None or cell.low <= cell.value <= cell.high for cell in row.cells)


def test_what_no_model_has_is_left_out(facts):
    """AutoAttack that was not run is no row of dashes."""
    alone = replace(facts, evaluation=scores_of(900, None), baseline=None, teacher=None)
    assert [row.title for row in results_table(alone)[1]] == [
        "Clean",
        "PGD-50 x 5",
        "Calibration error",
        "Test images",
    ]
    assert results_table(alone)[0] == ["student"]


def test_eps_is_shown_as_people_write_it(facts):
    """8/255, not 0.03137."""
    rows = results_table(replace(facts, evaluation=scores_of(900, 500), baseline=None))[1]
    assert rows[1].note == "L∞, ε = 8/255"


def test_more_attacks_have_rows_of_their_own(facts):
    """Those of the list, in their order, before PGD; AutoAttack says which version."""
    listed = (make_row(key, 600, 1000, key.upper()) for key in ("fgsm", "cw-20", "pgd"))
    scores = attacked(scores_of(900, 500), *listed, autoattack_version="standard, 1")
    found = replace(facts, evaluation=scores, baseline=None, teacher=None)
    titles = [row.title for row in results_table(found)[1]]
    assert titles[:5] == ["Clean", "FGSM", "CW-20", "PGD", "AutoAttack"]
    assert cells(found, "CW-20") == ["60.0 %"]
    assert results_table(found)[1][4].note == "L∞, ε = 8/255; standard, 1"


def test_unequal_attacks_are_not_put_under_one_name(facts):
    """PGD-10 of one model and PGD-50 of the other; so too where one key has two names."""
    student, baseline = (
        attacked(
            scores_of(900, None),
            make_row("pgd", 500, 1000, f"PGD-{steps}"),
            make_row("transfer-1", 600, 1000, f"transfer from {name}"),
        )
        for steps, name in ((10, "a"), (50, "b"))
    )
    found = replace(facts, evaluation=student, baseline_evaluation=baseline, teacher=None)
    titles = [row.title for row in results_table(found)[1]]
    assert titles[1:3] == ["transfer from a / transfer from b", "PGD-10 / PGD-50"]


def test_corrupted_images_have_a_row(facts):
    """With their own n, which is not that of the attacks."""
    sets = CorruptedSets(n=200, sets=3)
    scores = scores_of(900, 500, corruption_accuracy=0.7, corruptions=sets)
    found = replace(facts, evaluation=scores, baseline=None, teacher=None)
    (row,) = [row for row in results_table(found)[1] if row.title == "Corrupted images"]
    assert row.note == "no attack / mean of 3 sets of 200 images"
    (score,) = row.cells
    assert shown(score) == "70.0 %"
    assert (score.low, score.high) == wilson_interval(140, 200)


def test_all_attacks_together_are_the_last_row_and_a_bound(facts):
    """Behind all else, which has n images."""
    scores = attacked(scores_of(900, 500), make_row("all-attacks", 400, 1000))
    found = replace(facts, evaluation=scores, baseline=None, teacher=None)
    last = results_table(found)[1][-1]
    assert (last.title, last.kind) == ("All attacks together", "bound")
    assert shown(last.cells[0]) == "40.0 %"
    assert [row.kind for row in results_table(found)[1]].count("bound") == 1
