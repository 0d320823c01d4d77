"""Stage 5: the student against what it never saw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.evaluation.results import Score, evaluation_beside, threat_text
from ltd_pipe.stages.console import Ticker, bar, doing, tell
from ltd_pipe.stages.evaluation_options import (
    NamedModel,
    load,
    model_argument,
    select,
    test_data_option,
    transfer_options,
    weights_option,
)
from ltd_pipe.stages.model_options import ModelOptions, model_options
from ltd_pipe.stages.options import (
    FILE,
    FOLDER,
    METRICS,
    SETTINGS,
    ParamsCommand,
    note_pipeline,
    params_options,
    refuse_existing,
    refuse_options,
    require_files,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.evaluation.results import AttackRow, Metrics
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.params import Params
    from ltd_pipe.provenance import StateRecord
    from ltd_pipe.stages.evaluation_options import LoadedModel


@click.command(cls=ParamsCommand)
@model_argument
@weights_option
@params_options("evaluate", standalone=True)
@test_data_option
@model_options
@transfer_options()
@click.option(
    "--corruptions",
    type=FOLDER,
    help="Folder of corrupted images: NAME.npy with labels.npy, as CIFAR-10-C, or "
    "NAME/SEVERITY/CLASS/.",
)
@click.option("--quick", is_flag=True, help="A first look: 200 images, PGD-10. Marked as such.")
@click.option("--metrics", type=FILE, default="data/metrics.json", help="Where the numbers go.")
@click.option(
    "--out",
    type=FOLDER,
    default="data/evaluation",
    help="Folder of scores.json, by_eps.json, per_class.json, reliability.json, per_sample.npz, "
    "examples.npz and settings.json.",
)
@click.option("--force", is_flag=True, help="Replace existing results.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json to stdout.")
def evaluate(
    model: str,
    weights: Path | None,
    params: Params,
    data: Path,
    foreign: ModelOptions,
    sources: tuple[NamedModel, ...],
    corruptions: Path | None,
    quick: bool,
    metrics: Path,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Measure clean and robust accuracy: FGSM, PGD, CW-PGD and AutoAttack, and by eps.

    MODEL is a checkpoint of ours, another project's weights with --arch, or timm:NAME,
    torchvision:NAME or robustbench:NAME with --weights.

    \b
    Examples:
      ltd-pipe evaluate student/model.safetensors --quick
      ltd-pipe evaluate student/model.safetensors --images 1000 --eps 8/255
      ltd-pipe evaluate student/model.safetensors --norm l2 --eps 0.5 --metrics l2.json --out l2
      ltd-pipe evaluate student/model.safetensors --transfer-from teacher/model.safetensors
      ltd-pipe evaluate robustbench:Rice2020Overfitting --corruptions CIFAR-10-C --eps 8/255
    """
    from ltd_pipe.device import choose_device, deterministic, full_float32
    from ltd_pipe.publish import exclusive

    if quick:
        fixed = {"pgd_steps", "pgd_restarts", "attacks", "autoattack", "eps_grid"}
        refuse_options(fixed | {"eps_grid_images"}, "is fixed in a first look: leave --quick out")
    require_files("data", "corruptions")
    refuse_existing(metrics, force=force, kind=METRICS, option="--metrics and --out")
    if out.resolve() != evaluation_beside(metrics).resolve():
        # Beside them the folder is of these metrics, which appear last: without them half done.
        refuse_existing(out / "settings.json", force=force, kind=SETTINGS)
    note_pipeline(metrics, out)
    named, device = NamedModel.parse(model, weights, foreign), choose_device(params.device)
    with exclusive(metrics), deterministic(), full_float32():
        with doing("loading images and models"):
            images, loaded, others = load(named, sources, data, device, strict=False)
        if quick:
            section = params.evaluate.quick(images.manifest.num_samples)
            params = params.model_copy(update={"evaluate": section})
        test = select(images, device, params.evaluate.images, params.seed)
        settings = _settings(params, loaded, test, images.manifest.fingerprint)
        training = loaded.training_hashes(images, data)
        results = (metrics, out)
        numbers = _measure(
            loaded, test, params, settings, others, corruptions, training, results, quick=quick
        )
    if as_json:
        click.echo(json.dumps(numbers.dump(), indent=2))
        return
    click.echo(f"{model}:")
    for line in metrics_lines(numbers):
        click.echo(line)


def _settings(
    params: Params, loaded: LoadedModel, test: TestImages, fingerprint: str
) -> dict[str, Any]:
    """What settings.json holds, but for AutoAttack's flags."""
    import torch

    from ltd_pipe import provenance

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
        "images": len(test),
        "batch_size": section.batch_size,
        "precision": "float32",
        "tf32": torch.backends.cudnn.allow_tf32,
        "seed": params.seed,
        **loaded.facts(),
        # Of the source, however it was stored and resized.
        "data_fingerprint": fingerprint,
        "image_shape": list(loaded.model.shape),
        "pixels_sha256": test.pixels_sha256,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
    }


