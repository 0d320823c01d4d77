"""Typed, validated view of params.yaml: one class per stage, validated once at the edge.

Every field says its meaning, unit and special values; unknown keys are refused. The same
fields are the options of the stage's command.
"""

from ltd_pipe.params.file import (
    Common,
    Params,
    load_params,
    parse_params,
    parse_standalone,
    read_stages,
    read_yaml,
    require_named,
)
from ltd_pipe.params.fit import FitParams, TeacherParams, TrainParams
from ltd_pipe.params.sections import (
    EvaluateParams,
    LabelParams,
    PrepareParams,
    ReportParams,
    Section,
)

__all__ = [
    "Common",
    "EvaluateParams",
    "FitParams",
    "LabelParams",
    "Params",
    "PrepareParams",
    "ReportParams",
    "Section",
    "TeacherParams",
    "TrainParams",
    "load_params",
    "parse_params",
    "parse_standalone",
    "read_stages",
    "read_yaml",
    "require_named",
]
