"""A run of training from the outside: its samples, its model, its key, its results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import provenance, rng
from pipeline.errors import DataError, ParamsError
from pipeline.images.split import validation_mask
from pipeline.models.checkpoint import save_classifier
from pipeline.models.classifier import Classifier
from pipeline.models.registry import build
from pipeline.publish import write_json
from pipeline.training.passes import choose_passes, kept_passes
from pipeline.training.state import Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.beton import Beton
    from pipeline.images.manifest import Manifest
    from pipeline.params import FitParams
    from pipeline.team import Team
    from pipeline.training.loop import Fit, Watcher
    from pipeline.training.passes import Passes

__all__ = [
    "common_facts",
    "new_classifier",
    "open_run",
    "run_facts",
    "run_fit",
    "run_record",
    "save_results",
    "split_samples",
]


# How often snapshots are taken, and what is allowed, does not change what is computed.
_CHANGE_NOTHING = {"snapshot_minutes", "snapshot_steps", "any_size", "allow_poor_labels"}
# A run goes on when these change, to a result that differs by rounding.
_ROUND = {"device", "hardware", "processes", "software"}


def split_samples(
    beton: Beton, images: int | None = None, seed: int = 0, section: str = "train"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that are trained on, and those held out to choose checkpoints.

    Parameters
    ----------
    beton : Beton
    images : int, optional
        Train on so many, chosen by the seed; the validation split stays whole.
    seed : int
    section : str
        Of the parameters, for the error.

    Returns
    -------
    tuple of ndarray
        Ascending; of shape (n,) and (m,), dtype int64.

    Raises
    ------
    DataError
        When the validation split takes every sample, or an image has no label.
    ParamsError
        When there are fewer than `images`.
    """
    unknown = int((beton.labels < 0).sum())
    if unknown:
        raise DataError(
            beton.path,
            "images without a class cannot be trained on",
            expected="a label for each",
            found=f"{unknown:,} without",
            remedy="Put the images into one folder per class, and run 'ltd-pipe prepare'.",
        )
    held_out = validation_mask(beton.sample_hash, beton.manifest.validation_fraction)
    training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if images is not None:
        if images > len(training):
            raise ParamsError(
                f"{section}.images",
                "more than there are to train on",
                expected=f"at most {len(training)}",
                found=images,
                remedy="Set null for all of them.",
            )
        order = rng.permutation(rng.stream_key(seed, "training-images"), training)
        training = np.sort(order[:images])
    if not len(training):
        raise DataError(
            beton.path,
            "the validation split leaves nothing to train on",
            remedy="Lower prepare.validation_fraction.",
        )
    return training, validation


def new_classifier(
    params: FitParams,
    manifest: Manifest,
    *,
    seed: int,
    role: str,
    device: torch.device,
    temperature: float = 1.0,
) -> Classifier:
    """Build a freshly initialised model that depends on the seed and its role alone.

    Parameters
    ----------
    params : FitParams
    manifest : Manifest
        Of the training images: classes and shape.
    seed : int
    role : str
        `teacher` or `student`: they start from different weights.
    device : torch.device
    temperature : float
        Part of the model.

    Raises
    ------
    ParamsError
        When a crop may miss the images, or a cutout is larger than they are.
    """
    section = "teacher" if role == "teacher" else "train"
    params.augmentation.require_fitting(manifest.shape, section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.stream_key(seed, f"{role}-weights") >> 1)
        network = build(params.architecture, manifest.num_classes, manifest.shape)
    model = Classifier(
        network,
        architecture=params.architecture,
        class_names=manifest.class_names,
        shape=manifest.shape,
        mean=params.mean,
        std=params.std,
        temperature=temperature,
    )
    return model.to(device)


def run_facts(kind: str, params: FitParams, manifest: Manifest, **decides: Any) -> dict[str, Any]:
    """Everything that decides a run's result, to the bit.

    Parameters
    ----------
    kind : str
        `teacher` or `student`.
    params : FitParams
    manifest : Manifest
    **decides
        What else does: seed, store identity; and what rounds: kind of device, processes.
    """
    return {
        "kind": kind,
        "params": params.model_dump(mode="json", exclude=_CHANGE_NOTHING),
        "data": manifest.fingerprint,
        "encoding": manifest.sha256,
        # Which images are trained on; no byte of the beton depends on it.
        "validation_fraction": manifest.validation_fraction,
        "code": provenance.code_digest(),
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **decides,
    }


