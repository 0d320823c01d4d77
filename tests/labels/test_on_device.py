"""Targets on the training device, from every kind of store."""

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.on_device import LabelsOnDevice
from ltd_pipe.labels.softmax import expand, largest, soften

CPU = torch.device("cpu")
ORDER = np.array([5, 0, 10, 5])


@pytest.fixture(params=[False, True], ids=["gathered", "resident"])
def resident(request):
    return request.param


def test_rows_are_distributions_in_float32(answers, store, resident):
    """The stored soft labels, renormalised; each row where it was asked for."""
    labels = LabelsOnDevice(SoftLabels.open(store), CPU, resident=resident)
    rows = labels.rows(ORDER)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows.sum(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows, soften(answers.logits, 2.0)[ORDER], atol=5e-4)


def test_another_temperature_is_applied_to_the_logits_alone(answers, store, resident):
    """Not on top of the store's own: softmax(z / 0.5), whatever the labels' temperature."""
    labels = LabelsOnDevice(SoftLabels.open(store), CPU, temperature=0.5, resident=resident)
    expected = soften(answers.logits.astype(np.float16), 0.5)[ORDER]
    np.testing.assert_allclose(labels.rows(ORDER), expected, atol=1e-6)


def test_another_temperature_needs_logits(answers, tmp_path):
    """A store without them cannot be read at another temperature."""
    store = answers.write(tmp_path / "a.zarr", keep_logits=False)
    with refused(StoreError, where=store, what="logits", remedy="Label"):
        LabelsOnDevice(SoftLabels.open(store), CPU, temperature=0.5)


@pytest.mark.parametrize("views", [1, 2])
def test_sparse_rows_are_spread_on_the_device(making, tmp_path, resident, views):
    """As a reader spreads them, without a detour through float16."""
    answers = making(num_classes=9, views=views)
    store = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=4))
    labels = LabelsOnDevice(store, CPU, resident=resident)
    soft = soften(answers.logits.astype(np.float16), 2.0).reshape(11, views, 9)[:, views - 1]
    expected = expand(*largest(soft, 4), 9)[ORDER]
    np.testing.assert_allclose(labels.rows(ORDER, view=views - 1), expected, atol=1e-6)


def test_each_view_is_its_own(making, tmp_path, resident):
    """View 1 is not view 0, and a view that does not exist is refused."""
    answers = making(views=2)
    labels = LabelsOnDevice(
        SoftLabels.open(answers.write(tmp_path / "a.zarr")), CPU, resident=resident
    )
    soft = soften(answers.logits, 2.0)
    for view in (0, 1):
        np.testing.assert_allclose(labels.rows(ORDER, view=view), soft[ORDER, view], atol=5e-4)
    for view in (-1, 2):
        with refused(
            StoreError, where=tmp_path / "a.zarr", what="view", expected="0 to 1", found=view
        ):
            labels.rows(ORDER, view=view)


@pytest.mark.parametrize("row", [-1, 11])
def test_rows_that_do_not_exist_are_refused(store, resident, row):
    """Also where torch would count from the end."""
    labels = LabelsOnDevice(SoftLabels.open(store), CPU, resident=resident)
    with refused(StoreError, where=store, what="row", expected="0 to 10"):
        labels.rows(np.array([row]))


def test_a_damaged_chunk_is_found_either_way(store, resident):
    """When the labels are placed on the device, or when the row is first asked for."""
    chunk = store / "soft_labels/c/1/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with refused(StoreError, where=store, what="soft_labels/c/1/0"):
        LabelsOnDevice(SoftLabels.open(store), CPU, resident=resident).rows(ORDER)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_what_fits(store):
    """Resident by default, and equal to what is gathered."""
    gpu = torch.device("cuda")
    opened = SoftLabels.open(store)
    before = torch.cuda.memory_allocated()
    sent = LabelsOnDevice(opened, gpu, resident=False)
    assert torch.cuda.memory_allocated() == before
    kept = LabelsOnDevice(opened, gpu)
    assert torch.cuda.memory_allocated() > before
    torch.testing.assert_close(kept.rows(ORDER), sent.rows(ORDER), rtol=0, atol=0)
