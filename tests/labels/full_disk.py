"""Labels onto a disk that is full, at one place after the other, and onto one that is read-only.

python full_disk.py FOLDER, in a mount namespace of its own (unshare -Urm); prints, as JSON, the
errors that were seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from small_labelling import label

from ltd_pipe.errors import WriteError

PAGE = 4096


def mount(folder: Path, *options: str) -> None:
    """A file system in memory, of 2 MiB."""
    settings = ",".join(["size=2M", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "tmpfs", folder], check=True)


def fill(ballast: Path, left: int) -> None:
    """Leave so many pages of the disk."""
    with ballast.open("wb", buffering=0) as handle:
        try:
            while handle.write(bytes(PAGE)):
                pass
        except OSError:
            handle.truncate(handle.tell() // PAGE * PAGE - left * PAGE)


def attempt(target: Path) -> str | None:
    """The error of a labelling, or None."""
    try:
        label(target)
    except WriteError as error:
        assert not target.exists()
        return str(error)
    return None


def main() -> None:
    """Try every amount of room that is too little, and go on each time."""
    torch.set_num_threads(1)
    disk, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
    mount(disk)
    expected, errors = label(elsewhere / "a.zarr"), []
    for left in range(0, 120, 5):
        target = disk / f"{left}.zarr"
        fill(disk / "ballast", left)
        error = attempt(target)
        (disk / "ballast").unlink()
        if error:
            errors.append(error)
            assert label(target) == expected
        subprocess.run(["rm", "-r", target], check=True)
    mount(disk, "remount", "ro")
    errors.append(attempt(disk / "ro.zarr"))
    mount(disk, "remount", "rw")
    assert label(disk / "ro.zarr") == expected
    sys.stdout.write(json.dumps(errors))


if __name__ == "__main__":
    main()
