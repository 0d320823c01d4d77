"""Small stores of several chunks, the same bytes each time."""

import hashlib
from pathlib import Path

import pytest
from made_answers import Answers, make_answers


@pytest.fixture
def answers() -> Answers:
    """Eleven samples of three classes."""
    return make_answers()


@pytest.fixture
def making():
    """The function that makes answers of other sizes."""
    return make_answers


@pytest.fixture
def store(answers, tmp_path) -> Path:
    """A store of three chunks, the last one part padding."""
    return answers.write(tmp_path / "labels.zarr")


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
