"""Every file of every kind of store, damaged in every kind of place.

Verification finds it; and whoever trains without verification gets the bytes that were written,
or an error.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_store import WRITERS
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.on_device import LabelsOnDevice
from ltd_pipe.labels.verify import verify_store

HERE = Path(__file__).parent
MANIFEST = "MANIFEST.sha256"
FILES = [
    (kind, path.relative_to(HERE / f"{kind}.zarr").as_posix())
    for kind in WRITERS
    for path in sorted((HERE / f"{kind}.zarr").rglob("*"))
    if path.is_file()
]
each_file = pytest.mark.parametrize(("kind", "name"), FILES, ids=["/".join(x) for x in FILES])


def train(path: Path) -> list[bytes]:
    """Everything that training can take from a store, as bytes."""
    store = SoftLabels.open(path)
    order = np.arange(store.num_samples)
    taken = [store.labels, store.sample_hash, store.gather(order)]
    if store.has_logits:
        taken.append(store.gather_logits(order))
    if store.top_k is not None:
        taken += store.gather_topk(order)
    for view in range(store.num_views):
        for resident in (False, True):
            device = LabelsOnDevice(store, torch.device("cpu"), resident=resident)
            taken.append(device.rows(order, view=view).numpy())
    return [array.tobytes() for array in taken]


ORIGINALS = {kind: train(HERE / f"{kind}.zarr") for kind in WRITERS}


def require_found(store: Path, kind: str, what: str) -> None:
    """Verification raises; training raises or gets what was written."""
    with pytest.raises(StoreError):
        verify_store(store)
        pytest.fail(f"{what} was not found")
    try:
        taken = train(store)
    except StoreError:
        return
    assert taken == ORIGINALS[kind], f"{what} was used in silence"


def positions(name: str, size: int) -> Iterator[int]:
    """First, last and middle byte; of chunks also the checksum's and the padding's."""
    yield from {0, 1, size // 4, size // 2, 3 * size // 4, size - 2, size - 1}
    if "/c/" in name:
        yield from range(size - 4, size)
        # The last chunk has one row of four; the byte before the checksum is padding.
        yield size - 5


@pytest.fixture
def store(kind, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(HERE / f"{kind}.zarr", tmp_path / "labels.zarr")


@each_file
def test_a_changed_byte(store, kind, name):
    """One bit, and all bits, at each kind of place."""
    path = store / name
    content = path.read_bytes()
    for position in sorted({*positions(name, len(content))}):
        for bits in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= bits
            path.write_bytes(damaged)
            require_found(store, kind, f"{name}: byte {position} with {bits:#x}")


LENGTHS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: content[:0],
    "halved": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "one line feed more": lambda content: content + b"\n",
    "doubled": lambda content: content * 2,
    "zeros": lambda content: bytes(len(content)),
    "turned around": lambda content: content[::-1],
    "of Windows": lambda content: content.replace(b"\n", b"\r\n") + b"\r\n",
}


@each_file
def test_a_changed_length(store, kind, name):
    """Cut, doubled, emptied, gone."""
    path = store / name
    content = path.read_bytes()
    for what, change in LENGTHS.items():
        path.write_bytes(change(content))
        require_found(store, kind, f"{name} {what}")
    path.unlink()
    require_found(store, kind, f"{name} missing")


@each_file
def test_files_that_changed_places(store, kind, name):
    """With each other file: of equal size and sound in itself, or not."""
    for other in (other for owner, other in FILES if owner == kind and other > name):
        content, others = (store / name).read_bytes(), (store / other).read_bytes()
        if content == others:
            continue
        (store / name).write_bytes(others)
        (store / other).write_bytes(content)
        require_found(store, kind, f"{name} and {other} exchanged")
        (store / name).write_bytes(content)
        (store / other).write_bytes(others)


def lines_changed(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each kind of change of each line of a manifest."""
    for number, line in enumerate(lines):
        before, after = lines[:number], lines[number + 1 :]
        digest, name = line.split("  ")
        flipped = f"{int(digest[0], 16) ^ 1:x}{digest[1:]}"
        yield f"line {number} left out", [*before, *after]
        yield f"line {number} twice", [*before, line, line, *after]
        yield f"line {number} of another hash", [*before, f"{flipped}  {name}", *after]
        yield f"line {number} of another name", [*before, f"{digest}  {name}x", *after]
        yield f"line {number} with a star", [*before, f"{digest} *{name}", *after]
        yield f"line {number} first", [line, *before, *after] if number else [*after, line]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_changed_line_of_the_manifest(store, kind):
    """Whatever it names: a chunk, metadata, the card."""
    path = store / MANIFEST
    lines = path.read_text().splitlines()
    for what, changed in lines_changed(lines):
        path.write_text("".join(f"{line}\n" for line in changed))
        require_found(store, kind, what)


def nodes(content: object, place: tuple = ()) -> Iterator[tuple]:
    """Where the values of a JSON document are."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from nodes(value, (*place, key))


def holder(content, place):
    """What the last key of a place is in."""
    for key in place[:-1]:
        content = content[key]
    return content


METADATA = [(kind, name) for kind, name in FILES if name.endswith("zarr.json")]


@pytest.mark.parametrize(("kind", "name"), METADATA, ids=["/".join(x) for x in METADATA])
def test_a_changed_key_of_the_metadata(store, kind, name):
    """Each left out, and each of another value; the hash in the manifest finds it."""
    path = store / name
    text = path.read_text()
    for place in nodes(json.loads(text)):
        for what in ("left out", "changed"):
            content = json.loads(text)
            inside = holder(content, place)
            if what == "left out":
                del inside[place[-1]]
            else:
                inside[place[-1]] = 7 if inside[place[-1]] != 7 else 8
            path.write_text(json.dumps(content))
            require_found(store, kind, f"{name}: {place} {what}")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_chunk_whose_every_byte_is_changed_in_turn(store, kind, resign):
    """CRC-32C alone finds it, with a manifest that was made to fit."""
    array = "topk_probs" if kind == "golden_topk" else "soft_labels"
    path = next(path for path in (store / array / "c" / "0").rglob("0") if path.is_file())
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        resign(store)
        with refused(StoreError, where=store, what="CRC-32C"):
            train(store)


@pytest.mark.parametrize("kind", WRITERS)
def test_bits_flipped_at_random(store, kind):
    """One to three, anywhere in any files; the seed says which."""
    random_ = random.Random(f"{kind} 0")  # noqa: S311
    names = [name for owner, name in FILES if owner == kind]
    for _ in range(100):
        originals: dict[str, bytes] = {}
        for name in random_.sample(names, random_.randint(1, 3)):
            originals[name] = (store / name).read_bytes()
            damaged = bytearray(originals[name])
            damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
            (store / name).write_bytes(damaged)
        require_found(store, kind, f"flips in {sorted(originals)}")
        for name, content in originals.items():
            (store / name).write_bytes(content)
    assert train(store) == ORIGINALS[kind]
