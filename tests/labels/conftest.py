"""Small stores of several chunks, the same bytes each time."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_answers import Answers
from made_photos import make_photos

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store

GOLDEN = Path(__file__).parent / "golden.zarr"


@pytest.fixture
def golden() -> Path:
    """A store that is checked in; never write to it."""
    return GOLDEN


@pytest.fixture
def resign():
    """A function that makes the manifest fit whatever a store now holds."""

    def write_manifest(store: Path) -> None:
        manifest = store / "MANIFEST.sha256"
        manifest.unlink(missing_ok=True)
        files = sorted(
            path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()
        )
        lines = [
            f"{hashlib.sha256((store / name).read_bytes()).hexdigest()}  {name}\n" for name in files
        ]
        manifest.write_text("".join(lines))

    return write_manifest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Pictures and labels, written once, since a store waits for the disk; only copied."""
    made = make_photos(tmp_path_factory.mktemp("made") / "photos")
    made.store()
    return made


@pytest.fixture
def photos(made, tmp_path):
    """Twelve pictures of three classes, with their labels."""
    return made.copy(tmp_path / "made")


@pytest.fixture
def source(store) -> SoftLabels:
    """That store, opened to make others of it."""
    return SoftLabels.open(store)


@pytest.fixture
def parts(answers, tmp_path):
    """A function that writes some rows as stores of their own and opens them."""

    def write(*pieces, **options) -> list[SoftLabels]:
        stores = []
        for number, piece in enumerate(pieces):
            path = tmp_path / f"part-{number}.zarr"
            answers.permuted(np.arange(11)[piece]).write(path, replace=True, **options)
            stores.append(SoftLabels.open(path))
        return stores

    return write


@pytest.fixture
def other_teacher(answers):
    """A function that gives the same samples with another teacher's logits and other facts."""

    def give(seed=1, **changed) -> Answers:
        logits = np.random.default_rng(seed).standard_normal(answers.logits.shape) * 3
        teacher = answers.attributes.teachers[0].model_copy(update={"sha256": f"{seed:064x}"})
        facts = answers.attributes.model_copy(update={"teachers": (teacher,)} | changed)
        return replace(answers, attributes=facts, logits=logits.astype(np.float32))

    return give


@pytest.fixture
def rows_of():
    """A function that reads one array of a store that must be sound."""

    def read(path: Path, name: str = "soft_labels") -> np.ndarray:
        verify_store(path)
        return SoftLabels.open(path).arrays[name].read()

    return read
