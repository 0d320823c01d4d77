"""Runs stages in forks of one process that has imported everything: `launch` of dvc.yaml.

As a program it is what dvc.yaml starts: it hands its arguments, folder and output to the process
that `serve` began, and ends as the stage does.
"""

import contextlib
import os
import runpy
import socket
import sys
from pathlib import Path


def ask(address: str, words: list[str]) -> int:
    """Have the stage run; its exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        text = "\0".join([os.getcwd(), *words]).encode()  # noqa: PTH109  (quick to start)
        socket.send_fds(server, [text], [1, 2])
        return int(server.recv(8) or b"1")


def serve(address: Path) -> None:
    """Run what is asked for, one after the other, until killed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import ffcv.loader  # noqa: F401
    import torchvision.datasets  # noqa: F401

    import ltd_pipe.stages.evaluate
    import ltd_pipe.stages.train  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            client, _ = listener.accept()
            with client:
                text, handles, _, _ = socket.recv_fds(client, 2**16, 2)
                child = os.fork()
                if not child:
                    _run(text.decode().split("\0"), handles)
                for handle in handles:
                    os.close(handle)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    client.send(str(code).encode())


def _run(words: list[str], handles: list[int]) -> None:
    """`python -m ltd_pipe …` in this child."""
    code = 1
    try:
        os.chdir(words[0])
        for i, handle in enumerate(handles):
            os.dup2(handle, i + 1)
        assert words[1:3] == ["-m", "ltd_pipe"]
        sys.argv = words[2:]
        runpy.run_module("ltd_pipe", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
