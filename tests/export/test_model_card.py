"""The README.md of a model: true, of this model alone, and of no use to an attacker."""

import dataclasses
import json

import huggingface_hub
import pytest
from made_classifiers import make_classifier
from made_evaluations import make_metrics, make_row
from markdown_it import MarkdownIt
from refusals import refused
from test_text import HOSTILE, kinds

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import (
    ATTACK_FAILS,
    Audit,
    CorruptedSets,
    on_training,
    read_metrics,
)
from ltd_pipe.export.card import format_card, gather_card
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.facts import CollapseFacts
from ltd_pipe.provenance import sha256_file

N = 500
HITS = {"clean": 490, "pgd": 350, "autoattack": 340}
FLAG = "AutoAttack: Square is better than the others"
FINDINGS = [
    {"name": "live gradients", "count": 0, "n": 200, "limit": 0.05, "meaning": "", "passed": True},
    {"name": "margin loss", "count": 90, "n": 200, "limit": 0.06, "meaning": "", "passed": False},
]


@pytest.fixture
def folder(making_students, tmp_path):
    """A student, its evaluation, and its audit, which one check failed."""
    path = making_students("small-cnn-w4", (1, 8, 8))[0]
    (tmp_path / "model.safetensors").write_bytes(path.read_bytes())
    sha256 = sha256_file(path)
    metrics = make_metrics(
        N,
        HITS,
        eps=0.1,
        expected_calibration_error=0.031,
        autoattack={"apgd-ce": 0.7, "square": 0.68},
        warnings=[FLAG],
        checkpoint_sha256=sha256,
    )
    write(tmp_path / "metrics.json", **metrics.dump())
    (tmp_path / "evaluation").mkdir()
    write(
        tmp_path / "evaluation/settings.json",
        attacks=[{"name": "PGD", "steps": 50, "restarts": 5}],
        autoattack_version="standard",
        checkpoint_sha256=sha256,
        data_fingerprint="d" * 64,
        seed=0,
        software={"pyautoattack": "0.2.0", "torch": "2.15.0"},
        hardware={"cpu": "A & B", "threads": 2},
    )
    write(
        tmp_path / "audit.json",
        passed=False,
        n=200,
        eps=0.1,
        checkpoint_sha256=sha256,
        findings=FINDINGS,
    )
    return tmp_path


def pass_audit(folder):
    edit(folder / "audit.json", passed=True, findings=FINDINGS[:1])


def write(path, **content):
    path.write_text(json.dumps(content))


def edit(path, **changes):
    write(path, **json.loads(path.read_text()) | changes)


def change(folder, **changes):
    """Another evaluation of the same model."""
    path = folder / "metrics.json"
    write(path, **read_metrics(path).model_copy(update=changes).dump())


def whole(folder, **more):
    """The facts of everything that is there."""
    places = {"metrics": folder / "metrics.json", "audit": folder / "audit.json"}
    return gather_card(folder / "model.safetensors", **places | more)


