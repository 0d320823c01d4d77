"""Small stores of several chunks, the same bytes each time."""

import hashlib
from pathlib import Path

import pytest
from made_photos import make_photos

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
