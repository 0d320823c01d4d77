"""What the runs of a study left, arm by arm and seed by seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from common import smoothed_entropy

from ltd_pipe.models.facts import read_facts
from ltd_pipe.params import read_yaml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Arm", "read_arms", "read_teachers"]

MEASURES = {
    "clean": "clean_accuracy",
    "pgd": "pgd_accuracy",
    "cw": "cw_50_accuracy",
    "autoattack": "autoattack_accuracy",
    "ece": "expected_calibration_error",
    "ece_attacked": "expected_calibration_error_under_attack",
}


@dataclass(frozen=True)
class Arm:
    """One way of training, with what each seed gave.

    Attributes
    ----------
    name, title, group : str
    teacher : str
        Of its soft labels; empty for one-hot and smoothed ones.
    top, entropy : float
        Mean top probability and entropy (nats) of the labels, over all seeds.
    tau : float or None
        Temperature of the soft labels, mean over seeds.
    n : int
        Test images.
    best, last : dict of str to list of float
        By measure (see MEASURES), one value a seed. The last checkpoints have no AutoAttack.
    """

    name: str
    title: str
    group: str
    teacher: str
    top: float
    entropy: float
    tau: float | None
    n: int
    best: dict[str, list[float]]
    last: dict[str, list[float]]

    @property
    def strongest(self) -> str:
        """The strongest attack that all its best checkpoints were measured under."""
        return "autoattack" if "autoattack" in self.best else "cw"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return dict(vars(self))


def read_teachers(folder: Path, content: dict[str, Any]) -> dict[str, list[float]]:
    """Clean test accuracy of each teacher, one value a seed."""
    return {
        teacher["name"]: [
            float(_facts(folder / "teachers" / teacher["name"] / str(seed))["clean_accuracy"])
            for seed in content["seeds"]
        ]
        for teacher in content["teachers"]
    }


def read_arms(folder: Path) -> tuple[dict[str, Any], list[Arm]]:
    """The content of arms.yaml, and its arms in their order.

    Parameters
    ----------
    folder : Path
        Of the study; all its stages but the last have run.
    """
    content = read_yaml(folder / "arms.yaml")
    arms = [_read_arm(folder, arm, content["seeds"]) for arm in content["arms"]]
    by_name = {arm.name: arm for arm in arms}
    dropped = [
        _read_dropped(folder, by_name[name], content["seeds"]) for name in content["dropped"]
    ]
    return content, arms + dropped


def _read_arm(folder: Path, arm: dict[str, Any], seeds: list[int]) -> Arm:
    facts = [_facts(folder / "students" / arm["name"] / str(seed)) for seed in seeds]
    soft = [_softness(one) for one in facts]
    results = folder / "results" / arm["name"]
    best, last = (
        [_metrics(results / str(seed) / which) for seed in seeds] for which in ("best", "last")
    )
    stored = facts[0]["labels"] is not None
    return Arm(
        name=arm["name"],
        title=arm["title"],
        group=arm["group"],
        teacher=arm["store"].split("-")[0] if stored else "",
        top=float(np.mean([one[0] for one in soft])),
        entropy=float(np.mean([one[1] for one in soft])),
        tau=float(np.mean([one["labels"]["temperature"] for one in facts])) if stored else None,
        n=best[0]["n"],
        best=_measured(best),
        last=_measured(last),
    )


def _read_dropped(folder: Path, arm: Arm, seeds: list[int]) -> Arm:
    name = f"{arm.name}-dropped"
    found = [_metrics(folder / "results" / name / str(seed) / "best") for seed in seeds]
    changed = {
        "name": name,
        "title": f"the same students, temperature dropped in inference ({arm.name})",
        "best": _measured(found),
        "last": {},
    }
    return Arm(**(arm.to_json() | changed))


def _softness(facts: dict[str, Any]) -> tuple[float, float]:
    """Mean top probability and entropy of the labels that a student was trained on."""
    if facts["labels"] is not None:
        return facts["labels"]["mean_top_probability"], facts["labels"]["mean_entropy"]
    params, classes = facts["params"], facts["num_classes"]
    alpha = params["smoothing"] if params["label_kind"] == "smooth" else 0.0
    return 1 - alpha + alpha / classes, smoothed_entropy(alpha, classes)


def _facts(folder: Path) -> dict[str, Any]:
    return read_facts(folder / "model.safetensors")


def _metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def _measured(found: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        measure: [one[key] for one in found]
        for measure, key in MEASURES.items()
        if all(one.get(key) is not None for one in found)
    }
