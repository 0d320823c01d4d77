"""The README.md of a model: what it is, what was measured of it, and what was not.

Written for people and for Hugging Face's front matter; no program of ours reads it. Equal files
give an equal card: no dates, paths or hosts. Names come from data and people: none of them acts
as Markdown, HTML or YAML.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import Audit, eps_text, parse_result, read_audit
from ltd_pipe.models.facts import read_facts
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.runs import (
    CORRUPTION,
    Measured,
    RunFacts,
    interval_text,
    number_text,
    percent_text,
    read_measured,
)
from ltd_pipe.report.verdict import unbelievable
from ltd_pipe.text import code, fenced, licence_lines, table, yaml_scalar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ltd_pipe.evaluation.results import Score
    from ltd_pipe.report.runs import CollapseFacts


# --- What a model's card says, read from the files of the stages and held against each other.
#
# A number of another model on a card is worse than none: the files say which checkpoint they
# are of, and one that does not, or says another, is refused.


_EVALUATE = "ltd-pipe evaluate"


@dataclass(frozen=True)
class CardFacts:
    """All that a card shows; what is None was not given.

    Attributes
    ----------
    name : str
        The model's.
    file_name : str
        The checkpoint's, without its folder.
    sha256 : str
        Of the checkpoint's bytes.
    run : RunFacts
    mean, std : tuple of float
    threat_model : dict or None
        `norm` and `eps` that it was trained in.
    measured : Measured or None
    audit : Audit or None
    licence : str or None
    """

    name: str
    file_name: str
    sha256: str
    run: RunFacts
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat_model: dict[str, Any] | None
    measured: Measured | None = None
    audit: Audit | None = None
    licence: str | None = None


def gather_card(
    checkpoint: Path,
    *,
    metrics: Path | None = None,
    evaluation: Path | None = None,
    audit: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> CardFacts:
    """Read what there is to say about a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.
    metrics, evaluation : Path, optional
        metrics.json and the folder of its settings.json; both or none.
    audit : Path, optional
        audit.json, as `ltd-pipe audit` leaves it.
    name : str, optional
        The model's; by default made of architecture and data set.
    licence : str, optional

    Raises
    ------
    MissingError
        When a file that was named is not there.
    CheckpointError, ResultError
        When one is damaged, or of another checkpoint.
    """
    header = read_facts(checkpoint)
    run = parse_result(header, RunFacts, checkpoint, "ltd-pipe train")
    sha256 = sha256_file(checkpoint)
    return CardFacts(
        name=name or _name(run),
        file_name=checkpoint.name,
        sha256=sha256,
        run=run,
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        threat_model=run.threat_model,
        measured=_measured(metrics, evaluation, sha256, run) if metrics and evaluation else None,
        audit=read_audit(audit, sha256) if audit else None,
        licence=licence,
    )


def _name(run: RunFacts) -> str:
    return f"{run.architecture} on {run.data.dataset}" if run.data else run.architecture


def _measured(metrics: Path, evaluation: Path, sha256: str, run: RunFacts) -> Measured:
    found = read_measured(metrics, evaluation)
    _require_same(metrics, found.checkpoint_sha256, sha256, _EVALUATE)
    return replace(found, warnings=run.with_leak(found.warnings, found.settings, found.n))


def _require_same(path: Path, found: str | None, sha256: str, command: str) -> None:
    if found != sha256:
        raise ResultError(
            path,
            "is not of this checkpoint: its SHA-256",
            expected=sha256[:12],
            found=(found or "none")[:12],
            remedy=f"Run '{command}' on it.",
        )


# --- The README.md of a model: what it is, what was measured of it, and what was not.


_NORMS = {"linf": "L∞", "l2": "L2"}
_NO_ATTACK = {"clean": "clean", CORRUPTION: "mean corruption"}
_MOST_CLASSES = 100
_TAGS = ("adversarial-robustness", "adversarial-training", "ltd-pipe")


def format_card(facts: CardFacts) -> str:
    """The text of a model's card.

    Parameters
    ----------
    facts : CardFacts
    """
    sections = [
        _front_matter(facts),
        f"# {code(facts.name)}",
        _introduction(facts),
        table(["", ""], _identity(facts)),
        "## Threat model",
        _threat_model(facts),
        "## What was measured",
        *_measured_section(facts),
        "## Gradient masking",
        *_audit(facts),
        "## Data and labels",
        table(["", ""], _data(facts)),
        "## Training",
        *_training(facts),
        "## Use and limits",
        _use(facts),
        "## Loading it",
        *_loading(facts),
        "## Not measured",
        "\n".join(f"- {line}" for line in _not_measured(facts)),
    ]
    return "\n\n".join(sections) + "\n"


# ---------------------------------------------------------------- front matter


def _front_matter(facts: CardFacts) -> str:
    lines = [] if facts.licence is None else licence_lines(facts.licence)
    lines += ["library_name: ltd-pipe", "pipeline_tag: image-classification", "tags:"]
    taught = facts.run.labels or facts.run.teacher
    soft = ("knowledge-distillation", "soft-labels") if taught else ()
    # Without adversarial training the tags would promise what nobody claims.
    robust = _TAGS if facts.threat_model else _TAGS[-1:]
    lines += [f"- {tag}" for tag in (*robust, *soft)]
    # What programs read has no place for a warning: a quick look is not in it.
    if facts.measured is not None and not facts.measured.quick:
        lines += _model_index(facts, facts.measured)
    return "\n".join(["---", *lines, "---"])


def _model_index(facts: CardFacts, measured: Measured) -> Iterator[str]:
    dataset = facts.run.data.dataset if facts.run.data else "unknown"
    yield "model-index:"
    yield f"- name: {yaml_scalar(facts.name)}"
    yield "  results:"
    yield "  - task:"
    yield "      type: image-classification"
    yield "    dataset:"
    yield f"      name: {yaml_scalar(f'{dataset}, {measured.n} test images')}"
    yield f"      type: {yaml_scalar(dataset)}"
    yield "    metrics:"
    for key, score in measured.scores.items():
        yield "    - type: accuracy"
        yield f"      name: {yaml_scalar(_plain_name(key, measured))}"
        yield f"      value: {score.value:.6g}"


def _plain_name(key: str, measured: Measured) -> str:
    if key in _NO_ATTACK:
        return f"{_NO_ATTACK[key]} accuracy"
    return f"robust accuracy, {key}, {measured.norm}, eps {eps_text(measured.eps)}"


# ---------------------------------------------------------------- what it is


def _introduction(facts: CardFacts) -> str:
    classes = f"An image classifier of {len(facts.run.class_names):,} classes"
    if facts.threat_model is None:
        return f"{classes}, trained on clean images: **no robustness is claimed**."
    return (
        f"{classes}, trained adversarially on {_label_words(facts.run)} to resist any change of an"
        f" image within {_ball(facts.threat_model)}."
    )


def _label_words(run: RunFacts) -> str:
    words = {
        "ltd": "soft labels of a teacher",
        "live": "soft labels of a teacher in the run",
        "adr": "labels softened by its own moving average",
        "smooth": "smoothed labels",
    }
    return words.get(str(run.params.get("label_kind")), "one-hot labels")


def _ball(threat: dict[str, Any]) -> str:
    norm = _NORMS.get(threat["norm"]) or code(threat["norm"])
    return f"{norm} distance {eps_text(threat['eps'])}"


def _identity(facts: CardFacts) -> Iterator[tuple[str, str]]:
    run, names = facts.run, facts.run.class_names
    yield "architecture", code(run.architecture)
    yield "input", f"float32, (batch, {', '.join(map(str, run.shape))}), pixels in [0, 1]"
    yield "output", f"logits of {len(names):,} classes"
    yield "temperature, part of the model", number_text(run.temperature)
    yield (
        "normalisation, part of the model",
        f"mean {_values(facts.mean)}, std {_values(facts.std)}",
    )
    yield "SHA-256 of the checkpoint", code(facts.sha256)
    shown = ", ".join(code(name) for name in names[:_MOST_CLASSES])
    more = f" and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    yield "classes", shown + more


def _values(values: tuple[float, ...]) -> str:
    return ", ".join(map(number_text, values))


def _threat_model(facts: CardFacts) -> str:
    if facts.threat_model is None:
        return (
            "None. Expect any attacker to succeed. What is measured below tells how the model"
            " does, not what it was made for."
        )
    return (
        f"An attacker who knows the model, temperature and normalisation included, moves each"
        f" image within {_ball(facts.threat_model)}, pixels staying in [0, 1], to have it"
        " classified as anything but what it is. Nothing is claimed of larger changes, of other"
        " norms, or of changes that no norm bounds: rotations, patches, fog, printed pictures."
    )


# ---------------------------------------------------------------- what was measured


def _measured_section(facts: CardFacts) -> Iterator[str]:
    found = facts.measured
    if found is None:
        yield "**Nothing.** No evaluation was given to this card."
        return
    norm = _NORMS.get(found.norm) or code(found.norm)
    yield (
        f"On {found.n:,} test images; attacks within {norm} distance {eps_text(found.eps)}."
        + _other_radius(facts, found)
        + (" **A quick first look, no result.**" if found.quick else "")
    )
    head = ["accuracy", "share", "95 % interval", "of"]
    # PGD of the list may be the main one over again, in evaluations of before.
    rows = {_shown_name(key, found): _row(key, score, found) for key, score in found.scores.items()}
    yield table(head, rows.values())
    yield (
        "Intervals are Wilson's: they cover the choice of test images, not that of the seed."
        + _calibration(found)
    )
    yield table(["", ""], _how(found))
    if why := unbelievable(found.warnings, facts.audit):
        yield f"**The robust accuracy cannot be believed: {why}.**"
    for line in found.warning_lines("it"):
        who, _, what = line.partition(" warns of it: ")
        yield f"**{who} warns:** {code(what, limit=1000)}"


def _row(key: str, score: Score, found: Measured) -> list[str]:
    bounds = interval_text(score.low, score.high, score.n)
    return [_shown_name(key, found), percent_text(score.value, score.n), bounds, f"{score.n:,}"]


def _shown_name(key: str, found: Measured) -> str:
    if key in _NO_ATTACK:
        return _NO_ATTACK[key]
    if key in found.names:
        return code(found.names[key])
    # Evaluations of before give no names.
    attacks = {attack.name.lower(): attack for attack in found.settings.attacks}
    if key == "autoattack":
        return f"AutoAttack {code(found.settings.autoattack_version or 'of unknown version')}"
    if key == "pgd" and (pgd := attacks.get("pgd")) and pgd.steps:
        return f"PGD, {pgd.steps} steps, {pgd.restarts or 1} restarts"
    return code(key)


def _other_radius(facts: CardFacts, found: Measured) -> str:
    trained = facts.threat_model
    if trained is None or (trained["norm"], trained["eps"]) == (found.norm, found.eps):
        return ""
    return f" **It was trained for another threat model: {_ball(trained)}.**"


def _calibration(found: Measured) -> str:
    if found.calibration_error is None:
        return ""
    error = percent_text(found.calibration_error, found.n)
    return f" Expected calibration error on clean images, 15 bins: {error}."


def _how(found: Measured) -> Iterator[tuple[str, str]]:
    settings = found.settings
    for attack, share in found.after.items():
        yield f"left after AutoAttack's {code(attack)}", percent_text(share, found.n)
    if version := settings.software.get("pyautoattack"):
        yield "AutoAttack, by its authors' package", code(f"pyautoattack {version}")
    yield "fingerprint of the test images", code(settings.data_fingerprint or "not recorded")
    yield "seed of the attacks", "not recorded" if settings.seed is None else str(settings.seed)
    if settings.software:
        yield "software", code(_versions(settings.software), limit=1000)
    if settings.hardware:
        yield "hardware", code(_pairs(settings.hardware), limit=1000)


def _audit(facts: CardFacts) -> Iterator[str]:
    found = facts.audit
    if found is None:
        yield "**Not audited.** No report of `ltd-pipe audit` was given to this card."
        return
    norm = _NORMS.get(found.norm) or code(found.norm)
    if found.refused is not None:
        yield f"**Could not be audited.** {code(found.refused)}"
        return
    failed = sum(not finding.passed for finding in found.findings)
    verdict = (
        f"**{failed} of {len(found.findings)} checks failed: do not believe the robust accuracy.**"
        if failed
        else f"All {len(found.findings)} checks passed: no sign of gradient masking."
    )
    yield f"{verdict} On {found.n:,} images, within {norm} distance {eps_text(found.eps)}."
    rows = (
        [
            code(finding.name),
            "pass" if finding.passed else "**FAIL**",
            f"{finding.count:,} of {finding.n:,}",
            percent_text(finding.limit, 1),
        ]
        for finding in found.findings
    )
    yield table(["check", "verdict", "images", "limit"], rows)


# ---------------------------------------------------------------- what it was made from


def _data(facts: CardFacts) -> Iterator[tuple[str, str]]:
    run = facts.run
    unknown = "not recorded"
    yield "data set", code(run.data.dataset) if run.data else unknown
    yield "fingerprint of the training images", code(run.data.fingerprint) if run.data else unknown
    kind = run.params.get("label_kind")
    yield "labels", f"{_label_words(run)} ({code(str(kind))})" if kind else "ground truth"
    if run.labels is not None:
        yield "identity of the soft-label store", code(run.labels.identity)
        yield "temperature of the soft labels", number_text(run.labels.temperature)
        if run.labels.mean_top_probability is not None:
            yield "their mean top probability", number_text(run.labels.mean_top_probability)
    if run.teacher is not None:
        yield "SHA-256 of the teacher asked in the run", code(run.teacher.sha256)


def _training(facts: CardFacts) -> Iterator[str]:
    run = facts.run
    rows = [(code(name), code(_plain(value))) for name, value in sorted(run.params.items())]
    rows.append(("seed", "not recorded" if run.seed is None else str(run.seed)))
    if run.epoch is not None:
        # Checkpoints count epochs from zero, people from one.
        rows.append(("epoch of the checkpoint", str(run.epoch + 1)))
    for name, value in run.validation.items():
        rows.append((f"{code(name)} on the validation split", number_text(value)))
    if run.software:
        rows.append(("software", code(_versions(run.software), limit=1000)))
    if run.hardware:
        rows.append(("hardware", code(_pairs(run.hardware), limit=1000)))
    yield table(["parameter", "value"], rows)
    if run.catastrophic_overfitting is not None:
        yield _collapse(run.catastrophic_overfitting, run.epoch)


def _collapse(found: CollapseFacts, epoch: int | None) -> str:
    when = "not recorded to be from before it"
    if epoch is not None:
        when = "from before it" if epoch < found.epoch else "not from before it"
    return (
        f"**Training collapsed at epoch {found.epoch + 1} (catastrophic overfitting): PGD left"
        f" {found.robust_accuracy:.1%} right, the training attack {found.attack_accuracy:.1%}."
        f" This checkpoint is {when}.**"
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(software.items()))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {_plain(value)}" for name, value in sorted(values.items()))


# ---------------------------------------------------------------- what to do with it


def _use(facts: CardFacts) -> str:
    height, width = facts.run.shape[1:]
    meant = "robustness" if facts.threat_model else "soft labels, as a teacher,"
    return (
        f"Made for research on {meant} with images like its training data, of {height}×{width}"
        " pixels. It answers every image with one of its classes, also one that shows none of"
        " them. A robust accuracy is what the attacks tried so far have left: an upper bound on"
        " what a determined attacker leaves. Do not let safety rest on it alone."
    )


def _loading(facts: CardFacts) -> Iterator[str]:
    yield "The file is safetensors and holds no code. Prove it, then load it with ltd-pipe:"
    line = f"{facts.sha256}  {facts.file_name}"
    yield fenced(f"echo {shlex.quote(line)} | sha256sum -c", "sh")
    shape = ", ".join(map(str, facts.run.shape))
    lines = [
        "from pathlib import Path",
        "",
        "from ltd_pipe.models.checkpoint import load_classifier",
        "",
        f"model = load_classifier(Path({facts.file_name!r}))",
        f"logits = model(images)  # float32 of shape (batch, {shape}), in [0, 1]",
    ]
    yield fenced("\n".join(lines), "python")
    yield (
        "`ltd-pipe export` writes it for RobustBench, timm, ONNX and TorchScript, where nothing of"
        " ltd-pipe is needed."
    )


def _not_measured(facts: CardFacts) -> Iterator[str]:
    found = facts.measured
    if found is None:
        yield "Clean and robust accuracy."
    elif "autoattack" not in found.scores:
        yield "AutoAttack. Without it a robust accuracy is a first look, no claim."
    if found is not None:
        told = ("corrupted images", "AutoAttack")
        yield from (code(what) for what in found.not_measured if what not in told)
    if facts.audit is None:
        yield "Gradient masking."
    yield "Other training seeds: all numbers are of this one checkpoint."
    yield "Attacks made for this very model, and any attack beyond those named above."
    yield "Other norms and radii than those named above; patches, rotations, physical attacks."
    if found is None or CORRUPTION not in found.scores:
        yield "Common corruptions."
    yield "Images of another origin than the test images."
    yield "Differences between classes or groups of people in what is depicted."
