"""The README.md of a model: what it is, what was measured of it, and what was not.

Written for people and for Hugging Face's front matter; no program of ours reads it. Equal files
give an equal card: no dates, paths or hosts.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltd_pipe.evaluation.results import Audit, eps_text, read_audit
from ltd_pipe.evaluation.statistics import BINS
from ltd_pipe.report import runs
from ltd_pipe.report.runs import Evaluation, Run, audit_of, read_checkpoint, read_evaluation
from ltd_pipe.report.verdict import unbelievable
from ltd_pipe.text import licence_metadata, one_line, render_markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_TAGS = ("adversarial-robustness", "adversarial-training")


@dataclass(frozen=True)
class CardFacts:
    """All that a card shows: what the checkpoint says, and what else was given."""

    name: str
    file_name: str
    run: Run
    evaluation: Evaluation | None = None
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
    """Read what there is to say about a checkpoint of `save_classifier`.

    A number of another model on a card is worse than none: an evaluation of another checkpoint is
    refused.

    `evaluation` is the folder of the settings.json of `metrics`, by default beside it, and `audit`
    the audit.json beside it, where it is of this checkpoint. A MissingError when a file that was
    named is not there; CheckpointError or ResultError when one is damaged or of another checkpoint.
    """
    run, measured = read_checkpoint(checkpoint, "checkpoint"), None
    checks = read_audit(audit, run.sha256) if audit else None
    if metrics is not None:
        measured = read_evaluation(metrics, evaluation)
        run.require_own(measured, metrics)
        checks = checks or audit_of(measured, metrics)
    return CardFacts(
        name=name or run.described,
        file_name=checkpoint.name,
        run=run,
        evaluation=measured,
        audit=checks,
        licence=licence,
    )


def format_card(facts: CardFacts) -> str:
    """The text of a model's card."""
    proof = f"{facts.run.sha256}  {facts.file_name}"
    return render_markdown(
        Path(__file__).with_name("card.md.j2"),
        facts=facts,
        front_matter=_front_matter(facts),
        unbelievable=facts.evaluation and unbelievable(facts.evaluation, facts.audit),
        proof=f"echo {shlex.quote(proof)} | sha256sum -c",
        bins=BINS,
        words=runs,
        eps_text=eps_text,
        numbers=lambda values: ", ".join(map(runs.number_text, values)),
        plain=_plain,
        versions=lambda software: ", ".join(f"{k} {v}" for k, v in sorted(software.items())),
        pairs=lambda found: ", ".join(f"{k}: {_plain(v)}" for k, v in sorted(found.items())),
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    run, evaluation = facts.run.facts, facts.evaluation
    # Without adversarial training the tags would promise what nobody claims.
    tags = [*(_TAGS if run.threat_model else ()), "ltd-pipe"]
    if run.labels or run.teacher:
        tags += ["knowledge-distillation", "soft-labels"]
    metadata = licence_metadata(facts.licence)
    metadata |= {"library_name": "ltd-pipe", "pipeline_tag": "image-classification", "tags": tags}
    # What programs read has no place for a warning: neither a quick look is in it nor what cannot
    # be believed.
    doubtful = evaluation and (evaluation.metrics.quick or unbelievable(evaluation, facts.audit))
    if evaluation is not None and not doubtful:
        dataset = evaluation.settings.dataset or (run.data.dataset if run.data else "unknown")
        results = list(_eval_results(evaluation, dataset))
        metadata |= {"model_name": one_line(facts.name), "eval_results": results}
    return ModelCardData(**metadata).to_yaml()


def _eval_results(evaluation: Evaluation, dataset: str) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    metrics = evaluation.metrics
    threat = f"{metrics.norm}, eps {eps_text(metrics.eps)}"
    names = {"clean": "clean accuracy", "corruption": "mean corruption accuracy"}
    for key, score in evaluation.scores.items():
        yield EvalResult(
            task_type="image-classification",
            dataset_type=one_line(dataset),
            dataset_name=f"{one_line(dataset)}, {metrics.n} test images",
            metric_type="accuracy",
            metric_name=names.get(key, f"robust accuracy, {key}, {threat}"),
            metric_value=round(score.value, 6),
        )
