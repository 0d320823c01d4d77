"""Precision, layout and compilation: chosen by measurement, and part of what a run is."""

import pytest
import torch

from ltd_pipe.device import PrecisionSettings, choose_precision
from ltd_pipe.training.snapshots import Progress, Snapshots
from ltd_pipe.training.trainer import Watcher


def test_what_is_given_is_not_measured(make_student):
    """One candidate needs no measurement."""
    given = {"precision": "bfloat16", "channels_last": False, "compile": "default"}
    found = choose_precision(make_student().model, 8, **given)
    assert found == PrecisionSettings("bfloat16", False, "default")
    assert found.measured == {}


def test_what_is_open_is_measured(make_student):
    """All candidates, and nothing of the model changes; on a CPU nothing is compiled."""
    model = make_student().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = choose_precision(model, 8, channels_last="auto", compile="auto")
    assert found.compiled == "none"
    assert len(found.measured) == 4
    assert all(rate > 0 for rate in found.measured.values())
    assert all(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_what_was_measured_does_not_decide_a_run():
    """Two runs that chose alike may continue each other, whatever the stopwatch said."""
    one, two = (PrecisionSettings(measured={"a": rate}) for rate in (1.0, 2.0))
    assert one == two
    assert one.decides == two.decides
    assert "measured" not in one.decides


def test_a_runs_choice_is_in_each_of_its_snapshots(tmp_path):
    """With what was measured; before there is one, and when the newest is damaged."""
    snapshots = Snapshots(tmp_path)
    chosen = PrecisionSettings("bfloat16", measured={"a": 1.0, "b": 2.0})
    assert snapshots.precision() is None
    for step in (1, 2):
        snapshots.save(Progress(step), {"weights": torch.zeros(9)}, chosen)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    kept = snapshots.precision()
    assert (kept, kept.measured, kept.resumed) == (chosen, chosen.measured, True)


def test_what_was_chosen_for_another_device_is_chosen_anew(tmp_path):
    """And then holds there, however often the run is interrupted, and not on the first one."""
    on_gpu, on_cpu = PrecisionSettings("float16"), PrecisionSettings("bfloat16")
    gpu, cpu = (Snapshots(tmp_path, device=device) for device in ("cuda", "cpu"))
    gpu.save(Progress(1), {"weights": torch.zeros(9)}, on_gpu)
    gpu.wait()
    assert gpu.precision() == on_gpu
    assert cpu.precision() is None
    cpu.save(Progress(2), {"weights": torch.zeros(9)}, on_cpu)
    assert cpu.precision() == on_cpu
    assert gpu.precision() is None


# torch's compiler looks at that attribute of whatever it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_a_compiled_run_goes_where_the_plain_one_goes(make_student, tmp_path):
    """With torch's real compiler; the checkpoint's names do not tell of it."""
    fits = [
        make_student(precision=PrecisionSettings(compiled=mode), state=tmp_path / mode, epochs=1)
        for mode in ("none", "default")
    ]
    rows = [fit.run(Watcher())[-1] for fit in fits]
    assert rows[1]["train/loss"] == pytest.approx(rows[0]["train/loss"], rel=0.02)
    names = [list(fit.best.state_dict()) for fit in fits]
    assert names[0] == names[1]
    assert all(weight.requires_grad for weight in fits[1].model.parameters())
