"""Hostile stores: a sound one, changed by someone who can make every checksum right."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest

GOLDEN = Path(__file__).parents[1] / "labels" / "golden.zarr"


class Forge:
    """A copy of the golden store in the hands of an attacker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(GOLDEN, path)

    def metadata(self, change: Callable[[dict], None]) -> None:
        """Change the group's zarr.json."""
        path = self.path / "zarr.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def array(self, name: str, change: Callable[[dict], None]) -> None:
        """Change an array's zarr.json, and the consolidated metadata with it."""
        path = self.path / name / "zarr.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        self.metadata(
            lambda group: group["consolidated_metadata"]["metadata"].update({name: content})
        )

    def chunk(self, name: str, payload: bytes) -> None:
        """Write a chunk file with a checksum that is right."""
        checksum = google_crc32c.value(payload).to_bytes(4, "little")
        (self.path / name).write_bytes(payload + checksum)

    def sign(self) -> Path:
        """Make the manifest fit."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        names = sorted(path.relative_to(self.path).as_posix() for path in files)
        (self.path / "MANIFEST.sha256").write_text(
            "".join(
                f"{hashlib.sha256((self.path / name).read_bytes()).hexdigest()}  {name}\n"
                for name in names
                if name != "MANIFEST.sha256"
            )
        )
        return self.path


@pytest.fixture
def forge(tmp_path) -> Forge:
    """A store to tamper with."""
    return Forge(tmp_path / "hostile.zarr")
