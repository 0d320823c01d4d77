"""What was exported gives the logits in a process that has torch and nothing of ours."""

import shutil
import subprocess
import sys

import torch

from ltd_pipe.export.formats import probes, write_export

ALONE = """
import sys, warnings, torch
sys.modules["ltd_pipe"] = None  # an import of it would fail
sys.path.insert(0, "zoo")
warnings.simplefilter("ignore")
from model import load_model
model, traced, images = load_model(), torch.jit.load("model.pt"), torch.load("images")
assert not model.training
torch.save([model(images), traced(images)], "logits")
"""


def test_another_process_needs_torch_alone(making_students, tmp_path):
    """Moved elsewhere, without our packages, for a batch of a size that was never tried."""
    _, model, facts = making_students("wrn-10-1", (3, 16, 16))
    write_export(model, facts, "robustbench", tmp_path / "zoo")
    write_export(model, facts, "torchscript", tmp_path / "model.pt")
    images, elsewhere = probes(model.shape)[:5], tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.save(images, elsewhere / "images")
    for name in ("zoo", "model.pt"):
        shutil.move(tmp_path / name, elsewhere)
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=elsewhere)
    with torch.no_grad():
        expected = model(images)
    for logits in torch.load(elsewhere / "logits"):
        torch.testing.assert_close(logits, expected)
