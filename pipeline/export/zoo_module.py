"""A Python file that holds a classifier without this package: its network, and what is around.

A network of ours is the text of its own file, so that there is no second version of it; one of
timm or torchvision is a call. The file holds numbers and code, nothing that a data set or a
person has named.
"""

from __future__ import annotations

import ast
import inspect
import sys
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.external import timm_options, torchvision_options
from pipeline.models.registry import own_call

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["module_text"]

_HEAD = '''"""A robust image classifier, for RobustBench and all who have torch{needs}.

    from model import load_model
    model = load_model()      # in evaluation mode; takes images in [0, 1], gives logits

Normalisation and temperature are inside. `Model()` has new weights and takes those of
weights.pt by `load_state_dict`, as RobustBench's model zoo does it. Written by ltd-pipe, whose
code this is, under the Apache License 2.0.
"""

from __future__ import annotations

from pathlib import Path
'''
_TAIL = '''

class Model(nn.Module):
    """The network with its normalisation before and its temperature behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = {call}
        mean, std = torch.tensor({mean}), torch.tensor({std})
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)
        self.temperature = {temperature}
        # The weights are the network's own, without a prefix; RobustBench adds `model.` to
        # those of ImageNet and takes it away from all others.
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, {num_classes}) for images of shape (B, {shape}), in [0, 1]."""
        return self.model((images - self.mean) / self.std){order} / self.temperature


def _add_prefix(module, state_dict, prefix, *more):
    del more
    if not all(prefix + name in state_dict for name in module.state_dict()):
        for name in list(state_dict):
            state_dict[prefix + "model." + name[len(prefix) :]] = state_dict.pop(name)


def load_model(weights=Path(__file__).with_name("weights.pt")):
    """The classifier with its weights, on the CPU and in evaluation mode."""
    model = Model()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()
'''


def module_text(model: Classifier) -> str:
    """The text of a module with `Model` and `load_model`; needs torch, and timm or torchvision.

    Parameters
    ----------
    model : Classifier

    Raises
    ------
    ModelError
        When it is a network of RobustBench's zoo.
    """
    package, colon, name = model.architecture.partition(":")
    if package == "robustbench":
        raise ModelError(
            model.architecture,
            "is a network of RobustBench's own zoo",
            remedy="Give its load_model() the weights, or use --to onnx or torchscript.",
        )
    if not colon:
        return _around(model, *_own_network(model))
    if package == "timm":
        options: dict[str, Any] = {"pretrained": False}
        options |= timm_options(name, model.num_classes, model.shape)
        return _around(model, _imports("timm"), _call("timm.create_model", name, options), "timm")
    options = {"weights": None} | torchvision_options(name, model.num_classes, model.shape)
    imports = _imports("torchvision")
    return _around(
        model, imports, _call("torchvision.models.get_model", name, options), "torchvision"
    )


def _around(model: Classifier, network: str, call: str, package: str = "") -> str:
    tail = _TAIL.format(
        call=call,
        mean=model.mean.tolist(),
        std=model.std.tolist(),
        temperature=model.temperature,
        order="" if model.columns is None else f"[:, {model.columns.tolist()}]",
        num_classes=model.num_classes,
        shape=", ".join(map(str, model.shape)),
    )
    needs = f" and {package}" if package else ""
    return f"{_HEAD.format(needs=needs)}{network}{tail}"


def _imports(package: str) -> str:
    return f"\nimport {package}\nimport torch\nfrom torch import nn\n"


def _call(function: str, name: str, options: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{function}({name!r}, {given})"


def _own_network(model: Classifier) -> tuple[str, str]:
    network, arguments = own_call(model.architecture, model.num_classes, model.shape)
    source = inspect.getsource(sys.modules[network.__module__])
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"\n{_body(source)}\n", f"{network.__name__}({given})"


def _body(source: str) -> str:
    """A file without its docstring, `from __future__` and `__all__`: its own head has them."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        ours = (
            (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.ImportFrom) and node.module == "__future__")
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        )
        if ours:
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip()
