"""Runs are paired by the hash of each image, or not at all."""

from pathlib import Path

import numpy as np
import pytest
from made_evaluations import write_evaluation
from refusals import refused

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import evaluation_beside
from ltd_pipe.report.runs import find_metrics, read_evaluation
from ltd_pipe.report.verdict import Model, compare

CLEAN = [1, 1, 1, 1, 0]


def compared(folder):
    """The second of two evaluations against the first."""
    a, b = (Model(name, read_evaluation(folder / name / "metrics.json")) for name in "ab")
    return compare(b, a)


def both(folder, first, second):
    """Two evaluations compared."""
    for name, facts in (("a", first), ("b", second)):
        (folder / name).mkdir()
        write_evaluation(folder / name / "metrics.json", **facts)
    return compared(folder)


def test_images_are_paired_by_hash_whatever_their_order(tmp_path):
    """The second run has them reversed: image 7 is right for both, 9 only for the second."""
    first = {"hashes": [5, 7, 9], "labels": [0, 1, 2], "clean": [1, 1, 0], "pgd": [0, 1, 0]}
    second = {"hashes": [9, 7, 5], "labels": [2, 1, 0], "clean": [1, 1, 1], "pgd": [1, 1, 0]}
    found = both(tmp_path, first, second)
    assert (found.paired["pgd"].gained, found.paired["pgd"].lost) == (1, 0)
    assert (found.paired["clean"].gained, found.paired["clean"].lost) == (1, 0)
    assert found.left_out == ()


def test_one_image_twice_is_no_obstacle(tmp_path):
    """Two files with the same bytes have one hash."""
    first = {"hashes": [5, 5, 9], "clean": [1, 1, 0]}
    found = both(tmp_path, first, first | {"clean": [1, 1, 1]})
    assert (found.paired["clean"].gained, found.paired["clean"].lost) == (1, 0)


