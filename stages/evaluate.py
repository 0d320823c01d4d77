"""Stage 5: the student against what it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.measured import (
    checkpoint_argument,
    choose_images,
    open_test_data,
    test_data_option,
)
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
@click.option("--quick", is_flag=True, help="A first look: 200 images, PGD-10. Marked as such.")
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
    help="Folder of by_eps.json, per_class.json, per_sample.npz, examples.npz, settings.json.",
)
@click.option("--force", is_flag=True, help="Replace existing results.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json to stdout.")
def evaluate(
    checkpoint: Path,
    params: Params,
    data: Path,
    quick: bool,
    metrics: Path,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Measure clean and robust accuracy: FGSM, PGD, CW-PGD and AutoAttack, and by eps.

    \b
    Examples:
      ltd-pipe evaluate student/model.safetensors --quick
      ltd-pipe evaluate student/model.safetensors --images 1000 --eps 8/255
      ltd-pipe evaluate student/model.safetensors --norm l2 --eps 0.5 --metrics l2.json --out l2
    """
    from pipeline.device import choose_device, deterministic
    from pipeline.evaluation.robustness import examples
    from pipeline.evaluation.summary import metrics_of
    from pipeline.models.checkpoint import load_classifier
    from pipeline.publish import exclusive, remove_state, write_json

    refuse_existing(metrics, force=force)
    device = choose_device(params.device)
    model = load_classifier(checkpoint).to(device)
    with exclusive(metrics), deterministic():
        beton = open_test_data(data, [model])
        if quick:
            section = params.evaluate.quick(beton.manifest.num_samples)
            params = params.model_copy(update={"evaluate": section})
        test = choose_images(beton, params, device)
        facts = _settings(params, checkpoint, beton)
        state = _state_of(metrics, params, facts, device)
        result = _measure(model, test, params, state)
        pictures = examples(
            model, test, params.evaluate, count=params.report.examples, seed=params.seed
        )
        numbers = metrics_of(result, params.evaluate, quick=quick)
        _write(result, model, pictures, facts, out)
        # The last to appear: its presence tells that all is there.
        write_json(metrics, numbers)
        remove_state(state)
    _show(numbers, checkpoint, as_json=as_json)


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
        "norm": section.norm,
        "eps": section.eps,
        "images": section.images or beton.manifest.num_samples,
        "batch_size": section.batch_size,
        "seed": params.seed,
        "checkpoint_sha256": provenance.sha256_file(checkpoint),
        "data_fingerprint": beton.manifest.fingerprint,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
    }


def _state_of(
    metrics: Path, params: Params, settings: dict[str, Any], device: torch.device
) -> Path:
    from pipeline import provenance

    decided = {"params": params.evaluate.model_dump(), "code": provenance.code_digest()}
    key = provenance.digest(settings | decided | {"device": str(device)})
    return metrics.parent / "state" / f"evaluate-{key[:16]}"


def _measure(model: Classifier, test: TestImages, params: Params, state: Path) -> Evaluation:
    from pipeline.evaluation.robustness import evaluate as measure

    with bar() as progress:
        return measure(
            model,
            test,
            params.evaluate,
            seed=params.seed,
            state=state,
            tick=ticker(progress),
            warn=lambda line: click.echo(f"WARNING: {line}", err=True),
        )


def _write(
    result: Evaluation,
    model: Classifier,
    pictures: dict[str, Any],
    settings: dict[str, Any],
    out: Path,
) -> None:
    from pipeline.evaluation.summary import per_class, per_sample
    from pipeline.publish import write_json

    flags = result.autoattack.flags if result.autoattack else []
    write_json(out / "settings.json", settings | {"flags": flags})
    write_json(out / "by_eps.json", result.curve.points if result.curve else [])
    write_json(out / "per_class.json", per_class(result, model.class_names))
    _write_arrays(out / "per_sample.npz", per_sample(result))
    _write_arrays(out / "examples.npz", pictures)


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from pipeline.publish import staged

    with staged(path) as beside, beside.open("wb") as handle:
        np.savez(handle, **arrays)


def _show(metrics: dict[str, Any], checkpoint: Path, *, as_json: bool) -> None:
    from pipeline.evaluation.lines import result_lines

    if as_json:
        click.echo(json.dumps(metrics, indent=2))
        return
    click.echo(f"{checkpoint}:")
    for line in result_lines(metrics):
        click.echo(line)
