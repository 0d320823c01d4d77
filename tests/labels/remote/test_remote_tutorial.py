"""docs/sharing.md works as it stands: its shell blocks are run, in order."""

import os
import re
import sys
from pathlib import Path

import boto3
import pytest
import torch
from pages import follow, in_shell, read_steps
from running import free_port, running

from ltd_pipe.labels import SoftLabels
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

ROOT = Path(__file__).parents[3]
STEPS = read_steps("sharing.md")


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory):
    """An S3 server with the bucket that the page uses."""
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    with running([sys.executable, "-m", "moto.server", "-p", str(port)], port, log):
        url = f"http://127.0.0.1:{port}"
        secrets = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        boto3.client("s3", "us-east-1", endpoint_url=url, **secrets).create_bucket(Bucket="labels")
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """What a reader of the page has: images and a teacher."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("train.beton", "train.beton.json"):
        (folder / name).write_bytes((digits / name).read_bytes())
    torch.manual_seed(0)
    teacher = Classifier(
        build("small-cnn-w4", 10, (1, 8, 8)),
        architecture="small-cnn-w4",
        class_names=[str(digit) for digit in range(10)],
        shape=(1, 8, 8),
    )
    save_classifier(teacher.eval(), folder / "teacher.safetensors", kind="teacher")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory, s3_url):
    """A home of its own: no settings, keys, caches or proxies of this machine."""
    home = tmp_path_factory.mktemp("home")
    settings = "[user]\n\tname = Alice\n\temail = alice@example.com\n"
    (home / ".gitconfig").write_text(settings + "[init]\n\tdefaultBranch = main\n")
    kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TMPDIR") if key in os.environ}
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc-system"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "S3_URL": s3_url,
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.nightly
def test_the_page_can_be_followed(folder, environment):
    """Each block ends as the page says, and prints the lines that stand below it."""
    follow(STEPS, lambda step: in_shell(step, folder, environment))
    # The identity is the same wherever the labels went, and with a signature too.
    copies = (
        "labels.zarr",
        "copy.zarr",
        "alice/labels.zarr",
        "bob/labels.zarr",
        "carol/labels.zarr",
    )
    assert len({SoftLabels.open(folder / copy).identity for copy in copies}) == 1


def test_the_page_shows_what_is_refused():
    """Two refusals, each with the line that users see."""
    refused = [step for step in STEPS if step.refused]
    assert [step.section for step in refused] == ["When the storage was changed", "Links"]
    assert all(step.shown[-1].startswith("ltd-pipe: labels.zarr: ") for step in refused)


def test_the_page_has_all_ways_of_sharing():
    """In the order in which they are looked for."""
    page = (ROOT / "docs/sharing.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        "What a store records",
        "With DVC",
        "From the web or object storage",
        "Signatures",
    ]
