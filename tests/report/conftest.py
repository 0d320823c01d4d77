"""A whole run's folders, built once, and what the report makes of them."""

from __future__ import annotations

import shutil

import pytest
from run_folders import paths_in, write_runs

from ltd_pipe.params import ReportParams
from ltd_pipe.report.facts import gather_facts
from ltd_pipe.report.page import render_page


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory):
    """A run's folders, not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder)
    return folder


@pytest.fixture
def runs(whole_runs, tmp_path):
    """A copy to be changed at will."""
    return shutil.copytree(whole_runs, tmp_path / "data")


@pytest.fixture
def gather():
    """Read a folder as the stage does."""

    def gather_from(folder, **params):
        return gather_facts(paths_in(folder), ReportParams(**params))

    return gather_from


@pytest.fixture(scope="session")
def facts(whole_runs):
    """What there is to say about the whole run."""
    return gather_facts(paths_in(whole_runs), ReportParams(title="Digits <b>&</b> soft labels"))


@pytest.fixture(scope="session")
def page(facts):
    """The whole run's page."""
    return render_page(facts)
