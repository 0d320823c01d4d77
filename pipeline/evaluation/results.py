"""What is done of an evaluation, on disk: a file for each attack, a line for each batch.

A process may die at any byte. A line counts when it is whole, which its checksum tells; what
comes after one that is not is computed again. So nothing has to wait for the disk.
"""

from __future__ import annotations

import json
import math
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltd_pipe.evaluation.accuracy import wilson_interval
from ltd_pipe.params.sections import split_attack
from ltd_pipe.publish import writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from ltd_pipe.provenance import StateRecord


# --- How a threat model is written for people.


# As RobustBench writes them.
NORMS = {"linf": "Linf", "l2": "L2"}


def eps_text(eps: float) -> str:
    """A radius in pixel units: `8/255` where it is a whole number of grey levels.

    0.2 is one too, but whoever writes 0.2 does not mean 51/255: short decimals stay.
    """
    levels = round(eps * 255)
    if math.isclose(eps, round(eps, 2), abs_tol=1e-9):
        return f"{round(eps, 2):.4g}"
    if levels and math.isclose(eps * 255, levels, rel_tol=1e-6):
        return f"{levels}/255"
    return f"{eps:.4g}"


def threat_text(norm: str, eps: float) -> str:
    """Norm and radius, such as `Linf 8/255`."""
    return f"{NORMS[norm]} {eps_text(eps)}"


# --- One check of an audit: how often something happened that should not, and what that can show.


# With so many, a check with a limit of 5 % fails from 10 % on; with fewer it sees even less.
FEW_IMAGES = 100
# The limit of what an attack that works may miss, as a share of the images.
SLACK = 0.02


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : str
    count, n : int
        On how many of so many images it happened.
    limit : float
        The share may truly be so high.
    meaning : str
        What happened, and what a failure means.
    """

    name: str
    count: int
    n: int
    limit: float
    meaning: str

    @property
    def share(self) -> float:
        """Of the images."""
        return self.count / self.n

    @property
    def low(self) -> float:
        """The lower end of the share's 95 % interval (Wilson)."""
        return wilson_interval(self.count, self.n)[0]

    @property
    def fails_from(self) -> float:
        """The smallest share that fails with so many images: what the check can see."""
        lows = range(self.n + 1)
        first = bisect_right(lows, self.limit, key=lambda count: wilson_interval(count, self.n)[0])
        return first / self.n

    @property
    def passed(self) -> bool:
        """Whether the share may be within its limit."""
        return self.low <= self.limit


# --- Where the files of an evaluation lie.


def evaluation_beside(metrics: Path) -> Path:
    """The folder of an evaluation: `baseline-evaluation` for `baseline-metrics.json`."""
    stem = metrics.name.removesuffix(".json")
    return metrics.with_name(
        f"{stem.removesuffix('metrics')}evaluation" if stem.endswith("metrics") else stem
    )


def audit_beside(metrics: Path) -> Path:
    """The audit.json of what was measured, where `audit` leaves it."""
    return metrics.with_name("audit") / "audit.json"


# --- A measured accuracy, with all that it says nothing without.


@dataclass(frozen=True)
class Score:
    """What stood under one attack.

    Attributes
    ----------
    key : str
        How it is filed, such as `pgd-100x5`.
    name : str
        What people call it, such as `PGD-100 x 5`.
    standing : Tensor of shape (n,), dtype bool
        The images that stayed right.
    facts : dict
        Norm, eps, steps and whatever else decides it; plain values.
    """

    key: str
    name: str
    standing: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        """How many stayed right."""
        return int(self.standing.sum())

    @property
    def accuracy(self) -> float:
        """Their share."""
        return self.hits / len(self.standing)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %."""
        return wilson_interval(self.hits, len(self.standing))

    def row(self) -> dict[str, Any]:
        """All of it as plain values."""
        low, high = self.interval
        measured = {"n": len(self.standing), "accuracy": self.accuracy, "low": low, "high": high}
        return {"key": self.key, "name": self.name, **measured, **self.facts}

    def by_class(self, labels: torch.Tensor, number: int) -> dict[str, Any]:
        """The same of one class alone; accuracy is None where it has no images."""
        own = self.standing[labels == number]
        hits, n = int(own.sum()), len(own)
        low, high = wilson_interval(hits, n)
        return {"n": n, "accuracy": hits / n if n else None, "low": low, "high": high}


# --- Which gradient attacks an evaluation runs, by the names that people write.


_LOSSES = {"cross entropy": "PGD", "margin": "CW-PGD"}


@dataclass(frozen=True)
class GradientAttack:
    """One attack on the model's own gradient.

    Attributes
    ----------
    key : str
        How results are filed: letters, digits and `-`.
    loss : {"cross entropy", "margin"}
        What is maximised; margin is max_{k≠y} z_k - z_y (Carlini and Wagner 2017).
    steps, restarts : int
    single_step : bool
        FGSM: one step of the ball's radius from the image itself (Goodfellow et al. 2015). The
        others begin at random points and step by 2.5 · eps / steps.
    """

    key: str
    loss: Literal["cross entropy", "margin"] = "cross entropy"
    steps: int = 1
    restarts: int = 1
    single_step: bool = False

    @property
    def title(self) -> str:
        """What people call it, such as `CW-PGD-100 x 5`."""
        if self.single_step:
            return "FGSM"
        restarts = f" x {self.restarts}" if self.restarts > 1 else ""
        return f"{_LOSSES[self.loss]}-{self.steps}{restarts}"

    def step_size(self, eps: float) -> float:
        """Of each step, in the ball's norm: with it any start reaches the surface and turns."""
        return eps if self.single_step else 2.5 * eps / self.steps

    def facts(self, eps: float) -> dict[str, Any]:
        """Its settings as plain values."""
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "step_size": self.step_size(eps),
        }


