"""setup.sh: what it runs, what it says where it may not, and that it can be repeated."""

import os
import re
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
BENCH_LOCK = (ROOT / "requirements-bench.lock").read_text()
LOCKS = ("requirements.lock", "requirements-bench.lock")
FILES = ("setup.sh", "setup.cfg", "pyproject.toml", *LOCKS)
# What an empty machine still has: enough for the script to find out what is missing.
ESSENTIALS = (
    "bash",
    "cat",
    "dirname",
    "env",
    "flock",
    "git",
    "grep",
    "sed",
    "sha256sum",
    "g++",
    "ssh-keygen",
)
# Settings of whoever runs the tests.
FOREIGN = ("PYTHON", "TORCH_BACKEND", "UV_TORCH_BACKEND", "VIRTUAL_ENV")


def set_up(folder, *words, **variables):
    """Run setup.sh as make does."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return subprocess.run(
        [folder / "setup.sh", *words],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def locked(name):
    """The lock's lines of one package: its pin and its hashes."""
    return re.search(rf"^{name}==.*?[^\\]$", LOCK, re.MULTILINE | re.DOTALL)[0]


# ---------------------------------------------------------------- the lock


def test_every_package_of_the_lock_has_hashes():
    """So that what is installed is what was tested."""
    pins = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert len(pins) > 100
    assert all("--hash=sha256:" in pin for pin in pins)
    assert re.search(r"^torchattacks==3\.5\.1 \\\n +--hash=sha256:", BENCH_LOCK, re.MULTILINE)


def test_the_lock_names_no_host():
    """Mirrors and private indexes work: where packages come from is the user's setting."""
    for lock in (LOCK, BENCH_LOCK):
        assert "://" not in lock
        assert "--index" not in lock


def test_the_lock_serves_what_setup_cfg_asks_for():
    """A package added to setup.cfg without `make lock` would be missing on other machines."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    for requirement in map(Requirement, wanted.strip().splitlines()):
        name = canonicalize_name(requirement.name)
        version = re.search(rf"^{name}==([^ ]+)", LOCK, re.MULTILINE)
        assert version, requirement
        assert requirement.specifier.contains(version[1]), requirement


# ---------------------------------------------------------------- what it would run


@pytest.fixture
def fresh(tmp_path):
    """A clone in which nothing was set up yet."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_the_default_build_is_installed_with_hashes(fresh):
    """A new environment, uv from the lock, all packages by hash, then the project itself."""
    ended = set_up(fresh, "--dry-run")
    commands = ended.stdout.splitlines()
    assert ended.returncode == 0
    assert " -m venv --clear .venv" in commands[0]
    assert "pip install --quiet --require-hashes" in commands[1]
    assert "uv pip sync" in commands[2]
    assert (
        commands[2].strip().endswith("--require-hashes requirements.lock requirements-bench.lock")
    )
    assert "--no-deps --editable ." in commands[3]
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize("variable", ["TORCH_BACKEND", "UV_TORCH_BACKEND"])
def test_another_build_of_torch_is_resolved_anew(fresh, variable):
    """Its files have other hashes, and other libraries beside them."""
    *_, resolve, sync, _ = set_up(fresh, "--dry-run", **{variable: "cu130"}).stdout.splitlines()
    assert "uv pip compile" in resolve
    assert "--torch-backend cu130 --extra dev" in resolve
    assert resolve.strip().endswith("--output-file .venv/requirements.txt setup.cfg")
    assert sync.strip().endswith(
        "--torch-backend cu130 .venv/requirements.txt requirements-bench.lock"
    )


def test_the_torch_backend_is_remembered_until_it_is_emptied(fresh):
    """A later plain `make` must not download the other build."""
    (fresh / ".venv").mkdir()
    (fresh / ".venv/torch-backend").write_text("cpu\n")
    assert "--torch-backend cpu" in set_up(fresh, "--dry-run").stdout
    assert "--torch-backend" not in set_up(fresh, "--dry-run", TORCH_BACKEND="").stdout


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_a_python_that_does_not_serve_is_refused(fresh, python):
    """`false` answers the question for its version as an old Python does."""
    ended = set_up(fresh, PYTHON=python)
    assert ended.returncode == 1
    assert f"Python 3.11 to 3.13 is needed; looked at: {python}." in ended.stderr
    assert not (fresh / ".venv").exists()


# ---------------------------------------------------------------- system packages


