"""How the processes of `label` share the work, and what the last one says of the store."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import counter, doing, tell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from ltd_pipe.device import Precision
    from ltd_pipe.distributed import Team
    from ltd_pipe.images.stream import Stream
    from ltd_pipe.labels.format import StoreFacts
    from ltd_pipe.labels.reader import Part
    from ltd_pipe.labels.writer import StoreWriter
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import LabelParams
    from ltd_pipe.provenance import StateRecord

__all__ = ["Work", "interruptible", "publish", "show", "show_part", "turn"]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End with chunks written at Ctrl-C, or when a batch system or a closing terminal says so."""

    def stop(number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        why = "Interrupted" if number == signal.SIGINT else f"Stopped by {name}"
        raise KeyboardInterrupt(f"{why}. Run it again: what is labelled is kept.")

    # As in training; what nohup has made ignored stays so.
    also = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    numbers = [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def turn(out: Path, part: Part | None, team: Team) -> Iterator[None]:
    """Keep other runs out: of the whole store, or of this part of it.

    Under torchrun the first process does so for all.
    """
    from ltd_pipe.publish import beside_others, exclusive

    with contextlib.ExitStack() as held:
        if team.leads and part is None:
            held.enter_context(exclusive(out))
        elif team.leads:
            name = f"{out.name}.part-{part}".replace("/", "-of-")
            held.enter_context(exclusive(out.with_name(name)))
            held.enter_context(beside_others(out))
        yield


@dataclass(frozen=True)
class _Choice:
    # What the first process measures, and all of them take.
    precision: Precision
    temperature: str | float


@dataclass(frozen=True)
class Work:
    """All that decides the labels, and this process's share of them.

    Attributes
    ----------
    out : Path
        The store.
    facts : StoreFacts
        All but the precision.
    params : LabelParams
    device : torch.device
    part : Part or None
        The part to make; None: all that is missing, and then the store.
    team : Team
    """

    out: Path
    facts: StoreFacts
    params: LabelParams
    device: torch.device
    part: Part | None
    team: Team

    def run(self, models: list[Classifier], stream: Stream) -> Finished:
        """Label this process's share; the first process waits for the others.

        Returns
        -------
        Finished
            In the first process, with all chunks that were asked for on disk.
        """
        from ltd_pipe.labels.reader import WHOLE, wait_for_chunks

        whole = self.part or WHOLE
        with doing("measuring precision and temperature"):
            choice = self.team.agree(self._key(), lambda: self._choose(models, stream))
        share = whole.split(self.team.rank, self.team.count)
        record = self._record(choice)
        if record and self.team.leads and (note := record.note()):
            tell(note)
        writer = self._writer(choice, share)
        if record and self.team.leads:
            record.write()
        writer = self._label(writer, models, stream, choice)
        if self.team.leads and self.team.count > 1:
            wait_for_chunks(lambda: writer.absent_chunks(whole))
            # Read again, and what another process left damaged is made again.
            writer = self._label(self._writer(choice, whole), models, stream, choice)
        return Finished(writer, self.params, choice.temperature)

    def _key(self) -> dict[str, Any]:
        from ltd_pipe import provenance

        return {
            "facts": self.facts.decides,
            # The temperature is applied at the end: an interrupted run may change its mind.
            # But not where only the largest probabilities are ever written.
            "params": self.params.model_dump(
                mode="json", exclude=set() if self.params.top_k else {"temperature"}
            ),
            "part": str(self.part),
            "device": self.device.type,
            "code": provenance.code_digest(),
        }

    def _choose(self, models: list[Classifier], stream: Stream) -> _Choice:
        from ltd_pipe.device import choose_precision
        from ltd_pipe.labels.dataset import Replay
        from ltd_pipe.labels.labelling import temperature_of_sample

        params, target = self.params, self.params.target_top_probability()
        precision = choose_precision(params.precision, models[0], params.batch_size)
        if params.top_k is None or target is None:
            return _Choice(precision, params.temperature)
        temperature = temperature_of_sample(
            models,
            stream,
            self.facts.num_samples,
            target,
            replay=Replay.of(self.facts.views, "label.augmentation"),
            batch_size=params.batch_size,
            precision=precision,
        )
        return _Choice(precision, temperature)

    def _writer(self, choice: _Choice, share: Part) -> StoreWriter:
        from ltd_pipe.labels.format import LabellingFacts
        from ltd_pipe.labels.labelling import aligned_rows
        from ltd_pipe.labels.writer import StoreWriter

        params, key = self.params, self._key()
        # A network's rounding depends on the batch that an image is in.
        context = {"device": key["device"], "code": key["code"], "batch_size": params.batch_size}
        asked = self.facts.labelling or LabellingFacts()
        asked = asked.model_copy(update={"precision": choice.precision})
        return StoreWriter(
            self._state(choice),
            self.facts.model_copy(update={"labelling": asked}),
            keep_logits=params.logits and len(self.facts.teachers) == 1 and params.top_k is None,
            rows=aligned_rows(self.facts, params.top_k, params.batch_size, params.chunk_rows),
            top_k=params.top_k,
            temperature=float(choice.temperature) if params.top_k else None,
            part=share,
            context=context,
        )

    def _state(self, choice: _Choice) -> Path:
        """The folder of the draft.

        A run of its own has one named after the store and all that decides the labels, so that
        after any change it begins anew, and of two runs at a time each has its own. Parts have to
        meet in one, whoever makes them: theirs is named after the store, and what differs is
        refused. It does not ask which GPU computed, which changes the last bit of a float16 at
        most: a part can be made again anywhere.
        """
        record = self._record(choice)
        return self._shared if record is None else record.folder

    @property
    def _shared(self) -> Path:
        return self.out.parent / "state" / f"parts-{self.out.name}"

    def _record(self, choice: _Choice) -> StateRecord | None:
        """Of a run of its own."""
        from ltd_pipe import provenance

        if self.part is not None or self._shared.exists():
            return None
        decides = self._key() | {
            "precision": choice.precision,
            "temperature": choice.temperature if self.params.top_k else None,
            "processor": provenance.processor(self.device),
        }
        return provenance.StateRecord(self._shared.parent, "label", self.out.name, decides, {})

    def _label(
        self, writer: StoreWriter, models: list[Classifier], stream: Stream, choice: _Choice
    ) -> StoreWriter:
        from ltd_pipe.labels.labelling import label_images

        left = len(writer.rows_left)
        shown = counter("label", left) if self.team.leads else contextlib.nullcontext(None)
        with shown as progress:
            label_images(
                models,
                stream,
                writer,
                batch_size=self.params.batch_size,
                precision=choice.precision,
                progress=progress,
            )
        return writer


@dataclass(frozen=True)
class Finished:
    """Labels that are all on disk.

    Attributes
    ----------
    writer : StoreWriter
    params : LabelParams
    temperature : str or float
        As a number, where it had to be known before.
    """

    writer: StoreWriter
    params: LabelParams
    temperature: str | float


def publish(finished: Finished, out: Path, *, force: bool) -> dict[str, Any]:
    """Make the store, and sum it up.

    Raises
    ------
    ModelError
        When a teacher's answers are right but for the order of the classes.
    """
    from ltd_pipe.evaluation.input_scale import require_order
    from ltd_pipe.labels.reader import SoftLabels

    writer, target = finished.writer, finished.params.target_top_probability()
    for number, (truth, said) in enumerate(writer.answered(), 1):
        require_order(truth, said, writer.facts.class_names, f"teacher {number} of {out}")
    solved = target is None or finished.params.top_k
    temperature = float(finished.temperature) if solved else writer.solve_temperature(target or 0)
    identity = writer.publish(out, temperature, replace=force)
    store = SoftLabels.open(out)
    sparse = store.attributes.top_k
    distance = sparse.total_variation if sparse else None
    return {
        "store": str(out),
        "identity": identity,
        "num_samples": store.num_samples,
        "num_views": store.num_views,
        "num_classes": store.num_classes,
        "temperature": temperature,
        "top_k": store.top_k,
        "total_variation": distance.model_dump() if distance else None,
        **vars(store.summary()),
    }


def show_part(finished: Finished, part: Part, *, as_json: bool) -> None:
    """Say that a part is there, and what is missing of the others."""
    absent = len(finished.writer.absent_chunks())
    if as_json:
        click.echo(json.dumps({"part": str(part), "missing_chunks": absent}))
        return
    rest = (
        f"{absent:,} chunks of other parts are missing"
        if absent
        else "nothing is missing: run it without --part to make the store"
    )
    click.echo(f"{finished.writer.state}: part {part} is whole; {rest}")


def show(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print what `publish` found."""
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    views = f" × {summary['num_views']} views" if summary["num_views"] > 1 else ""
    click.echo(
        f"{summary['store']}: {summary['num_samples']:,}{views} soft labels over "
        f"{summary['num_classes']:,} classes, identity {summary['identity'][:12]}"
    )
    click.echo(f"  temperature           {summary['temperature']:.6g}")
    click.echo(f"  mean top probability  {summary['mean_top_probability']:.4f}")
    click.echo(f"  mean entropy          {summary['mean_entropy']:.4f} nats")
    if summary["total_variation"] is not None:
        distance = summary["total_variation"]
        click.echo(
            f"  top {summary['top_k']} of {summary['num_classes']:,}: total variation from the "
            f"dense labels {distance['mean']:.2g} on average, {distance['worst']:.2g} at worst"
        )
    if summary["disagreement"] is not None:
        click.echo(f"  teacher contradicts the ground truth for {summary['disagreement']:.2%}")
    for warning in summary["warnings"]:
        click.echo(f"  warning: {warning}", err=True)
