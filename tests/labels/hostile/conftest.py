"""Hostile stores: a sound one, changed by someone who can make every checksum right."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import google_crc32c
import pytest

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "labels"


class Forge:
    """A copy of the golden store in the hands of an attacker."""

    def __init__(self, path: Path, kind: str = "golden") -> None:
        self.path = path
        shutil.copytree(GOLDEN / f"{kind}.zarr", path)

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
        files = [path for path in self.path.rglob("*") if path.is_file()]
        names = {path.relative_to(self.path).as_posix() for path in files} - {"MANIFEST.sha256"}
        return self.write_manifest({}, names)

    def write_manifest(self, hashes: dict[str, str], real: Iterable[str]) -> Path:
        """List some files by any hashes and others by those that they have."""
        found = {name: hashlib.sha256((self.path / name).read_bytes()).hexdigest() for name in real}
        lines = [f"{digest}  {name}\n" for name, digest in sorted({**hashes, **found}.items())]
        (self.path / "MANIFEST.sha256").write_text("".join(lines))
        return self.path


@pytest.fixture
def forge(tmp_path) -> Forge:
    """A store to tamper with."""
    return Forge(tmp_path / "hostile.zarr")


@pytest.fixture
def forge_topk(tmp_path) -> Forge:
    """Of sparse labels."""
    return Forge(tmp_path / "hostile.zarr", "golden_topk")


@pytest.fixture
def forge_views(tmp_path) -> Forge:
    """Of two views of each image."""
    return Forge(tmp_path / "hostile.zarr", "golden_views")


class Victim:
    """A process that uses stores; see victim.py."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "victim.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def use(self, path: Path) -> dict:
        """What came of using a store: error, message, cpu_s, peak_mib."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="session")
def victim():
    """One process for all attacks."""
    process = Victim()
    yield process
    process.close()


@pytest.fixture
def refused_cheaply(victim):
    """A function that asserts that a store is refused_cheaply, within limits and in one line."""

    def check(path: Path, match: str, peak_mib: float = 64, cpu_s: float = 5) -> dict:
        found = victim.use(path)
        assert found["error"] in ("StoreError", "SignatureError"), found
        assert "uncaught" not in found
        assert re.search(match, found["message"]), found
        # Nothing of a stranger's moves the cursor or breaks a log.
        assert found["message"].isprintable()
        assert len(found["message"]) < 2000
        assert found["peak_mib"] < peak_mib, found
        assert found["cpu_s"] < cpu_s, found
        return found

    return check