def parse_attack(name: str) -> GradientAttack:
    """The attack that a name of `evaluate.attacks` means, such as `pgd-100x5`.

    Raises
    ------
    ValueError
        When it is no such name.
    """
    kind, steps, restarts = split_attack(name)
    if kind == "fgsm":
        return GradientAttack(name, single_step=True)
    return GradientAttack(name, "margin" if kind == "cw" else "cross entropy", steps, restarts)


# --- What makes the numbers of an evaluation worthless, as its warnings say it.


# The ends of these warnings: metrics.json holds warnings as people read them.
ATTACK_FAILS = "it is the attack that fails, and none of these numbers can be believed"
ON_TRAINING = "none of these numbers says how it does on images that it has not seen"


def worthless(warnings: Iterable[str]) -> str:
    """What makes the accuracies measure nothing, as one of the warnings says; or nothing."""
    ends = {ATTACK_FAILS: "the attack fails", ON_TRAINING: "it was measured on its training images"}
    found = (why for line in warnings for end, why in ends.items() if line.endswith(end))
    return next(found, "")


def on_training(n: int) -> str:
    """What to tell of an evaluation on the very images that the model was trained on."""
    return f"all {n:,} images are of the model's training data: {ON_TRAINING}"


def leaks(
    sample_hash: NDArray[np.uint64],
    labels: NDArray[np.int64],
    training: NDArray[np.uint64] | None,
) -> list[str]:
    """What to tell of test images that the model may know, or cannot be right on.

    Parameters
    ----------
    sample_hash : ndarray of shape (n,), dtype uint64
    labels : ndarray of shape (n,), dtype int64
    training : ndarray of shape (m,), dtype uint64, or None
        Hashes of the images that it was trained on, where they are at hand.
    """
    n, found = len(labels), []
    known = 0 if training is None else int(np.isin(sample_hash, training).sum())
    if known == n:
        found.append(on_training(n))
    elif known:
        found.append(f"{known:,} of {n:,} test images are of the model's training data, too")
    order = np.lexsort((labels, sample_hash))
    ordered, classes = sample_hash[order], labels[order]
    torn = ordered[1:][(ordered[1:] == ordered[:-1]) & (classes[1:] != classes[:-1])]
    if twice := int(np.isin(sample_hash, torn).sum()):
        found.append(f"{twice:,} of {n:,} test images are in two classes: one of them is wrong")
    return found


def unbroken(left: int, n: int) -> str | None:
    """What to tell of images that stand where every pixel may take any value.

    Parameters
    ----------
    left, n : int
        So many of so many images; one start of PGD may miss as many as the audit allows it.
    """
    if not left:
        return None
    seen = f"{left} of {n} images stand although every pixel may take any value"
    if Finding("", left, n, SLACK, "").passed:
        return f"{seen}: PGD from one start may miss {SLACK:.0%}, and finds no end of the curve"
    return f"{seen}: {ATTACK_FAILS}"


# --- Evaluations and audits as lines for people, with threat and number of images in each.


