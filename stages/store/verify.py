"""Proving a store."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ltd_pipe.errors import StoreError
from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, json_option, say, tell, transfer
from ltd_pipe.stages.model_options import (
    WEIGHTS,
    ModelOptions,
    load_teacher,
    model_options,
    open_images,
    stream_of,
)

if TYPE_CHECKING:
    import torch

    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.stream import FolderStream
    from ltd_pipe.labels import SoftLabels
    from ltd_pipe.labels.verify import Check
    from ltd_pipe.models.facts import CheckpointFacts

# Between an accuracy in a store and the same in a checkpoint.
_ROUNDING = 1e-6


@click.command()
@click.argument("store", metavar="STORE")
@options.path(
    "--data", help="Images that the labels should belong to: a beton, or a folder of images."
)
@options.file(
    "--teacher",
    "teachers",
    multiple=True,
    help="Checkpoint that should have given these labels: it is asked again about random views "
    "of random images. Of several teachers all are needed. Needs --data.",
)
@click.option(
    "--sample", type=click.IntRange(1), default=1000, help="Answers of the teacher to compare."
)
@click.option(
    "--seed", type=click.IntRange(0), help="Of that sample; by default nobody knows it before."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="How far a logit may be off, as a share of the row's largest.  [default: 0.00195; of "
    "labels that were made in bfloat16, where the store says it, 0.05]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where the teacher runs.",
)
@model_options
@options.file(
    "--public-key",
    help="Who must have signed it: a .pub file, or ssh-keygen's list of allowed signers.",
)
@click.option("--signer", metavar="NAME", help="Which of these it must be, such as alice@lab.org.")
@json_option("Print as JSON.")
def verify(
    store: str,
    data: Path | None,
    teachers: tuple[Path, ...],
    device: str,
    foreign: ModelOptions,
    public_key: Path | None,
    signer: str | None,
    **asked: Any,
) -> None:
    """Check a store's manifest, checksums, schema, rows, images, teacher and signature.

    Exits with 1 at the first thing that is wrong. Whether it belongs to the images, whether its
    teacher answers so, and whether it is signed by whom it should be, are checked with --data,
    --teacher and --public-key. Image size, mean and std, and the network of another project's
    weights are what the store says that they were, where it does and you do not.

    \b
    Examples:
      ltd-pipe store verify labels.zarr --data train.beton
      ltd-pipe store verify labels.zarr --public-key alice.pub
      ltd-pipe store verify labels.zarr --data photos/train --teacher teacher.safetensors

    STORE is a folder, or a URL that 'store pull' takes.
    """
    from ltd_pipe.labels import SoftLabels
    from ltd_pipe.labels.manifest import StoreFolder, read_manifest
    from ltd_pipe.labels.remote import resolve_store
    from ltd_pipe.labels.signature import signature_check, verify_signature
    from ltd_pipe.labels.verify import verify_store

    if teachers and data is None:
        raise click.UsageError("--teacher needs --data: the images that it is asked about")
    if signer is not None and public_key is None:
        raise click.UsageError("--signer needs --public-key: the keys that are trusted")
    if data is None:
        options.refuse_options(
            {"image_size", "skip_bad"}, "is of the images: name them with --data"
        )
    if not teachers:
        options.refuse_options(
            {"device", *asked, *WEIGHTS}, "is of the teacher: name it with --teacher"
        )
    foreign.refuse_unused(*teachers)
    path = resolve_store(store, transfer, tell, signed=public_key is not None)
    # The signature first: it takes a moment, and without it the rest may not matter.
    manifest = read_manifest(StoreFolder(path))
    signed = verify_signature(path, public_key, signer) if public_key is not None else None
    # Without a teacher hashes alone are looked at: torch, which takes a second, is not needed.
    where, images = cast("torch.device", "cpu"), None
    if data is not None:
        opened = SoftLabels.open(path)
        if teachers:
            from ltd_pipe.device import choose_device
            from ltd_pipe.labels.verify import order_of_teachers
            from ltd_pipe.provenance import sha256_file

            where = choose_device(device)
            order = order_of_teachers(opened, [sha256_file(teacher) for teacher in teachers])
            teachers = tuple(teachers[at] for at in order)
        images = _open_images(opened, data, teachers, foreign, where)
    with counter("verify", None) as progress:
        checks = verify_store(path, images, progress)
    if images is not None and teachers:
        found = _ask(opened, teachers, foreign, where, images, **asked)
        checks = [*(check for check in checks if check.name != "teacher"), found]
    if read_manifest(StoreFolder(path)) != manifest:
        raise StoreError(path, "was replaced while it was verified", remedy="Run it again.")
    checks = sorted([*checks, signature_check(path, signed)], key=lambda check: not check.done)
    marks = {True: "ok     ", False: "not    "}
    lines = (f"{marks[check.done]} {check.name}: {check.detail}" for check in checks)
    say([vars(check) for check in checks], lines)


def _open_images(
    store: SoftLabels,
    data: Path,
    teachers: tuple[Path, ...],
    foreign: ModelOptions,
    device: torch.device,
) -> Beton | FolderStream:
    """As the store says that they were labelled."""
    known = store.attributes
    seen = known.labelling.image_shape if known.labelling else None
    if known.teachers and teachers:
        foreign = foreign.completed_by(known.teachers[0])
    if teachers and data.is_dir() and seen and seen[1] == seen[2]:
        foreign = replace(foreign, image_size=foreign.image_size or seen[1])
    images = open_images(
        data,
        foreign,
        device,
        teacher=teachers[0] if teachers else None,
        class_names=known.class_names,
        decoded=bool(teachers),
    )
    if teachers or not data.is_dir():
        # Of a folder, else, only hashes are looked at.
        store.require_shape(images.manifest.shape, str(data))
    return images


def _require_said_accuracy(
    store: SoftLabels, claimed: float | None, path: Path, own: CheckpointFacts | None
) -> None:
    """Refuse a store that says another accuracy of its teacher than the checkpoint does."""
    stated = own.model_dump().get("clean_accuracy") if own else None
    if claimed is not None and stated is not None and abs(claimed - stated) > _ROUNDING:
        raise StoreError(
            store.path,
            "says another clean accuracy of its teacher than the checkpoint does",
            expected=f"{stated:.2%}, as {path} says",
            found=f"{claimed:.2%}",
            remedy="One of the two was changed: ask who made the store.",
        )


def _ask(
    store: SoftLabels,
    teachers: tuple[Path, ...],
    foreign: ModelOptions,
    device: torch.device,
    images: Beton | FolderStream,
    *,
    sample: int,
    seed: int | None,
    tolerance: float | None,
) -> Check:
    from ltd_pipe.device import deterministic, full_float32
    from ltd_pipe.labels.verify import Check, recompute

    facts, stream = images.manifest, stream_of(images, device, resident=False)
    models = []
    for path, known in zip(teachers, store.attributes.teachers, strict=True):
        asked = foreign.completed_by(known)
        models.append(load_teacher(path, facts, asked, stream, strict=False))
        _require_said_accuracy(store, known.clean_accuracy, path, asked.own_facts(path))
    seed = secrets.randbits(32) if seed is None else seed
    total = store.num_samples * store.num_views
    with (
        deterministic(),
        full_float32(),
        counter("ask the teacher", min(sample, total)) as progress,
    ):
        found = recompute(
            store,
            models,
            stream,
            sample=sample,
            seed=seed,
            data=f"{facts.dataset} ({facts.split})",
            tolerance=tolerance,
            progress=progress,
        )
    logit = "" if found.worst_logit is None else f", of a logit {found.worst_logit:.2g}"
    return Check(
        "teacher",
        f"{found.answers:,} of {total:,} answers asked for again (seed {seed}): largest "
        f"difference of a probability {found.worst_probability:.2g}{logit}",
    )
