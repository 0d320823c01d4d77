"""Stages under torchrun, and the example for two machines: two of its processes on this one."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ltd_pipe.evaluation.bench import Journal
from ltd_pipe.models.facts import read_facts
from ltd_pipe.stages.cli import main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(**more):
    path = f"{BIN}:{os.environ['PATH']}"
    return (
        os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | more
    )


@pytest.mark.slow
def test_two_machines_train_one_student(project):
    """examples/two_machines.sh, started twice as it says; the first process publishes."""
    command = ["bash", ROOT / "examples/two_machines.sh", "localhost", "--label-kind", "onehot"]
    settings = environment(PROCESSES="1", PORT=str(free_port()))
    machines = [
        subprocess.Popen(
            [*command, "--out", "data/pair"],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [machine.communicate() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "".join(out for out, _ in outputs).count("data/pair/model.safetensors: epoch") == 1
    assert read_facts(Path("data/pair/model.safetensors"))["kind"] == "student"


def test_only_the_first_process_does_what_is_not_shared(project, monkeypatch, capsys):
    """Under torchrun a second `export` would only be in the first one's way."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["ltd-pipe", "export", "no-such-file"])
    main()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_the_first_process_says_that_all_were_interrupted(monkeypatch, capsys, rank, said):
    """Each gets the Ctrl-C, and ends with its code."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["ltd-pipe", "evaluate", "m.safetensors"])
    monkeypatch.setattr("ltd_pipe.stages.cli.cli.main", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err.count("Interrupted") == said


# --- Evaluations and audits, whose batches the processes share.


STUDENT = "data/student/model.safetensors"
TEACHER = "data/teacher/model.safetensors"
# Six batches, the last one smaller.
MEASURED = ("--images", "17", "--batch-size", "3", "--transfer-from", TEACHER)
# Its thousands of steps take seconds on a batch.
AUTOATTACK = ("--autoattack", "standard", "--images", "8")
EVALUATE = ("evaluate", STUDENT, *MEASURED, "--attacks", "fgsm", "--pgd-restarts", "2")
AUDIT = ("audit", STUDENT, *MEASURED, "--steps", "3", "--square-queries", "20", "--report-only")


def together(processes, *words, program=("-m", "ltd_pipe")):
    """Run a stage under torchrun."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*runner, f"--nproc-per-node={processes}", *program, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder):
    """All files of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(name):
    """Where an evaluation goes."""
    return "--metrics", f"{name}/metrics.json", "--out", f"{name}/evaluation"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "more"),
    [(2, AUTOATTACK), (4, ("--eps-grid", "auto"))],
    ids=["2, AutoAttack", "4"],
)
def test_any_number_of_processes_evaluates_alike(ltd_pipe, project, processes, more):
    """The same bytes in all files, of each attack; the first process alone prints."""
    alone = ltd_pipe(*EVALUATE, *more, *results("alone"))
    assert alone.code == 0, alone.err
    done = together(processes, *EVALUATE, *more, *results("together"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.out
    assert done.stderr.count("FGSM: accuracy") == 1
    assert files(Path("together")) == files(Path("alone"))


@pytest.mark.slow
def test_two_processes_audit_alike(ltd_pipe, project):
    """The same findings, curve and loss surface."""
    alone = ltd_pipe(*AUDIT, "--out", "alone")
    assert alone.code == 0, alone.err
    done = together(2, *AUDIT, "--out", "pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.out
    assert files(Path("pair")) == files(Path("alone"))


# The second process dies after its second batch of the attack.
KILLED = """
import os, signal, time
from ltd_pipe.evaluation.bench import Journal
from ltd_pipe.stages.cli import main

append = Journal.append

def dying(journal, name, number, record):
    append(journal, name, number, record)
    if os.environ["RANK"] == "1" and (name, number) == ("pgd.1", 3):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = dying
main()
"""


@pytest.mark.slow
def test_one_process_goes_on_where_another_died(ltd_pipe, project, monkeypatch):
    """What each of two had measured is kept, and the result is that of an undisturbed run."""
    words = (*EVALUATE, "--eps-grid", "none")
    assert ltd_pipe(*words, *results("alone")).code == 0
    Path("killed.py").write_text(KILLED)
    done = together(2, *words, *results("again"), program=("killed.py",))
    assert done.returncode != 0
    # It waits for the other, or is at work when torchrun ends it.
    ended = "another process is missing or has ended", "Stopped by SIGTERM. Run it again"
    assert any(line in done.stderr for line in ended)
    assert not Path("again/metrics.json").exists()
    (state,) = Path("again/state").iterdir()
    kept = {file.stem: {*Journal(state).read(file.stem)} for file in state.glob("*.jsonl")}
    assert {1, 3} <= kept["pgd.1"]

    computed, append = [], Journal.append

    def noting(journal, name, number, record):
        computed.append((name, number))
        append(journal, name, number, record)

    monkeypatch.setattr(Journal, "append", noting)
    outcome = ltd_pipe(*words, *results("again"))
    assert outcome.code == 0, outcome.err
    assert not any(number in kept.get(name, ()) for name, number in computed)
    assert files(Path("again")) == files(Path("alone"))


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_machines.sh"])
def test_the_scripts_are_shell(name):
    """Their syntax is sound, and each starts the stage under torchrun with a meeting point."""
    script = ROOT / "examples" / name
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "torchrun" in text
    assert "--rdzv-endpoint" in text
    assert "-m ltd_pipe train" in text
