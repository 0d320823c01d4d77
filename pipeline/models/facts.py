"""What a checkpoint says of itself: JSON under one key of its safetensors metadata.

Nothing here loads torch: reports, comparisons and cards read facts alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import safetensors
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltd_pipe.errors import (
    CheckpointError,
    MissingError,
    parse_document,
    reason_of,
    refuse_pointer,
)

KEY = "ltd_pipe"

# As large as images may be; a network that is hostile makes two of them.
Side = Annotated[int, Field(ge=1, le=8192)]
Share = Annotated[float, Field(ge=0, le=1)]


class CheckpointFacts(BaseModel):
    """Everything needed to rebuild the classifier, then facts about how it came to be."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    format: Literal["ltd-classifier"]
    # Version 2 has `columns`, which a reader of version 1 would leave out.
    version: Literal[1, 2]
    architecture: str = Field(max_length=200)
    num_classes: int = Field(ge=2)
    class_names: tuple[str, ...]
    shape: tuple[Side, Side, Side]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = Field(gt=0)
    columns: tuple[int, ...] | None = None
    # safetensors has no checksum: without this a flipped byte would load as another weight.
    weights_sha256: str

    @model_validator(mode="after")
    def _one_name_per_class(self) -> CheckpointFacts:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes but {len(self.class_names)} names")
        return self

    @classmethod
    def read(cls, path: Path, remedy: str = "Pass --arch NAME, its network.") -> Self:
        """Read them from a checkpoint, whose weights are not looked at.

        `remedy` is for weights of another project.

        Raises
        ------
        MissingError
            When there is no such file.
        CheckpointError
            When it is of another kind or version, or damaged.
        """
        if is_pickle(path):
            raise CheckpointError(
                path,
                "is a pickle, which can hold code and is never loaded as it is",
                remedy=remedy,
            )
        metadata = _read_metadata(path)
        if KEY not in metadata:
            raise CheckpointError(
                path,
                "holds weights without a description of their network",
                remedy=remedy,
            )
        return parse_document(metadata[KEY], cls, path, CheckpointError, name=f"metadata '{KEY}'")


# Parameters that may be `auto`, and where a checkpoint says what that was.
_MEASURED = {"precision": "precision", "channels_last": "channels_last", "compile": "compiled"}
_LABEL_NAMES = {
    "ltd": "soft labels",
    "live": "soft labels of a teacher in the run",
    "adr": "soft labels of its own average",
    "smooth": "smoothed labels",
    "onehot": "one-hot labels",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class DataFacts(_Part):
    """The images that a model was trained on."""

    dataset: str
    fingerprint: str


class UsedLabels(_Part):
    """The store that a student was trained on."""

    identity: str
    temperature: float
    mean_top_probability: Share | None = None


class AskedTeacher(_Part):
    """The teacher that was asked while a student was trained."""

    sha256: str


class CollapseFacts(_Part):
    """Where training was seen to have learnt to fool its own attack; epochs from 0."""

    epoch: int
    robust_accuracy: Share
    attack_accuracy: Share


class RunFacts(CheckpointFacts):
    """What a checkpoint says of its training, too; what is None was not said."""

    kind: str | None = None
    seed: int | None = None
    params: dict[str, Any] = Field({})
    data: DataFacts | None = None
    validation_fraction: Share | None = None
    labels: UsedLabels | None = None
    teacher: AskedTeacher | None = None
    epoch: int | None = None
    validation: dict[str, float] = Field({})
    catastrophic_overfitting: CollapseFacts | None = None
    clean_accuracy: Share | None = None
    expected_calibration_error: Share | None = None
    n: int | None = Field(None, ge=0)
    software: dict[str, str] = Field({})
    hardware: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _with_what_was_measured(cls, facts: Any) -> Any:
        """In `params`, what `auto` turned out to be: two runs may have measured differently."""
        known = facts if isinstance(facts, dict) else {}
        params, passes = known.get("params"), known.get("passes")
        if not (isinstance(params, dict) and isinstance(passes, dict)):
            return facts
        measured = {
            name: passes[key]
            for name, key in _MEASURED.items()
            if params.get(name) == "auto" and key in passes
        }
        return {**facts, "params": params | measured}

    @property
    def label_name(self) -> str:
        """What kind of labels it was trained on, in words."""
        return _LABEL_NAMES.get(str(self.params.get("label_kind")), "labels")

    @property
    def threat_model(self) -> dict[str, Any] | None:
        """Norm, and eps in pixel units, that it was trained in; None: on clean images."""
        eps = self.params.get("eps")
        if self.kind != "student" or not isinstance(eps, int | float):
            return None
        return {"norm": str(self.params.get("norm", "linf")), "eps": float(eps)}


def read_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's facts as plain values; see `CheckpointFacts.read`."""
    return CheckpointFacts.read(path).model_dump(mode="json")


def is_own(path: Path) -> bool:
    """Whether a file is a checkpoint of this package, and so describes itself.

    Raises
    ------
    MissingError, CheckpointError
        When it is no file, or damaged.
    """
    return not is_pickle(path) and KEY in _read_metadata(path)


def seen_instead(path: Path, fingerprint: str, fraction: float) -> str | None:
    """What a checkpoint may have been trained on, in place of leaving a validation split out.

    None where it says that it left just that out: the `fraction` of images with this fingerprint.
    Raises as `RunFacts.read`.
    """
    known = RunFacts.read(path) if is_own(path) else None
    if known is None or known.data is None or known.validation_fraction is None:
        return "weights that do not say what they were trained on"
    if known.data.fingerprint != fingerprint or known.validation_fraction != fraction:
        data = known.data
        return f"{known.validation_fraction:g} of {data.dataset} {data.fingerprint[:12]}…"
    began = known.params.get("init")
    return f"weights that began with {began}" if began else None


def is_pickle(path: Path) -> bool:
    """Whether a file looks like one of torch.save's or Python's pickles; as `is_own`."""
    if path.is_dir():
        inside = path / "model.safetensors"
        named = inside if inside.exists() else "the checkpoint inside it"
        raise CheckpointError(path, "is a folder", remedy=f"Name {named}.")
    if not path.is_file():
        raise MissingError(path, "no such file")
    refuse_pointer(path, path, CheckpointError)
    with path.open("rb") as handle:
        head = handle.read(9)
    # safetensors begins with the length of its JSON, whose bytes may be those of a pickle.
    is_safetensors = head[4:] == b"\0\0\0\0{"
    # A zip archive, as torch.save writes them, and a bare pickle (protocol 2 or later).
    return head.startswith((b"PK", b"\x80")) and not is_safetensors


def _read_metadata(path: Path) -> dict[str, str]:
    with open_safetensors(path, "np") as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def open_safetensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a file with safetensors, which bounds the header by the file's size."""
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path,
            f"is not a whole safetensors file ({reason_of(error)})",
            remedy="Copy it again from where it came from.",
        ) from error
