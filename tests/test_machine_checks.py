"""The doctor's checks: each trouble is told with what to do about it."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zarr

from ltd_pipe import doctor
from ltd_pipe.doctor import CHECKS, Finding, examine


def check(topic, data=Path()):
    return CHECKS[topic](data)


def require(finding, status, found, remedy=""):
    assert finding.status == status
    assert found in finding.found
    assert remedy in finding.remedy
    # What is not well comes with a sentence; what is well needs none.
    assert bool(finding.remedy) == (status != "ok")


PYTHONS = [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "fail")]


@pytest.mark.parametrize(("version", "status"), PYTHONS, ids=str)
def test_python_must_be_one_of_those_we_test(monkeypatch, version, status):
    """3.11 to 3.13; others are told how to choose another."""
    monkeypatch.setattr(sys, "version_info", version)
    require(check("Python"), status, sys.prefix, "PYTHON=" if status == "fail" else "")


def test_another_python_on_path_is_noticed(monkeypatch, tmp_path):
    """dvc.yaml says `python`: without the environment's folder on PATH it is a stranger's."""
    (tmp_path / "python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    require(check("PATH"), "warn", str(tmp_path / "python"), "bin/activate")
    monkeypatch.setenv("PATH", "")
    require(check("PATH"), "warn", "not found", "make repro")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    require(check("PATH"), "ok", "python")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_driver_that_torch_cannot_use_is_a_warning(monkeypatch, tmp_path):
    """The file is what the kernel module shows; the remedy depends on torch's build."""
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\n"
    )
    monkeypatch.setattr(doctor, "_DRIVER", version)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    require(check("torch"), "warn", "CUDA 13.2, which NVIDIA driver 470.82.01", "Update the driver")
    monkeypatch.setattr(torch.version, "cuda", None)
    require(check("torch"), "warn", "without CUDA", "TORCH_BACKEND=auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_machine_without_a_driver_is_sound(monkeypatch, tmp_path):
    """Running on the CPU is no trouble."""
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "nothing")
    require(check("torch"), "ok", "on the CPU")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_named_and_used():
    """A kernel ran on it."""
    require(check("torch"), "ok", torch.cuda.get_device_name())


THREADS = [
    (8, 2, "warn", "OMP_NUM_THREADS=2"),
    (1, 4, "warn", "Unset OMP_NUM_THREADS"),
    (2, 2, "ok", ""),
    (1, 1, "ok", ""),
]


@pytest.mark.parametrize(("threads", "cores", "status", "remedy"), THREADS)
def test_threads_are_compared_with_cores(monkeypatch, threads, cores, status, remedy):
    """Too many slow each other down, one alone leaves the others idle."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    torch.set_num_threads(threads)
    found = check("threads")
    require(found, status, f"{threads} for {cores} cores", remedy)


def test_how_threads_wait_is_said(monkeypatch):
    """A policy of the user's own, or ours."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert check("threads").found.endswith(", GOMP_SPINCOUNT=1000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert check("threads").found.endswith(", OMP_WAIT_POLICY=PASSIVE")


def test_bfloat16_is_measured():
    """A ratio of two real measurements, whichever wins."""
    require(check("precision"), "ok", "times as fast as float32")


ZARRS = [("2.18.3", "fail"), ("3.0.8", "fail"), ("3.1.0", "ok"), ("4.0.0.dev1", "ok")]


@pytest.mark.parametrize(("version", "status"), ZARRS)
def test_an_old_zarr_is_refused(monkeypatch, version, status):
    """Stores need 3.1."""
    monkeypatch.setattr(zarr, "__version__", version)
    require(check("zarr"), status, version, "make set-up" if status == "fail" else "")


def test_a_dvc_project_is_found_from_below(monkeypatch, tmp_path):
    """As DVC itself looks for it; elsewhere only single commands work."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    require(check("DVC"), "warn", "is in no DVC project", "single commands")
    (tmp_path / ".dvc").mkdir()
    require(check("DVC"), "ok", f"in {tmp_path}")


DISKS = [(0.5, "fail", "Free some"), (5, "warn", "ImageNet"), (50, "ok", "")]


@pytest.mark.parametrize(("free", "status", "remedy"), DISKS)
def test_disk_space_is_judged_where_results_will_be(monkeypatch, tmp_path, free, status, remedy):
    """The folder need not exist yet: the nearest one above it counts."""
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free * 2**30))
    require(check("disk", tmp_path / "data/deep"), status, f"GiB free in {tmp_path}", remedy)


def test_a_folder_that_cannot_be_written_is_a_failure(monkeypatch, tmp_path):
    """Told before a stage has worked for hours."""
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    require(check("disk", tmp_path), "fail", "is not writable", "owner")


def test_a_check_that_breaks_down_hides_no_other(monkeypatch):
    """Its exception is a finding, and the next check runs."""

    def broken(_data):
        raise OSError("libsomething.so.1: cannot open shared object file\nmore")

    checks = {"broken": broken, "sound": lambda _data: Finding("ok", "fine")}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    findings = dict(examine())
    require(findings["broken"], "fail", "OSError: libsomething.so.1", "make set-up")
    assert "\n" not in findings["broken"].found
    require(findings["sound"], "ok", "fine")
