"""Training images from JPEG files: our beton and seeded crops against torchvision's DataLoader.

    python bench/streaming.py                                10,000 files; 10 minutes, 1 GB
    python bench/streaming.py --photographs FOLDER           half of them parts of your own
    python bench/streaming.py --quick                        tiny sizes: does it run?
    python bench/streaming.py --json bench/results/streaming.json

Both give batches of randomly cropped and flipped uint8 images from files in the page cache, with
the same number of decoding threads or processes. A round is one pass over all images in random
order; the ways take turns, round by round.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from hardware import describe_machine, describe_software, load
from memory import read_through
from photographs import make_photographs, mean_bytes
from PIL import Image
from tables import ratio_table, table, time_table
from timing import Call, Rounds, Spread, interleave
from torchvision import datasets
from torchvision.transforms import v2

from ltd_pipe import rng
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import PrepareParams

if TYPE_CHECKING:
    from timing import Comparison

_BATCH = 64
_SCALE = (0.08, 1.0)
_CPU = torch.device("cpu")
THEIRS, SAME = "ImageFolder, the files", "ImageFolder, files of the beton's size"
OURS, BARE = "beton, seeded crops", "beton, decoded only"


@click.command(context_settings={"max_content_width": 100})
@click.option("--photographs", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--count", default=10_000, show_default=True, help="Files.")
@click.option(
    "--sides",
    type=(int, int),
    default=(256, 500),
    show_default=True,
    help="Shorter sides of the files, in pixels.",
)
@click.option("--size", default=224, show_default=True, help="Pixels of the beton and of a crop.")
@click.option("--quality", default=90, show_default=True, help="Of the beton's JPEGs.")
@click.option("--workers", default=2, show_default=True, help="Decoding threads or processes.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny sizes and few rounds: a test, no measurement.")
@click.option("--seed", default=0, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write results."
)
def main(
    quick: bool, rounds: int, folder: Path | None, target: Path | None, **options: Any
) -> None:
    """Measure how fast training images come from JPEG files."""
    if quick:
        options |= {"count": 40, "sides": (40, 60), "size": 32}
        rounds = 2
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "software": describe_software() | _versions(),
        "quick": quick,
        **{name: value for name, value in options.items() if name != "photographs"},
        "own_photographs": options["photographs"] is not None,
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ltd-bench-", dir=folder) as made:
        found, results["files"] = _measure(Path(made), Rounds(rounds, rounds, 0), results, options)
    results |= found.to_json()
    _print(results, found)
    if target is not None:
        target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _measure(
    inside: Path, rounds: Rounds, results: dict[str, Any], options: dict[str, Any]
) -> tuple[Comparison, dict[str, int]]:
    count, size, seed, workers = (options[x] for x in ("count", "size", "seed", "workers"))
    given = options["photographs"]
    make_photographs(inside / "photographs", count, options["sides"], seed, given)
    params = PrepareParams(
        dataset="folder",
        path=str(inside / "photographs"),
        image_size=size,
        encoding="jpeg",
        jpeg_quality=options["quality"],
        validation_fraction=0,
        workers=workers,
    )
    beton = inside / "train.beton"
    write_beton(open_source(params, "train"), beton, params, "train")
    _write_same(inside, beton, options["quality"])
    files = {
        "file_bytes": mean_bytes(inside / "photographs"),
        "same_size_file_bytes": mean_bytes(inside / "same"),
        "beton_bytes": beton.stat().st_size // count,
    }
    read_through([beton, *inside.rglob("*.jpg")])
    ways = {
        THEIRS: _image_folder(inside / "photographs/train", size, workers, seed),
        SAME: _image_folder(inside / "same/train", size, workers, seed),
        BARE: _streamed(beton, workers, seed, None),
        OURS: _streamed(beton, workers, seed, Augmentation(flip=True, crop_scale=_SCALE)),
    }
    results["load_before"] = load()
    clock = interleave(ways, rounds)
    results["load_after"] = load()
    return clock.comparison(f"{size}×{size}", THEIRS, count, "images"), files


def _write_same(inside: Path, beton: Path, quality: int) -> None:
    """The beton's pixels as files: what torchvision would have to decode of the same."""
    stream = ImageStream(open_beton(beton), _CPU, resident=False)
    for batch in stream.batches(np.arange(len(open_beton(beton).labels)), _BATCH):
        for row, label, image in zip(batch.rows, batch.labels.tolist(), batch.images, strict=True):
            path = inside / "same/train" / f"class{label}" / f"{row:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(path, quality=quality)


def _image_folder(folder: Path, size: int, workers: int, seed: int) -> Call:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=_SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    images = datasets.ImageFolder(folder, transform)

    def run(number: int) -> None:
        loader = torch.utils.data.DataLoader(
            images,
            batch_size=_BATCH,
            shuffle=True,
            num_workers=workers,
            generator=torch.Generator().manual_seed(seed + number),
        )
        for _ in loader:
            pass

    return run


def _streamed(path: Path, workers: int, seed: int, augmentation: Augmentation | None) -> Call:
    stream = ImageStream(open_beton(path), _CPU, resident=False, workers=workers)
    samples = np.arange(len(open_beton(path).labels))

    def run(number: int) -> None:
        order = rng.permutation(rng.stream_key(seed, "order", number), samples)
        for batch in stream.batches(order, _BATCH):
            if augmentation is not None:
                augment(batch.images, batch.index, augmentation, seed=seed, epoch=number)

    return run


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torchvision", "ffcv", "pillow")}


def _print(results: dict[str, Any], found: Comparison) -> None:
    if results["quick"]:
        print("--quick: tiny sizes and few rounds. These numbers mean nothing.\n")
    machine = results["machine"]
    print(", ".join(f"{key} {machine[key]}" for key in machine))
    print(", ".join(f"{name} {version}" for name, version in results["software"].items()))
    files = results["files"]
    print(
        f"{results['count']:,} files of {files['file_bytes']:,} bytes, shorter sides "
        f"{results['sides'][0]} to {results['sides'][1]}; beton of {results['size']} pixels, "
        f"quality {results['quality']}: {files['beton_bytes']:,} bytes an image; batches of "
        f"{_BATCH}, {results['workers']} workers, seed {results['seed']}; load "
        f"{results['load_before']} before, {results['load_after']} after.\n"
    )
    print(time_table([found]))
    print("\n## Images a second of processor time\n")
    rows = [
        [way, f"{found.amount / Spread.of(seconds).median:.3g}"]
        for way, seconds in found.cpu.items()
    ]
    print(table(["way", "images/s"], rows))
    print("\n## Ratios: time over the baseline's in the same round\n")
    print(ratio_table([(f"{results['count']:,} files", found)]))


if __name__ == "__main__":
    main()