def result_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows of metrics.json.

    Parameters
    ----------
    metrics : mapping
        See `ltd_pipe.evaluation.robustness.metrics_of`.
    """
    if metrics["quick"]:
        yield "QUICK LOOK: few images and a weak attack. Not a result: leave --quick out for one."
    width = max(17, *(len(row["name"]) for row in metrics["attacks"]))
    for row in metrics["attacks"]:
        yield f"  {row['name']:<{width}}{_measured(row)}   {_conditions(row)}"
    clean, attacked = (metrics[f"expected_calibration_error{of}"] for of in ("", "_under_attack"))
    n = f"{metrics['n']:,} images"
    yield f"  calibration error {clean:.2%} clean, {attacked:.2%} under PGD's first start, {n}"
    if "corruption_accuracy" in metrics:
        low, high = metrics["intervals"]["corruption_accuracy"]
        part, sets = metrics["corruptions"]["n"], metrics["corruptions"]["sets"]
        row = {"accuracy": metrics["corruption_accuracy"], "low": low, "high": high}
        mean = "corruptions, mean"
        yield f"  {mean:<{width}}{_measured(row)}   no attack, {sets} sets of {part:,} images"
    if metrics.get("zero_accuracy_at_eps") is not None:
        threat = threat_text(metrics["norm"], metrics["zero_accuracy_at_eps"])
        yield f"  PGD-20 leaves nothing at {threat}, {metrics['eps_grid_images']:,} images"
    if "autoattack_accuracy" not in metrics:
        yield "  AutoAttack was left out: the PGD number alone is no claim of robustness."
    yield f"  not measured: {', '.join(metrics['not_measured'])}"
    for line in metrics["warnings"]:
        yield f"  WARNING: {line}"


def _measured(row: Mapping[str, Any]) -> str:
    interval = f"95 % interval {row['low']:.2%} to {row['high']:.2%}"
    return f"{row['accuracy']:>9.2%}   {interval}"


def _conditions(row: Mapping[str, Any]) -> str:
    images = f"{row['n']:,} images"
    if "norm" not in row:
        return f"no attack, {images}"
    package = f", {row['package']}" if "package" in row else ""
    known = row.get("source_clean_accuracy")
    source = "" if known is None else f", source {known:.2%} clean"
    return f"{threat_text(row['norm'], row['eps'])}, {images}{package}{source}"


def _found(row: Mapping[str, Any]) -> str:
    seen = f"{row['share']:7.2%} of images, lower end {row['low']:.2%}"
    return f"{seen}, limit {row['limit']:.0%}, fails from {row['fails_from']:.2%}"


def audit_lines(summary: Mapping[str, Any], model: str) -> Iterator[str]:
    """What a terminal shows of audit.json.

    Parameters
    ----------
    summary : mapping
    model : str
        As the user named it.
    """
    rows, norm = summary["findings"], summary["norm"]
    yield f"{model}: {summary['n']:,} test images, {threat_text(norm, summary['eps'])}"
    if "refused" in summary:
        yield f"No check could be made: {summary['refused']}"
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        verdict = "pass" if row["passed"] else "FAIL"
        yield f"  {verdict}  {row['name']:<{width}}  {_found(row)}"
        if not row["passed"]:
            yield f"        {row['meaning']}"
    yield (
        f"A check fails when the lower end of the 95 % interval is above its limit: with "
        f"{summary['n']:,} images from the last share of its line on."
    )
    for name, known in summary.get("source_clean_accuracy", {}).items():
        yield f"The source {name} has {known:.2%} of the clean images right."
    for line in summary.get("not_made", []):
        yield f"WARNING: {line}"
    if summary["n"] < FEW_IMAGES:
        yield f"WARNING: below {FEW_IMAGES} images, a check that passes says little."
    zero = summary["zero_accuracy_at_eps"]
    where = "no radius" if zero is None else threat_text(norm, zero)
    yield f"Robust accuracy by eps (PGD-20, {summary['n']:,} images) falls to 0 at {where}."
    failed = sum(not row["passed"] for row in rows)
    if failed:
        yield f"{failed} of {len(rows)} checks failed: do not believe its robust accuracy."
    else:
        yield f"All {len(rows)} checks passed: no sign of gradient masking."


# --- What is done of an evaluation, on disk: a file for each attack, a line for each batch.


class Ledger:
    """Records of batches, in the order in which they were computed.

    Parameters
    ----------
    folder : Path or None
        Named by all that decides the records, so that an equal one continues. None: nothing is
        kept.
    record : StateRecord, optional
        Kept beside them.
    """

    def __init__(self, folder: Path | None, record: StateRecord | None = None) -> None:
        self.folder, self._record = folder, record

    def read(self, name: str) -> list[dict[str, Any]]:
        """The whole records of one attack; a torn end is cut off, so that more can follow."""
        if self.folder is None or not self._file(name).exists():
            return []
        content = self._file(name).read_bytes()
        records, sound = [], 0
        for line in content.splitlines(keepends=True):
            record = _parsed(line)
            if record is None:
                break
            records.append(record)
            sound += len(line)
        if sound < len(content):
            with self._file(name).open("r+b") as handle:
                handle.truncate(sound)
        return records

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Keep one more record.

        Raises
        ------
        WriteError
            When the disk refuses.
        """
        if self.folder is None:
            return
        text = json.dumps(record, allow_nan=False).encode()
        with writing(self._file(name)):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._record is not None:
                self._record.write()
            with self._file(name).open("ab") as handle:
                handle.write(b"%08x %s\n" % (zlib.crc32(text), text))

    def _file(self, name: str) -> Path:
        assert self.folder is not None  # noqa: S101  both callers have looked
        return self.folder / f"{name}.jsonl"


def _parsed(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record
