"""The files that evaluations leave, with answers of one's choice."""

from __future__ import annotations

import json

import numpy as np

from ltd_pipe.evaluation.statistics import wilson_interval


def write_evaluation(metrics, hashes, *, eps=0.1, version="standard", labels=None, **correct):
    """metrics.json and the folder beside it, of images with these hashes.

    `correct` are lists of bool by attack, `clean` among them.
    """
    n, folder = len(hashes), metrics.with_name(metrics.name.replace("metrics.json", "evaluation"))
    folder.mkdir(parents=True)
    columns = {name: np.array(answers, dtype=bool) for name, answers in correct.items()}
    hits = {name: int(column.sum()) for name, column in columns.items()}
    content = {f"{name}_accuracy": count / n for name, count in hits.items()}
    content["intervals"] = {
        f"{name}_accuracy": wilson_interval(count, n) for name, count in hits.items()
    }
    write_json(metrics, {"n": n, "eps": eps, **content})
    settings = {"autoattack_version": version, "attacks": [{"name": "PGD", "steps": 50}]}
    write_json(folder / "settings.json", settings)
    labels = np.zeros(n, dtype=np.int64) if labels is None else np.array(labels)
    np.savez(
        folder / "per_sample.npz",
        index=np.arange(n),
        sample_hash=np.array(hashes, dtype=np.uint64),
        label=labels,
        **{f"correct_{name}": column for name, column in columns.items()},
    )
    return metrics


def write_json(path, content):
    path.write_text(json.dumps(content))
