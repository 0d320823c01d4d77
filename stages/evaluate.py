"""Stage 5: the student against what it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import Ticker, bar, doing, tell
from ltd_pipe.stages.measured import (
    choose_images,
    load_measured,
    load_sources,
    model_argument,
    name_model,
    open_test_data,
    test_data_option,
    training_hashes,
    transfer_options,
    weights_option,
)
from ltd_pipe.stages.model_options import ModelOptions, model_options
from ltd_pipe.stages.options import (
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
    from ltd_pipe.evaluation.corruptions import CorruptedSet
    from ltd_pipe.evaluation.results import Metrics
    from ltd_pipe.evaluation.robustness import Evaluation, Source
    from ltd_pipe.params import Params
    from ltd_pipe.provenance import StateRecord
    from ltd_pipe.stages.measured import Measured, Named

__all__ = ["evaluate"]


@click.command(cls=ParamsCommand)
@model_argument
@weights_option
@params_options("evaluate", standalone=True)
@test_data_option
@model_options
@transfer_options()
@click.option(
    "--corruptions",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of corrupted images: NAME.npy with labels.npy, as CIFAR-10-C, or "
    "NAME/SEVERITY/CLASS/.",
)
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
    sources: tuple[Named, ...],
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
    refuse_existing(*_settings_of_others(metrics, out), force=force, kind=SETTINGS)
    note_pipeline(metrics, out)
    named, device = name_model(model, weights, foreign), choose_device(params.device)
    with exclusive(metrics), deterministic(), full_float32():
        with doing("loading images and models"):
            images = open_test_data(data, named, device)
            measured = load_measured(named, images, device, strict=False)
            others = load_sources(sources, images, device)
        if quick:
            section = params.evaluate.quick(images.manifest.num_samples)
            params = params.model_copy(update={"evaluate": section})
        numbers = _publish(
            measured,
            choose_images(images, params, device),
            images.manifest.fingerprint,
            params,
            others,
            corruptions,
            metrics,
            out,
            quick=quick,
            training=training_hashes(measured, images, data),
        )
    _show(numbers, model, as_json=as_json)


def _settings_of_others(metrics: Path, out: Path) -> list[Path]:
    """What must not be there already."""
    from ltd_pipe.evaluation.results import evaluation_beside

    # Beside it the folder is of these metrics, which appear last: without them it is half done.
    own = out.resolve() == evaluation_beside(metrics).resolve()
    return [] if own else [out / "settings.json"]


def _publish(
    measured: Measured,
    test: TestImages,
    fingerprint: str,
    params: Params,
    sources: list[Source],
    corruptions: Path | None,
    metrics: Path,
    out: Path,
    *,
    quick: bool,
    training: NDArray[np.uint64] | None,
) -> Metrics:
    """Measure, and write all files; what metrics.json holds."""
    from ltd_pipe.evaluation.robustness import examples, metrics_of
    from ltd_pipe.publish import remove_state, write_json

    corrupted = _corrupted(corruptions, measured)
    settings = _settings(params, measured, test, fingerprint)
    state = _record_of(metrics, params, settings, test.device, sources, corruptions)
    if note := state.note():
        tell(note)
    result = _measure(measured, test, params, state, sources, corrupted, training)
    pictures = examples(
        measured.model,
        test,
        params.evaluate,
        count=params.evaluate.examples,
        seed=params.seed,
        scores=result.scores,
    )
    _write(result, measured, pictures, settings, out)
    sha256 = settings["checkpoint_sha256"]
    numbers = metrics_of(result, params.evaluate, quick=quick, checkpoint_sha256=sha256)
    write_json(out / "scores.json", numbers.compared())
    # The last to appear: its presence tells that all is there.
    write_json(metrics, numbers.dump())
    remove_state(state.folder)
    return numbers


def _corrupted(folder: Path | None, measured: Measured) -> list[CorruptedSet]:
    from ltd_pipe.evaluation.corruptions import find_corruptions

    return [] if folder is None else find_corruptions(folder, measured.model.class_names)


def _settings(
    params: Params, measured: Measured, test: TestImages, fingerprint: str
) -> dict[str, Any]:
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
        **measured.facts(),
        # Of the source, however it was stored and resized.
        "data_fingerprint": fingerprint,
        "image_shape": list(measured.model.shape),
        "pixels_sha256": test.pixels_sha256,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
    }


def _record_of(
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


def _measure(
    measured: Measured,
    test: TestImages,
    params: Params,
    state: StateRecord,
    sources: list[Source],
    corrupted: list[CorruptedSet],
    training: NDArray[np.uint64] | None,
) -> Evaluation:
    from ltd_pipe.evaluation.robustness import evaluate as measure

    with bar() as progress:
        ticker = Ticker(progress)
        return measure(
            measured.model,
            test,
            params.evaluate,
            seed=params.seed,
            state=state,
            tick=ticker,
            finished=ticker.finished,
            sources=sources,
            corruptions=corrupted,
            stated=measured.stated,
            training=training,
            warn=lambda line: click.echo(f"WARNING: {line}", err=True),
        )


def _write(
    result: Evaluation,
    measured: Measured,
    pictures: dict[str, Any],
    settings: dict[str, Any],
    out: Path,
) -> None:
    from ltd_pipe.evaluation.results import Settings
    from ltd_pipe.evaluation.robustness import per_class, per_sample, reliability_of
    from ltd_pipe.publish import write_json

    flags = result.autoattack.flags if result.autoattack else []
    write_json(out / "settings.json", Settings(**settings, flags=flags).dump())
    points = result.curve.points if result.curve else ()
    write_json(out / "by_eps.json", [point.dump() for point in points])
    write_json(out / "per_class.json", per_class(result, measured.model.class_names))
    write_json(out / "reliability.json", reliability_of(result).dump())
    (out / "corruptions.json").unlink(missing_ok=True)
    if result.corruptions:
        write_json(out / "corruptions.json", [row.dump() for row in result.corruptions])
    _write_arrays(out / "per_sample.npz", per_sample(result))
    _write_arrays(out / "examples.npz", pictures)


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from ltd_pipe.publish import staged

    with staged(path) as beside, beside.open("wb") as handle:
        np.savez(handle, **arrays)


def _show(metrics: Metrics, model: str, *, as_json: bool) -> None:
    from ltd_pipe.evaluation.results import result_lines

    if as_json:
        click.echo(json.dumps(metrics.dump(), indent=2))
        return
    click.echo(f"{model}:")
    for line in result_lines(metrics):
        click.echo(line)
