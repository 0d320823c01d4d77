"""Provenance: what made the numbers, in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.wording import (
    duration_text,
    eps_text,
    norm_text,
    number_text,
    percent_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.report.audit import Audit
    from pipeline.report.facts import Facts
    from pipeline.report.runs import Run
    from pipeline.report.scores import AttackSettings, Scores

__all__ = [
    "Parameter",
    "Source",
    "parameter_rows",
    "parameter_table",
    "sources",
    "version_table",
]

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Source:
    """One thing that a number depends on.

    Attributes
    ----------
    title : str
    entries : tuple of (term, value)
    """

    title: str
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of several models.

    Attributes
    ----------
    name : str
    values : tuple of str
        One per model; empty where it has none such.
    differs : bool
        Models that should have been made alike differ in it.
    """

    name: str
    values: tuple[str, ...]
    differs: bool


def sources(facts: Facts) -> tuple[Source, ...]:
    """Data, teacher, labels, student, baseline and evaluation, as far as they are there."""
    found = [_data(facts), _labels(facts)]
    found += [_model(run) for run in (facts.teacher, facts.student, facts.baseline) if run]
    found.append(_evaluation("Evaluation of the student", facts.scores))
    if facts.baseline_scores is not None:
        found.append(_evaluation("Evaluation of the baseline", facts.baseline_scores))
    if facts.audit is not None:
        found.append(_audit(facts.audit))
    return tuple(source for source in found if source.entries)


def _data(facts: Facts) -> Source:
    names = facts.student.facts.class_names
    shape = "×".join(str(side) for side in facts.student.facts.shape)
    used = facts.student.facts.data
    entries = [("data set", used.dataset if used else _UNKNOWN)]
    entries.append(("fingerprint of the training images", used.fingerprint if used else _UNKNOWN))
    manifest = facts.manifest
    if manifest is not None:
        entries.append(("training images", f"{manifest.num_samples:,}"))
        held_out = percent_text(manifest.validation_fraction, 1)
        entries.append(("held out for validation", f"about {held_out}, chosen by their hashes"))
    entries.append(("image", f"{shape} (channels, height, width)"))
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    entries.append((f"{len(names)} classes", shown))
    test = facts.scores.settings.data_fingerprint
    entries.append(("fingerprint of the test images", test or _UNKNOWN))
    return Source("Data", tuple(entries))


def _labels(facts: Facts) -> Source:
    if facts.labels is None:
        return Source("Soft labels", ())
    attributes = facts.labels.attributes
    entries = [
        ("identity of the store", facts.labels.identity),
        ("temperature", number_text(attributes.temperature)),
        ("labels", f"{attributes.num_samples:,} × {attributes.num_classes} classes"),
        ("data set", f"{attributes.dataset.name}, {attributes.dataset.split}"),
    ]
    entries += [(f"teacher {one.architecture}", one.sha256) for one in attributes.teachers]
    return Source("Soft labels", tuple(entries))


def _model(run: Run) -> Source:
    facts = run.facts
    entries = [
        ("architecture", facts.architecture),
        ("SHA-256 of model.safetensors", run.sha256),
        ("seed", _UNKNOWN if facts.seed is None else str(facts.seed)),
        ("temperature of the model", number_text(facts.temperature)),
    ]
    if facts.params.get("label_kind") is not None:
        entries.append(("labels", run.label_name))
    if facts.labels is not None:
        entries.append(("store it was trained on", facts.labels.identity))
    if facts.epoch is not None:
        # Checkpoints count epochs from zero, people from one.
        entries.append(("epoch of the checkpoint", _chosen(run)))
    collapse = facts.catastrophic_overfitting
    if collapse is not None:
        what = f"at epoch {collapse.epoch + 1}: PGD left {collapse.robust_accuracy:.1%} right"
        entries.append(("catastrophic overfitting", what))
    if run.timing is not None:
        entries.append(("time of training", duration_text(run.timing.seconds)))
        entries.append(("training speed", f"{run.timing.images_per_second:,.0f} images/s"))
    entries.append(("hardware", _hardware(facts.hardware)))
    return Source(run.name.capitalize(), tuple(entries))


