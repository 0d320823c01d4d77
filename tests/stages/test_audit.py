"""`ltd-pipe audit`: a verdict, and an exit code that a script can use."""

import json

import pytest
import torch

from pipeline.models.checkpoint import load_classifier, save_classifier

STUDENT = "data/student/model.safetensors"
QUICK = ("--steps", "20", "--square-queries", "100")
TEACHER = "data/teacher/model.safetensors"


def test_a_student_passes(ltd_pipe, project):
    """A line for each check, and the verdict; exit code 0."""
    outcome = ltd_pipe("audit", STUDENT, "--source", TEACHER, *QUICK)
    assert outcome.code == 0, outcome.out
    assert f"{STUDENT}: 40 test images, eps 0.1" in outcome.out
    assert f"pass  white box beats transfer from {TEACHER}" in outcome.out
    assert "checks passed: no sign of gradient masking." in outcome.out


def saturate(path):
    """A copy of the student whose logits are so large that its softmax has no gradient."""
    model = load_classifier(path)
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        last.weight.mul_(1e5)
        last.bias.mul_(1e5)
    save_classifier(model, path.with_name("saturated.safetensors"))
    return path.with_name("saturated.safetensors")


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_a_masked_model_fails(ltd_pipe, project, words):
    """Exit code 1, and what a failure means."""
    outcome = ltd_pipe("audit", saturate(project / STUDENT), *QUICK, *words)
    assert outcome.code == 1
    if words:
        summary = json.loads(outcome.out)
        failed = {finding["name"] for finding in summary["findings"] if not finding["passed"]}
        assert summary["passed"] is False
        assert (summary["n"], summary["eps"]) == (40, 0.1)
        assert "live gradients" in failed
    else:
        assert "FAIL  live gradients" in outcome.out
        assert "gradient attacks have nothing to follow" in outcome.out
        assert "checks failed: do not believe its robust accuracy." in outcome.out


def test_other_images_are_refused(ltd_pipe, project):
    """A model is audited on the classes that it knows."""
    outcome = ltd_pipe("audit", "missing.safetensors")
    assert outcome.code == 1
    assert "missing.safetensors: no such" in outcome.err
