"""Stage 5: the student against what it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.measured import checkpoint_argument, open_test_images, test_data_option
from stages.outputs import refuse_existing
from stages.parameters import params_options
from stages.progress import bar, ticker

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.robustness import Evaluation
    from pipeline.evaluation.selection import TestImages
    from pipeline.images.beton import Beton
    from pipeline.models.classifier import Classifier
    from pipeline.params import Params

__all__ = ["evaluate"]


@click.command()
@checkpoint_argument
@params_options("evaluate")
@test_data_option
@click.option(
    "--metrics",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("data/metrics.json"),
    show_default=True,
    help="Where the numbers go.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/evaluation"),
    show_default=True,
    help="Folder of by_eps.json, examples.npz and settings.json.",
)
@click.option("--force", is_flag=True, help="Replace existing results.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json to stdout.")
def evaluate(
    checkpoint: Path,
    params: Params,
    data: Path,
    metrics: Path,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Measure clean and robust accuracy: PGD with restarts, and AutoAttack.

    \b
    Example:
      ltd-pipe evaluate student/model.safetensors --images 1000 --eps 8/255
    """
    from pipeline.device import choose_device, deterministic
    from pipeline.evaluation.robustness import examples
    from pipeline.models.checkpoint import load_classifier
    from pipeline.publish import exclusive

    refuse_existing(metrics, force=force)
    device = choose_device(params.device)
    model = load_classifier(checkpoint).to(device)
    with exclusive(metrics), deterministic():
        beton, test = open_test_images(data, [model], params, device)
        facts = _settings(params, checkpoint, beton)
        result = _measure(model, test, params, _state_of(metrics, facts, device))
        pictures = examples(
            model, test, params.evaluate, count=params.report.examples, seed=params.seed
        )
        _write(result, pictures, facts, metrics, out)
    _show(result, checkpoint, as_json=as_json)


def _settings(params: Params, checkpoint: Path, beton: Beton) -> dict[str, Any]:
    from pipeline import provenance

    section = params.evaluate
    return {
        "attacks": [
            {
                "name": "PGD",
                "loss": "cross entropy",
                "steps": section.pgd_steps,
                "restarts": section.pgd_restarts,
                "step_size": 2.5 * section.eps / section.pgd_steps,
            }
        ],
        "autoattack_version": section.autoattack,
        "eps": section.eps,
        "images": section.images or beton.manifest.num_samples,
        "batch_size": section.batch_size,
        "seed": params.seed,
        "checkpoint_sha256": provenance.sha256_file(checkpoint),
        "data_fingerprint": beton.manifest.fingerprint,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
    }


def _state_of(metrics: Path, settings: dict[str, Any], device: torch.device) -> Path:
    from pipeline import provenance

    key = provenance.digest(settings | {"code": provenance.code_digest(), "device": str(device)})
    return metrics.parent / "state" / f"evaluate-{key[:16]}"


def _measure(model: Classifier, test: TestImages, params: Params, state: Path) -> Evaluation:
    from pipeline.evaluation.robustness import evaluate as measure
    from pipeline.publish import remove_state

    with bar() as progress:
        result = measure(
            model,
            test,
            params.evaluate,
            seed=params.seed,
            state=state,
            tick=ticker(progress),
        )
    remove_state(state)
    return result


def _write(
    result: Evaluation,
    pictures: dict[str, Any],
    settings: dict[str, Any],
    metrics: Path,
    out: Path,
) -> None:
    import numpy as np

    from pipeline.publish import staged, write_json

    write_json(out / "settings.json", settings | {"flags": result.flags})
    write_json(out / "by_eps.json", result.by_eps)
    with staged(out / "examples.npz") as beside, beside.open("wb") as handle:
        np.savez(handle, **pictures)
    # The last to appear: its presence tells that all is there.
    write_json(metrics, result.metrics)


def _show(result: Evaluation, checkpoint: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result.metrics, indent=2))
        return
    metrics = result.metrics
    click.echo(f"{checkpoint}: {metrics['n']:,} test images, eps {metrics['eps']:.4g}")
    for name, (low, high) in metrics["intervals"].items():
        label = name.replace("_", " ").replace("pgd", "PGD").replace("autoattack", "AutoAttack")
        click.echo(f"  {label:<22}{metrics[name]:>8.2%}   95 % interval {low:.2%} to {high:.2%}")
    if "autoattack_accuracy" not in metrics:
        click.echo("  AutoAttack was left out: the PGD number alone is no claim of robustness.")
    for flag in result.flags:
        click.echo(f"  AutoAttack warns: {flag}")
