"""Folders of two runs, such as the stages leave, in small."""

from __future__ import annotations

from made_evaluations import write_evaluation
from run_folders import PARAMS, save_model, write_curves, write_json

from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.facts import gather_pair

N = 200
HASHES = list(range(N))


def right(count, first=0):
    """Answers of which `count` are right, from the first-th image on."""
    return [first <= i < first + count for i in range(N)]


def write_pair(folder):
    """`a` has all in one folder, `b` is a folder of the pipeline with its data/."""
    pair = ((folder / "a", "", "onehot", 100), (folder / "b" / "data", "student", "ltd", 130))
    for seed, (place, model, kind, robust) in enumerate(pair):
        place.mkdir(parents=True)
        save_model(place / model, kind="student", params=PARAMS | {"label_kind": kind}, epoch=3)
        write_curves(place / model, 0.7, seed)
        clean = right(195, first=seed)
        sha256 = sha256_file(place / model / "model.safetensors")
        answers = {"clean": clean, "autoattack": right(robust)}
        write_evaluation(place / "metrics.json", HASHES, checkpoint_sha256=sha256, **answers)
        points = [{"eps": e, "robust_accuracy": 1 - e, "low": 0.0, "high": 1.0} for e in (0, 0.5)]
        write_json(place / "evaluation/by_eps.json", points)


def gather(folder, names=("first", "second")):
    """As the command does."""
    places = (folder / "a" / "metrics.json", folder / "b" / "data" / "metrics.json")
    return gather_pair("Two <runs>", *zip(names, places, strict=True))
