"""FGSM, PGD and CW-PGD: right verdicts in both norms, by the names that people write."""

import pytest
import torch

from ltd_pipe.attacks import Ball
from ltd_pipe.evaluation.attacks import parse_attack, run_gradient_attack, run_pgd

RADII = {"linf": 0.05, "l2": 0.16}
TITLES = [
    ("fgsm", "FGSM"),
    ("pgd-20", "PGD-20"),
    ("pgd-100x5", "PGD-100 x 5"),
    ("cw-40", "CW-PGD-40"),
    ("cw-40x2", "CW-PGD-40 x 2"),
]


@pytest.mark.parametrize(("name", "title"), TITLES)
def test_an_attack_is_called_what_it_is(name, title):
    """Kind, steps, and restarts where there are more than one."""
    assert parse_attack(name).title == title
    assert parse_attack(name).key == name


@pytest.mark.parametrize("name", ["", "pgd", "pgd-0", "fgsm-2", "pgd-10x0", "bim-10", "pgd-10 "])
def test_what_is_no_attack_is_refused(name):
    """With examples of what would be one."""
    with pytest.raises(ValueError, match="expected 'fgsm', 'pgd-20', 'pgd-100x5' or 'cw-100'"):
        parse_attack(name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_finds_exactly_what_can_be_broken(bench, right, exactly_robust, norm):
    """For a linear model the verdict of CW-PGD is the exact one."""
    ball = Ball(norm, RADII[norm])
    found, _ = run_gradient_attack(bench(), parse_attack("cw-20x2"), ball, right, all_images=False)
    assert torch.equal(found, exactly_robust(norm, RADII[norm]) & right)
    assert 0 < found.sum() < right.sum()


@pytest.mark.parametrize("name", ["fgsm", "pgd-20"])
def test_no_attack_breaks_what_cannot_be_broken(bench, right, exactly_robust, name):
    """In the L2 ball too, where a step that left it would break more."""
    ball = Ball("l2", RADII["l2"])
    found, _ = run_gradient_attack(bench(), parse_attack(name), ball, right, all_images=False)
    assert not (exactly_robust("l2", RADII["l2"]) & right & ~found).any()
    assert found.sum() < right.sum()


def test_for_calibration_all_images_are_attacked(bench, right, images):
    """Also those that are wrong when clean, which change no verdict."""
    assert not right.all()
    ball, plan = Ball("linf", 0.05), parse_attack("pgd-5x2")
    every, answers = run_gradient_attack(bench(), plan, ball, right, all_images=True)
    some, _ = run_gradient_attack(bench(), plan, ball, right, all_images=False)
    assert torch.equal(every, some)
    assert (answers.prediction >= 0).all()
    assert answers.correct(images.labels).sum() >= every.sum()
    assert 0 < answers.calibration_error(images.labels) < 1


def test_a_later_restart_begins_elsewhere(bench, right, tmp_path):
    """Restarts are told apart by their numbers: what survives the first meets other points."""
    ball, test = Ball("l2", 0.001), bench(tmp_path)
    for restart in (0, 1):
        numbers = range(restart, restart + 1)
        run_pgd(test, "x", right, ball=ball, steps=1, restarts=numbers)
    first, second = (test.journal.read(f"x.{restart}")[0] for restart in (0, 1))
    assert first["prediction"] == second["prediction"]
    assert first["confidence"] != second["confidence"]


def test_no_radius_is_no_attack(bench, right):
    """At eps 0 what is right when clean stands."""
    assert torch.equal(run_pgd(bench(), "x", right, ball=Ball("linf", 0.0), steps=5), right)


def test_progress_counts_down_to_nothing(bench, right):
    """Each start is announced; what is done and at most to come is told after each batch."""
    told = []
    ball, plan = Ball("linf", 0.05), parse_attack("pgd-2x3")
    tick = lambda name, done, left: told.append((name, done, left))  # noqa: E731
    run_gradient_attack(bench(tick=tick), plan, ball, right, all_images=False)
    assert {name for name, _, _ in told} == {f"PGD-2 start {start} of 3" for start in (1, 2, 3)}
    assert sum(done == 0 for _, done, _ in told) == 3
    assert [left for _, _, left in told] == sorted((left for _, _, left in told), reverse=True)
    assert told[-1][2] == 0
