"""Pages of docs/ that can be followed: their shell blocks, and what stands below them."""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^```sh( refused)?\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.M | re.S
)


@dataclass(frozen=True)
class Step:
    """One block of a page."""

    section: str
    code: str
    refused: bool
    shown: tuple[str, ...]


def read_steps(name: str) -> list[Step]:
    """All blocks of a page in their order."""
    page = (ROOT / "docs" / name).read_text()
    steps = []
    for match in BLOCK.finditer(page):
        section = re.findall(r"^##+ (.*)$", page[: match.start()], re.MULTILINE)[-1]
        shown = tuple((match["shown"] or "").splitlines())
        steps.append(Step(section, match["code"], match[1] is not None, shown))
    return steps


def in_shell(step: Step, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and output of a block in a shell of its own, which stops at the first failure."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step.code],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def follow(steps: Sequence[Step], run: Callable[[Step], tuple[int, str]]) -> None:
    """Run all blocks; each must end as the page says, and print the lines that stand below it."""
    for number, step in enumerate(steps):
        code, output = run(step)
        name = f"{number}: {step.section}"
        assert code == (1 if step.refused else 0), f"{name}\n{step.code}\n{output}"
        for line in step.shown:
            pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
            assert re.search(pattern, output), f"{name}: {line}\n{output}"
