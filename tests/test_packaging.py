"""`pip install .`: what the wheel holds, and that it works where there is no source tree."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ltd_pipe.errors import install_extra

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git tracks or would track: building must not write into the tree."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel that pip builds; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, source], check=True)
    (built,) = folder.glob("ltd_pipe-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that the wheel was unpacked into, as pip does it."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", folder, wheel], check=True)
    return folder


def run(installed, *words):
    """A command of the installed package, run far from the source tree."""
    # Paths of PYTHONPATH come before those of the editable installation.
    paths = f"{installed}{os.pathsep}{sysconfig.get_path('purelib')}"
    return subprocess.run(
        [installed / "bin" / "ltd-pipe", *words],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_all_code_and_data(source, wheel):
    """Every module and data file of the three packages, the licence, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    expected = {
        f"ltd_pipe/{path.relative_to(source / root)}"
        for folder, root in (("pipeline", "pipeline"), ("recipes", "."), ("stages", "."))
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    assert found == expected
    assert licences


def test_the_installed_command_runs(installed):
    """`ltd-pipe --help` lists the commands, `--version` tells the wheel's."""
    ended = run(installed, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "prepare" in ended.stdout
    assert run(installed, "--version").stdout.startswith("ltd-pipe, version 0.")


def test_recipes_are_installed_with_it(installed):
    """They are read from the package, not from the working directory."""
    ended = run(installed, "recipe", "show", "digits")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (ROOT / "recipes" / "digits.yaml").read_text()


def test_a_store_is_read_by_the_installed_library(installed):
    """`from ltd_pipe.labels import SoftLabels` is what other projects write."""
    code = "import ltd_pipe.labels; print(ltd_pipe.labels.SoftLabels, ltd_pipe.labels.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=installed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in ended.stdout


def test_only_one_name_is_installed(wheel):
    """A user's own `pipeline`, `stages` or `recipes` meets none of ours."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"ltd_pipe"}


@pytest.mark.parametrize(
    "command",
    [
        ["bin/ltd-pipe", "recipe", "show", "digits"],
        [sys.executable, "-m", "ltd_pipe", "recipe", "show", "digits"],
        [sys.executable, "-c", "import ltd_pipe.labels, ltd_pipe.stages.train"],
    ],
    ids=["program", "module", "library"],
)
def test_folders_of_the_users_change_nothing(installed, command, tmp_path):
    """The working directory comes first on Python's path."""
    for name in ("pipeline", "stages", "recipes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
        (tmp_path / name / "digits.yaml").write_text("not: ours")
    paths = os.pathsep.join([str(tmp_path), str(installed), sysconfig.get_path("purelib")])
    program, *words = command
    ended = subprocess.run(
        [installed / program, *words],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    if words[-1] == "digits":
        assert ended.stdout == (ROOT / "recipes" / "digits.yaml").read_text()


def test_nothing_asks_an_index_for_this_package():
    """`pip install 'ltd-pipe[onnx]'` finds nothing: what an extra needs is named instead."""
    places = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*")]
    places += [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")]
    wrong = re.compile(r"install ['\"]?ltd-pipe")
    assert [path.name for path in places if wrong.search(path.read_text())] == []


@pytest.mark.parametrize(("extra", "package"), [("onnx", "onnxscript>="), ("parquet", "pyarrow>=")])
def test_a_missing_extra_is_said_by_its_packages(extra, package):
    """Which pip can install, whether we run from a clone or from a wheel."""
    assert install_extra(extra).startswith("Run: pip install ")
    assert f"'{package}" in install_extra(extra)
