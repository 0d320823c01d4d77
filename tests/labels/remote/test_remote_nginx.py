"""From nginx, as publishers run it."""

import getpass
import grp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import refused
from running import free_port, running
from shared_store import contents, make_store

from ltd_pipe.errors import MissingError, TransferError
from ltd_pipe.labels.remote import parse_location, pull_store

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]

CONFIG = """
user {user}; daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  log_format asked '$request_uri $http_range $status $body_bytes_sent';
  access_log {folder}/access.log asked;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port}; root {root};
    location /locked/ {{ auth_basic "labels"; auth_basic_user_file {folder}/users;
                         alias {root}/; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 permanent; }}
    location /zipped/ {{ gzip on; gzip_types *; gzip_min_length 1; alias {root}/; }}
    location /slow/ {{ alias {root}/; }}
    location ~ ^/slow/(.*logits/c/.*)$ {{ limit_rate 1k; alias {root}/$1; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    """URL of a server of one store of twelve chunks, and its access log."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    root = make_store(folder / "root" / "labels.zarr", rows=100).parent
    (folder / "users").write_text("me:{PLAIN}hunter2\n")
    config = folder / "nginx.conf"
    # Started by root its workers would be another user, who may not read pytest's folders.
    user = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    config.write_text(CONFIG.format(folder=folder, port=port, root=root, user=user))
    with running([NGINX, "-c", str(config)], port, folder / "output.log"):
        yield f"http://127.0.0.1:{port}", folder / "access.log", root / "labels.zarr"


def pull(url, target, options):
    """Fetch a store."""
    pull_store(parse_location(url), target, options)
    return contents(target)


@pytest.mark.parametrize("place", ["", "/moved", "/zipped"])
def test_a_store_arrives(nginx, tmp_path, options, place):
    """Also by a redirection, and from a server that would compress if it were asked to."""
    url, _, published = nginx
    assert pull(f"{url}{place}/labels.zarr", tmp_path / "a.zarr", options) == contents(published)


def test_a_password_is_taken_from_the_url_or_from_netrc(nginx, tmp_path, options, monkeypatch):
    """And without one it says what to do."""
    url, _, published = nginx
    locked = f"{url}/locked/labels.zarr"
    with refused(TransferError, what="access", remedy="~/.netrc"):
        pull(locked, tmp_path / "a.zarr", options)
    named = locked.replace("http://", "http://me:hunter2@")
    assert pull(named, tmp_path / "a.zarr", options) == contents(published)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert pull(locked, tmp_path / "b.zarr", options) == contents(published)


def test_what_is_not_there_is_said(nginx, tmp_path, options):
    """By the name of the manifest."""
    with refused(MissingError, where="other.zarr/MANIFEST.sha256", what="file"):
        pull(f"{nginx[0]}/other.zarr", tmp_path / "a.zarr", options)


PULL = """
import sys
from pathlib import Path
from ltd_pipe.labels.remote import TransferOptions, parse_location, pull_store
pull_store(parse_location(sys.argv[1]), Path(sys.argv[2]), TransferOptions(jobs=2))
"""


def test_a_killed_download_goes_on(nginx, tmp_path, options):
    """By the server's log: what was whole is not sent again, what was begun comes anew."""
    url, log, published = nginx
    target = tmp_path / "out" / "a.zarr"
    command = [sys.executable, "-c", PULL, f"{url}/slow/labels.zarr", str(target)]
    with subprocess.Popen(command) as process:
        while not (begun := begun_chunk(target)) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    (state,) = target.parent.glob(".*.pull")
    whole = [name for name in contents(state) if "/c/" in name and ".part" not in name]
    rest = begun.relative_to(state).as_posix().replace("/.0.part", "/0")
    log.write_text("")
    assert pull(f"{url}/labels.zarr", target, options) == contents(published)
    asked = read_log(log, rest)
    assert not asked.keys() & set(whole)
    assert asked[rest][1:] == ["-", "200", str(len(contents(published)[rest]))]


def read_log(log: Path, name: str) -> dict[str, list[str]]:
    """Name of each file that was asked for to its line; nginx writes it after the answer."""
    asked: dict[str, list[str]] = {}
    deadline = time.monotonic() + 60
    while name not in asked and time.monotonic() < deadline:
        lines = [line.split() for line in log.read_text().splitlines()]
        asked = {line[0].removeprefix("/labels.zarr/"): line for line in lines}
    return asked


def begun_chunk(target: Path) -> Path | None:
    """A part file, while another chunk is whole already."""
    states = list(target.parent.glob(".*.pull"))
    if not states or not any(states[0].rglob("soft_labels/c/*/0")):
        return None
    return next(states[0].rglob("logits/c/*/.0.part"), None)
