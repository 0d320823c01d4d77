"""What a checkpoint says about itself: JSON under one key of the safetensors metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.models.classifier import Classifier

__all__ = ["KEY", "Header", "describe", "parse_header"]

KEY = "ltd_pipe"
# Version 2 has `columns`, which a reader of version 1 would leave out.
_FORMAT, _VERSION = "ltd-classifier", 2

Side = Annotated[int, Field(ge=1, le=1024)]


class Header(BaseModel):
    """Everything needed to rebuild the classifier, then facts about how it came to be."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    format: Literal["ltd-classifier"]
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
    def _agrees_with_itself(self) -> Header:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes but {len(self.class_names)} names")
        return self


def describe(model: Classifier, weights_sha256: str, facts: Mapping[str, Any]) -> str:
    """The header's JSON: equal models and facts give equal text.

    Raises
    ------
    ModelError
        When a fact contradicts the model.
    """
    own = {
        "format": _FORMAT,
        "version": 1 if model.columns is None else _VERSION,
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "class_names": list(model.class_names),
        "shape": list(model.shape),
        # A float32 is exact as a Python float, and JSON keeps those to the last digit.
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "temperature": model.temperature,
        "weights_sha256": weights_sha256,
    }
    if model.columns is not None:
        own["columns"] = model.columns.tolist()
    given = json.loads(json.dumps(dict(facts), allow_nan=False))
    for name in own.keys() & given.keys():
        if given[name] != own[name]:
            raise ModelError(
                f"fact '{name}'", "contradicts the model", expected=own[name], found=given[name]
            )
    return json.dumps(own | given, sort_keys=True, allow_nan=False)


def parse_header(text: str, path: Path) -> Header:
    """Read the header back.

    Raises
    ------
    CheckpointError
        When it is no JSON, of a newer version, or describes no classifier.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"metadata '{KEY}' is not JSON ({error})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > _VERSION:
        raise CheckpointError(
            path,
            "was written by a newer ltd-pipe",
            expected=f"version {_VERSION}",
            found=f"version {version}",
            remedy="Upgrade ltd-pipe.",
        )
    try:
        return Header.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "header"
        raise CheckpointError(path, f"metadata '{KEY}': {place}: {first['msg']}") from error