def cells(text, first):
    """The cells of the one table row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.replace("\u00a0", " ").split("|")[2:-1]]


# ---------------------------------------------------------------- what it says


def test_it_says_what_the_model_is(folder):
    """Architecture, input, temperature, hash, threat model, labels."""
    text, sha256 = format_card(whole(folder)), sha256_file(folder / "model.safetensors")
    assert cells(text, "architecture") == ["`small-cnn-w4`"]
    assert cells(text, "temperature, part of the model") == ["1.5"]
    assert cells(text, "normalisation, part of the model") == ["mean 0.3, std 0.2"]
    assert cells(text, "SHA-256 of the checkpoint") == [f"`{sha256}`"]
    assert cells(text, "identity of the soft-label store") == [f"`{'a' * 64}`"]
    assert cells(text, "temperature of the soft labels") == ["1.5"]
    assert cells(text, "fingerprint of the training images") == [f"`{'f' * 64}`"]
    assert "trained adversarially on soft labels of a teacher" in text
    assert "within L∞ distance 0.1" in text


def test_numbers_come_with_n_and_interval(folder):
    """As metrics.json has them; AutoAttack with its version, PGD with its effort."""
    text = format_card(whole(folder))
    assert cells(text, "clean") == ["98.0 %", "96.4 to 98.9 %", "500"]
    assert cells(text, "`PGD-50 x 5`") == ["70.0 %", "65.8 to 73.9 %", "500"]
    assert cells(text, "`AutoAttack`") == ["68.0 %", "63.8 to 71.9 %", "500"]
    assert cells(text, "version of AutoAttack") == ["`standard`"]
    assert cells(text, "left after AutoAttack's `apgd-ce`") == ["70.0 %"]
    assert cells(text, "AutoAttack, by its authors' package") == ["`pyautoattack 0.2.0`"]
    assert cells(text, "fingerprint of the test images") == [f"`{'d' * 64}`"]
    assert "**AutoAttack warns:** `Square is better than the others`" in text


def test_the_audits_verdict_is_not_softened(folder):
    """A failed check is the first thing that the section says."""
    text = format_card(whole(folder))
    section = text.split("## Gradient masking\n\n")[1]
    assert section.startswith("**1 of 2 checks failed: do not believe the robust accuracy.**")
    assert cells(text, "`margin loss`") == ["**FAIL**", "90 of 200", "6.0 %"]
    assert cells(text, "`live gradients`")[0] == "pass"


def test_what_was_not_measured_is_said(folder):
    """With nothing but a checkpoint, and with less than there could be."""
    bare = format_card(gather_card(folder / "model.safetensors"))
    assert "**Nothing.** No evaluation was given" in bare
    assert "**Not audited.**" in bare
    assert "- Clean and robust accuracy.\n- Gradient masking.\n" in bare
    assert "model-index" not in bare
    attacks = read_metrics(folder / "metrics.json").attacks
    change(folder, attacks=attacks[:-1])
    text = format_card(whole(folder, audit=None))
    assert "- AutoAttack. Without it a robust accuracy is a first look, no claim.\n" in text
    assert "- Gradient masking.\n" in text
    assert "- AutoAttack." not in format_card(whole(folder, metrics=None))


def test_another_radius_than_the_training_is_pointed_out(folder):
    """Numbers at half the radius look twice as good."""
    assert "another threat model" not in format_card(whole(folder))
    edit(folder / "metrics.json", eps=0.05)
    assert "**It was trained for another threat model: L∞ distance 0.1.**" in format_card(
        whole(folder)
    )


TAUGHT = {"live": "soft labels of a teacher in the run", "adr": "its own moving average"}


@pytest.mark.parametrize(("kind", "words"), TAUGHT.items(), ids=TAUGHT)
def test_labels_that_were_made_in_the_run_are_not_called_one_hot(tmp_path, kind, words):
    """A teacher that was asked is named by its hash, and tagged."""
    model, asked = make_classifier("small-cnn-w4", (1, 8, 8)), {"sha256": "c" * 64}
    facts = {"kind": "student", "params": {"label_kind": kind, "eps": 0.1}}
    facts |= {"teacher": asked} if kind == "live" else {}
    save_classifier(model, tmp_path / "model.safetensors", **facts)
    text = format_card(gather_card(tmp_path / "model.safetensors"))
    assert words in text
    assert "one-hot" not in text
    assert ("c" * 64 in text) == ("soft-labels" in text) == (kind == "live")


def test_a_teachers_card_claims_no_robustness(tmp_path):
    """Neither in words nor in tags."""
    model = make_classifier("small-cnn-w4", (1, 8, 8))
    save_classifier(model, tmp_path / "model.safetensors", kind="teacher", params={"epochs": 2})
    text = format_card(gather_card(tmp_path / "model.safetensors"))
    assert "**no robustness is claimed**" in text
    assert "adversarial" not in text.split("---")[1]
    assert "## Threat model\n\nNone." in text


def test_corrupted_images_are_no_attack(folder):
    """Their own number of images; measured, they are not among what was not."""
    assert "- Common corruptions.\n" in format_card(whole(folder))
    corrupted = {"corruption_accuracy": 0.5, "corruptions": CorruptedSets(n=9500, sets=19)}
    change(folder, **corrupted)
    pass_audit(folder)
    text = format_card(whole(folder))
    assert cells(text, "mean corruption") == ["50.00 %", "48.99 to 51.01 %", "9,500"]
    assert "- Common corruptions." not in text
    assert "mean corruption accuracy" in text.split("---")[1]


def test_evaluations_are_shown_whole(folder):
    """Other attacks, another norm, a first look, and what it says that it left out."""
    change(
        folder,
        norm="l2",
        attacks=(make_row("cw-pgd-20", 345, N, "CW-PGD-20", steps=20),),
        quick=True,
        not_measured=("transfer attacks",),
    )
    text = format_card(whole(folder))
    assert cells(text, "`CW-PGD-20`")[0] == "69.0 %"
    assert "attacks within L2 distance 0.1. **It was trained for another threat model" in text
    assert "**A quick first look, no result.**" in text
    assert "- `transfer attacks`\n" in text


# ---------------------------------------------------------------- of this model alone


def test_numbers_of_another_checkpoint_are_refused(folder):
    """Of the evaluation and of the audit."""
    for name in ("metrics.json", "evaluation/settings.json"):
        edit(folder / name, checkpoint_sha256="0" * 64)
    with refused(
        ResultError,
        where=folder / "metrics.json",
        what="checkpoint",
        found="0" * 12,
    ):
        whole(folder)
    edit(folder / "audit.json", checkpoint_sha256="0" * 64)
    with refused(ResultError, where=folder / "audit.json", what="checkpoint"):
        whole(folder, metrics=None)


DAMAGED = {
    "no images": ({"n": 0}, {"what": "n: ", "found": "0"}),
    "a share outside its bounds": ({"pgd_accuracy": 0.99}, {"what": "pgd_accuracy"}),
    "a share that is missing": ({"pgd_accuracy": None}, {"what": "pgd_accuracy"}),
    "no checkpoint": ({"checkpoint_sha256": None}, {"what": "checkpoint_sha256"}),
    "no attacks": ({"attacks": None}, {"what": "attacks"}),
}


@pytest.mark.parametrize(("changes", "fields"), DAMAGED.values(), ids=DAMAGED.keys())
def test_impossible_numbers_are_refused(folder, changes, fields):
    """They were edited, or written by something else."""
    edit(folder / "metrics.json", **changes)
    with refused(ResultError, where=folder / "metrics.json", **fields):
        whole(folder)


def test_a_verdict_that_contradicts_its_findings_is_refused(folder):
    """`passed` is what people grep for."""
    edit(folder / "audit.json", passed=True)
    with refused(ResultError, where=folder / "audit.json", what="passed"):
        whole(folder)


def test_numbers_without_their_settings_are_refused(folder):
    """Without these nobody knows whose they are."""
    (folder / "evaluation/settings.json").unlink()
    with refused(MissingError, where=folder / "evaluation/settings.json", what="file"):
        whole(folder)


# ---------------------------------------------------------------- for programs, and strangers


def test_hugging_face_reads_the_front_matter(folder):
    """Licence, tags, and the numbers as results of a model index."""
    pass_audit(folder)
    text = format_card(whole(folder, licence="Apache-2.0", name="Robust <digits>"))
    data = huggingface_hub.ModelCard(text).data
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-classification")
    assert {"adversarial-robustness", "soft-labels"} <= set(data.tags)
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values == {
        "clean accuracy": 0.98,
        "robust accuracy, pgd, linf, eps 0.1": 0.7,
        "robust accuracy, autoattack, linf, eps 0.1": 0.68,
    }
    assert {result.dataset_name for result in data.eval_results} == {"digits, 500 test images"}
    # The name of training images with wrong labels is not that of the test images.
    edit(folder / "evaluation/settings.json", dataset="right digits")
    data = huggingface_hub.ModelCard(format_card(whole(folder))).data
    assert {result.dataset_type for result in data.eval_results} == {"right digits"}


# What a card is made of, beside names.
USUAL = {"text", "code_inline", "text_special", "softbreak", "strong_open", "strong_close", "fence"}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_names_from_strangers_are_only_shown(folder, hostile):
    """Classes, data set, parameters, findings, flags, file and model names."""
    facts = whole(folder, name=hostile, licence=hostile)
    known = facts.run.facts
    run = known.model_copy(
        update={
            "class_names": (hostile, "bee"),
            "architecture": hostile,
            "data": known.data.model_copy(update={"dataset": hostile}),
            "params": {hostile: hostile, "label_kind": hostile, "norm": hostile, "eps": 0.1},
            "validation": {hostile: 0.5},
            "software": {hostile: hostile},
            "hardware": {hostile: hostile},
        }
    )
    finding = facts.audit.findings[0].model_copy(update={"name": hostile})
    measured = facts.evaluation
    metrics = measured.metrics.model_copy(update={"not_measured": (hostile,), "norm": hostile})
    settings = measured.settings.model_copy(
        update={
            "flags": (hostile,),
            "autoattack_version": hostile,
            "dataset": hostile,
            "software": {hostile: hostile},
        }
    )
    facts = dataclasses.replace(
        facts,
        run=dataclasses.replace(facts.run, facts=run),
        file_name=hostile,
        audit=facts.audit.model_copy(update={"findings": (finding,)}),
        evaluation=dataclasses.replace(measured, settings=settings, metrics=metrics),
    )
    text = format_card(facts)
    head, page = text.removeprefix("---\n").split("\n---\n", 1)
    huggingface_hub.ModelCard(text)
    assert "\n---" not in head
    assert kinds(page) <= USUAL
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert html.count("<h2>") == 8


def test_equal_files_give_an_equal_card(folder):
    """No dates, paths or hosts."""
    text = format_card(whole(folder))
    assert text == format_card(whole(folder))
    assert str(folder) not in text
    assert isinstance(whole(folder).audit, Audit)


@pytest.mark.parametrize(
    ("epoch", "when"),
    [(4, "from before it"), (6, "not from before it"), (None, "not recorded to be from before it")],
)
def test_a_collapse_of_training_is_told(folder, epoch, when):
    """In one line, with whether the checkpoint is from before it; else nothing is said of it."""
    facts = gather_card(folder / "model.safetensors")
    assert "collapsed" not in format_card(facts)
    seen = CollapseFacts(epoch=6, robust_accuracy=0.004, attack_accuracy=0.84)
    told = {"catastrophic_overfitting": seen, "epoch": epoch}
    run = dataclasses.replace(facts.run, facts=facts.run.facts.model_copy(update=told))
    assert (
        "**Training collapsed at epoch 7 (catastrophic overfitting): PGD left 0.4% right, the "
        f"training attack 84.0%. This checkpoint is {when}.**"
    ) in format_card(dataclasses.replace(facts, run=run))


def test_warnings_of_the_evaluation_are_on_the_card(folder):
    """AutoAttack's are its own; an attack that fails comes first."""
    edit(folder / "metrics.json", warnings=[f"2 of 9 stand: {ATTACK_FAILS}", FLAG])
    text = format_card(whole(folder))
    assert "**The robust accuracy cannot be believed: the attack fails.**" in text
    assert f"**The evaluation warns:** `2 of 9 stand: {ATTACK_FAILS}`" in text
    assert text.count("Square is better") == 1
    edit(folder / "metrics.json", warnings=["the scale is wrong"])
    assert "The attack fails" not in format_card(whole(folder))


@pytest.mark.parametrize("doubt", ["audit", "training images"])
def test_what_cannot_be_believed_is_not_in_the_front_matter(folder, doubt):
    """A leaderboard would show the number alone."""
    if doubt == "training images":
        pass_audit(folder)
        edit(folder / "metrics.json", warnings=[on_training(N)])
    text = format_card(whole(folder))
    assert "cannot be believed" in text
    assert "model-index" not in text


def test_a_quick_look_is_not_in_the_front_matter(folder):
    """Programs that read it know no warning; people are told."""
    pass_audit(folder)
    assert "model-index" in format_card(whole(folder))
    edit(folder / "metrics.json", quick=True)
    text = format_card(whole(folder))
    assert "model-index" not in text
    assert "**A quick first look, no result.**" in text