def _measure(
    loaded: LoadedModel,
    test: TestImages,
    params: Params,
    settings: dict[str, Any],
    sources: list[Source],
    corruptions: Path | None,
    training: NDArray[np.uint64] | None,
    results: tuple[Path, Path],
    *,
    quick: bool,
) -> Metrics:
    """Measure, and write all files; what metrics.json holds."""
    from ltd_pipe.evaluation import robustness
    from ltd_pipe.evaluation.corruptions import find_corruptions
    from ltd_pipe.publish import remove_state, write_json

    (metrics, out), class_names = results, loaded.model.class_names
    corrupted = [] if corruptions is None else find_corruptions(corruptions, class_names)
    state = _state(metrics, params, settings, test.device, sources, corruptions)
    if note := state.note():
        tell(note)
    with bar() as progress:
        ticker = Ticker(progress)
        result = robustness.evaluate(
            loaded.model,
            test,
            params.evaluate,
            seed=params.seed,
            state=state,
            tick=ticker,
            finished=ticker.finished,
            sources=sources,
            corruptions=corrupted,
            stated=loaded.stated_accuracy,
            training=training,
            warn=lambda line: click.echo(f"WARNING: {line}", err=True),
        )
    pictures = robustness.examples(
        loaded.model,
        test,
        params.evaluate,
        count=params.evaluate.examples,
        seed=params.seed,
        scores=result.scores,
    )
    robustness.write_folder(out, result, settings, class_names, pictures)
    sha256 = settings["checkpoint_sha256"]
    numbers = robustness.metrics_of(result, params.evaluate, quick=quick, checkpoint_sha256=sha256)
    write_json(out / "scores.json", numbers.compared())
    # The last to appear: its presence tells that all is there.
    write_json(metrics, numbers.dump())
    remove_state(state.folder)
    return numbers


def _state(
    metrics: Path,
    params: Params,
    settings: dict[str, Any],
    device: torch.device,
    sources: list[Source],
    corruptions: Path | None,
) -> StateRecord:
    """Of this evaluation's finished batches: all that decides them, and what rounds."""
    from ltd_pipe import provenance
    from ltd_pipe.evaluation.corruptions import state_of_corruptions

    rounds = {name: settings[name] for name in ("software", "hardware")}
    decides = {name: value for name, value in settings.items() if name not in rounds} | {
        "params": params.evaluate.model_dump(exclude={"examples"}),
        "autoattack": settings["software"]["pyautoattack"],
        "code": provenance.code_digest("evaluate"),
        "sources": [[source.name, source.sha256] for source in sources],
        "corruptions": None if corruptions is None else state_of_corruptions(corruptions),
    }
    rounds["device"] = device.type
    states = metrics.parent / "state"
    return provenance.StateRecord(states, "evaluate", metrics.name, decides, rounds)


def metrics_lines(metrics: Metrics) -> Iterator[str]:
    """What a terminal shows of metrics.json."""
    if metrics.quick:
        yield "QUICK LOOK: few images and a weak attack. Not a result: leave --quick out for one."
    width = max(17, *(len(row.name) for row in metrics.attacks))
    for row in metrics.attacks:
        measured = Score(row.accuracy, row.low, row.high, row.n)
        yield f"  {row.name:<{width}}{_accuracy(measured)}   {_conditions(row)}"
    clean = metrics.expected_calibration_error
    attacked = metrics.expected_calibration_error_under_attack
    n = f"{metrics.n:,} images"
    yield f"  calibration error {clean:.2%} clean, {attacked:.2%} under PGD's first start, {n}"
    if metrics.corruptions and (mean := metrics.score("corruption_accuracy")):
        images = f"{metrics.corruptions.sets} sets of {mean.n:,} images"
        yield f"  {'corruptions, mean':<{width}}{_accuracy(mean)}   no attack, {images}"
    if metrics.zero_accuracy_at_eps is not None:
        threat = threat_text(metrics.norm, metrics.zero_accuracy_at_eps)
        yield f"  PGD-20 leaves nothing at {threat}, {metrics.eps_grid_images:,} images"
    if metrics.autoattack_accuracy is None:
        yield "  AutoAttack was left out: the PGD number alone is no claim of robustness."
    yield f"  not measured: {', '.join(metrics.not_measured)}"
    for line in metrics.warnings:
        yield f"  WARNING: {line}"


def _accuracy(score: Score) -> str:
    return f"{score.value:>9.2%}   95 % interval {score.low:.2%} to {score.high:.2%}"


def _conditions(row: AttackRow) -> str:
    images, decides = f"{row.n:,} images", row.decides
    if "norm" not in decides:
        return f"no attack, {images}"
    package = f", {decides['package']}" if "package" in decides else ""
    known = decides.get("source_clean_accuracy")
    source = "" if known is None else f", source {known:.2%} clean"
    return f"{threat_text(decides['norm'], decides['eps'])}, {images}{package}{source}"