OTHERS = {
    "another image": {"hashes": [1, 2, 3, 4, 6]},
    "fewer images": {"hashes": [1, 2, 3, 4], "clean": CLEAN[:4], "autoattack": CLEAN[:4]},
    "another label": {"labels": [0, 0, 0, 0, 1]},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_other_test_images_are_not_paired(tmp_path, change):
    """Shares of other images are another measurement."""
    run = {"hashes": [1, 2, 3, 4, 5], "clean": CLEAN, "autoattack": CLEAN}
    found = both(tmp_path, run, run | change)
    assert (found.paired, found.left_out) == ({}, ("other test images",))


UNLIKE = {
    "another radius": ({"eps": 0.2}, "autoattack: linf 0.2 against linf 0.1"),
    "another version": (
        {"decides": {"autoattack": {"version": "plus"}}},
        "autoattack: other settings (version)",
    ),
}


@pytest.mark.parametrize(("change", "reason"), UNLIKE.values(), ids=UNLIKE.keys())
def test_other_attacks_are_not_compared_but_clean_accuracy_is(tmp_path, change, reason):
    """A weaker attack makes no better model."""
    run = {"hashes": [1, 2, 3, 4, 5], "clean": CLEAN, "autoattack": CLEAN}
    found = both(tmp_path, run, run | change)
    assert list(found.paired) == ["clean"]
    assert found.left_out == (reason,)


def test_other_settings_of_pgd_are_not_compared(tmp_path):
    """Nor an attack that the first run has not."""
    run = {"hashes": [1, 2, 3, 4, 5], "clean": CLEAN, "pgd": CLEAN, "cw-pgd": CLEAN}
    other = {"fgsm": CLEAN, "decides": {"pgd": {"steps": 10}}}
    found = both(tmp_path, run, run | other)
    assert list(found.paired) == ["clean", "cw-pgd"]
    assert found.left_out == ("pgd: other settings (steps)", "fgsm: not measured of a")


ROWS = {"fgsm": {"steps": 1}, "cw-pgd": {"steps": 50}, "autoattack": {"version": "standard"}}
SETS = {
    "the same": (ROWS, ""),
    "one attack less": ({"fgsm": {"steps": 1}}, "other attacks (cw_pgd, autoattack)"),
    "one more": (ROWS | {"pgd": {"steps": 50}}, "other attacks (pgd)"),
    "a weaker one": (ROWS | {"cw-pgd": {"steps": 10}}, "other attacks (cw_pgd)"),
}


@pytest.mark.parametrize(("rows", "reason"), SETS.values(), ids=SETS.keys())
def test_all_attacks_together_are_paired_where_they_are_the_same(tmp_path, rows, reason):
    """What stood under more attacks is another number, whatever the norm and eps."""
    sides = (
        {"hashes": [1, 2, 3, 4, 5], "decides": attacks}
        | dict.fromkeys(("clean", *attacks, "all-attacks"), CLEAN)
        for attacks in (ROWS, rows)
    )
    found = both(tmp_path, *sides)
    assert ("all-attacks" in found.paired) == (not reason)
    assert (f"all-attacks: {reason}" in found.left_out) == bool(reason)


def test_without_results_by_image_nothing_is_paired(tmp_path):
    """Where the file is lost: named, and shown all the same."""
    run = {"hashes": [1, 2, 3, 4, 5], "clean": CLEAN}
    for name in "ab":
        (tmp_path / name).mkdir()
        write_evaluation(tmp_path / name / "metrics.json", **run)
    (tmp_path / "a/evaluation/per_sample.npz").unlink()
    found = compared(tmp_path)
    assert (found.paired, found.left_out) == ({}, ("no results by image of a",))
    assert read_evaluation(tmp_path / "a/metrics.json").scores["clean"].value == 0.8


def rewrite(path, **changes):
    """Change arrays of a .npz file; None removes one."""
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


DAMAGED = {
    "no hashes": ({"sample_hash": None}, "no sample_hash"),
    "hashes as text": ({"sample_hash": np.array(["a"] * 5)}, "sample_hash"),
    "a column too short": ({"correct_clean": np.ones(4, bool)}, "correct_clean"),
    "answers as numbers": ({"correct_clean": np.ones(5)}, "correct_clean"),
    "another run's answers": ({"correct_clean": np.zeros(5, bool)}, "evaluation"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_results_are_refused(tmp_path, changes, message):
    """Each with the file's name."""
    metrics = write_evaluation(tmp_path / "metrics.json", hashes=[1, 2, 3, 4, 5], clean=CLEAN)
    rewrite(tmp_path / "evaluation/per_sample.npz", **changes)
    with refused(ResultError, where=tmp_path / "evaluation/per_sample.npz", what=message):
        read_evaluation(metrics)


def test_pickles_and_torn_files_are_refused(tmp_path):
    """Nothing in a file of results is ever run."""
    metrics = write_evaluation(tmp_path / "metrics.json", hashes=[1, 2, 3, 4, 5], clean=CLEAN)
    path = tmp_path / "evaluation/per_sample.npz"
    content = path.read_bytes()
    rewrite(path, label=np.array([{}] * 5, dtype=object))
    with refused(ResultError, where=path, what="damaged"):
        read_evaluation(metrics)
    path.write_bytes(content[: len(content) // 2])
    with refused(ResultError, where=path, what="damaged"):
        read_evaluation(metrics)


def test_a_run_is_found_by_folder_or_file(tmp_path, monkeypatch):
    """A stage's data/, any folder, or metrics.json under another name."""
    (tmp_path / "run/data").mkdir(parents=True)
    (tmp_path / "run/data/metrics.json").touch()
    found = tmp_path / "run/data/metrics.json"
    assert (
        find_metrics(tmp_path / "run") == find_metrics(tmp_path / "run/data") == find_metrics(found)
    )
    for name in ("metrics.json", "baseline-metrics.json", "good.json"):
        metrics = tmp_path / "run/data" / name
        metrics.touch()
        evaluation_beside(metrics).mkdir()
        assert find_metrics(evaluation_beside(metrics)) == metrics
    monkeypatch.chdir(tmp_path / "run")
    assert find_metrics(Path()).samefile(found)
    assert evaluation_beside(found).name == "evaluation"
    assert evaluation_beside(tmp_path / "baseline-metrics.json").name == "baseline-evaluation"
    with refused(MissingError, where=tmp_path, what="metrics.json", remedy="file"):
        find_metrics(tmp_path)
