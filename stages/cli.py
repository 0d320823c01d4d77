"""`ltd-pipe`: groups the stages' commands, and turns refusals into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import os
import pkgutil
import sys
from typing import Any, TextIO, cast

import click

from ltd_pipe import threads
from ltd_pipe.errors import LtdPipeError, ParamsError
from ltd_pipe.publish import refused_by_system


class LazyGroup(click.Group):
    """Commands of one package, as `module:command` with a summary: --help imports none of them."""

    def __init__(
        self, *settings: Any, package: str, summaries: dict[str, str], **more: Any
    ) -> None:
        super().__init__(*settings, **more)
        places = {place.partition(":")[2]: place for place in summaries}
        self._places = {name: f"{package}.{place}" for name, place in places.items()}
        self._summaries = {name: summaries[place] for name, place in places.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        del ctx
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in self._summaries:
            return None
        command: click.Command = pkgutil.resolve_name(self._places[cmd_name])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed, or say which was meant."""
        close = difflib.get_close_matches(args[0], self._summaries, n=1)
        if close and args[0] not in self._summaries:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{close[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of --help without an import."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))


_COMMANDS = {
    "project:init": "Begin a project: dvc.yaml and params.yaml in a folder of its own.",
    "inputs:inputs": "Note which images and weights come from outside, for DVC.",
    "prepare:prepare": "Turn images into train.beton and test.beton.",
    "teacher:teacher": "Train the teacher on clean images, or take a checkpoint.",
    "label:label": "Write a teacher's low-temperature soft labels into a store.",
    "train:train": "Train the student adversarially on soft or one-hot labels.",
    "evaluate:evaluate": "Measure clean and robust accuracy.",
    "audit:audit": "Look for gradient masking: can the robust accuracy be believed?",
    "compare:compare": "Compare runs, paired by test image.",
    "report:report": "Write report.html.",
    "export:export": "Write a checkpoint for RobustBench, timm, ONNX or TorchScript.",
    "export:card": "Write a model's README.md: what was measured of it, and what was not.",
    "store:store": "Look into soft-label stores, prove, combine and share them.",
    "project:recipe": "List, show or use the recipes.",
    "project:doctor": "Check this machine for what users trip over.",
}
# Under torchrun these share their work; of all others the first process does it alone.
_SHARED = {"teacher", "label", "train", "evaluate", "audit"}


@click.group(
    cls=LazyGroup,
    package="ltd_pipe.stages",
    summaries=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="ltd-pipe", prog_name="ltd-pipe")
def cli() -> None:
    """Robust image classifiers by low-temperature distillation.

    \b
    The whole pipeline:      dvc repro
    A store from a teacher:  ltd-pipe label --teacher ckpt.pt --arch resnet18 --data images/

    \b
    Exit codes: 0 done; 1 refused (data, files, results, and an audit that failed);
    2 a wrong command line or params.yaml; 130 interrupted. A refusal is one line.
    """


def main() -> None:
    """Run the command line: exit code 0 done, 1 refused, 2 usage, 130 interrupted."""
    if not _is_first() and not _SHARED.intersection(sys.argv[1:2]):
        return
    threads.set_defaults()
    with contextlib.redirect_stderr(cast("TextIO", _Optional(sys.stderr))):
        _run()


def _is_first() -> bool:
    # Not the console's, which loads rich.
    return os.environ.get("RANK", "0") == "0"


class _Optional:
    """A stream that nobody needs to read: days of work do not end because a terminal closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _run() -> None:
    try:
        cli.main(prog_name="ltd-pipe", standalone_mode=False)
    except ParamsError as error:
        _end(str(error), 2)
    except LtdPipeError as error:
        _end(str(error), 1)
    except BrokenPipeError:
        # Whoever read our output has ended, as `head` does; Python would complain once more.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _end(str(refused_by_system(error)), 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        if not _is_first():  # which says it
            sys.exit(_INTERRUPTED)
        # Click raises Abort from the KeyboardInterrupt, which may say how to go on.
        nothing = "Interrupted. Nothing half-written was published."
        _end(str(error.__cause__ or error) or nothing, _INTERRUPTED)


def program() -> None:
    """`main` as a process, which ends a training at once when it was interrupted.

    All is saved by then; what torch, numba and dvclive would still tidy up takes seconds.
    """
    try:
        main()
    except SystemExit as end:
        if end.code == _INTERRUPTED and sys.argv[1:2] in (["train"], ["teacher"]):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # the terminal may be what has gone
                    stream.flush()
            os._exit(_INTERRUPTED)
        raise


_INTERRUPTED = 130


def _end(message: str, code: int) -> None:
    click.secho("ltd-pipe: ", fg="red", bold=True, err=True, nl=False)
    click.echo(message, err=True)
    sys.exit(code)