def run_record(facts: dict[str, Any], out: Path) -> provenance.StateRecord:
    """What names and describes a run's state, in `state/` beside its output.

    Parameters
    ----------
    facts : dict
        Of `run_facts`. What is measured when it begins is not among them: its state keeps that.
    out : Path
        The output.
    """
    decides = {name: value for name, value in facts.items() if name not in _ROUND}
    rounds = {name: value for name, value in facts.items() if name in _ROUND}
    return provenance.StateRecord(out.parent / "state", facts["kind"], out.name, decides, rounds)


def open_run(
    facts: dict[str, Any],
    out: Path,
    params: FitParams,
    model: Classifier,
    team: Team,
    *,
    fresh: bool,
    tell: Callable[[str], None],
) -> tuple[Snapshots, Passes]:
    """A run's state, and how its passes are computed: as when it began, if it was interrupted.

    Parameters
    ----------
    facts : dict
        Of `run_facts`.
    out : Path
        The output.
    params : FitParams
    model : Classifier
        On its device; it is not changed.
    team : Team
        Connected; the first process looks for the state, or measures, for all.
    fresh : bool
        Forget the state, and measure anew.
    tell : callable
        Called by the first process, before the work, with what differs from an earlier run.

    Raises
    ------
    StateError
        When processes are at different work, or no snapshot can be read.
    """
    record = run_record(facts, out)
    snapshots = Snapshots(record.folder, record)

    def passes_for_all() -> Passes:
        if not fresh and (note := record.note()):
            tell(note)
        # What was chosen for a GPU says nothing of a CPU.
        moved = any(name == "device" for name, _, _ in record.changed())
        return (None if fresh or moved else kept_passes(snapshots)) or choose_passes(params, model)

    passes = team.agree({"run": facts}, passes_for_all)
    if fresh and team.leads:
        snapshots.clear()
    return snapshots, passes


def run_fit(fit: Fit, watcher: Watcher) -> dict[str, float]:
    """Run to the end; the seconds that this process took, and its training images per second."""
    begin = time.monotonic()
    fit.run(watcher)
    return {
        "seconds": round(time.monotonic() - begin, 3),
        "images_per_second": round(fit.images_per_second, 1),
    }


def save_results(
    fit: Fit, out: Path, facts: dict[str, Any], timing: dict[str, float], *, last: bool
) -> None:
    """Write the best weights, the last ones if wanted, and the times.

    The best come last: their file is what tells that the run is complete.

    Parameters
    ----------
    fit : Fit
        Finished.
    out : Path
        Folder.
    facts : dict
        For the checkpoints' metadata.
    timing : dict
    last : bool
        Keep the last weights too.
    """
    write_json(out / "timing.json", timing | {"commit": provenance.commit()})
    if last:
        row = fit.progress.history[-1]
        save_classifier(fit.average.model, out / "last.safetensors", **facts | _chosen(row))
    row = fit.progress.best or fit.progress.history[-1]
    save_classifier(fit.best.model, out / "model.safetensors", **facts | _chosen(row))


def _chosen(row: dict[str, float]) -> dict[str, Any]:
    measures = {
        name.removeprefix("validation/"): value
        for name, value in row.items()
        if name.startswith("validation/")
    }
    return {"epoch": row["epoch"], "validation": measures}


def common_facts(
    kind: str,
    params: FitParams,
    manifest: Manifest,
    seed: int,
    passes: Passes | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What a checkpoint says of how it was made.

    Parameters
    ----------
    kind : str
        `teacher` or `student`.
    params : FitParams
    manifest : Manifest
        Of the training images.
    seed : int
    passes : Passes, optional
        How it was trained; None: it was not.
    **more
        What only this kind has, such as the labels of a student.
    """
    return {
        "kind": kind,
        "seed": seed,
        "passes": passes and passes.decides,
        "params": params.model_dump(mode="json"),
        "data": {"dataset": manifest.dataset, "fingerprint": manifest.fingerprint},
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **more,
    }