@pytest.fixture
def bare_path(tmp_path):
    """A PATH without pkg-config, apt-get and sudo, but with a python3."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ESSENTIALS:
        (folder / name).symlink_to(shutil.which(name))
    (folder / "python3").symlink_to(Path(sys.executable).resolve())
    return folder


def test_without_apt_the_commands_are_named(fresh, bare_path):
    """One line each for apt, dnf and conda; nothing is touched."""
    ended = set_up(fresh, PATH=str(bare_path))
    assert ended.returncode == 1
    assert "missing: pkg-config libopencv-dev libturbojpeg0-dev" in ended.stderr
    assert "sudo apt-get install pkg-config libopencv-dev libturbojpeg0-dev\n" in ended.stderr
    assert "sudo dnf install opencv-devel turbojpeg-devel" in ended.stderr
    assert "conda install -c conda-forge opencv libjpeg-turbo" in ended.stderr
    assert not (fresh / ".venv").exists()


def test_with_apt_just_what_is_missing_is_installed(fresh, bare_path):
    """As root directly, otherwise through a sudo that asks for no password."""
    for name in ("apt-get", "sudo"):
        (bare_path / name).write_text("#!/bin/sh\n")
        (bare_path / name).chmod(0o755)
    commands = set_up(fresh, "--dry-run", PATH=str(bare_path)).stdout.splitlines()
    prefix = "" if os.geteuid() == 0 else "sudo -n "
    apt = f"{prefix}env DEBIAN_FRONTEND=noninteractive apt-get"
    assert commands[0].strip() == f"{apt} update -qq"
    assert commands[1].startswith(f"{apt} install -qq --yes --no-install-recommends pkg-config lib")


# ---------------------------------------------------------------- for real, with few packages


SMALL = """
[metadata]
name = ltd-pipe
version = 0
[options]
py_modules = small
[options.entry_points]
console_scripts =
    ltd-pipe = small:main
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A project of the same set-up whose locks hold uv, click and torchattacks alone, set up."""
    folder = tmp_path_factory.mktemp("small")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "setup.cfg").write_text(SMALL)
    (folder / "small.py").write_text("def main():\n    import click\n    click.echo('works')\n")
    (folder / "requirements.lock").write_text(f"{locked('uv')}\n{locked('click')}\n")
    ended = set_up(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def require_sound(folder):
    command = [folder / ".venv/bin/ltd-pipe"]
    assert subprocess.check_output(command, text=True) == "works\n"


@pytest.mark.slow
@pytest.mark.nightly
def test_set_up_installs_a_working_command(small):
    """The project, editable, with what it imports."""
    require_sound(small)


@pytest.mark.slow
@pytest.mark.nightly
def test_set_up_installs_torchattacks_without_what_it_pins(small):
    """Its `requests~=2.25.1` would make every other package's resolution fail."""
    packages = {path.name for path in small.glob(".venv/lib/python3*/site-packages/*")}
    assert {"torchattacks", "click"} <= packages
    assert "requests" not in packages


@pytest.mark.slow
@pytest.mark.nightly
def test_the_second_time_is_silent_and_quick(small):
    """Nothing is said, nothing is run, and it takes under 3 s."""
    begin = time.monotonic()
    ended = set_up(small)
    assert time.monotonic() - begin < 3
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def remove_a_package(folder, name="click"):
    found = list(folder.glob(f".venv/lib/python3*/site-packages/{name}*"))
    assert found
    for path in found:
        shutil.rmtree(path)


def change_a_version(folder):
    uv = [folder / ".venv/bin/uv", "pip", "install", "--quiet", "--python"]
    subprocess.run([*uv, folder / ".venv/bin/python", "click==8.1.7"], check=True)


DAMAGE = {
    "a package removed": remove_a_package,
    "a package of the benchmarks removed": partial(remove_a_package, name="torchattacks"),
    "another version": change_a_version,
    "the command removed": lambda folder: (folder / ".venv/bin/ltd-pipe").unlink(),
    "the interpreter gone": lambda folder: (folder / ".venv/bin/python").unlink(),
    "setup.cfg changed": lambda folder: (folder / "setup.cfg").write_text(f"{SMALL}\n"),
    "the benchmarks' lock changed": lambda folder: (folder / LOCKS[1]).write_text(
        f"{BENCH_LOCK}\n"
    ),
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed_and_repaired(small, damage):
    """Set-up works again afterwards, and then is quiet again."""
    damage(small)
    assert "installing the packages" in set_up(small).stderr
    require_sound(small)
    assert set_up(small, "--dry-run").stdout == ""


@pytest.mark.slow
@pytest.mark.nightly
def test_two_at_once_wait_for_each_other(small):
    """`make repro` and `make test` side by side: one installs, the other finds it done."""
    remove_a_package(small)
    both = [
        subprocess.Popen([small / "setup.sh"], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == ""
    assert "installing the packages" in said[1]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_moved_folder_gets_a_new_environment(small):
    """Commands in .venv name their interpreter by its path."""
    moved = small.rename(small.with_name("moved"))
    try:
        assert "making .venv" in set_up(moved).stderr
        require_sound(moved)
    finally:
        moved.rename(small)
