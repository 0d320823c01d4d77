"""What travels with each export."""

import json

from ltd_pipe.export.formats import export_facts
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.provenance import sha256_file


def test_facts_say_what_a_model_is(making_students):
    """Classes, threat model, hash, labels, and what is inside."""
    path, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    assert facts["checkpoint_sha256"] == sha256_file(path)
    assert facts["class_names"] == list(model.class_names)
    assert facts["threat_model"] == {"norm": "linf", "eps": 0.1}
    assert facts["labels"] == {"kind": "ltd", "identity": "a" * 64, "temperature": 1.5}
    assert facts["data"] == {"dataset": "digits", "fingerprint": "f" * 64}
    assert facts["input"]["shape"] == ["batch", 1, 8, 8]
    assert facts["input"]["mean"] == model.mean.tolist()
    assert facts["temperature"] == 1.5


def test_a_teacher_that_was_asked_in_the_run_is_named(making_students, tmp_path):
    """By its hash: there is no store whose identity would tell."""
    model = making_students("small-cnn-w4", (1, 8, 8))[1]
    facts = {"params": {"label_kind": "live"}, "teacher": {"sha256": "c" * 64}}
    save_classifier(model, tmp_path / "model.safetensors", kind="student", **facts)
    found = export_facts(tmp_path / "model.safetensors")["labels"]
    assert found == {"kind": "live", "teacher_sha256": "c" * 64}


def test_a_teacher_has_no_threat_model(making_students, tmp_path):
    """It was trained on clean images: its eps, if any, is of something else."""
    model = making_students("small-cnn-w4", (1, 8, 8))[1]
    save_classifier(model, tmp_path / "teacher.safetensors", kind="teacher", params={"eps": 0.1})
    facts = export_facts(tmp_path / "teacher.safetensors")
    assert facts["threat_model"] is facts["labels"] is facts["data"] is facts["seed"] is None


def test_equal_checkpoints_give_equal_facts(making_students):
    """Plain values, which JSON brings back as they are."""
    path, _, facts = making_students("small-cnn-w4", (1, 8, 8))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts == export_facts(path)
