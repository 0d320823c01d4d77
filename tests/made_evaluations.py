"""The files that evaluations leave, with answers of one's choice."""

from __future__ import annotations

import json

import numpy as np

from ltd_pipe.evaluation.results import AttackRow, Metrics, Settings
from ltd_pipe.evaluation.statistics import wilson_interval

# What `evaluate` calls attacks, and what decides them, where a test does not say.
NAMES = {"pgd": "PGD-50 x 5", "autoattack": "AutoAttack standard"}
DECIDES = {"pgd": {"steps": 50, "restarts": 5}, "autoattack": {"version": "standard"}}


def make_row(key, hits, n, name=None, **decides):
    """A row of metrics.json with so many right answers of n."""
    low, high = wilson_interval(hits, n)
    return AttackRow(
        key=key,
        name=name or NAMES.get(key, key),
        n=n,
        accuracy=hits / n,
        low=low,
        high=high,
        **DECIDES.get(key, {}) | decides,
    )


def make_metrics(n, hits, *, eps=8 / 255, decides=None, **more):
    """metrics.json with so many right answers by attack, `clean` among them.

    `decides` has, by attack, what is to be unlike DECIDES.
    """
    rows = [make_row(key, count, n, **(decides or {}).get(key, {})) for key, count in hits.items()]
    threat = {"norm": "linf", "eps": eps, "checkpoint_sha256": "0" * 64}
    return Metrics(n=n, attacks=rows, **threat | more)


def write_evaluation(
    metrics, hashes, *, eps=0.1, labels=None, decides=None, checkpoint_sha256="0" * 64, **correct
):
    """metrics.json and the folder beside it, of images with these hashes.

    `correct` are lists of bool by attack, `clean` among them.
    """
    n, folder = len(hashes), metrics.with_name(metrics.name.replace("metrics.json", "evaluation"))
    folder.mkdir(parents=True)
    columns = {name: np.array(answers, dtype=bool) for name, answers in correct.items()}
    hits = {name: int(column.sum()) for name, column in columns.items()}
    more = {"eps": eps, "decides": decides, "checkpoint_sha256": checkpoint_sha256}
    write_json(metrics, make_metrics(n, hits, **more).dump())
    write_json(folder / "settings.json", Settings(checkpoint_sha256=checkpoint_sha256).dump())
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