def _chosen(run: Run) -> str:
    epochs = run.facts.params.get("epochs")
    number = (run.facts.epoch or 0) + 1
    return f"{number} of {epochs}" if epochs else str(number)


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [
        f"{hardware['gpus']} × {hardware['gpu']}"
        if "gpu" in hardware and "gpus" in hardware
        else "",
        str(hardware.get("cpu", "")),
        f"{hardware['threads']} threads" if "threads" in hardware else "",
    ]
    return ", ".join(part for part in parts if part) or _UNKNOWN


def _evaluation(title: str, scores: Scores) -> Source:
    settings, metrics = scores.settings, scores.metrics
    radius = f"{eps_text(metrics.eps)}, {norm_text(metrics.norm)}"
    entries = [("test images", f"{metrics.n:,}"), ("ε", radius)]
    for attack in settings.attacks:
        step = "" if attack.step_size is None else f", step {eps_text(attack.step_size)}"
        entries.append((attack.name, f"{_steps(attack)}{step}"))
    if settings.autoattack_version is not None:
        entries.append(("AutoAttack", settings.autoattack_version))
    if settings.seed is not None:
        entries.append(("seed", str(settings.seed)))
    if settings.hardware:
        entries.append(("hardware", _hardware(settings.hardware)))
    return Source(title, tuple(entries))


def _audit(audit: Audit) -> Source:
    radius = f"{eps_text(audit.eps)}, {norm_text(audit.norm)}"
    known = {
        "PGD": None if audit.steps is None else f"{audit.steps} steps",
        "PGD's restarts": audit.restarts,
        "queries of Square": None if audit.square_queries is None else f"{audit.square_queries:,}",
        "transfer from": ", ".join(audit.sources) or None,
        "seed": audit.seed,
    }
    entries = [(term, str(value)) for term, value in known.items() if value is not None]
    head = [("test images", f"{audit.n:,}"), ("ε", radius)]
    return Source("Audit of the student", (*head, *entries))


def _steps(attack: AttackSettings) -> str:
    counts = {"step": attack.steps, "restart": attack.restarts}
    return ", ".join(
        f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count
    )


def parameter_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """Names of the models, and every parameter that they were trained with."""
    runs = [run for run in (facts.student, facts.baseline, facts.teacher) if run is not None]
    runs = [run for run in runs if run.facts.params]
    # The teacher is trained otherwise: only student and baseline are to be alike.
    alike = [run is not facts.teacher for run in runs]
    rows = parameter_rows([run.facts.params for run in runs], alike)
    return tuple(run.name for run in runs), rows


def parameter_rows(
    params: Sequence[Mapping[str, Any]], alike: Sequence[bool]
) -> tuple[Parameter, ...]:
    """A row for each parameter of some runs.

    Parameters
    ----------
    params : sequence of mapping
        By name, of each run.
    alike : sequence of bool
        Which runs should have been made alike.
    """
    rows = []
    for name in sorted({name for one in params for name in one}):
        values = tuple(_value(one, name) for one in params)
        same = {value for value, wanted in zip(values, alike, strict=True) if wanted}
        rows.append(Parameter(name, values, differs=len(same) > 1))
    return tuple(rows)


def _value(params: Mapping[str, Any], name: str) -> str:
    if name not in params:
        return ""
    value = params[name]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("eps", "step_size") and isinstance(value, float):
        return eps_text(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return number_text(value) if isinstance(value, float) else str(value)


def version_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """What wrote each result, and the versions of the software it ran with."""
    used: dict[str, Mapping[str, str]] = {}
    if facts.teacher is not None:
        used["teacher"] = facts.teacher.facts.software
    if facts.labels is not None:
        used["labels"] = facts.labels.attributes.software
    used["student"] = facts.student.facts.software
    if facts.baseline is not None:
        used["baseline"] = facts.baseline.facts.software
    used["evaluation"] = facts.scores.settings.software
    used = {name: software for name, software in used.items() if software}
    packages = dict.fromkeys(name for software in used.values() for name in software)
    rows = []
    for package in packages:
        versions = tuple(software.get(package, "") for software in used.values())
        rows.append(Parameter(package, versions, differs=len(set(versions) - {""}) > 1))
    return _merged(tuple(used), tuple(rows))


def _merged(
    names: tuple[str, ...], rows: tuple[Parameter, ...]
) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """One column where all are equal, as they are when one machine ran everything."""
    columns = list(zip(*(row.values for row in rows), strict=True))
    if len(set(columns)) != 1 or len(columns) < 2:
        return names, rows
    return (", ".join(names),), tuple(
        Parameter(row.name, row.values[:1], differs=False) for row in rows
    )
