"""`ltd-pipe store pull` and `ltd-pipe train --labels URL`, from a web server."""

import functools
import http.server
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.signature import sign_store
from ltd_pipe.models.facts import read_facts

GOLDEN = Path(__file__).parents[1] / "labels" / "golden.zarr"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing on the screen; remembers what it was asked for."""

    asked: ClassVar[list[str]] = []

    def log_request(self, *_):
        self.asked.append(self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function that serves a folder and gives its URL."""
    running = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Quiet.asked.clear()


def test_pull_prints_where_the_store_is(ltd_pipe, serve, tmp_path):
    """In the cache, with its identity; nothing on stderr."""
    outcome = ltd_pipe("store", "pull", serve(GOLDEN))
    identity = SoftLabels.open(GOLDEN).identity
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{tmp_path}/cache/ltd-pipe/stores/{identity}: ")
    assert outcome.err == ""


def test_pull_to_a_folder_speaks_json(ltd_pipe, serve, tmp_path):
    """What a script would read."""
    out = tmp_path / "labels.zarr"
    outcome = ltd_pipe("store", "pull", serve(GOLDEN), "--out", out, "--json")
    store = SoftLabels.open(out)
    assert json.loads(outcome.out) == {
        "path": str(out),
        "identity": store.identity,
        "num_samples": store.num_samples,
    }


def test_pull_replaces_nothing_without_force(ltd_pipe, serve, tmp_path):
    """And with it, only a store."""
    out, url = tmp_path / "labels.zarr", serve(GOLDEN)
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    for words, message in (((), "exists already"), (("--force",), "is no soft-label store")):
        outcome = ltd_pipe("store", "pull", url, "--out", out, *words)
        assert outcome.code == 1
        assert message in outcome.err
    assert (out / "thesis.tex").exists()
    assert Quiet.asked == []


@pytest.mark.parametrize("place", [".", "part.zarr", ".."], ids=["over", "into", "around"])
def test_a_store_of_this_machine_is_never_pulled_over_itself(ltd_pipe, tmp_path, place):
    """Also with --force, whole or in part: the rows that are not fetched would be lost."""
    store = tmp_path / "folder" / "labels.zarr"
    shutil.copytree(GOLDEN, store)
    for part in ((), ("--rows", "0:2")):
        outcome = ltd_pipe(
            "store", "pull", f"file://{store}", "--out", store / place, "--force", *part
        )
        assert outcome.code == 1
        assert "lies in, or holds, the input" in outcome.err
    assert ltd_pipe("store", "verify", store).code == 0
    assert SoftLabels.open(store).identity == SoftLabels.open(GOLDEN).identity


def test_pull_refuses_another_identity(ltd_pipe, serve, tmp_path):
    """In the URL or beside it; exit code 1 and one line."""
    url = serve(GOLDEN)
    for words in ([f"{url}#sha256={'0' * 64}"], [url, "--identity", "0" * 64]):
        outcome = ltd_pipe("store", "pull", *words)
        assert outcome.code == 1
        assert "holds another store than the one that was asked for" in outcome.err
        assert outcome.err.count("\n") == 1


def test_what_is_in_the_cache_is_copied_from_there(ltd_pipe, serve, tmp_path):
    """To a folder too: only the manifest and its signature are asked for again."""
    url = serve(GOLDEN)
    ltd_pipe("store", "pull", url)
    Quiet.asked.clear()
    outcome = ltd_pipe("store", "pull", url, "--out", tmp_path / "labels.zarr")
    assert outcome.code == 0, outcome.err
    assert Quiet.asked == ["/MANIFEST.sha256", "/MANIFEST.sha256.sig"]


