"""Typed, validated view of params.yaml: one class per stage, validated once at the edge.

Every field says its meaning, unit and special values; unknown keys are refused. The same
fields are the options of the stage's command.
"""

from pipeline.params.evaluate import EvaluateParams
from pipeline.params.file import (
    Common,
    Params,
    load_params,
    parse_params,
    parse_standalone,
    read_yaml,
    require_named,
)
from pipeline.params.fit import FitParams
from pipeline.params.label import LabelParams
from pipeline.params.prepare import PrepareParams
from pipeline.params.report import ReportParams
from pipeline.params.section import Section
from pipeline.params.teacher import TeacherParams
from pipeline.params.train import TrainParams

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
    "read_yaml",
    "require_named",
]
