"""Fresh copies of this project as a user has it, and DVC run in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def dvc(folder, *words):
    """Run DVC; its output."""
    # DVC starts `python`: the one that runs the tests, unless the project has programs of its own.
    programs = (folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
    path = os.pathsep.join(map(str, programs))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_params(folder, recipe, changes):
    """Make a recipe, with sections changed, the params.yaml of a folder."""
    content = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    for section, values in changes.items():
        content[section] = content[section] | values if isinstance(values, dict) else values
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def commit(folder):
    """Make a folder a git repository with all that it holds."""
    for words in (["init"], ["add", "."], ["commit", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def clone(folder):
    """Copy what git tracks, and what it would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        here = ROOT / name
        if (here.is_file() or here.is_symlink()) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here, folder / name, follow_symlinks=False)