def test_a_copy_that_was_damaged_in_the_cache_is_not_used(ltd_pipe, serve, tmp_path):
    """`verify` says so, and both ways to pull fetch the store from where it comes from."""
    url, out = serve(GOLDEN), tmp_path / "labels.zarr"
    ltd_pipe("store", "pull", url)
    (chunk,) = tmp_path.glob("cache/ltd-pipe/stores/*/soft_labels/c/0/0")
    chunk.write_bytes(chunk.read_bytes()[::-1])
    outcome = ltd_pipe("store", "verify", url)
    assert outcome.code == 1
    assert "is damaged" in outcome.err
    for words in (["--out", out], []):
        outcome = ltd_pipe("store", "pull", url, *words)
        assert outcome.code == 0, outcome.err
    for store in (out, url):
        assert ltd_pipe("store", "verify", store).code == 0


def test_ctrl_c_ends_a_stalled_transfer_at_once(tmp_path):
    """Exit code 130, although the server holds the connection."""

    def listen():
        # A shell's background jobs are started deaf to SIGINT, and so are their children.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/labels.zarr"
        command = [sys.executable, "-m", "ltd_pipe", "store", "pull", url]
        with (
            subprocess.Popen(
                command,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=listen,  # noqa: PLW1509
            ) as process,
            silent.accept()[0] as held,
        ):
            held.recv(1000)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert not list(tmp_path.glob("cache/**/*"))


def test_verify_and_info_take_a_url(ltd_pipe, serve):
    """Through the cache, where it stays for the next command."""
    url = serve(GOLDEN)
    verified = ltd_pipe("store", "verify", url)
    assert verified.code == 0, verified.err
    assert "ok      manifest" in verified.out
    facts = json.loads(ltd_pipe("store", "info", url, "--json").out)
    assert facts["identity"] == SoftLabels.open(GOLDEN).identity
    assert Quiet.asked.count("/labels/c/0") == 1


def test_a_signature_that_came_later_is_looked_for(ltd_pipe, serve, signable, key_file):
    """Though the store is in the cache, and no other one could have its identity."""
    identity = SoftLabels.open(signable).identity
    words = ["verify", f"{serve(signable)}#sha256={identity}"]
    key = ["--public-key", key_file.with_suffix(".pub")]
    assert ltd_pipe("store", *words).code == 0
    outcome = ltd_pipe("store", *words, *key)
    assert outcome.code == 1
    assert "is not signed" in outcome.err
    sign_store(signable, key_file)
    for _ in range(2):
        assert ltd_pipe("store", *words, *key).code == 0
    assert sum(path.endswith(".sig") for path in Quiet.asked) == 3


def test_rows_and_arrays_make_a_part(ltd_pipe, serve, tmp_path):
    """The store that `store subset` makes; and it needs a folder of its own."""
    url, words = serve(GOLDEN), ["--rows", "1:3", "--arrays", "soft_labels"]
    outcome = ltd_pipe("store", "pull", url, *words, "--out", tmp_path / "a.zarr", "--json")
    assert outcome.code == 0, outcome.err
    cut = ltd_pipe("store", "subset", GOLDEN, *words, "--out", tmp_path / "b.zarr")
    assert cut.code == 0, cut.err
    found = json.loads(outcome.out)
    assert found["num_samples"] == 2
    assert found["identity"] == SoftLabels.open(tmp_path / "b.zarr").identity
    assert ltd_pipe("store", "pull", url, *words).code == 2


@pytest.fixture
def short_training(project):
    """One epoch is enough here."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    return project


def test_training_on_a_url_is_training_on_the_store(ltd_pipe, serve, short_training):
    """The same student to the bit, and the same facts: the URL is in none of them."""
    for words in (["data/labels.zarr"], [serve(short_training / "data/labels.zarr")]):
        out = f"student-{len(words[0])}"
        outcome = ltd_pipe("train", "--labels", *words, "--out", out)
        assert outcome.code == 0, outcome.err
    one, two = (path / "model.safetensors" for path in sorted(Path().glob("student-*")))
    assert one.read_bytes() == two.read_bytes()
    store = SoftLabels.open(Path("data/labels.zarr"))
    assert read_facts(one)["labels"]["identity"] == store.identity
