"""`ltd-pipe audit`: a verdict, and an exit code that a script can use."""

import json
import signal
from pathlib import Path

import torch

from ltd_pipe.evaluation.bench import Journal
from ltd_pipe.evaluation.results import Audit, Finding, read_audit
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.provenance import sha256_file
from ltd_pipe.stages.audit import audit_lines

STUDENT = "data/student/model.safetensors"
QUICK = ("--steps", "20", "--square-queries", "100")
TEACHER = "data/teacher/model.safetensors"


def test_a_student_passes(ltd_pipe, project):
    """A line for each check, and the verdict; exit code 0."""
    outcome = ltd_pipe("audit", STUDENT, "--source", TEACHER, *QUICK)
    assert outcome.code == 0, outcome.out
    assert f"{STUDENT}: 40 test images, Linf 0.1" in outcome.out
    assert f"pass  white box beats transfer from {TEACHER}" in outcome.out
    assert "checks passed: no sign of gradient masking." in outcome.out
    assert "lower end of the 95 % interval is above its limit: with 40 images from" in outcome.out
    _require_self_explaining(project / "data/audit")
    again = ltd_pipe("audit", STUDENT, *QUICK)
    assert again.code == 1
    assert "data/audit/audit.json: exists already. Pass --force" in again.err


def _require_self_explaining(folder):
    """The findings, the curve and the surface with what they are of, and a picture."""
    summary = json.loads((folder / "audit.json").read_text())
    assert (summary["norm"], summary["eps"], summary["steps"]) == ("linf", 0.1, 20)
    assert (summary["passed"], summary["sources"]) == (True, [TEACHER])
    assert {found["fails_from"] for found in summary["findings"]} == {0.025, 0.075, 0.125, 0.15}
    assert summary["by_eps"][-1]["n"] == summary["n"] == 40
    zero = [point["eps"] for point in summary["by_eps"] if not point["robust_accuracy"]]
    assert summary["zero_accuracy_at_eps"] == min(zero)
    assert "offsets[i] along the gradient" in summary["loss_surface"]["what"]
    assert "Loss around" in (folder / "loss_surface.svg").read_text()


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(ltd_pipe, project, monkeypatch):
    """No batch is attacked again, and no two attacks share a record."""
    append, read, place = Journal.append, Journal.read, project / "data/audit/audit.json"
    asked, kept = [], []

    def noted(journal, name, *words):
        kept.append(name)
        append(journal, name, *words)
        if name == "autoattack-apgd-t":
            signal.raise_signal(signal.SIGTERM)

    other = project / "other.safetensors"
    other.write_bytes((project / TEACHER).read_bytes())
    words = ("audit", STUDENT, "--source", TEACHER, "--source", other, *QUICK, "--force")
    with monkeypatch.context() as during:
        during.setattr(Journal, "append", noted)
        stopped = ltd_pipe(*words)
    assert stopped.code == 130
    assert "Stopped by SIGTERM. Run it again: what is checked is kept." in stopped.err
    assert not place.exists()
    before = {*kept}
    with monkeypatch.context() as during:
        during.setattr(Journal, "read", lambda *given: asked.append(given[1]) or read(*given))
        during.setattr(Journal, "append", lambda *given: kept.append(given[1]) or append(*given))
        assert ltd_pipe(*words).code == 0
    assert len(asked) == len({*asked})
    assert {"clean", "transfer-0", "transfer-1"} <= {*asked}
    assert len(kept) == len({*kept}) > len(before)
    assert not Path("data/state").exists()
    resumed = place.read_bytes()
    assert ltd_pipe(*words).code == 0
    assert place.read_bytes() == resumed


def saturate(path):
    """A copy of the student whose logits are so large that its softmax has no gradient."""
    model = load_classifier(path)
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        last.weight.mul_(1e5)
        last.bias.mul_(1e5)
    save_classifier(model, path.with_name("saturated.safetensors"))
    return path.with_name("saturated.safetensors")


def test_a_masked_model_fails(ltd_pipe, project):
    """Exit code 1, and what a failure means; `--json` prints the file, which says so, too."""
    outcome = ltd_pipe("audit", saturate(project / STUDENT), *QUICK, "--json")
    assert outcome.code == 1
    summary = json.loads(outcome.out)
    assert json.loads((project / "data/audit/audit.json").read_text()) == summary
    failed = {found["name"]: found for found in summary["findings"] if not found["passed"]}
    assert summary["passed"] is False
    assert (summary["n"], summary["eps"]) == (40, 0.1)
    assert "gradient attacks have nothing to follow" in failed["live gradients"]["meaning"]


def test_a_failure_is_shown_with_what_it_means():
    """In words, under the check's line, and in the last line."""
    finding = Finding(
        name="live gradients", count=20, n=40, limit=0.05, meaning="nothing to follow"
    )
    threat = {"checkpoint_sha256": "a" * 64, "n": 40, "norm": "l2", "eps": 0.5}
    shown = "\n".join(audit_lines(Audit(**threat, findings=[finding], passed=False), "model"))
    line = "FAIL  live gradients   50.00% of images, lower end 35.20%, limit 5%, fails from 12.50%"
    assert line in shown
    assert "WARNING: below 100 images, a check that passes says little." in shown
    assert "nothing to follow" in shown
    assert "1 of 1 checks failed: do not believe its robust accuracy." in shown
    assert "falls to 0 at no radius" in shown


def test_report_only_writes_the_verdict_and_ends_with_0(ltd_pipe, project):
    """What a pipeline needs: a failed audit is a result; only so many images are asked."""
    words = (*QUICK, "--report-only", "--at-most", "25")
    outcome = ltd_pipe("audit", saturate(project / STUDENT), *words)
    assert outcome.code == 0
    assert "do not believe its robust accuracy" in outcome.out
    summary = json.loads((project / "data/audit/audit.json").read_text())
    assert (summary["passed"], summary["n"]) == (False, 25)


def forget(path):
    """A copy of the student that answers all images alike."""
    model = load_classifier(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_classifier(model, path.with_name("forgot.safetensors"))
    return path.with_name("forgot.safetensors")


def test_a_model_that_knows_nothing_has_not_passed(ltd_pipe, project):
    """audit.json says why, with --json on the screen, too, and no older one is left standing."""
    model, place = forget(project / STUDENT), project / "data/audit/audit.json"
    place.parent.mkdir()
    place.write_text('{"passed": true}')
    outcome = ltd_pipe("audit", model, *QUICK, "--json", "--force")
    assert outcome.code == 1
    assert json.loads(outcome.out) == json.loads(place.read_text())
    assert "not clearly better than chance" in json.loads(outcome.out)["refused"]
    outcome = ltd_pipe("audit", model, *QUICK, "--report-only", "--force")
    assert outcome.code == 0
    assert "No check could be made: model: is not clearly better than chance" in outcome.out
    found = read_audit(place, sha256_file(model))
    assert (found.passed, found.findings) == (False, ())
    assert not place.with_name("loss_surface.svg").exists()


def test_other_images_are_refused(ltd_pipe, project):
    """A model is audited on the classes that it knows."""
    outcome = ltd_pipe("audit", "missing.safetensors")
    assert outcome.code == 1
    assert "missing.safetensors: no such" in outcome.err
