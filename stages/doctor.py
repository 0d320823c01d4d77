"""`ltd-pipe doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.stages.options import FOLDER, refuse_options

if TYPE_CHECKING:
    from ltd_pipe.doctor import Finding

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--data", type=FOLDER, default="data", help="Folder that results are written to.")
@click.option("--models", is_flag=True, help="List the names of architectures instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(data: Path, models: bool, as_json: bool) -> None:
    """Check this machine for what users trip over. Exit code 1 when something will not work.

    \b
    Example:
      ltd-pipe doctor
      ltd-pipe doctor --models
    """
    if models:
        refuse_options({"data"}, "is of the check, not of --models")
        _show_models(as_json=as_json)
        return
    from ltd_pipe.doctor import examine

    findings = {}
    for topic, finding in examine(data):
        findings[topic] = finding
        if not as_json:
            _show(topic, finding)
    if as_json:
        facts = {topic: dataclasses.asdict(finding) for topic, finding in findings.items()}
        click.echo(json.dumps(facts, indent=2))
    if any(finding.status == "fail" for finding in findings.values()):
        sys.exit(1)


def _show(topic: str, finding: Finding) -> None:
    status = click.style(f"{finding.status:<4}", fg=_STYLES[finding.status])
    click.echo(f"{status}  {topic:<9}  {finding.found}")
    if finding.remedy:
        click.echo(f"{'':<17}{finding.remedy}")


def _show_models(*, as_json: bool) -> None:
    from ltd_pipe.models import NETWORKS

    if as_json:
        click.echo(json.dumps(NETWORKS))
        return
    for name in NETWORKS:
        click.echo(name)
    # On stderr, so that the list can be piped.
    click.echo(
        "Other sizes: wrn-DEPTH-WIDTH; resnet18, preactresnet18, small-cnn with -wN.", err=True
    )
    click.echo("Other packages' networks: timm:NAME, torchvision:NAME.", err=True)
