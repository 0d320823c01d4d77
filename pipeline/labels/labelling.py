"""Streaming images through the teachers into a store, by one process or by many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe import provenance
from ltd_pipe.device import OnHost, autocast, choose_precision
from ltd_pipe.errors import CheckpointError, DataError, ModelError, ParamsError
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.images.decode import CHANNELS, RESIZE
from ltd_pipe.images.manifest import Manifest, sampled_pixels_sha256, to_unit
from ltd_pipe.images.sources import validation_mask
from ltd_pipe.labels.format import (
    DatasetFacts,
    LabellingFacts,
    StoreFacts,
    TeacherFacts,
    ViewFacts,
)
from ltd_pipe.labels.on_device import Replay
from ltd_pipe.labels.softmax import calibrated_temperature, solve_temperature
from ltd_pipe.labels.writer import WHOLE, Background, Part, StoreWriter, wait_for_chunks
from ltd_pipe.models.facts import read_facts, seen_instead
from ltd_pipe.params.sections import CALIBRATED

if TYPE_CHECKING:
    from ltd_pipe.device import Precision
    from ltd_pipe.distributed import World
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import ImageFacts
    from ltd_pipe.images.stream import Batch, FolderStream, Stream
    from ltd_pipe.labels.format import CalibrationFacts
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import LabelParams

# The mean top probability of so many images is that of all within a percent or so.
_SAMPLE = 4096
# Without augmentation.
_AS_THEY_ARE = Replay(Augmentation(), 0, 1)
# Batches whose answers are still to be written.
_AHEAD = 4


@dataclass(frozen=True)
class Labeller:
    """Teachers, and how they are asked about images.

    The answers are the networks' own logits, before any temperature of the model itself: the
    label's temperature is applied once, when the store is published.

    Attributes
    ----------
    teachers : sequence of Classifier
        In evaluation mode, on the stream's device; in the order of the store's facts.
    stream : ImageStream or FolderStream
    batch_size : int
    precision : str
    replay : Replay
        The views that are asked about.
    """

    teachers: Sequence[Classifier]
    stream: Stream
    batch_size: int
    precision: Precision
    replay: Replay = _AS_THEY_ARE

    @torch.no_grad()
    def view(self, batch: Batch, view: int) -> torch.Tensor:
        """The teachers' logits for one view of some images, float32, of shape (M, n, K)."""
        images = to_unit(self.replay.images(batch.images, batch.index, view, batch.rows))
        with autocast(images.device, self.precision):
            logits = [teacher.raw_logits(images) for teacher in self.teachers]
        return torch.stack(logits)

    def answers(self, batch: Batch) -> torch.Tensor:
        """The teachers' logits of each view, of shape (M, n, K) or (M, n, V, K)."""
        views = [self.view(batch, view) for view in range(self.replay.count)]
        return views[0] if len(views) == 1 else torch.stack(views, dim=2)

    def label(self, writer: StoreWriter, progress: Callable[[int], None] | None = None) -> None:
        """Append the logits of all images, in all views, that the writer does not have yet.

        Answers are fetched from the device, rounded and written while the teacher is at the next
        batch; an error there ends the loop at one of the next batches. The writer's chunks are of
        `aligned_rows`; `progress` is called with the number of images just labelled.
        """

        def append(found: OnHost, sample_hash: NDArray[np.uint64]) -> None:
            logits, labels = found.numpy()
            writer.append(logits, labels, sample_hash)

        try:
            with Background(threads=1, waiting=_AHEAD) as behind:
                for batch in self.stream.batches(writer.rows_left, self.batch_size):
                    logits = self.answers(batch)
                    behind.do(append, OnHost(logits, batch.labels), batch.sample_hash)
                    if progress:
                        progress(len(batch.labels))
        finally:
            # Also after an interruption: what is whole is not labelled again.
            writer.flush()

    def calibrate(self, rows: NDArray[np.int64]) -> tuple[float, CalibrationFacts]:
        """Solve for the temperature on images that no teacher trained on.

        See `softmax.calibrated_temperature`.
        """
        logits, labels = [], []
        for batch in self.stream.batches(rows, self.batch_size):
            logits.append(self.answers(batch).to(torch.float16).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            if not np.isfinite(logits[-1]).all():
                what = "answers to the validation images are not all finite in float16"
                raise ModelError("teacher", what)
        return calibrated_temperature(np.concatenate(logits, axis=1), np.concatenate(labels))

    def temperature(self, num_samples: int, target_top_probability: float) -> float:
        """Solve for the temperature on evenly spaced images, before the labels are made.

        Of a top-k store the logits are never kept, so the temperature has to be known first. The
        teachers are asked about at most 4,096 images; see `softmax.solve_temperature`.
        """
        places = np.linspace(0, num_samples - 1, min(num_samples, _SAMPLE))
        logits = [
            [*self.answers(batch).to(torch.float16).cpu().numpy()]
            for batch in self.stream.batches(np.unique(places.astype(np.int64)), self.batch_size)
        ]
        return solve_temperature(lambda: logits, target_top_probability)


class LabellingRun:
    """All that decides a store's labels, and this process's share of making them.

    Under torchrun each process has one and labels a share of the chunks; the first process then
    has the store to publish. Several runs with a `part` each meet in one folder.

    Parameters
    ----------
    out : Path
        The store.
    facts : StoreFacts
        From `store_facts`.
    params : LabelParams
    teachers : sequence of Classifier
        In evaluation mode, on the stream's device; in the order of the facts.
    stream : ImageStream or FolderStream
    world : World
    part : Part, optional
        The part to make; None: all that is missing.
    held_out : ndarray of int64, optional
        From `held_out_rows`, for the temperature `auto:calibrated`.

    Attributes
    ----------
    writer : StoreWriter
    note : str or None
        What to tell the user before the run begins, or goes on.
    """

    def __init__(
        self,
        out: Path,
        facts: StoreFacts,
        params: LabelParams,
        teachers: Sequence[Classifier],
        stream: Stream,
        world: World,
        part: Part | None = None,
        held_out: NDArray[np.int64] | None = None,
    ) -> None:
        self._out, self._params, self._world, self._part = out, params, world, part or WHOLE
        self._rows = aligned_rows(facts, params.top_k, params.batch_size, params.chunk_rows)
        device, replay = teachers[0].mean.device, Replay.of(facts.views, "label.augmentation")
        if device.type == "cuda":
            # Its convolutions are fastest in it; on a CPU it would only round otherwise.
            for teacher in teachers:
                teacher.to(memory_format=torch.channels_last)
        # The precision is to be chosen.
        labeller = Labeller(teachers, stream, params.batch_size, "float32", replay)
        decides: dict[str, Any] = {
            "facts": facts.decides,
            # The temperature is applied at the end: an interrupted run may change its mind.
            # But not where only the largest probabilities are ever written.
            "params": params.model_dump(
                mode="json", exclude=set() if params.top_k else {"temperature"}
            ),
            "part": str(part),
            "device": device.type,
            "code": provenance.code_digest("label"),
        }
        # The first process says it, and all take it, so that they meet in one folder.
        precision, self._temperature, self._calibration, processor = world.broadcast_config(
            decides,
            lambda: (
                *self._choose(labeller, facts.num_samples, held_out),
                provenance.processor(device),
            ),
        )
        self._labeller = replace(labeller, precision=precision)
        asked = (facts.labelling or LabellingFacts()).model_copy(update={"precision": precision})
        self._facts = facts.model_copy(update={"labelling": asked})
        # A network's rounding depends on the batch that an image is in.
        self._context = {name: decides[name] for name in ("device", "code")}
        self._context["batch_size"] = params.batch_size
        # A run of its own has a folder named after all that decides the labels, so that after any
        # change it begins anew, and of two runs at a time each has its own. Parts have to meet in
        # one, whoever makes them: theirs is named after the store, and what differs is refused. It
        # does not ask which GPU computed, which changes the last bit of a float16 at most: a part
        # can be made again anywhere.
        states = out.parent / "state"
        self._state, self.note = states / f"parts-{out.name}", None
        record = None
        if part is None and not self._state.exists():
            decides["precision"] = precision
            decides["temperature"] = self._temperature if params.top_k else None
            decides["processor"] = processor
            record = provenance.StateRecord(states, "label", out.name, decides, {})
            self._state, self.note = record.folder, record.note()
        self.writer = self._open_writer(self._part.split(world.rank, world.size))
        if record and world.is_main:
            record.write()

    def _choose(
        self, labeller: Labeller, num_samples: int, held_out: NDArray[np.int64] | None
    ) -> tuple[Precision, str | float, CalibrationFacts | None]:
        params, target = self._params, self._params.target_top_probability()
        model = labeller.teachers[0]
        chosen = choose_precision(model, params.batch_size, precision=params.precision)
        asked = replace(labeller, precision=chosen.precision)
        # One of several parts of a dense store has no use for the temperature.
        if held_out is not None and (params.top_k or self._part == WHOLE):
            return chosen.precision, *asked.calibrate(held_out)
        if params.top_k is None or target is None:
            return chosen.precision, params.temperature, None
        return chosen.precision, asked.temperature(num_samples, target), None

    def _open_writer(self, share: Part) -> StoreWriter:
        params = self._params
        dense = params.top_k is None
        return StoreWriter(
            self._state,
            self._facts,
            keep_logits=params.logits,
            rows=self._rows,
            top_k=params.top_k,
            temperature=None if dense else float(self._temperature),
            measured=isinstance(params.temperature, str),
            part=share,
            context=self._context,
        )

    def label(self, progress: Callable[[int], None] | None = None) -> None:
        """Label this process's share; the first process waits for the others.

        In the first process all chunks that were asked for are on disk then.
        """
        self._labeller.label(self.writer, progress)
        if self._world.is_main and self._world.size > 1:
            wait_for_chunks(lambda: self.writer.absent_chunks(self._part))
            # Read again, and what another process left damaged is made again.
            self.writer = self._open_writer(self._part)
            self._labeller.label(self.writer)

    def publish(self, *, replace: bool) -> str:
        """Make the store in the first process; its identity."""
        target, temperature = self._params.target_top_probability(), self.writer.temperature
        if temperature is None:
            temperature = (
                float(self._temperature)
                if target is None
                else self.writer.solve_temperature(target)
            )
        return self.writer.publish(
            self._out, temperature, calibration=self._calibration, replace=replace
        )


def held_out_rows(
    images: Beton | FolderStream, data: Path, checkpoints: Sequence[Path]
) -> NDArray[np.int64]:
    """The rows of the validation split, on which `auto:calibrated` measures.

    Raises
    ------
    DataError
        When there is no such split, or an image of it has no class.
    CheckpointError
        When a checkpoint does not show that its training left this split out.
    """
    what, instead = f"label.temperature {CALIBRATED}", "or ask for auto:P, such as auto:0.95."
    manifest = images.manifest
    fraction = manifest.validation_fraction if isinstance(manifest, Manifest) else 0.0
    rows = np.flatnonzero(validation_mask(images.sample_hash, fraction))
    if not len(rows):
        raise DataError(
            data,
            f"{what} needs a validation split, and there is none",
            remedy="Name a beton of 'ltd-pipe prepare' with prepare.validation_fraction above 0, "
            f"and a teacher trained on it, {instead}",
        )
    if unknown := int((images.labels[rows] < 0).sum()):
        raise DataError(
            data,
            f"{what} needs the classes of the validation images",
            expected="a class for each",
            found=f"{unknown:,} of {len(rows):,} without",
            remedy=f"Prepare images with a folder per class, {instead}",
        )
    for path in checkpoints:
        if (found := seen_instead(path, manifest.fingerprint, fraction)) is None:
            continue
        raise CheckpointError(
            path,
            f"{what}: it may have trained on the validation images",
            expected=f"held out: {fraction:g} of {manifest.dataset} {manifest.fingerprint[:12]}…",
            found=found,
            remedy=f"Take a teacher that 'ltd-pipe teacher' trained on {data}, {instead}",
        )
    return rows


def store_facts(
    images: ImageFacts,
    stream: Stream,
    checkpoints: Sequence[Path],
    teachers: Sequence[Classifier],
    params: LabelParams,
    seed: int,
) -> StoreFacts:
    """What a store of these images and teachers says of itself; all but precision and temperature.

    The seed is that of the views, unless the parameters have their own.
    """
    views = ViewFacts()  # no random number is drawn: the seed would tell equal stores apart
    if params.augmentation != "none":
        seed = seed if params.seed is None else params.seed
        views = ViewFacts(count=params.views, seed=seed, augmentation=params.augmentation)
    commit, modified = provenance.code_commit() or (None, None)
    labelling = LabellingFacts(
        image_shape=images.shape,
        resize=RESIZE,
        channels=CHANNELS[images.shape[0]],
        pixels_sha256=sampled_pixels_sha256(stream, images.num_samples),
        commit=commit,
        modified=modified,
    )
    return StoreFacts(
        num_samples=images.num_samples,
        num_classes=images.num_classes,
        class_names=images.class_names,
        dataset=DatasetFacts.of(images),
        teachers=tuple(map(_teacher_facts, checkpoints, teachers)),
        views=views,
        labelling=labelling,
        software=provenance.software(),
        licence=params.licence,
        citation=params.citation,
    )


def _teacher_facts(path: Path, model: Classifier) -> TeacherFacts:
    try:
        accuracy = read_facts(path).get("clean_accuracy")
    except CheckpointError:
        accuracy = None  # another project's weights say nothing of themselves
    # The shortest decimals that are the same float32, such as 0.485.
    mean, std = (
        tuple(float(str(np.float32(value))) for value in constants.tolist())
        for constants in (model.mean, model.std)
    )
    return TeacherFacts(
        sha256=provenance.sha256_file(path),
        architecture=model.architecture,
        clean_accuracy=accuracy,
        mean=mean,
        std=std,
        columns=() if model.columns is None else tuple(model.columns.tolist()),
    )


def aligned_rows(
    facts: StoreFacts, top_k: int | None, batch_size: int, wanted: int | None = None
) -> int:
    """Rows per chunk: whole batches, about `wanted` rows or 8 MiB.

    A run that is interrupted goes on at a chunk's end. The batches after it must then be those
    of an uninterrupted run, since a network's rounding depends on the batch that an image is in.
    Refused are chunks that no reader takes.
    """
    rows = wanted or facts.rows_per_chunk(top_k)
    rows = max(rows // batch_size, 1) * batch_size
    lower = "chunk_rows" if rows > batch_size else "batch_size"
    for name in (*facts.widest(top_k), "sample_hash"):
        layout = facts.layout(name, min(rows, facts.num_samples), top_k)
        layout.require_fitting(f"label.{lower}", ParamsError, "Lower it.")
    return rows
