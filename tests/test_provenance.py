"""What an interrupted run's state is named after, and whose code made a result."""

import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ltd_pipe import provenance
from ltd_pipe.provenance import WORK, code_digest, import_closure

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of our code."""
    root = tmp_path_factory.mktemp("package") / "ltd_pipe"
    shutil.copytree(ROOT / "pipeline", root, ignore=shutil.ignore_patterns("*.pyc"))
    return root


def changed_work(package, name, change):
    """The work that a change of a file restarts."""
    path = package / name
    before, text = digests(package), path.read_text()
    path.write_text(change(text))
    after = digests(package)
    path.write_text(text)
    return {work for work in WORK if before[work] != after[work]}


def digests(package):
    code_digest.cache_clear()
    return {work: code_digest(work, root=package) for work in WORK}


def more_code(text):
    return f"{text}\nADDED = 1\n"


# Reports, cards, commands, files and what is made of finished stores.
DECIDES_NOTHING = [
    "report/page.py",
    "report/page.html.j2",
    "export/card.py",
    "labels/card.py",
    "labels/derive.py",
    "publish.py",
    "stages/train.py",
]
TRAINING = {"teacher", "student"}
MEASURING = {"evaluate", "audit"}
DECIDES = {
    "training/step.py": TRAINING,
    "objectives/distillation.py": TRAINING,
    "evaluation/audit.py": {"audit"},
    "evaluation/robustness.py": MEASURING,
    "labels/labelling.py": {"label"},
    "models/networks.py": TRAINING | MEASURING | {"label"},
    "images/stream.py": TRAINING | MEASURING | {"label"},
    "rng.py": TRAINING | MEASURING | {"label"},
}


@pytest.mark.parametrize("name", DECIDES_NOTHING)
def test_code_that_no_number_goes_through_restarts_nothing(package, name):
    """A state's name is the same after such a change."""
    assert changed_work(package, name, more_code) == set()


@pytest.mark.parametrize(("name", "restarted"), DECIDES.items(), ids=DECIDES)
def test_code_restarts_the_work_that_runs_it(package, name, restarted):
    """And no other."""
    assert changed_work(package, name, more_code) == restarted


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"# A comment.\n{text}",
        lambda text: text.replace('"""', '"""Words. ', 1),
        lambda text: text.replace("if TYPE_CHECKING:\n", "if TYPE_CHECKING:\n    import ast\n", 1),
    ],
    ids=["comment", "docstring", "import for types"],
)
def test_words_about_code_restart_nothing(package, change):
    """What does not run decides nothing."""
    assert changed_work(package, "training/step.py", change) == set()


def test_work_that_is_not_there_is_no_work(tmp_path):
    """A renamed module cannot leave a key that depends on nothing."""
    with pytest.raises(ModuleNotFoundError):
        code_digest("label", root=tmp_path)


# Options, wiring, warnings, pictures, files that are fetched or written, and what lies below all.
UNDECIDING = (
    *("stages", "stages.*", "params", "params.*", "evaluation", "evaluation.*", "training"),
    *("distributed", "report.surface"),
    *("labels.card", "labels.derive", "labels.remote", "labels.files", "labels.verify"),
    *("labels.labelling", "labels.writer"),
    *("models.foreign", "images.sources"),
)


@pytest.mark.parametrize("kind", WORK)
def test_all_that_a_command_imports_is_its_work_or_decides_nothing(kind):
    """So that no number goes through code that the key does not know."""
    command = {"student": "train"}.get(kind, kind)
    work = import_closure(*(f"ltd_pipe.{name}" for name in WORK[kind]))
    other = import_closure(f"ltd_pipe.stages.{command}").keys() - work.keys()
    names = {name.removeprefix("ltd_pipe.") for name in other}
    unknown = {name for name in names if not any(fnmatch(name, known) for known in UNDECIDING)}
    assert unknown == set()


def test_the_commit_of_the_working_folder_is_known_where_there_is_one(tmp_path, monkeypatch):
    """With a mark where tracked files differ from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None
    (tmp_path / "params.yaml").write_text("a: 1\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True)
    assert provenance.commit() == head[:12]
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert provenance.commit() == f"{head[:12]}+"
